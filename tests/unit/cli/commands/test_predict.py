from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiary.errors import DataError
from apiary_cli.commands import predict
from apiary_coordinator.run.finished import find_run, read_labels

# A model without training: the strongest colour wins. Converted in a process of its own, because TensorFlow
# and tflite-runtime cannot live in one.
CONVERT = """
import sys, numpy as np, tensorflow as tf
@tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32)])
def colour(x):
    return tf.nn.softmax(tf.reduce_mean(x, [1, 2]) / 64.0)
def pictures():
    for value in np.random.default_rng(0).integers(0, 256, (20, 1, 1, 1, 3)):
        yield [np.broadcast_to(value, (1, 8, 8, 3)).astype(np.float32)]
concrete = colour.get_concrete_function()
module = tf.Module()
module.f = colour
plain = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
open(sys.argv[1] + "/model.tflite", "wb").write(plain.convert())
small = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
small.optimizations = [tf.lite.Optimize.DEFAULT]
small.representative_dataset = pictures
open(sys.argv[1] + "/model_int8.tflite", "wb").write(small.convert())
"""
COLOURS = {"red": (250, 20, 10), "green": (0, 220, 30), "blue": (10, 20, 240)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "colours").mkdir()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", CONVERT, str(folder / "colours")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "colours" / "labels.txt").write_text("red\ngreen\nblue\n")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """photos/LABEL/0.png and 1.jpg of other sizes; photos/green/1.jpg is in truth blue."""
    for label, colour in COLOURS.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (20, 10), colour).save(tmp_path / "photos" / label / "0.png")
        said = COLOURS["blue"] if label == "green" else colour
        Image.new("RGB", (8, 30), said).save(tmp_path / "photos" / label / "1.jpg")
    return tmp_path / "photos"


def command(capsys: pytest.CaptureFixture[str], runs: Path, *argv: object) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    args = parser.parse_args([str(a) for a in argv])
    args.config, args.overrides = None, {"coordinator.runs_dir": str(runs)}
    code = predict.run(args)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.tensorflow
def test_names_pictures_and_counts_what_is_right(
    capsys: pytest.CaptureFixture[str], runs: Path, pictures: Path
) -> None:
    code, out, _ = command(capsys, runs, "colours", pictures, "--top", 2)
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 7
    wrong = next(x for x in lines if "green/1.jpg" in x)
    assert "blue" in wrong
    assert wrong.endswith("✗ green")
    assert lines[-1] == "6 pictures: blue 3x, red 2x, green 1x; 5 of 6 right (83.3 %)"


@pytest.mark.tensorflow
@pytest.mark.parametrize("flags", [[], ["--int8"]])
def test_json(capsys: pytest.CaptureFixture[str], runs: Path, pictures: Path, flags: list[str]) -> None:
    torn = pictures / "red" / "torn.png"
    torn.write_bytes((pictures / "red" / "0.png").read_bytes()[:40])
    code, out, err = command(capsys, runs, runs / "colours", pictures, "--json", "--top", 3, *flags)
    said = json.loads(out)
    assert (code, len(said["pictures"]), said["accuracy"]) == (0, 6, pytest.approx(5 / 6))
    assert said["counts"] == {"blue": 3, "red": 2, "green": 1}
    assert [s["path"] for s in said["skipped"]] == [str(torn)]
    assert f"{torn}: skipped: " in err
    for picture in said["pictures"]:
        chances = [t["probability"] for t in picture["top"]]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=0.02)
        assert picture["probability"] > 0.8


@pytest.mark.tensorflow
def test_folders_that_are_no_labels_give_no_score(
    capsys: pytest.CaptureFixture[str], runs: Path, pictures: Path
) -> None:
    (pictures / "red").rename(pictures / "monday")
    (pictures / "green" / "1.jpg").unlink()
    _, out, _ = command(capsys, runs, "latest", pictures / "monday", pictures / "green" / "0.png")
    assert out.splitlines()[-1] == "3 pictures: red 2x, green 1x"


@pytest.mark.tensorflow
def test_symbols_are_found_and_named_in_reading_order(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path
) -> None:
    page = Image.new("RGB", (200, 60), (0, 0, 0))
    for left, label in ((10, "blue"), (80, "red"), (140, "green")):
        page.paste(COLOURS[label], (left, 10, left + 30, 50))
    page.save(tmp_path / "page.png")
    code, out, _ = command(capsys, runs, "colours", tmp_path / "page.png", "--symbols")
    assert code == 0
    assert out.splitlines()[-1] == f"{tmp_path}/page.png reads: blue red green"
    _, out, _ = command(capsys, runs, "colours", tmp_path / "page.png", "--symbols", "--json", "--margin", 0)
    assert [p["box"] for p in json.loads(out)["pictures"]] == [
        [10, 10, 30, 40],
        [80, 10, 30, 40],
        [140, 10, 30, 40],
    ]


@pytest.mark.tensorflow
def test_nothing_readable_ends_with_3(capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("a list of things to do")
    code, out, err = command(capsys, runs, "colours", tmp_path / "note.png", tmp_path / "gone.jpg")
    assert (code, out) == (3, "")
    assert "note.png: skipped: not a readable picture: " in err
    assert "it does not begin like one\n" in err, "no address of an object behind it"
    assert "gone.jpg: skipped: cannot be read: No such file" in err
    assert "none of 2 pictures could be read" in err


@pytest.mark.tensorflow
def test_labels_of_another_run_are_refused(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.tflite").write_bytes((runs / "colours" / "model.tflite").read_bytes())
    (tmp_path / "other" / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"has 3 classes, labels.txt 2"):
        command(capsys, tmp_path, "other", pictures)
    with pytest.raises(DataError, match=r"holds no model_int8.tflite"):
        command(capsys, tmp_path, "other", pictures, "--int8")


def make_run(folder: Path, age_s: int = 0, **files: Any) -> Path:
    folder.mkdir(parents=True)
    for name in ("model.tflite", "labels.txt"):
        (folder / name).write_text("a\nb\n")
    stamp = 1_700_000_000 - age_s
    os.utime(folder / "model.tflite", (stamp, stamp))
    return folder


def test_latest_is_the_newest_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path / "z-old", age_s=500)
    newest = make_run(tmp_path / "a-new")
    (tmp_path / "b-unfinished").mkdir()
    assert find_run("latest", tmp_path) == newest
    assert find_run("z-old", tmp_path) == tmp_path / "z-old"


def test_runs_that_are_not_there_say_what_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished run"):
        find_run("latest", tmp_path / "none")
    make_run(tmp_path / "one")
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError, match=r"no finished run 'three'.* There are: one$"):
        find_run("three", tmp_path)
    with pytest.raises(DataError, match=r"two holds no model.tflite: the run has not finished"):
        find_run("two", tmp_path)


def test_an_empty_folder_and_a_torn_label_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        predict.collect([tmp_path], ["a", "b"])
    (tmp_path / "labels.txt").write_text("one\n")
    with pytest.raises(DataError, match="expected two or more different labels"):
        read_labels(tmp_path)
