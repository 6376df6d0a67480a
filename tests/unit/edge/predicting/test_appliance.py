"""All pages of a node at one address: which path leads where, and who may come in by which name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stand_ins.browser import Browser
from tests.unit.edge.predicting.scene import Scene, frame, model_file

from apiary.settings import EdgeSettings
from apiary.settings.page import PageSettings
from apiary_edge.predicting.appliance import pages
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.job import PredictJob
from apiary_edge.web.token import load_or_make


def job_of(folder: Path, **page: object) -> PredictJob:
    settings = EdgeSettings(
        node_id="pi-7", state_dir=folder, page=PageSettings.model_validate({"enabled": True, **page})
    )
    return PredictJob(edge=settings, federation="garden")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    made.publish(model_file("round 1", accuracy=0.75))
    made.turn(frame(200, 10))
    return made


@pytest.fixture
def stranger(scene: Scene) -> Browser:
    app = pages(
        job_of(scene.folder, names=["garden.example.org"]),
        scene.live,
        lambda: CameraState("no camera", works=False),
    )
    return Browser(app, load_or_make(scene.folder))


@pytest.fixture
def owner(stranger: Browser) -> Browser:
    stranger.login()
    return stranger


@pytest.mark.parametrize(
    ("path", "script"), [("/", b"home.js"), ("/label/", b"page.js"), ("/predictions/", b"live.js")]
)
def test_each_page_has_its_folder_and_the_nodes_name_in_its_title(
    stranger: Browser, path: str, script: bytes
) -> None:
    status, body = stranger.ask("GET", path)
    assert status == 401 and script in body
    title = body.partition(b"<title>")[2].partition(b"</title>")[0]
    assert title.endswith("· pi-7".encode())
    assert stranger.ask("GET", path + script.decode())[0] == 200


def test_who_signed_in_on_one_page_is_signed_in_on_all(owner: Browser) -> None:
    assert owner.get("/api/overview") == {
        "node": "pi-7", "federation": "garden", "pages": ["label", "predictions"],
        "waiting": 0, "labelled": 0, "model": "round 1", "trouble": None,
    }  # fmt: skip
    assert owner.get("/label/api/state")["total"] == 0
    assert owner.get("/predictions/api/now")["node"] == "pi-7"


@pytest.mark.parametrize(
    "path", ["/api/overview", "/label/api/state", "/predictions/api/now", "/api/now", "/predictions/frame/1"]
)
def test_a_stranger_sees_no_data_on_any(stranger: Browser, path: str) -> None:
    assert stranger.ask("GET", path)[0] == 401


def test_programs_find_the_interface_of_edge_impulse_where_it_was(stranger: Browser) -> None:
    token = {"HTTP_AUTHORIZATION": f"Bearer {stranger.token}"}
    for path in ("/api/info", "/api/now", "/predictions/api/info"):
        assert stranger.ask("GET", path, **token)[0] == 200


def test_a_path_without_its_slash_leads_to_the_page(owner: Browser) -> None:
    assert owner.ask("GET", "/label")[0] == 308 and owner.headers["Location"] == "/label/"
    assert owner.ask("GET", "/other")[0] == owner.ask("GET", "/other/")[0] == 404


def test_a_node_that_does_not_predict_has_the_other_pages(tmp_path: Path) -> None:
    owner = Browser(
        pages(job_of(tmp_path), None, lambda: CameraState("", works=True)), load_or_make(tmp_path)
    )
    owner.login()
    assert owner.get("/api/overview")["pages"] == ["label"]
    assert owner.ask("GET", "/predictions/")[0] == owner.ask("GET", "/api/info")[0] == 404
    assert owner.get("/label/api/state")["total"] == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("pi-7.local:4912", 401),
        ("PI-7:4912", 401),
        ("garden.example.org:4912", 401),
        ("192.168.1.20:4912", 401),
        ("example.org:4912", 421),
        ("pi-7.local.example.org:4912", 421),
    ],
)
def test_it_answers_to_its_names_and_to_no_other(stranger: Browser, host: str, status: int) -> None:
    for path in ("/", "/label/", "/predictions/"):
        assert stranger.ask("GET", path, HTTP_HOST=host)[0] == status


def test_a_head_is_judged_by_the_page_that_it_is_for(owner: Browser) -> None:
    portal = owner.app

    def allowed(path: str) -> int:
        head = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "HTTP_HOST": "pi-7", "HTTP_COOKIE": owner.cookie}
        return int(portal.allowance(head).max_bytes)  # type: ignore[attr-defined]

    assert allowed("/predictions/api/image") == allowed("/api/image") == 12 * 2**20
    assert allowed("/label/api/label") == 64 * 2**10
