"""The parts of a node that have to do with predictions, as its settings ask for them."""

from __future__ import annotations

from collections.abc import Callable

from apiary.settings import Settings
from apiary_edge.capture.process import CameraStatus
from apiary_edge.feature import Feature, Link
from apiary_edge.predicting.announcing import HomeAssistant
from apiary_edge.predicting.background import BackgroundTasks
from apiary_edge.predicting.background_job import chores_job
from apiary_edge.predicting.feature import PredictionFeature, PredictionStatus, PredictProcess, predict_job
from apiary_edge.predicting.follower import ModelFollower
from apiary_edge.samples.store import SampleStore
from apiary_edge.training.process import TrainingProcess


def predictions(
    settings: Settings,
    link: Link,
    store: SampleStore | None,
    wake: Callable[[], None],
    *,
    busy: Callable[[], bool],
    camera: CameraStatus | None,
    says: PredictionStatus,
    refused: Callable[[str, str], None],
) -> list[Feature]:
    """A node that neither predicts nor suggests nor tunes only learns which labels there are.

    `refused` hears the digest of a model that cannot be used or does not answer, and why.
    """
    edge = settings.edge
    job = chores_job(edge, store=store is not None)
    spare = job.suggest or job.personal.enabled
    found: list[Feature] = [
        ModelFollower(link, edge.state_dir, fetch=edge.predict.enabled or spare),
        HomeAssistant(link, edge.predict, edge.state_dir),
    ]
    if edge.predict.enabled:
        process = PredictProcess(predict_job(settings), wake)
        publish = edge.predict.publish
        found.append(
            PredictionFeature(link, process, camera=camera, says=says, publish=publish, refused=refused)
        )
    if spare:
        child = TrainingProcess(wake, edge.guest, module="apiary_edge.predicting.background_worker")
        limit_s = edge.train_timeout_s
        found.append(
            BackgroundTasks(job, child, store, link.node, busy=busy, samples=link.samples, limit_s=limit_s)
        )
    return found
