"""The pages of a node that runs, put together: the overview, labelling, and predictions where it predicts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from apiary_edge.labelling.app import Labelling
from apiary_edge.labelling.app import site as labelling_site
from apiary_edge.labelling.server import Stores
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.job import PredictJob
from apiary_edge.predicting.model_files import known_labels
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.portal import Overview, Portal, overview
from apiary_edge.web.site import Site
from apiary_edge.web.token import load_or_make

if TYPE_CHECKING:
    from apiary_edge.predicting.live import LivePredictor


LOOKED_BYTES: Final = 8 * 2**20
"""Pictures that somebody has looked at: of 640x480 some 100, or 20 seconds of a page that is not held."""


def pages(
    job: PredictJob,
    live: LivePredictor | None,
    camera: Callable[[], CameraState],
    *,
    looked_bytes: int = LOOKED_BYTES,
) -> Portal:
    """The WSGI application of a node's pages; of pictures that they were given it keeps `looked_bytes`.

    Raises StoreError.
    """
    edge = job.edge
    names = [edge.node_id, f"{edge.node_id}.local", *edge.page.names]
    gate = OwnerGate(load_or_make(edge.state_dir), edge.page.port, time.monotonic, time.sleep, names=names)
    stores = Stores(lambda: SampleStore.of_node(edge))
    stores().labels()  # a store that cannot be used is reported before the page is
    labelling = Labelling(stores, edge.store.held_out, modelled=lambda: known_labels(edge.state_dir))
    parts: dict[str, Site] = {"label": labelling_site(labelling, gate, edge.node_id)}
    roots: dict[str, str] = {}
    if live is not None:
        # Here: it brings numpy, which a node that does not predict need not hold.
        from apiary_edge.predicting.corrections import WHO, Corrections, LookedAt
        from apiary_edge.predicting.pages import KEYED
        from apiary_edge.predicting.pages import site as predictions_site

        looked = LookedAt(edge.capture.jpeg_quality, looked_bytes)
        corrections = Corrections(stores, looked, edge.camera.kind or WHO)
        parts["predictions"] = predictions_site(
            live, gate, corrections, node=edge.node_id, federation=job.federation, camera=camera
        )
        roots = dict.fromkeys(KEYED, "predictions")

    def summary() -> dict[str, Any]:
        counts = stores().counts()
        found = live.model if live is not None else None
        return {
            "waiting": counts.unlabelled + sum(counts.suggested.values()),
            "labelled": sum(counts.labelled.values()),
            "model": found.name if found is not None else None,
            "trouble": _trouble(live, camera()) if edge.camera.kind is not None else None,
        }

    home = overview(gate, Overview(edge.node_id, job.federation, parts, summary), edge.node_id)
    return Portal(home, parts, roots)


def _trouble(live: LivePredictor | None, camera: CameraState) -> str | None:
    """What somebody has to see to, or None."""
    return (live.trouble if live is not None else None) or (None if camera.works else camera.text)
