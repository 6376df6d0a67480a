"""`ask` against a real broker, with the registry of the coordinator at the other end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apiary.bus.bus import Received
from apiary.bus.inlet import Delivery, decode
from apiary.bus.mqtt import MqttBus
from apiary.bus.outlet import Outlet
from apiary.errors import BusError, NoAnswer, RequestRefused
from apiary.settings import Settings
from apiary.wire.topics import TopicKind
from apiary_cli.client.asking import ask
from apiary_cli.terminal.stopping import Interrupted
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests
from apiary_coordinator.run.messages import status

pytestmark = pytest.mark.broker
CONF = "listener {port} 127.0.0.1\nallow_anonymous true\n"


class Name(Arguments):
    name: str = ""


class Office(threading.Thread):
    """The coordinator's registry on a bus of its own; `deaf` to that many requests at first."""

    def __init__(self, settings: Settings, deaf: int = 0):
        super().__init__(daemon=True)
        self.calls: list[Call] = []
        self.ended = threading.Event()
        self._settings = settings
        self._deaf = deaf
        self.begun = threading.Event()

    def run(self) -> None:
        topics = self._settings.topics
        bus = MqttBus(self._settings.broker, client_id="office", will=None)
        outlet = Outlet(bus, topics)
        operators = OperatorRequests(outlet, time.monotonic)
        operators.register("greet", Name, self._greet)
        operators.register("slow", Name, lambda call, args: self.calls.append(call))
        bus.subscribe(topics.pattern(TopicKind.OPERATOR_REQUEST))
        while not bus.connected:
            bus.poll(0.05)
        outlet.send(status("online", "e1", None))
        while not self.ended.is_set():
            for event in bus.poll(0.05):
                if isinstance(event, Received):
                    if self._deaf > 0:
                        self._deaf -= 1
                        continue
                    topic = topics.parse(event.topic)
                    operators.received(Delivery(topic, decode(topic, event.payload)))
            if bus.backlog == 0:
                self.begun.set()
            for call in self.calls:
                call.working({"half": True})
                call.done({"whole": True})
        outlet.send(status("offline", "e1", None))
        bus.close()

    def _greet(self, call: Call, args: Name) -> None:
        if not args.name:
            call.refuse("nobody to greet")
        else:
            call.done(f"hello {args.name}, says {call.operator} asked")


@pytest.fixture
def settings(run_mosquitto: Callable[..., int]) -> Settings:
    port = run_mosquitto(CONF)
    return Settings.model_validate(
        {"federation": "f", "broker": {"host": "127.0.0.1", "port": port}, "operator": {"name": "anna"}}
    )


@pytest.fixture
def office(settings: Settings) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def start(deaf: int = 0) -> Office:
        made.append(Office(settings, deaf))
        made[-1].start()
        assert made[-1].begun.wait(10)
        return made[-1]

    yield start
    for one in made:
        one.ended.set()
        one.join(10)


def test_an_answer_a_refusal_and_progress(settings: Settings, office: Callable[..., Office]) -> None:
    office()
    assert ask(settings, "greet", {"name": "bee"}) == "hello bee, says anna asked"
    with pytest.raises(RequestRefused, match="refused: nobody to greet"):
        ask(settings, "greet", {})
    with pytest.raises(RequestRefused, match="no operation 'dance'; there are: greet, slow"):
        ask(settings, "dance", {})
    heard: list[Any] = []
    assert ask(settings, "slow", {}, on_progress=heard.append) == {"whole": True}
    assert heard == [{"half": True}]


def test_a_lost_request_is_asked_again(
    settings: Settings, office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apiary_cli.client.asking._REPEAT_S", 0.3)
    office(deaf=2)
    assert ask(settings, "greet", {"name": "bee"}) == "hello bee, says anna asked"


def test_a_coordinator_that_does_not_answer_is_given_up(
    settings: Settings, office: Callable[..., Office]
) -> None:
    office(deaf=1000)
    with pytest.raises(NoAnswer, match="the coordinator did not answer greet within 1 s"):
        ask(settings, "greet", {"name": "bee"}, timeout_s=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_asking_with_its_exit_code(
    settings: Settings, office: Callable[..., Office], number: signal.Signals, code: int
) -> None:
    office(deaf=1000)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    try:
        with pytest.raises(Interrupted) as caught:
            ask(settings, "greet", {"name": "bee"}, timeout_s=30)
    finally:
        timer.join()
    assert caught.value.exit_code == code


def test_where_no_coordinator_is_that_is_said_at_once(
    settings: Settings, office: Callable[..., Office]
) -> None:
    with pytest.raises(NoAnswer, match=r"'f' on 127\.0\.0\.1:\d+ has never had a coordinator"):
        ask(settings, "greet", {}, timeout_s=60)
    gone = office()
    gone.ended.set()
    gone.join(10)
    with pytest.raises(NoAnswer, match=r"the federation 'f' on 127\.0\.0\.1:\d+ is offline"):
        ask(settings, "greet", {}, timeout_s=60)


def test_a_coordinator_that_goes_before_it_answers_may_have_done_it(
    settings: Settings, office: Callable[..., Office]
) -> None:
    deaf = office(deaf=1000)
    threading.Timer(1.5, deaf.ended.set).start()
    with pytest.raises(NoAnswer, match="went offline before it answered greet: it may have carried that out"):
        ask(settings, "greet", {"name": "bee"}, timeout_s=60)


def test_without_a_broker(settings: Settings, free_port: int) -> None:
    broker = settings.broker.model_copy(update={"port": free_port})
    with pytest.raises(BusError, match="refused"):
        ask(settings.model_copy(update={"broker": broker}), "greet", {}, timeout_s=60)
