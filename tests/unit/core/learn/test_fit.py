"""Local training over a real, small trainer: softmax regression in numpy."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

from apiary.errors import DataError, ModelError
from apiary.learn.fit import FitProgress, class_weights, fit, node_seed, passes_of, predict, split, steps_of
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.learn.runtimes.base import StepControls
from apiary.tensors import Array, Weights
from apiary.wire.messages import Plan

LABELS = ("dark", "light")
MANIFEST = Manifest(
    recipe="regression",
    input=PictureInput(height=4, width=4, channels=1),
    labels=LABELS,
    tensors=(
        Tensor(name="kernel", shape=(16, 2), argument="p000"),
        Tensor(name="bias", shape=(2,), argument="p001"),
    ),
    batch_size=8,
    optimizer="sgd",
    momentum=0.9,
)
PLAN = Plan(epochs=5, batch_size=8, optimizer="sgd", momentum=0.9, learning_rate=0.5, validation_share=0.2)
START = Weights({"kernel": np.zeros((16, 2), np.float32), "bias": np.zeros(2, np.float32)})


class Regression:
    """Softmax regression, plain gradient descent; remembers the batches it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Array, Array, Array]] = []

    def set_weights(self, weights: Weights) -> None:
        self.kernel, self.bias = weights["kernel"].copy(), weights["bias"].copy()

    def get_weights(self) -> Weights:
        return Weights({"kernel": self.kernel, "bias": self.bias})

    def infer(self, x: Array) -> Array:
        z = x.reshape(len(x), -1) / 255 @ self.kernel + self.bias
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True), np.float32)

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        self.seen.append((x.copy(), y.copy(), w.copy()))
        p = self.infer(x)
        g = (p - y) * w[:, None]
        self.kernel -= np.float32(controls.learning_rate) * (x.reshape(len(x), -1) / 255).T @ g
        self.bias -= np.float32(controls.learning_rate) * g.sum(0)
        return float(-(w * np.log((p * y).sum(1))).sum())


def dataset(count: int = 43, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = (rng.integers(0, 120, (count, 4, 4, 1)) + 130 * y[:, None, None, None]).astype(np.uint8)
    return Dataset(x, y, tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in x), LABELS)


def test_training_learns_and_reports() -> None:
    steps: list[FitProgress] = []
    got = fit(Regression(), MANIFEST, PLAN, dataset(), START, seed=1, progress=steps.append)
    assert got.samples + got.validation_samples == 43
    assert got.accuracy is not None
    assert got.accuracy_before is not None
    assert got.accuracy > 0.9 > got.accuracy_before
    assert got.loss < 0.3
    assert [(s.epoch, s.epochs) for s in steps if s.fraction == 1] == [(e, 5) for e in range(1, 6)]
    assert all(0 < s.fraction <= 1 for s in steps)
    assert steps[-1].loss == got.loss
    assert steps[-1].accuracy == got.accuracy


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    plan = PLAN.model_copy(update={"flip": True, "shift": 0.3})
    runs = [fit(Regression(), MANIFEST, plan, dataset(), START, seed=s).weights for s in (1, 1, 2)]
    assert runs[0]["kernel"].tobytes() == runs[1]["kernel"].tobytes()
    assert runs[0]["kernel"].tobytes() != runs[2]["kernel"].tobytes()


def test_every_epoch_sees_every_training_picture_once_and_no_validation_picture() -> None:
    data, trainer = dataset(), Regression()
    fit(trainer, MANIFEST, PLAN, data, START, seed=3)
    train, held = split(data.digests, PLAN.validation_share)
    per_epoch = len(trainer.seen) // PLAN.epochs
    orders = []
    for epoch in range(PLAN.epochs):
        batches = trainer.seen[epoch * per_epoch : (epoch + 1) * per_epoch]
        real = [x[i].tobytes() for x, _, w in batches for i in range(len(w)) if w[i] > 0]
        assert Counter(real) == Counter(data.floats(train)[i].tobytes() for i in range(len(train)))
        orders.append(real)
    assert orders[0] != orders[1]
    held_pictures = {data.floats(held)[i].tobytes() for i in range(len(held))}
    assert held_pictures
    assert not held_pictures & {x[i].tobytes() for x, _, _ in trainer.seen for i in range(len(x))}


