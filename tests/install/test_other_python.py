"""The wheel on the newest Python of Raspberry Pi OS: `apiary-fl[edge]` installs, and a node trains there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.builds import LABELS, built_once, small

from apiary.process.child import light_environment
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import Built
from apiary_edge.training.job import TrainingEvent, TrainJob

ROOT = Path(__file__).resolve().parents[2]
PLAN = Plan(epochs=2, batch_size=8, learning_rate=0.01, seed=3, validation_share=0.2)

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


def find_python(version: str) -> Path | None:
    """An interpreter of this version that runs, on the path or where pyenv keeps them."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
    named = shutil.which(f"python{version}")
    for candidate in [*pyenv, *([Path(named)] if named else [])]:
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if said.returncode == 0 and version in said.stdout:
            return candidate
    return None


@pytest.fixture(scope="module")
def node_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds nothing but the wheel with its extra `edge`."""
    python = find_python("3.13")
    if python is None:
        pytest.skip("no Python 3.13 on this machine")
    folder = tmp_path_factory.mktemp("python-3.13")
    _run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT])
    (wheel,) = folder.glob("apiary_fl-*.whl")
    _run([python, "-m", "venv", folder / "venv"])
    inside = folder / "venv" / "bin" / "python"
    _run([inside, "-m", "pip", "install", "-q", f"{wheel}[edge]"])
    return inside


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A small CNN as the coordinator exports it."""
    return built_once(small("edge_cnn", tmp_path_factory), tmp_path_factory)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty dark and forty light pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label, mean in zip(LABELS, (60, 190), strict=True):
        (folder / label).mkdir()
        for i in range(40):
            noise = rng.normal(mean, 40, size=(16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / label / f"{i}.png")
    return folder


def test_a_node_trains_on_another_python_and_agrees_with_this_one(
    node_python: Path, built: Built, pictures: Path, tmp_path: Path
) -> None:
    there = _train(node_python, built, pictures, tmp_path / "there")
    here = _train(Path(sys.executable), built, pictures, tmp_path / "here")
    assert list(there) == list(here) == list(built.manifest.shapes)
    assert max(float(np.abs(t).max()) for t in there.values()) > 0.01
    for name, tensor in there.items():
        # Adam turns the last bits of two runtimes into up to a learning rate a step; 16 steps were taken.
        np.testing.assert_allclose(tensor, here[name], atol=0.02, err_msg=name)


def test_the_nodes_environment_holds_no_tensorflow(node_python: Path) -> None:
    listed = _run([node_python, "-m", "pip", "list", "--format=freeze"]).lower()
    assert "ai-edge-litert" in listed
    assert not {"tensorflow", "keras", "matplotlib", "scikit-learn"} & {
        line.split("==")[0] for line in listed.splitlines()
    }


def test_the_installed_command_works_without_the_checkout(node_python: Path, tmp_path: Path) -> None:
    command = node_python.parent / "apiary"
    assert _run([command, "--version"], cwd=tmp_path).startswith("apiary ")
    assert "pictures" in _run([command, "edge", "--help"], cwd=tmp_path)


def _train(python: Path, built: Built, pictures: Path, folder: Path) -> Weights:
    folder.mkdir()
    model = folder / "model.blob"
    model.write_bytes(blob.encode(built.initial))
    job = TrainJob(
        run="run",
        round=1,
        node="pi-1",
        plan=PLAN,
        manifest=built.manifest_file,
        trainer=built.trainer,
        base=None,
        base_digest=None,
        model=model,
        data_dir=pictures,
        cache_dir=folder / "cache",
        cache_mb=16,
        out=folder,
        runtime="litert",
        threads=1,
    )
    (folder / "job.json").write_text(job.model_dump_json())
    told = _run([python, "-m", "apiary_edge.training.worker", folder / "job.json"], cwd=folder)
    last = TrainingEvent.parse(told.splitlines()[-1].encode())
    assert last is not None, told
    assert last.kind == "done", last.text
    return blob.decode((folder / "update.blob").read_bytes(), who="test").weights


def _run(command: list[str | Path], cwd: Path | None = None) -> str:
    ours = ("PYTHON", "PYENV", "APIARY_")
    environment = {k: v for k, v in light_environment().items() if not k.startswith(ours)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return done.stdout
