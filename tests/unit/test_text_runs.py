"""A finished run that reads texts: classified by text, published as files only."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
from tests.places import COLOURS

from apiary.errors import ApiaryError, DataError, ModelError, PublishError
from apiary.learn.manifest import INPUT, PictureInput
from apiary.settings import load_settings
from apiary_cli.commands import predict
from apiary_coordinator.publishers import directory, edge_impulse
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.publishers.base import PublishProgress, candidate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The colours' model, said to read texts: its shape fits, and that is all that is asked of it here."""
    folder = tmp_path / "runs" / "names"
    folder.mkdir(parents=True)
    for name in ("model.tflite", "model_int8.tflite"):
        shutil.copy(COLOURS / name, folder / name)
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "summary.json").write_text("{}")
    shape = candidate(folder, "float32").input
    texts = PictureInput(**{**shape.model_dump(), "letters": "abcdefghijklmnopqrstuvwxyz"})
    (folder / INPUT).write_text(texts.model_dump_json())
    return folder


def command(run: Path, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    args = parser.parse_args([run.name, *argv])
    args.config, args.overrides = None, {"coordinator.runs_dir": str(run.parent)}
    return predict.run(args)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--text", "rossi", "--symbols"], "reads texts: --symbols"),
        (["--text", "rossi", "--negative"], "reads texts: --symbols and --negative"),
        ([], "nothing to classify"),
        (["--text", "rossi", "--top", "0"], "expected 1 or more"),
        (["--text", "rossi", "--margin", "3"], "expected 0 to 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(run: Path, argv: list[str], why: str) -> None:
    with pytest.raises(ApiaryError, match=why):
        command(run, *argv)


def test_a_text_is_refused_by_a_model_of_pictures(run: Path) -> None:
    (run / INPUT).unlink()
    with pytest.raises(DataError, match="reads pictures: --text is for"):
        command(run, "--text", "rossi")


def test_a_torn_or_foreign_input_file_is_said(run: Path) -> None:
    (run / INPUT).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        command(run, "--text", "rossi")
    (run / INPUT).write_text(PictureInput(height=9, width=9, channels=1).model_dump_json())
    with pytest.raises(ModelError, match="expected"):
        command(run, "--text", "rossi")


def test_it_is_published_as_files_and_not_to_edge_impulse(run: Path, tmp_path: Path) -> None:
    settings = load_settings(None, {"publish.directory": tmp_path / "out"}).settings
    chosen, quiet = candidate(run, "float32"), PublishProgress(lambda _: None)
    with pytest.raises(PublishError, match="reads texts"):
        edge_impulse.publish(chosen, settings, PublishRecord(run, "edge_impulse", {}), quiet)
    directory.publish(chosen, settings, PublishRecord(run, "directory", {}), quiet)
    manifest = json.loads((tmp_path / "out" / "names" / "manifest.json").read_text())
    assert manifest["input"]["letters"].startswith("abc")