@pytest.mark.parametrize(("steps", "passes"), [(1, 1), (5, 1), (6, 2), (13, 3)])
def test_a_node_takes_as_many_steps_as_the_plan_says(steps: int, passes: int) -> None:
    data, trainer = dataset(), Regression()
    plan = PLAN.model_copy(update={"steps": steps, "validation_share": 0.0})
    data = data.take(np.arange(40))  # five steps of eight a pass
    told: list[FitProgress] = []
    got = fit(trainer, MANIFEST, plan, data, START, seed=3, progress=told.append)
    assert len(trainer.seen) == steps
    assert (got.samples, got.epochs) == (40, passes)
    assert (passes_of(plan, 40), steps_of(plan, 40)) == (passes, steps)
    assert [p.fraction for p in told if p.epoch == passes][-1] == 1
    whole = Regression()
    fit(whole, MANIFEST, PLAN.model_copy(update={"epochs": 3, "validation_share": 0.0}), data, START, seed=3)
    for (x, _, _), (other, _, _) in zip(trainer.seen, whole.seen, strict=False):
        assert x.tobytes() == other.tobytes(), "the same pictures in the same order as by epochs"


def test_steps_are_those_of_the_epochs_where_the_plan_has_none() -> None:
    plan = PLAN.model_copy(update={"epochs": 3})
    assert [steps_of(plan, n) for n in (1, 8, 9, 40)] == [3, 3, 6, 15]
    assert [passes_of(plan, n) for n in (1, 8, 9, 40)] == [3, 3, 3, 3]


def test_the_last_batch_is_filled_with_weight_zero() -> None:
    plan = PLAN.model_copy(update={"epochs": 1, "validation_share": 0.0})
    trainer = Regression()
    fit(trainer, MANIFEST, plan, dataset(11), START, seed=1)
    assert [x.shape for x, _, _ in trainer.seen] == [(8, 4, 4, 1)] * 2
    last = trainer.seen[-1][2]
    assert last.tolist() == [pytest.approx(1 / 3)] * 3 + [0] * 5


def test_fewer_pictures_than_half_a_batch_still_fill_it() -> None:
    trainer = Regression()
    got = fit(trainer, MANIFEST, PLAN.model_copy(update={"validation_share": 0.0}), dataset(2), START, seed=1)
    assert got.samples == 2
    assert trainer.seen[0][0].shape == (8, 4, 4, 1)
    assert got.accuracy is None


def test_class_weights_make_each_class_count_the_same() -> None:
    y = np.array([0] * 30 + [1] * 10)
    w = class_weights(y, 3)
    assert w.tolist() == [pytest.approx(2 / 3), 2.0, 0.0]
    assert w[y].mean() == pytest.approx(1)
    trainer = Regression()
    plan = PLAN.model_copy(update={"class_weights": True, "epochs": 1, "validation_share": 0.0})
    data = dataset(43)
    fit(trainer, MANIFEST, plan, data, START, seed=1)
    total = sum((y * w[:, None] * (w > 0).sum()).sum(0) for _, y, w in trainer.seen)
    assert total == pytest.approx([43 / 2, 43 / 2], rel=1e-5)


def test_the_split_goes_by_digest_alone() -> None:
    data = dataset(200)
    train, held = split(data.digests, 0.25)
    assert 25 < len(held) < 75
    assert not set(train) & set(held)
    sides = {data.digests[i]: True for i in held} | {data.digests[i]: False for i in train}
    more = (*dataset(100, seed=9).digests, *reversed(data.digests))
    validates = set(split(more, 0.25)[1])
    assert all((i in validates) == sides[d] for i, d in enumerate(more) if d in sides)


def test_at_least_one_picture_trains() -> None:
    digests = ("0" * 64, "0" * 51 + "1" + "0" * 12)
    train, held = split(digests, 0.9)
    assert train.tolist() == [1]
    assert held.tolist() == [0]
    assert split(("0" * 64,), 0.9)[0].tolist() == [0]


