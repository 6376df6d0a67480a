"""Live prediction with a stand-in model: what is looked at, told, swapped, refused and published."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.edge.predicting.scene import LABELS, Scene, digest, frame, model_file

from apiary.errors import ModelError
from apiary.settings import PredictSettings
from apiary.wire import NodeId
from apiary.wire.messages import Prediction
from apiary.wire.topics import Topics
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.predicting import home_assistant, model_files
from apiary_edge.predicting.child import PredictionThread
from apiary_edge.predicting.feature import (
    PredictionFeature,
    PredictionStatus,
    PredictProcess,
    prediction_of,
)
from apiary_edge.predicting.job import Line, PredictionEvent
from apiary_edge.predicting.live import AGAIN_S, SHOWN, Changes
from apiary_edge.predicting.model_files import Personal
from apiary_edge.releases.store import current_file


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_nothing_is_predicted_before_there_is_a_model_and_then_the_last_frame(scene: Scene) -> None:
    scene.turn(frame(200, 10))
    assert scene.live.newest is None and scene.told == []
    with pytest.raises(ModelError, match="no model yet"):
        scene.live.classify(lambda model: frame(1, 2))
    scene.publish(model_file("round 1"))
    scene.turn()
    shown = scene.live.newest
    assert shown is not None and shown.label == "cat" and shown.number == 1
    assert scene.kinds() == ["model", "said"]
    assert shown.jpeg()[:2] == b"\xff\xd8"


def test_a_newer_model_is_swapped_in_and_looks_at_the_same_frame(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    scene.publish(model_file("round 2"))
    scene.turn()
    assert [m.found.name for m in scene.opened] == ["round 1", "round 2"] and scene.opened[0].closed
    assert scene.live.newest is not None and scene.live.newest.model.name == "round 2"
    scene.turn()
    assert scene.live.newest.number == 2, "the same frame and the same model are not looked at again"


def test_weights_of_the_same_build_are_taken_without_opening_anything(scene: Scene) -> None:
    scene.renews = True
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    scene.publish(model_file("round 2"))
    scene.turn()
    assert len(scene.opened) == 1 and scene.live.model is not None and scene.live.model.name == "round 2"


def test_a_model_that_does_not_load_is_told_once_and_the_last_good_one_stays(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    scene.refuses = {"round 2"}
    scene.publish(model_file("round 2"))
    for i in range(5):
        scene.turn(frame(i, 200))
    assert scene.kinds().count("refused") == 1
    assert scene.live.model is not None and scene.live.model.name == "round 1" and not scene.opened[0].closed
    assert scene.live.newest is not None and scene.live.newest.label == "dog"
    assert scene.live.trouble == "round 2 cannot be used: it is torn; going on with round 1"
    scene.turn(after_s=AGAIN_S)
    assert scene.kinds().count("refused") == 1, "tried again, and for the same reason not told again"
    scene.refuses = set()
    scene.turn(after_s=AGAIN_S)
    assert scene.live.model.name == "round 2" and scene.live.trouble is None


def test_a_bad_model_that_is_taken_back_is_no_trouble_any_more(scene: Scene) -> None:
    good = model_file("round 1")
    scene.publish(good)
    scene.turn(frame(200, 10))
    scene.refuses = {"round 2"}
    scene.publish(model_file("round 2"))
    scene.turn()
    assert scene.live.trouble is not None
    scene.publish(good)
    scene.turn()
    assert scene.live.trouble is None and len(scene.opened) == 1


def test_a_model_that_stops_answering_is_told_once_and_opened_again(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    scene.opened[0].broken = "the program crashed"
    for i in range(5):
        scene.turn(frame(200, i))
    assert scene.kinds().count("refused") == 1 and scene.live.trouble == "the program crashed"
    scene.turn(frame(200, 0), after_s=AGAIN_S)
    assert len(scene.opened) == 2 and scene.live.trouble is None


def test_frames_that_come_faster_are_passed_over_and_the_newest_counts(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    for i in range(9):
        scene.turn(frame(i, 200), after_s=0.02)
    scene.turn(frame(7, 0), after_s=0.05)
    assert scene.live.newest is not None and scene.live.newest.number == 2
    assert int(scene.live.newest.frame[0, 0, 0]) == 7


def test_only_the_last_few_frames_are_kept(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    for i in range(10):
        scene.turn(frame(i, 200))
    assert [n for n in range(11) if scene.live.shown(n)] == list(range(11 - SHOWN, 11))


def test_an_improbable_label_is_none(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(40, 41, 42))
    said = scene.told[-1]
    assert said.label is None and said.probability < 0.5 and said.top[0][0] == "fox"
    assert prediction_of(said).label is None


def test_a_message_says_words_and_numbers_and_survives_the_way(scene: Scene) -> None:
    scene.publish(model_file("round 1"))
    scene.turn(frame(200, 10))
    line = scene.told[-1].model_dump_json(exclude_defaults=True).encode()
    told = PredictProcess.parse(line)
    assert isinstance(told, PredictionEvent)
    sent = Prediction.decode(prediction_of(told).encode(), who="test")
    assert sent.label == "cat" and sent.model == digest("round 1") and sent.ms == 4.0
    assert [t.label for t in sent.top] == ["cat", "dog", "fox"]
    rounded = told.model_copy(update={"probability": 1.0000001, "top": [("cat", 1.0000001)]})
    assert prediction_of(rounded).probability == 1.0
    assert PredictProcess.parse(b"INFO: Created TensorFlow Lite XNNPACK delegate\n") is None


class Child:
    """The predicting process, as far as it is heard: what it says is laid into `lines`."""

    over = PredictProcess.over

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def tick(self, now: float) -> None:
        pass

    def collect(self) -> list[Line]:
        said, self.lines = self.lines, []
        return said


def test_the_status_names_the_model_that_answers_and_no_other() -> None:
    child = Child()
    link: Any = SimpleNamespace(node="pi")
    process: Any = child
    part = PredictionFeature(link, process, camera=None, says=PredictionStatus(), publish=False)

    def after(*lines: Line) -> object:
        child.lines += lines
        part.tick(0.0)
        return part.status().get("model")

    assert after() is None
    assert (
        after(PredictionEvent(kind="model", text="round 3 of run r", model=digest("a"))) == "round 3 of run r"
    )
    tuned = PredictionEvent(kind="model", text="round 4 of run r", model=digest("b"), personal=True)
    assert after(tuned) == "round 4 of run r (tuned)"
    assert (
        after(PredictionEvent(kind="refused", text="damaged", model=digest("c")))
        == "round 4 of run r (tuned)"
    )
    assert after(CaptureEvent(kind="gone", text="no camera")) == "round 4 of run r (tuned)"
    assert after(PredictionEvent(kind="model", text="x" * 900)) == "x" * 500
    assert after(CaptureEvent(kind="failed", text="no such setting")) is None


# -- which model -----------------------------------------------------------------------------------------


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_release_goes_before_the_personal_model_and_that_before_the_newest(tmp_path: Path) -> None:
    assert model_files.chosen(tmp_path) is None
    newest = model_file("round 3", accuracy=0.8)
    write(model_files.newest_file(tmp_path), newest.model_dump_json())
    assert model_files.chosen(tmp_path) == newest
    tuned = Personal(
        of=newest.digest, file=Path("/p"), digest=digest("p"), accuracy_global=0.7, accuracy_personal=0.9
    )
    write(model_files.personal_file(tmp_path), tuned.model_dump_json())
    chosen = model_files.chosen(tmp_path)
    assert chosen is not None and chosen.personal and chosen.digest == digest("p") and chosen.accuracy == 0.9
    for worse in ({"accuracy_personal": 0.7}, {"of": digest("another")}, {"digest": None}):
        write(model_files.personal_file(tmp_path), tuned.model_copy(update=worse).model_dump_json())
        assert model_files.chosen(tmp_path) == newest
    slot = {"v": 1, "kind": "tflite", "file": "files/abc", "labels": list(LABELS), "release": "june"}
    tested = {"pictures": 0, "right": 0, "right_before": None, "inference_ms": 5.0}
    shape = {"height": 8, "width": 8, "channels": 3}
    more = {"digest": digest("r"), "attempt": 1, "bytes": 3, "input": shape, "tested": tested}
    write(current_file(tmp_path), {**slot, **more})
    chosen = model_files.chosen(tmp_path)
    assert chosen is not None and chosen.name == "release june"
    assert chosen.file == tmp_path / "slots" / "files" / "abc"


@pytest.mark.parametrize("torn", ["", "{", '{"kind":"pickle"}', "[]", '{"labels":[]}', "x" * 2**21])
def test_a_description_that_does_not_hold_is_as_good_as_none(tmp_path: Path, torn: str) -> None:
    write(model_files.newest_file(tmp_path), model_file("round 1").model_dump_json())
    for file in (current_file(tmp_path), model_files.personal_file(tmp_path)):
        write(file, torn)
    found = model_files.chosen(tmp_path)
    assert found is not None and found.name == "round 1"
    write(model_files.labels_file(tmp_path), torn)
    assert model_files.known_labels(tmp_path) == LABELS


# -- what is worth a message -----------------------------------------------------------------------------


def test_news_is_another_label_or_a_move_and_never_too_often() -> None:
    changes = Changes(PredictSettings(every_s=2.0, min_change=0.1, repeat_s=60.0))
    asked = [
        (0.0, "cat", 0.90, True),  # the first
        (1.0, "dog", 0.90, False),  # news, but too soon
        (2.0, "dog", 0.90, True),
        (9.0, "dog", 0.95, False),  # not moved enough
        (10.0, "dog", 0.79, True),
        (12.0, None, 0.79, True),  # not sure any more
        (20.0, None, 0.79, False),
        (72.0, None, 0.79, True),  # who came later has not heard it
    ]
    assert [changes.due("m", label, p, now) for now, label, p, _ in asked] == [due for *_, due in asked]
    assert changes.due("another model", None, 0.79, 74.0)


def test_a_label_that_flickers_is_said_at_the_given_rate() -> None:
    changes = Changes(PredictSettings(every_s=2.0, min_change=0.1, repeat_s=60.0))
    said = sum(changes.due("m", "ab"[i % 2], 0.9, i / 5) for i in range(500))  # 100 s at 5 frames/s
    assert 40 <= said <= 50


# -- Home Assistant --------------------------------------------------------------------------------------

# Keys of MQTT sensors and of discovery, as home-assistant.io/integrations/{sensor.mqtt,mqtt} name them.
SENSOR_KEYS = {
    "availability", "availability_mode", "availability_template", "availability_topic", "default_entity_id",
    "device", "device_class", "enabled_by_default", "encoding", "entity_category", "entity_picture",
    "expire_after", "force_update", "icon", "json_attributes_template", "json_attributes_topic",
    "last_reset_value_template", "name", "object_id", "options", "origin", "payload_available",
    "payload_not_available", "platform", "qos", "state_class", "state_topic",
    "suggested_display_precision", "unique_id", "unit_of_measurement", "value_template",
}  # fmt: skip
DEVICE_KEYS = {
    "configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id",
    "name", "serial_number", "suggested_area", "sw_version", "via_device",
}  # fmt: skip
AVAILABILITY_KEYS = {"payload_available", "payload_not_available", "topic", "value_template"}
ORIGIN_KEYS = {"name", "sw_version", "support_url"}


def test_the_discovery_payload_has_only_keys_that_home_assistant_knows() -> None:
    topics = Topics("garden")
    found = home_assistant.configs("homeassistant", topics, NodeId("pi.7"))
    assert list(found) == [
        "homeassistant/sensor/pi_7/garden_prediction/config",
        "homeassistant/sensor/pi_7/garden_probability/config",
    ]
    assert len({c["unique_id"] for c in found.values()}) == 2
    for config in found.values():
        assert set(config) <= SENSOR_KEYS and {"state_topic", "unique_id", "device", "origin"} <= set(config)
        assert set(config["device"]) <= DEVICE_KEYS and config["device"]["identifiers"]
        assert set(config["origin"]) <= ORIGIN_KEYS and config["origin"]["name"]
        assert not {"availability_topic", "availability"} <= set(config), "they exclude each other"
        assert all(set(one) <= AVAILABILITY_KEYS for one in config["availability"])
        assert config["state_topic"] == "apiary/garden/node/pi.7/prediction"
        assert config["availability"][0]["topic"] == "apiary/garden/node/pi.7/status"
        json.dumps(config)
    label, probability = found.values()
    assert "value_json.label" in label["value_template"] and "unit_of_measurement" not in label
    assert probability["state_class"] == "measurement" and probability["unit_of_measurement"] == "%"


def test_a_predicting_thread_that_fails_ends_its_child_with_the_reason() -> None:
    """It died alone: the child went on to say that it is alive, and predicted nothing ever more."""
    stop = threading.Event()

    def fail(stop: threading.Event) -> None:
        raise MemoryError("for a frame")

    predicting = PredictionThread(fail, stop)
    assert stop.wait(5)
    with pytest.raises(MemoryError, match="for a frame"):
        predicting.join()


def test_a_predicting_thread_that_is_stopped_is_well() -> None:
    stop = threading.Event()

    def wait(stop: threading.Event) -> None:
        stop.wait(5)

    predicting = PredictionThread(wait, stop)
    stop.set()
    predicting.join()
