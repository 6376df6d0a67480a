"""Settings from a file, the environment and the command line; what is wrong is named with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from apiary.errors import SettingsError
from apiary.settings import (
    BrokerSettings,
    EdgeSettings,
    RunSettings,
    Settings,
    flatten,
    load_settings,
    password,
)
from apiary.settings.coordinator import CoordinatorSettings
from apiary.settings.edge import default_node_id


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in [k for k in os.environ if k.startswith("APIARY_")]:
        monkeypatch.delenv(key)


def write(text: str, name: str = "apiary.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def refused(**more: Any) -> str:
    with pytest.raises(SettingsError) as e:
        load_settings(**more)
    return str(e.value)


def test_without_anything_the_defaults_hold() -> None:
    loaded = load_settings()
    assert loaded.settings == Settings()
    assert loaded.origin == {}


def test_the_command_line_wins_over_the_environment_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[run]\nrounds = 1\nseed = 1\nmin_nodes = 1\n[broker]\nhost = 'file'\n")
    monkeypatch.setenv("APIARY_RUN__ROUNDS", "2")
    monkeypatch.setenv("APIARY_RUN__SEED", "2")
    loaded = load_settings(overrides={"run.rounds": 3})
    run = loaded.settings.run
    assert (run.rounds, run.seed, run.min_nodes, loaded.settings.broker.host) == (3, 2, 1, "file")
    assert loaded.origin["run.rounds"] == "command line"
    assert loaded.origin["run.seed"] == "environment"
    assert loaded.origin["run.min_nodes"] == "apiary.toml"


def test_options_are_replaced_as_a_whole_not_mixed() -> None:
    write("[run.recipe_options]\nsize = 32\nalpha = 0.5\n")
    assert load_settings(overrides={"run.recipe_options": {"size": 16}}).settings.run.recipe_options == {
        "size": 16
    }


def test_the_file_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write("federation = 'here'\n")
    monkeypatch.setenv("APIARY_CONFIG", str(write("federation = 'there'\n", "other.toml")))
    assert load_settings().settings.federation == "there"
    assert load_settings(Path("apiary.toml")).settings.federation == "here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nround = 3\n", "apiary.toml: unknown setting 'run.round'; did you mean 'run.rounds'?"),
        (
            "[edge]\nnodeid = 'x'\n",
            "apiary.toml: unknown setting 'edge.nodeid'; did you mean 'edge.node_id'?",
        ),
        (
            "[run.plan]\nlearning_rat = 1\n",
            "apiary.toml: unknown setting 'run.plan.learning_rat'; did you mean 'run.plan.learning_rate'?",
        ),
        ("zzz = 3\n", "apiary.toml: unknown setting 'zzz'"),
        (
            "[run]\nrounds = 0\n",
            "apiary.toml: run.rounds is 0: Input should be greater than or equal to 1",
        ),
        ("[run]\nrounds = 'many'\n", "apiary.toml: run.rounds is 'many': Input should be a valid integer"),
        ("run = 3\n", "apiary.toml: run is 3: "),
        ("[broker]\nport = 65536\n", "apiary.toml: broker.port is 65536: "),
        (
            "[edge]\nnode_id = 'a/b'\n",
            "apiary.toml: edge.node_id is 'a/b': node_id 'a/b' cannot stand in a topic: ",
        ),
        (
            "[broker]\nhost = 'mqtt://mq.local:8883'\n",
            "apiary.toml: broker.host is 'mqtt://mq.local:8883': 'mqtt://mq.local:8883' is a URL: expected a "
            "name or an address, and its port apart: mq.local and 8883",
        ),
        (
            "[broker]\nhost = 'mq local'\n",
            "apiary.toml: broker.host is 'mq local': 'mq local' is neither a host",
        ),
        ("[broker]\nhosts = ['mq', 'mq:x']\n", "apiary.toml: broker.hosts is"),
        ("federation = '#'\n", "apiary.toml: federation is '#': "),
        ("[run\n", "settings file apiary.toml is not TOML: "),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, message: str) -> None:
    write(text)
    assert refused().startswith(message)


def test_the_brokers_addresses() -> None:
    assert [str(a) for a in BrokerSettings(host=" [fd00::5] ").addresses] == ["[fd00::5]:1883"]
    several = BrokerSettings(host="unused", port=8883, hosts=("a", "b:1", "fd00::5", "[fd00::6]:2", "a"))
    assert several.names == "a:8883, b:1, [fd00::5]:8883, [fd00::6]:2"


def test_every_unknown_nested_setting_is_refused() -> None:
    """`plan` and `bounds` come from messages, which ignore unknown keys; settings must not."""
    write("[run.bounds]\nmax_ab = 3\n")
    assert refused() == "apiary.toml: unknown setting 'run.bounds.max_ab'; did you mean 'run.bounds.max_abs'?"


def test_several_faults_come_together() -> None:
    write("[run]\nround = 3\nseed = -1\n")
    assert len(refused().splitlines()) == 2


def test_lists_may_stand_in_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIARY_EDGE__GUEST__HOURS", '["22:00-06:00", "12:00-13:00"]')
    monkeypatch.setenv("APIARY_COORDINATOR__LABELS", '["cat", "dog"]')
    monkeypatch.setenv("APIARY_BROKER__PASSWORD", "[no list")
    settings = load_settings().settings
    assert settings.edge.guest.hours == ["22:00-06:00", "12:00-13:00"]
    assert settings.coordinator.labels == ["cat", "dog"]
    assert password(settings.broker) == "[no list"


def test_what_is_wrong_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIARY_RUN__ROUND", "3")
    assert refused() == "environment: unknown setting 'run.round'; did you mean 'run.rounds'?"
    monkeypatch.delenv("APIARY_RUN__ROUND")
    monkeypatch.setenv("APIARY_RUNS__ROUNDS", "3")
    assert refused() == "environment: APIARY_RUNS__ROUNDS names no setting; did you mean 'run'?"
    monkeypatch.delenv("APIARY_RUNS__ROUNDS")
    monkeypatch.setenv("APIARY_RUN", "not json")
    assert refused().startswith("environment: ")


def test_what_is_wrong_on_the_command_line_is_named() -> None:
    assert refused(overrides={"run.rounds": 0}).startswith("command line: run.rounds is 0: ")
    assert refused(overrides={"coordinator.statedir": "x"}) == (
        "command line: unknown setting 'coordinator.statedir'; did you mean 'coordinator.state_dir'?"
    )


def test_a_file_that_is_not_there() -> None:
    assert refused(file=Path("no.toml")) == "settings file no.toml: No such file or directory"


def test_passwords_are_hidden_and_read_from_where_they_lie() -> None:
    broker = BrokerSettings.model_validate({"password": "secret"})
    assert "secret" not in str(broker) and "secret" not in str(flatten(Settings(broker=broker)))
    assert password(broker) == "secret"
    file = write("from a file \nsecond line\n", "password")
    assert password(BrokerSettings(password_file=file)) == "from a file "
    assert password(BrokerSettings()) is None
    with pytest.raises(SettingsError, match=r"broker\.password_file no: No such file"):
        password(BrokerSettings(password_file=Path("no")))
    Path("latin").write_bytes("mühsam\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"broker\.password_file latin, line 1: .* not UTF-8"):
        password(BrokerSettings(password_file=Path("latin")))


@pytest.mark.parametrize("value", ["778899", "[778899]", "{ a = 778899 }"])
def test_a_secret_that_is_no_text_is_not_printed(value: str) -> None:
    said = refused(file=write(f"[broker]\npassword = {value}\n"))
    assert "broker.password does not hold" in said and "778899" not in said
    assert "778899" not in refused(overrides={"broker.password": 778899})
    assert "778899" not in refused(overrides={"broker": {"password": "778899", "port": 0}})


def test_a_settings_file_of_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "apiary.toml"
    file.write_bytes(b'[edge]\ndata_dir = "B\xe4ume"\n')
    assert "apiary.toml, line 2: byte 0xe4 is not UTF-8" in refused(file=file)
    file.write_bytes(b'\xef\xbb\xbf[edge]\r\ndata_dir = "B\xc3\xa4ume"\r\n')
    assert load_settings(file).settings.edge.data_dir == Path("Bäume")


@pytest.mark.parametrize(
    ("host", "node"),
    [
        ("raspberrypi.local", "raspberrypi"),
        ("my_pi", "my_pi"),
        ("pi 4", "pi-4"),
        ("ümlaut", "mlaut"),
        ("---", "node"),
        ("", "node"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_host_name_becomes_a_node_id(host: str, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert default_node_id() == node
    assert Settings().edge.node_id == node


def test_every_setting_says_what_it_is() -> None:
    for section in (BrokerSettings, RunSettings, CoordinatorSettings, EdgeSettings):
        assert all(field.description for field in section.model_fields.values())


def test_the_address_of_the_predictions_page_of_0_1_is_that_of_all_pages(tmp_path: Path) -> None:
    file = tmp_path / "apiary.toml"
    file.write_text('[edge.predict]\nenabled = true\nhost = "192.168.1.20"\nport = 4999\n')
    edge = load_settings(file).settings.edge
    assert (edge.page.host, edge.page.port, edge.serves_pages) == ("192.168.1.20", 4999, True)
    edge = load_settings(file, {"edge.page.host": "lan", "edge.page.enabled": False}).settings.edge
    assert (edge.page.host, edge.page.port, edge.serves_pages) == ("lan", 4999, False)


def test_the_pages_are_served_where_the_node_predicts_or_they_are_wanted() -> None:
    def serves(**more: object) -> bool:
        return load_settings(
            None, {f"edge.{k.replace('__', '.')}": v for k, v in more.items()}
        ).settings.edge.serves_pages

    assert [serves(), serves(predict__enabled=True), serves(page__enabled=True)] == [False, True, True]


def test_an_empty_path_is_none_and_not_the_folder_that_a_process_was_started_in(tmp_path: Path) -> None:
    file = tmp_path / "apiary.toml"
    file.write_text('[edge]\ndata_dir = ""\nstate_dir = ""\n[coordinator]\ntest_data = ""\n')
    settings = load_settings(file).settings
    assert settings.edge.data_dir is None and settings.coordinator.test_data is None
    assert settings.edge.state_dir == Settings().edge.state_dir
