"""Every publisher's contract: what is published, the plain directory, the record, the key."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contract.publishers.parts import (
    LABELS,
    one,
    settings,
    sha256,
)
from tests.places import COLOURS
from tests.stand_ins.edge_impulse_api import KEY

from apiary import plugins
from apiary.errors import DataError, PublishError, SettingsError, StoreError
from apiary.settings import load_settings
from apiary_coordinator.publishers import edge_impulse
from apiary_coordinator.publishers._after_run import publish
from apiary_coordinator.publishers._record import PublishRecord, alone, read
from apiary_coordinator.publishers.base import PACKAGE, candidate


@pytest.mark.parametrize("name", plugins.names(PACKAGE))
def test_every_publisher_says_what_its_result_depends_on(name: str, run: Path) -> None:
    plugin: Any = plugins.load(PACKAGE, name)
    assert isinstance(plugin.REMOTE, bool)
    chosen = candidate(run, "float32")
    before = plugin.wanted(chosen, settings(run))
    assert json.loads(json.dumps(before)) == before == plugin.wanted(chosen, settings(run))
    assert plugin.entry(chosen, settings(run)).split("/")[0] == name
    (run / "summary.json").write_text(json.dumps({"run": "autumn"}))
    (run / "model.tflite").write_bytes((run / "model.tflite").read_bytes() + b"\0")
    assert plugin.wanted(candidate(run, "float32"), settings(run)) != before


def test_publishers_are_those() -> None:
    assert plugins.names(PACKAGE) == ("directory", "edge_impulse")


def test_an_unknown_publisher_is_refused_with_the_nearest(run: Path) -> None:
    with pytest.raises(SettingsError, match=r"no 'directry'; did you mean 'directory'"):
        publish(run, ["directry"], settings(run))


def test_a_candidate_is_what_the_run_evaluated(run: Path) -> None:
    found = candidate(run, "int8")
    assert found.model == run / "model_int8.tflite"
    assert found.sha256 == sha256(COLOURS / "model_int8.tflite")
    assert (found.labels, found.round, found.contributors) == (tuple(LABELS), 3, 3)
    assert (found.input.height, found.input.width, found.input.channels) == (8, 10, 3)
    assert found.accuracy == {"float32": 0.97, "int8": 0.96}


def test_a_model_that_was_changed_since_is_refused(run: Path) -> None:
    data = bytearray((run / "model_int8.tflite").read_bytes())
    data[-1] ^= 1
    (run / "model_int8.tflite").write_bytes(data)
    for kind in ("float32", "int8"):
        with pytest.raises(
            PublishError, match=r"model_int8.tflite is \w{12}\.\.\., the run evaluated \w{12}\.\.\.: it was"
        ):
            candidate(run, kind)


def _unlink(name: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (_unlink("model.tflite"), r"holds no model.tflite: the run has not finished"),
        (_unlink("labels.txt"), r"labels.txt: No such file"),
        (_write("labels.txt", "red\nred\nblue\n"), r"expected two or more different labels"),
        (_write("labels.txt", "red\nblue\n"), r"has 3 classes, labels.txt 2"),
        (
            _unlink("summary.json"),
            r"summary.json cannot be read: No such file or directory; has the run finished",
        ),
        (_write("summary.json", "{"), r"summary.json is not JSON"),
        (_write("summary.json", "[]"), r"is not the summary of a run"),
    ],
)
def test_a_run_that_does_not_hold_is_not_published(
    run: Path, break_it: Callable[[Path], Any], says: str
) -> None:
    break_it(run)
    with pytest.raises((DataError, PublishError), match=says):
        publish(run, ["directory"], settings(run))
    assert not (run.parents[1] / "releases").exists()


def test_accuracy_is_told_before_anything_goes_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    publish(run, ["directory"], settings(run))
    first, *rest = [r.getMessage() for r in caplog.records]
    assert first == (
        "run=autumn publishing float32, accuracy on the held-out pictures: float32=97.0% int8=96.0%"
    )
    assert rest[0].startswith("publisher=directory released")
    for int8, warns in ((0.951, False), (0.949, True)):
        caplog.clear()
        summary = json.loads((run / "summary.json").read_text()) | {"int8_accuracy": int8}
        (run / "summary.json").write_text(json.dumps(summary))
        publish(run, ["directory"], settings(run, model_type="int8"))
        assert ("int8 is 2.1 points less accurate than float32" in caplog.text) == warns


def test_a_directory_release_is_whole_and_says_what_it_is(run: Path) -> None:
    outcome = one(publish(run, ["directory"], settings(run)))
    assert outcome.error is None
    release = run.parents[1] / "releases" / "autumn"
    manifest = json.loads((release / "manifest.json").read_text())
    assert {p.name for p in release.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["files"]) == {"model.tflite", "model_int8.tflite", "labels.txt"}
    for name, told in manifest["files"].items():
        assert (told["sha256"], told["bytes"]) == (sha256(run / name), (run / name).stat().st_size)
        assert sha256(release / name) == told["sha256"]
    assert manifest["input"] == {
        "height": 8,
        "width": 10,
        "channels": 3,
        "values": "0..255",
        "resize": "squash",
    }
    assert manifest["accuracy"] == {"float32": 0.97, "int8": 0.96}
    assert (manifest["run"], manifest["round"], manifest["labels"]) == ("autumn", 3, list(LABELS))
    assert (release.parent / "latest").resolve() == release.resolve()
    assert release.stat().st_mode & 0o777 == 0o755
    assert sorted(p.name for p in release.parent.iterdir()) == ["autumn", "latest"]


def test_a_release_is_not_made_twice_but_mended_and_replaced(run: Path) -> None:
    release = run.parents[1] / "releases" / "autumn"
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert not one(publish(run, ["directory"], settings(run))).fresh
    assert one(publish(run, ["directory"], settings(run), again=True)).fresh
    (release / "model.tflite").write_bytes(b"torn")
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert sha256(release / "model.tflite") == sha256(run / "model.tflite")
    (run / "model_int8.tflite").unlink()  # the run finished again, with other files
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert not (release / "model_int8.tflite").exists()
    assert sorted(p.name for p in release.parent.iterdir()) == ["autumn", "latest"]


def test_a_folder_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = one(publish(run, ["directory"], settings(run, directory=tmp_path / "file")))
    assert isinstance(outcome.error, StoreError)
    assert re.search(r"publish.directory .*file: (File exists|Not a directory)", str(outcome.error))
    assert read(run)["directory"]["state"] == "failed"


def test_steps_are_kept_for_the_same_and_forgotten_for_another(tmp_path: Path) -> None:
    record = PublishRecord(tmp_path, "x", {"target": "a"})
    record.step("profile", {"ram": 1})
    record.failed("no network")
    assert read(tmp_path)["x"] | {"updated": 0} == {
        "wanted": {"target": "a"}, "state": "failed", "steps": {"profile": {"ram": 1}}, "result": None,
        "error": "no network", "updated": 0,
    }  # fmt: skip
    assert PublishRecord(tmp_path, "x", {"target": "a"}).steps == {"profile": {"ram": 1}}
    assert PublishRecord(tmp_path, "x", {"target": "a"}, again=True).steps == {}
    assert PublishRecord(tmp_path, "x", {"target": "b"}).steps == {}
    other = PublishRecord(tmp_path, "y", {})
    other.done({"files": {}})
    assert set(read(tmp_path)) == {"x", "y"}
    assert PublishRecord(tmp_path, "y", {}).result == {"files": {}}
    assert PublishRecord(tmp_path, "x", {"target": "a"}).result is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"v": 2, "published": {}}', '{"v": 1, "published": {"x": 1}}']
)
def test_a_torn_record_is_said(run: Path, text: str) -> None:
    (run / "publish.json").write_text(text)
    outcome = one(publish(run, ["directory"], settings(run))) if text else None
    if outcome is None:
        with pytest.raises(StoreError, match="is not a record of publishing"):
            read(run)
    else:
        assert "is not a record of publishing: move it away" in str(outcome.error)


def test_two_do_not_publish_one_run_at_a_time(run: Path) -> None:
    with alone(run), pytest.raises(PublishError, match="is being published by another process"):
        publish(run, ["directory"], settings(run))
    assert one(publish(run, ["directory"], settings(run))).error is None


def test_the_key_comes_from_a_file_or_the_environment(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    chosen = settings(run, api_key_file=file).publish
    with pytest.raises(SettingsError, match=r"api_key_file .*key: No such file"):
        edge_impulse.api_key(chosen)
    file.write_text(f"{KEY}\nthe key of hats\n")
    with pytest.raises(SettingsError, match=r"may be read by others: chmod 600"):
        edge_impulse.api_key(chosen)
    file.chmod(0o600)
    assert edge_impulse.api_key(chosen) == KEY
    file.write_text("two words\n")
    with pytest.raises(SettingsError, match="holds 9 characters that are no API key") as caught:
        edge_impulse.api_key(chosen)
    assert "two words" not in str(caught.value)
    monkeypatch.setenv("EI_API_KEY", " ei_1\n")
    assert edge_impulse.api_key(settings(run).publish) == "ei_1"
    for bad in ("ei_1\r\nx-evil: 1", "é", "x" * 513):
        monkeypatch.setenv("EI_API_KEY", bad)
        with pytest.raises(SettingsError, match="no API key"):
            edge_impulse.api_key(settings(run).publish)
    monkeypatch.setenv("EI_API_KEY", "")
    with pytest.raises(SettingsError, match=r"EI_API_KEY holds no API key.*--to directory"):
        edge_impulse.api_key(settings(run).publish)


def test_the_key_is_not_sent_in_the_clear() -> None:
    with pytest.raises(
        SettingsError, match=r"publish.api_endpoint is 'http://ei.example.org/v1'.*in the clear"
    ):
        load_settings(None, {"publish.api_endpoint": "http://ei.example.org/v1"})
    load_settings(None, {"publish.api_endpoint": "https://ei.example.org/v1"})
