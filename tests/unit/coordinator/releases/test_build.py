"""What a release is made of: a run's evaluated model, its verified program, or a file with labels."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.places import COLOURS
from tests.stand_ins.eim_program import write_program

from apiary.errors import ApiaryError, DataError, ModelError, PublishError, SettingsError
from apiary.settings import Settings, load_settings
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.releases.build import ReleaseRequest, from_file, from_run
from apiary_coordinator.run.finished import find_run

LABELS = ["red", "green", "blue"]
runs_here = pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in's program is for x86_64")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(**more: Any) -> Settings:
    return load_settings(None, {"publish.target": "runner-linux-x86_64", **more}).settings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "autumn"
    folder.mkdir(parents=True)
    for name in ("model.tflite", "model_int8.tflite"):
        shutil.copy(COLOURS / name, folder / name)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    told = {
        "run": "autumn",
        "contributors": {"1": ["a", "b"]},
        "tflite_accuracy": 0.97,
        "int8_accuracy": 0.96,
    }
    (folder / "summary.json").write_text(json.dumps(told))
    return folder


def program(folder: Path, **config: Any) -> Path:
    told = {"labels": LABELS, "width": 10, "height": 8, "tflite": str(COLOURS / "model.tflite"), **config}
    return write_program(folder / "model.eim", **told)


def published(run: Path, *, target: str = "runner-linux-x86_64", numbers: str = "float32") -> Path:
    built = program(run)
    record = PublishRecord(run, f"edge_impulse/{target}/{numbers}", {})
    record.done({"files": {built.name: sha256(built)}})
    return built


def test_a_run_without_a_program_gives_its_evaluated_model(run: Path) -> None:
    made = from_run(run, ReleaseRequest(), settings(), 1000.0)
    release = made.release
    assert made.file == run / "model.tflite"
    assert (release.name, release.kind, release.machine) == ("autumn-tflite", "tflite", None)
    assert (release.file.digest, release.file.bytes) == (sha256(made.file), made.file.stat().st_size)
    assert (release.labels, release.accuracy, release.contributors) == (LABELS, 0.97, 2)
    assert (release.input.height, release.input.width, release.input.channels) == (8, 10, 3)
    assert (release.created, release.expires, release.run) == (1000, None, "autumn")


def test_eight_bits_a_name_a_least_version_and_an_end_can_be_wished_for(run: Path) -> None:
    wish = ReleaseRequest(name="hats-3", numbers="int8", min_version="0.2", expires_days=2)
    release = from_run(run, wish, settings(), 1000.0).release
    assert (release.name, release.accuracy, release.min_version) == ("hats-3", 0.96, "0.2")
    assert release.expires == 1000 + 2 * 86400
    assert (
        from_run(run, ReleaseRequest(), settings(**{"release.expires_days": 1}), 0.0).release.expires == 86400
    )
    with pytest.raises(SettingsError, match=r"release 'no spaces' cannot be made of model.tflite"):
        from_run(run, ReleaseRequest.model_construct(name="no spaces"), settings(), 0.0)


def test_a_run_with_a_program_gives_that_and_the_model_where_it_is_wished_for(run: Path) -> None:
    built = published(run)
    made = from_run(run, ReleaseRequest(), settings(), 0.0)
    assert (made.file, made.release.kind, made.release.machine) == (built, "eim", "x86_64")
    assert made.release.name == "autumn-eim"
    assert from_run(run, ReleaseRequest(kind="tflite"), settings(), 0.0).release.kind == "tflite"
    other = settings(**{"publish.target": "runner-linux-aarch64"})
    assert from_run(run, ReleaseRequest(), other, 0.0).release.kind == "tflite", "it is for another machine"
    with pytest.raises(PublishError, match=r"autumn has no program for runner-linux-aarch64 \(float32\)"):
        from_run(run, ReleaseRequest(kind="eim"), other, 0.0)
    with pytest.raises(PublishError, match=r"no program for runner-linux-x86_64 \(int8\)"):
        from_run(run, ReleaseRequest(kind="eim", numbers="int8"), settings(), 0.0)


def test_a_program_that_was_changed_since_is_not_released(run: Path) -> None:
    built = published(run)
    built.write_bytes(built.read_bytes() + b"\0")
    with pytest.raises(PublishError, match="is not what Edge Impulse gave: publish autumn again"):
        from_run(run, ReleaseRequest(), settings(), 0.0)


def test_a_publishing_that_failed_gives_no_program(run: Path) -> None:
    published(run)
    PublishRecord(run, "edge_impulse/runner-linux-x86_64/float32", {}).failed("no network")
    assert from_run(run, ReleaseRequest(), settings(), 0.0).release.kind == "tflite"


def test_runs_are_found_by_name_and_nowhere_else(run: Path) -> None:
    runs = run.parent
    assert find_run("autumn", runs, anywhere=False) == find_run("latest", runs) == run
    for name in (f"{runs.name}/autumn", f"{runs.name}/autumn/", f"/srv/{runs.name}/autumn", str(run)):
        assert find_run(name, runs, anywhere=False) == run
    for name in ("winter", "../elsewhere/autumn", "/etc/autumn", "autumn/winter", "autumn/..", ""):
        with pytest.raises(DataError, match=r"no finished run .* There are: autumn"):
            find_run(name, runs, anywhere=False)
    with pytest.raises(DataError, match="holds no finished run"):
        find_run("latest", runs / "none")


def test_a_model_file_needs_its_labels(tmp_path: Path) -> None:
    file = Path(shutil.copy(COLOURS / "model.tflite", tmp_path / "my model.tflite"))
    with pytest.raises(DataError, match=r"which labels\? give --labels"):
        from_file(file, ReleaseRequest(), settings(), 0.0)
    release = from_file(file, ReleaseRequest(labels=tuple(LABELS)), settings(), 0.0).release
    assert (release.name, release.kind, release.labels) == ("my-model-tflite", "tflite", LABELS)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert from_file(file, ReleaseRequest(), settings(), 0.0).release.labels == ["a", "b", "c"]
    with pytest.raises(ModelError, match="has 3 classes, 2 labels were given"):
        from_file(file, ReleaseRequest(labels=("a", "b")), settings(), 0.0)


@runs_here
def test_a_program_file_is_asked_for_its_labels(tmp_path: Path) -> None:
    release = from_file(program(tmp_path), ReleaseRequest(), settings(), 0.0).release
    assert (release.name, release.kind, release.machine) == ("model-eim", "eim", "x86_64")
    assert (release.labels, release.input.width, release.input.resize) == (LABELS, 10, "squash")
    with pytest.raises(ModelError, match="has the labels red, green, blue, not those given"):
        from_file(program(tmp_path), ReleaseRequest(labels=("a", "b", "c")), settings(), 0.0)


def test_what_cannot_be_asked_or_is_nothing_is_refused(tmp_path: Path) -> None:
    foreign = program(tmp_path, machine="aarch64")
    with pytest.raises(ModelError, match=r"is for aarch64 and this machine .* cannot ask it for its labels"):
        from_file(foreign, ReleaseRequest(), settings(), 0.0)
    (tmp_path / "text.tflite").write_text("no model")
    for file in (tmp_path / "text.tflite", tmp_path / "gone.eim", tmp_path):
        with pytest.raises(ApiaryError):
            from_file(file, ReleaseRequest(labels=("a", "b")), settings(), 0.0)
