"""Pictures changed at random: what each change does, and that none changes what the others do."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from apiary.learn.augment import augment, augments, mixed
from apiary.wire.messages import Plan


def noise(count: int = 64, side: int = 10, channels: int = 3) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def changed(x: Any, seed: int = 1, **plan: Any) -> Any:
    return augment(x, np.random.default_rng(seed), Plan(**plan))


EVERY: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "shift": {"shift": 0.2},
    "rotate": {"rotate": 20},
    "zoom": {"zoom": 0.2},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.4},
    "erase": {"erase": 0.3},
    "all": {
        "flip": True,
        "shift": 0.1,
        "rotate": 9,
        "zoom": 0.1,
        "brightness": 0.1,
        "contrast": 0.2,
        "erase": 0.1,
    },
}


@pytest.mark.parametrize("plan", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_is_by_seed_keeps_shape_and_type_and_leaves_its_input(
    plan: dict[str, Any], channels: int
) -> None:
    x = noise(channels=channels)
    kept = x.copy()
    first, again, other = changed(x, **plan), changed(x, **plan), changed(x, seed=2, **plan)
    assert first.shape == x.shape and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, x)
    assert np.array_equal(x, kept)
    assert augments(Plan(**plan))


def test_without_any_nothing_changes() -> None:
    assert not augments(Plan())
    assert np.array_equal(changed(noise()), noise())


def test_a_plan_of_the_version_before_gives_the_same_pictures() -> None:
    """The digest is that of the pictures that 0.1 trained on: runs of before go on to the same bits."""
    x = changed(noise(8), flip=True, shift=0.15)
    assert hashlib.sha256(x.tobytes()).hexdigest() == (
        "99d44865128f069a028c22772e5064fe5299aa1be3b88282a7875c78d5e0c2aa"
    )


def test_augment_flips_and_moves_bytes_without_changing_its_input() -> None:
    x = np.random.default_rng(0).integers(0, 256, (64, 10, 10, 3), np.uint8)
    kept = x.copy()
    flipped = augment(x, np.random.default_rng(1), Plan(flip=True))
    same = (flipped == x).all(axis=(1, 2, 3))
    assert 16 < same.sum() < 48
    assert np.array_equal(flipped[~same], x[~same][:, :, ::-1])
    moved = augment(x, np.random.default_rng(1), Plan(shift=0.2))
    assert moved.dtype == np.uint8
    assert np.array_equal(x, kept)
    # Every picture is some move of at most two pixels, its edge repeated.
    for before, after in zip(x, moved, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
        moves = [padded[i : i + 10, j : j + 10] for i in range(5) for j in range(5)]
        assert any(np.array_equal(after, m) for m in moves)
    assert np.array_equal(augment(x, np.random.default_rng(1), Plan()), x)


def test_turning_by_nothing_and_scaling_by_one_is_the_picture() -> None:
    x = noise(4)
    assert np.array_equal(changed(x, rotate=1e-9), x)


def test_a_turn_by_a_half_is_the_picture_upside_down() -> None:
    from apiary.learn.augment import _turned

    x = noise(1)[0]
    assert np.abs(_turned(x, np.pi, 1.0).astype(int) - x[::-1, ::-1]).max() <= 1
    assert np.abs(_turned(x, np.pi / 2, 1.0).astype(int) - np.rot90(x, -1)).max() <= 1


def test_a_larger_scale_shows_the_middle_larger() -> None:
    from apiary.learn.augment import _turned

    x = np.zeros((1, 21, 21, 1), np.uint8)
    x[0, 8:13, 8:13] = 255
    larger, smaller = (int((_turned(x[0], 0.0, s) > 127).sum()) for s in (2.0, 0.5))
    assert larger == pytest.approx(4 * 25, abs=25) and smaller == pytest.approx(25 / 4, abs=4)


def test_what_a_turn_opens_is_filled_by_the_edge() -> None:
    assert (changed(np.full((8, 12, 12, 3), 90, np.uint8), rotate=45, zoom=0.5) == 90).all()


def test_brightness_moves_every_pixel_alike_and_stays_within_a_byte() -> None:
    x = np.full((32, 4, 4, 3), 100, np.uint8)
    got = changed(x, brightness=0.2).astype(int)
    assert all(len(np.unique(one)) == 1 for one in got)
    assert 49 <= got.min() < 75 and 125 < got.max() <= 151
    white = changed(np.full((32, 4, 4, 3), 250, np.uint8), brightness=1.0)
    assert white.max() == 255


def test_contrast_keeps_the_mean() -> None:
    x = np.full((32, 4, 4, 1), 100, np.uint8)
    x[:, 2:] = 140
    got = changed(x, contrast=0.5).astype(float)
    assert np.allclose(got.mean(axis=(1, 2, 3)), 120, atol=0.6)
    spread = got[:, 2:].mean(axis=(1, 2, 3)) - got[:, :2].mean(axis=(1, 2, 3))
    assert 19 <= spread.min() < 30 and 50 < spread.max() <= 61


def test_erasing_greys_out_at_most_so_much_of_half_of_the_pictures() -> None:
    x = noise(400, 20)
    gone = (changed(x, erase=0.25) != x).any(axis=-1).mean(axis=(1, 2))
    assert 0.35 < (gone > 0).mean() < 0.55
    assert 0.1 < gone.max() <= 0.3


def test_mixing_keeps_each_label_with_its_share_and_leaves_what_fills_the_batch() -> None:
    x = np.stack([np.full((3, 3, 1), v, np.uint8) for v in (0, 100, 200, 255)])
    y = np.eye(4, dtype=np.float32)
    w = np.array([0.5, 0.25, 0.25, 0], np.float32)
    mix, labels, weights = mixed(x, y, w, np.random.default_rng(3), alpha=0.4, real=3)
    assert np.allclose(labels.sum(axis=1), 1)
    assert (np.diag(labels) >= 0.5).all() and labels[:3, 3].max() == 0
    assert np.array_equal(mix[3], x[3]) and weights[3] == 0 and labels[3].tolist() == [0, 0, 0, 1]
    expected = labels @ x.reshape(4, -1).astype(np.float32)
    assert np.abs(mix.reshape(4, -1) - expected).max() <= 0.5 + 1e-3
    assert np.allclose(weights[:3], (labels @ w)[:3], atol=1e-6)
    assert len(np.unique(np.round(labels.max(axis=1)[:3], 3))) > 1
