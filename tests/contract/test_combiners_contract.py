"""What every combiner owes the coordinator, whichever file it comes from."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stand_ins.updates import SHAPES, UpdatesInMemory, drawn, flat, spooled, weighed

from apiary.plugins import load, names
from apiary.tensors import Shapes, Weights
from apiary.wire import NodeId, blob
from apiary_coordinator.combiners import base

PACKAGE = "apiary_coordinator.combiners"
NAMES = names(PACKAGE)
CODECS = names("apiary.wire.codecs")


@pytest.fixture(params=NAMES)
def combiner(request: pytest.FixtureRequest) -> Any:
    return load(PACKAGE, request.param)


def streams(combiner: Any) -> bool:
    return getattr(combiner, "STREAMS", False)


def combined(combiner: Any, updates: Any) -> base.Combined:
    found: base.Combined = combiner.combine(updates, combiner.Options())
    return found


def test_there_are_those_that_the_manual_names() -> None:
    assert {"mean", "trimmed_mean", "median", "geometric_median", "multi_krum"} <= set(NAMES)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 11])
def test_shapes_order_and_type_whatever_the_number(combiner: Any, count: int) -> None:
    """One update fewer than `least` may be left where decision 25 leaves some out."""
    updates = drawn(count, count)
    found = combined(combiner, UpdatesInMemory(updates, weighed(updates)))
    assert {name: tensor.shape for name, tensor in found.update.items()} == SHAPES
    assert list(found.update) == list(SHAPES)
    assert all(t.dtype == np.float64 and np.isfinite(t).all() for t in found.update.values())
    assert found.dropped.keys() < updates.keys()
    assert all(0 < len(why) <= 500 for why in found.dropped.values())


def test_updates_that_agree_are_their_own_combination(combiner: Any) -> None:
    one = drawn(1, 1)[NodeId("pi-000")]
    same = {NodeId(f"pi-{i}"): one for i in range(7)}
    found = combined(combiner, UpdatesInMemory(same, weighed(same)))
    assert np.allclose(flat(found.update), flat(one), rtol=1e-12, atol=1e-15)


def test_it_is_between_the_updates(combiner: Any) -> None:
    updates = drawn(2, 9)
    rows = np.stack([flat(u) for u in updates.values()]).astype(np.float64)
    found = flat(combined(combiner, UpdatesInMemory(updates, weighed(updates))).update)
    assert (found >= rows.min(axis=0) - 1e-9).all() and (found <= rows.max(axis=0) + 1e-9).all()


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_bits_from_the_spool_in_any_order(combiner: Any, codec: str, tmp_path: Path) -> None:
    updates = drawn(3, 8)
    samples = weighed(updates)
    decoded = {
        n: blob.decode(blob.encode(u, codec_name=codec), who="test").weights for n, u in updates.items()
    }
    expected = combined(combiner, UpdatesInMemory(decoded, samples))
    for seed in range(3):
        order = [list(updates)[i] for i in np.random.default_rng(seed).permutation(len(updates))]
        kind: dict[str, Any] = {"codec": codec, "summed": streams(combiner)}
        with spooled(tmp_path / "x.spool", updates, samples, order=order, **kind) as counted:
            found = combined(combiner, counted)
            assert flat(found.update).tobytes() == flat(expected.update).tobytes()
            assert found.dropped == expected.dropped


def test_left_out_means_as_if_it_had_never_come(combiner: Any, tmp_path: Path) -> None:
    updates = drawn(4, 8)
    samples, gone = weighed(updates), frozenset({NodeId("pi-001"), NodeId("pi-006")})
    rest = {node: u for node, u in updates.items() if node not in gone}
    expected = flat(combined(combiner, UpdatesInMemory(rest, samples)).update)
    with spooled(tmp_path / "x.spool", updates, samples, summed=streams(combiner)) as counted:
        before = flat(combined(combiner, counted).update)
        with counted.without(gone):
            assert counted.nodes == sorted(rest)
            if streams(combiner):  # another grid, chosen for eight
                assert np.allclose(flat(combined(combiner, counted).update), expected, atol=1e-9)
            else:
                assert flat(combined(combiner, counted).update).tobytes() == expected.tobytes()
        assert flat(combined(combiner, counted).update).tobytes() == before.tobytes()


def test_blocks_of_any_width_give_the_same(combiner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a coordinate becomes depends on no other; distances are the same up to rounding."""
    updates = drawn(5, 6)
    expected = combined(combiner, UpdatesInMemory(updates, weighed(updates)))
    monkeypatch.setattr(base, "BLOCK_NUMBERS", 18)
    assert base.block_width(6) == 3
    found = combined(combiner, UpdatesInMemory(updates, weighed(updates)))
    assert np.allclose(flat(found.update), flat(expected.update), rtol=1e-6, atol=1e-9)
    assert found.dropped.keys() == expected.dropped.keys()


def test_least_is_a_number_from_which_on_it_holds(combiner: Any) -> None:
    assert 1 <= combiner.least(combiner.Options()) <= 5


@pytest.mark.parametrize("liars", [1, 2])
def test_what_is_robust_bounds_what_liars_do(combiner: Any, liars: int) -> None:
    """However far away they are; the plain mean goes with them."""
    updates = drawn(6, 10)
    honest = flat(combined(combiner, UpdatesInMemory({n: updates[n] for n in list(updates)[liars:]})).update)
    moved = []
    for far in (1.0, 1e3):
        lying = {
            node: Weights({name: np.float32(-far) * t for name, t in u.items()}) if i < liars else u
            for i, (node, u) in enumerate(updates.items())
        }
        found = flat(combined(combiner, UpdatesInMemory(lying)).update)
        moved.append(float(np.linalg.norm(found - honest)))
    # So far apart lie the honest ones from each other.
    apart = float(np.linalg.norm(flat(updates[NodeId("pi-008")]) - flat(updates[NodeId("pi-009")])))
    assert (moved[1] < apart) != streams(combiner), moved


def test_memory_is_flat_in_the_number_of_updates(
    combiner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of float32, three of float64, as much for distances, and 8 bytes a weight for the outcome."""
    monkeypatch.setattr(base, "BLOCK_NUMBERS", 1 << 15)
    shapes: Shapes = {"w": (6_000,), "b": (99,)}

    def peak(count: int) -> int:
        updates = drawn(7, count, shapes=shapes)
        path = tmp_path / f"{count}.spool"
        with spooled(path, updates, weighed(updates), summed=streams(combiner)) as counted:
            tracemalloc.start()
            combined(combiner, counted)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    few, many = peak(10), peak(200)
    assert many < 3 * few, "of twenty times as many updates"
    assert many < (1 << 15) * (4 + 6 * 8) + 8 * 6_100 + 200_000
