"""`apiary label` beside a running node: it names that one's pages instead of serving a second one."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_ins.browser import Browser

from apiary.settings import Settings
from apiary_cli.main import main
from apiary_cli.terminal import sign_in
from apiary_edge.owner.status_file import StatusFile
from apiary_edge.predicting.appliance import pages
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.job import PredictJob
from apiary_edge.web.token import load_or_make


def settings_of(folder: Path, **page: object) -> Settings:
    return Settings.model_validate(
        {"edge": {"node_id": "pi-7", "state_dir": str(folder), "page": {"enabled": True, **page}}}
    )


@contextlib.contextmanager
def running(folder: Path, address: str) -> Iterator[None]:
    """A node's status file as its service keeps it; this process is the node."""
    status = StatusFile(
        settings_of(folder),
        clock=time.monotonic,
        runtime_folder=None,
        more=lambda: {"page": {"url": address, "state_dir": str(folder.absolute())}},
    )
    status.start(time.monotonic())
    status.tick(time.monotonic())
    yield
    status.close()


def command(folder: Path, *more: str) -> list[str]:
    return ["label", "--state-dir", str(folder), "--set", "edge.node_id=pi-7", *more]


def test_it_names_the_pages_of_the_running_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, "http://192.168.1.20:4912/"):
        assert main(command(tmp_path)) == 0
    token = load_or_make(tmp_path)
    said = capsys.readouterr().out
    assert said == f"labelling page of the running node: http://192.168.1.20:4912/label/?token={token}\n"


def test_a_page_of_its_own_is_refused_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, "http://192.168.1.20:4912/"):
        assert main(command(tmp_path, "--labels", "a,b", "--port", "0")) == 2
    assert "leave --port and --labels out, or stop the node" in capsys.readouterr().err


def test_the_code_signs_one_browser_in_once_and_is_not_the_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path)
    app = pages(
        PredictJob(edge=settings.edge, federation="garden"), None, lambda: CameraState("", works=True)
    )
    with running(tmp_path, "http://192.168.1.20:4912/"):
        assert main(command(tmp_path, "--qr", "--set", 'edge.page.names=["pi-7.local"]')) == 0
    said = capsys.readouterr().out
    code = re.findall(r"http://pi-7\.local:4912/#code=(\S{40})\n", said)[0]
    assert f"http://192.168.1.20:4912/#code={code}" in said and load_or_make(tmp_path) not in said
    phone, another = Browser(app, ""), Browser(app, "")
    assert phone.post("/api/login", {"code": code})[0] == 200
    cookie = phone.headers["Set-Cookie"]
    assert "; HttpOnly" in cookie and "; SameSite=Strict" in cookie and code not in cookie
    phone.cookie = cookie.partition(";")[0]
    assert phone.get("/api/overview")["node"] == "pi-7" and phone.get("/label/api/state")["total"] == 0
    status, answer = another.post("/api/login", {"code": code})
    assert status == 401 and "type apiary label --qr again" in answer["error"]


def test_an_address_that_no_phone_reaches_gets_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path, "http://127.0.0.1:4912/"):
        assert main(command(tmp_path, "--qr")) == 2
    assert 'set edge.page.host = "lan"' in capsys.readouterr().err


def test_a_node_that_has_stopped_or_has_another_folder_serves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "http://192.168.1.20:4912/"):
        assert sign_in.served(settings_of(tmp_path), time.monotonic()) == "http://192.168.1.20:4912/"
        assert sign_in.served(settings_of(tmp_path / "other"), time.monotonic()) is None
    assert sign_in.served(settings_of(tmp_path), time.monotonic()) is None


@pytest.mark.parametrize(("names", "expected"), [(["pi-1.local", "x"], "pi-1.local"), ([], r".+\.local")])
def test_the_code_has_the_nodes_name(tmp_path: Path, names: list[str], expected: str) -> None:
    assert re.fullmatch(expected, sign_in.name_of(settings_of(tmp_path, names=names).edge))
