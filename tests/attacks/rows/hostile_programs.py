"""A signed release whose program is hostile: in its test on a node, and when it predicts."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import Ground
from tests.stand_ins.eim_program import write_program

from apiary.errors import EimError
from apiary.process.confinement import Kernel
from apiary.wire.messages import PictureShape
from apiary_edge.eim.client import EimRunner
from apiary_edge.releases.job import TrialJob, TrialModel
from apiary_edge.releases.selftest_process import TrialProcess
from apiary_edge.releases.state import TrialDone

TRIED = "key, pictures, network, sockets, other processes, setsid, its parent's memory and death signal"


def hostile(run: Callable[[Path, Path], str]) -> Outcome:
    """Beside a node's folder and two listeners; `run` gives the program's own report."""
    with (
        tempfile.TemporaryDirectory(prefix="apiary-hostile-") as temporary,
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as service,
    ):
        folder = Path(temporary)
        node = folder / "node"
        node.mkdir()
        (node / "key.pem").write_text("secret")
        (node / "picture.jpg").write_bytes(b"picture")
        service.bind(str(node / "service"))
        service.listen()
        program = write_program(
            folder / "model.eim", mode="hostile", outside=str(node), port=port.getsockname()[1]
        )
        said = run(program, folder)
        assert "it did nothing" in said, said
        assert (node / "picture.jpg").exists()
    return Outcome(TRIED, "their keys and pictures: the program itself reports that it did nothing")


@contextlib.contextmanager
def children_of(ground: Ground) -> Iterator[None]:
    """What this process starts in it is started as the ground does."""
    before = dict(os.environ)
    os.environ.update(ground.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@attack("a hostile program in a release's test", mend="confinement")
def hostile_trial(ground: Ground) -> Outcome:
    def run(program: Path, folder: Path) -> str:
        shape = PictureShape(height=6, width=8, channels=3)
        model = TrialModel(kind="eim", file=program, labels=["cat", "dog"], input=shape)
        trial = TrialProcess(60.0, nice=0)
        job = TrialJob(
            model=model,
            before=None,
            store=None,
            data_dir=None,
            folder_share=1.0,
            max_pictures=1,
            threads=1,
            out=folder / "result.json",
        )
        with children_of(ground):
            trial.start(job)
        end = time.monotonic() + 60
        while (told := trial.poll()) is None:
            assert time.monotonic() < end, "the test did not end"
            time.sleep(0.05)
        assert isinstance(told, TrialDone), told
        return told.failed or "it answered"

    return hostile(run)


@attack("a hostile program that predicts", mend="confinement")
def hostile_prediction(ground: Ground) -> Outcome:
    def run(program: Path, folder: Path) -> str:
        kernel = Kernel(0, "") if ground.without == "confinement" else None
        with EimRunner(program, kernel=kernel) as runner:
            try:
                return str(runner.classify(np.zeros((6, 8, 3), np.uint8)))
            except EimError as e:
                return str(e)

    return hostile(run)