def test_node_seeds_differ_by_seed_round_and_node() -> None:
    seeds = {node_seed(*a) for a in [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b")]}
    assert len(seeds) == 4
    assert node_seed(0, 1, "a") == node_seed(0, 1, "a")


def test_training_ends_early_after_a_whole_epoch_where_time_is_short() -> None:
    asked: list[int] = []

    def enough(epoch: int) -> bool:
        asked.append(epoch)
        return epoch == 2

    result = fit(Regression(), MANIFEST, PLAN, dataset(), START, seed=1, enough=enough)
    assert (result.epochs, asked) == (2, [1, 2])
    two = PLAN.model_copy(update={"epochs": 2})
    whole = fit(Regression(), MANIFEST, two, dataset(), START, seed=1)
    assert all(np.array_equal(result.weights[n], whole.weights[n]) for n in whole.weights)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"batch_size": 4},
            ModelError,
            "the plan asks for .*'batch_size': 4.* exported for .*'batch_size': 8",
        ),
        ({"optimizer": "adam"}, ModelError, "'optimizer': 'adam'"),
        ({"momentum": 0.5}, ModelError, "'momentum': 0.5"),
        ({"min_samples": 50}, DataError, "asks for at least 50"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    change: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fit(Regression(), MANIFEST, PLAN.model_copy(update=change), dataset(), START, seed=1)


def test_weights_and_pictures_of_another_model_are_refused() -> None:
    other = Weights({"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(2, np.float32)})
    with pytest.raises(ModelError, match=r"tensor 'kernel' has shape \[16, 3\], expected \[16, 2\]"):
        fit(Regression(), MANIFEST, PLAN, dataset(), other, seed=1)
    data = dataset()
    wrong = Dataset(data.x[:, :3], data.y, data.digests, LABELS)
    with pytest.raises(DataError, match=r"shape \[3, 4, 1\], the model takes \[4, 4, 1\]"):
        fit(Regression(), MANIFEST, PLAN, wrong, START, seed=1)
    renamed = Dataset(data.x, data.y, data.digests, ("a", "b"))
    with pytest.raises(DataError, match="have the labels"):
        fit(Regression(), MANIFEST, PLAN, renamed, START, seed=1)


def test_weight_decay_and_the_gradients_bound_reach_each_step() -> None:
    given: list[StepControls] = []

    class Noting(Regression):
        def step(self, x: Any, y: Any, w: Any, controls: StepControls) -> float:
            given.append(controls)
            return super().step(x, y, w, controls)

    both = {"weight_decay": 0.01, "gradient_clip": 2.0}
    plan = PLAN.model_copy(update=both)
    manifest = MANIFEST.model_copy(update={"controls": ("weight_decay", "gradient_clip")})
    fit(Noting(), manifest, plan, dataset(), START, seed=1)
    assert given and set(given) == {StepControls(0.5, 0.0, 0.01, 2.0)}
    fit(Noting(), manifest, PLAN, dataset(), START, seed=1)  # a model that can, for a plan that does not
    assert given[-1].weight_decay == 0
    with pytest.raises(ModelError, match="uses weight_decay and gradient_clip, which the model was exported"):
        fit(Regression(), MANIFEST, plan, dataset(), START, seed=1)


def test_dropout_has_a_stream_of_its_own_for_each_step() -> None:
    class Noting(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.given: list[StepControls] = []

        def step(self, x: Any, y: Any, w: Any, controls: StepControls) -> float:
            self.given.append(controls)
            return super().step(x, y, w, controls)

    manifest = MANIFEST.model_copy(update={"noise": 3})
    plain, first, again, other = Noting(), Noting(), Noting(), Noting()
    fit(plain, MANIFEST, PLAN, dataset(), START, seed=1)
    for trainer, seed in ((first, 1), (again, 1), (other, 2)):
        fit(trainer, manifest, PLAN, dataset(), START, seed=seed)
    seeds = [controls.noise_seed for controls in first.given]
    assert len(set(seeds)) == len(seeds) == len(plain.given)
    assert first.given == again.given
    assert set(seeds).isdisjoint(controls.noise_seed for controls in other.given)
    # The same pictures, in the same order, as without dropout.
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first.seen, plain.seen, strict=True))
    assert {controls.noise_seed for controls in plain.given} == {0}


def test_noise_is_uniform_and_follows_from_its_seed() -> None:
    manifest = MANIFEST.model_copy(update={"noise": 1000})
    noise = StepControls(0.1, noise_seed=7).noise(manifest)
    assert noise.shape == (8, 1000) and noise.dtype == np.float32
    assert (noise.min() >= 0, noise.max() < 1, abs(float(noise.mean()) - 0.5) < 0.02) == (True, True, True)
    assert np.array_equal(noise, StepControls(0.5, noise_seed=7).noise(manifest))
    assert not np.array_equal(noise, StepControls(0.1, noise_seed=8).noise(manifest))


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    class Runaway(Regression):
        def step(self, x: Any, y: Any, w: Any, controls: StepControls) -> float:
            return float("nan")

    with pytest.raises(ModelError, match=r"ran away: loss nan in epoch 1; a learning rate below 0\.5"):
        fit(Runaway(), MANIFEST, PLAN, dataset(), START, seed=1)


class RunsAway(Regression):
    """Its last step looks well, and leaves a weight that is no number."""

    def get_weights(self) -> Weights:
        return Weights({"kernel": self.kernel, "bias": np.array([np.nan, 0.0], np.float32)})


def test_weights_that_are_not_finite_are_no_update_though_every_loss_was() -> None:
    with pytest.raises(ModelError, match="the weights hold NaN or infinity; lower the learning rate"):
        fit(RunsAway(), MANIFEST, PLAN, dataset(), START, seed=1)


def test_what_a_plan_asks_for_at_least_is_counted_after_the_split() -> None:
    data = dataset()
    train, held = split(data.digests, PLAN.validation_share)
    assert len(held) > 0
    enough = PLAN.model_copy(update={"min_samples": len(train)})
    assert fit(Regression(), MANIFEST, enough, data, START, seed=1).samples == len(train)
    more = PLAN.model_copy(update={"min_samples": len(train) + 1})
    with pytest.raises(DataError, match=f"{len(train)} pictures train \\({len(held)} are kept"):
        fit(Regression(), MANIFEST, more, data, START, seed=1)


def test_augmentation_of_features_is_ignored_with_a_warning() -> None:
    manifest = MANIFEST.model_copy(update={"features": 16})
    data = dataset()
    features = Dataset(data.floats(slice(None)).reshape(43, 16), data.y, data.digests, LABELS)
    got = fit(Regression(), manifest, PLAN.model_copy(update={"flip": True}), features, START, seed=1)
    assert "augmentation is ignored: the recipe" in got.warnings[0]


def test_predict_is_the_same_in_small_batches() -> None:
    trainer = Regression()
    trainer.set_weights(fit(Regression(), MANIFEST, PLAN, dataset(), START, seed=1).weights)
    data = dataset(37)
    assert np.allclose(predict(trainer, data), trainer.infer(data.floats(slice(None))), atol=1e-6)


def test_a_smoothed_label_is_spread_over_all_labels() -> None:
    seen: list[np.ndarray[Any, Any]] = []

    class Watched(Regression):
        def step(self, x: Any, y: Any, w: Any, controls: StepControls) -> float:
            seen.append(y.copy())
            return super().step(x, y, w, controls)

    fit(Watched(), MANIFEST, PLAN.model_copy(update={"label_smoothing": 0.2}), dataset(), START, seed=1)
    share = 0.2 / len(LABELS)
    for y in seen:
        assert np.allclose(np.unique(np.round(y, 6)), [share, 0.8 + share], atol=1e-6)
        assert np.allclose(y.sum(axis=1), 1)


def test_texts_are_not_turned_upside_down() -> None:
    letters = MANIFEST.input.model_copy(update={"letters": "abcd"})
    manifest = MANIFEST.model_copy(update={"input": letters})
    plain = fit(Regression(), manifest, PLAN, dataset(), START, seed=1)
    turned = PLAN.model_copy(update={"flip": True, "rotate": 90.0, "mix": 0.4})
    got = fit(Regression(), manifest, turned, dataset(), START, seed=1)
    assert "trains on texts" in got.warnings[0]
    assert all(np.array_equal(got.weights[n], plain.weights[n]) for n in plain.weights)
