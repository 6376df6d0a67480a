"""One node's part in a round as a function: trained, clipped, encoded. Child and simulator call it."""

from collections.abc import Callable

from apiary.learn.clip import clipped
from apiary.learn.fit import Fit, FitProgress, fit, node_seed
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes.base import Trainer
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.messages import Plan


def make_update(
    trainer: Trainer,
    manifest: Manifest,
    plan: Plan,
    data: Dataset,
    before: Weights,
    *,
    run: str,
    round_: int,
    node: str,
    max_norm: float | None,
    progress: Callable[[FitProgress], None] | None = None,
    enough: Callable[[int], bool] = lambda epoch: False,
) -> tuple[bytes, Fit]:
    """The update's document as it goes on the wire, and what training gave.

    Deterministic in its arguments and the runtime: seed, round and node decide what is drawn. The update is
    clipped to a norm of `max_norm`; `progress` and `enough` are those of `fit`. Raises DataError, ModelError.
    """
    seed = node_seed(plan.seed, round_, node)
    result = fit(trainer, manifest, plan, data, before, seed=seed, progress=progress, enough=enough)
    sent = manifest.update_shapes
    update = Weights({name: tensor for name, tensor in (result.weights - before).items() if name in sent})
    if max_norm is not None:
        update = clipped(update, max_norm, blob.codec(plan.codec))
    about = {"run": run, "round": round_, "node": node, "samples": result.samples}
    return blob.encode(update, codec_name=plan.codec, about=about), result
