from __future__ import annotations

import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiary.errors import DataError
from apiary_coordinator import report
from apiary_coordinator.publishers._after_run import draw_report
from apiary_coordinator.report import page, plots
from apiary_coordinator.report.tables import read_record

EVIL = '<script>alert("x")</script>'


def history(**changes: Any) -> dict[str, Any]:
    """A run of three rounds on two nodes; round 2 failed, round 3 is best."""
    score = {"precision": 0.9, "recall": 0.8, "f1": 0.847, "count": 10}
    share = {"samples": 20, "bytes": 4000, "seconds": 1.5}
    closed = {
        "state": "closed", "loss": 0.4, "node_accuracy": 0.9, "bytes_up": 8000, "bytes_down": 4000,
        "seconds": 12.0, "per_class": {"head": score, EVIL: score}, "confusion": [[8, 2], [1, 9]],
        "contributors": {"pi-1": share, "pi-2": share},
        "node_metrics": {"pi-1": {"loss": 0.1}, "pi-2": {"accuracy": 0.9, "accuracy_before": 0.5}},
    }  # fmt: skip
    told = {
        "run": "run-1",
        "created": 1.7e9,
        "settings": {"run.recipe": "edge_cnn", "run.strategy": "fedavg", "run.patience": None},
        "labels": ["head", EVIL],
        "initial": {"accuracy": 0.5, "loss": 0.7},
        "rounds": [
            {**closed, "round": 1, "accuracy": 0.8, "rejected": {"pi-3": f"sent {EVIL}"}},
            {"round": 2, "state": "failed", "why": "1 of 2 updates", "missing": {"pi-2": "too hot"}},
            {**closed, "round": 3, "accuracy": 0.85, "model": "a" * 64},
        ],
        "nodes": {
            "pi-1": {"samples": 20, "labels": {"head": 15, EVIL: 5}, "runtime": "litert"},
            "pi-2": {"samples": 20, "labels": {"head": 20}, "runtime": "keras"},
        },
        "best_round": 3,
        "stop": "3 rounds",
    }
    return {**told, **changes}


def lines(told: dict[str, Any]) -> str:
    """The same as `history.jsonl` has it."""
    start = {k: v for k, v in told.items() if k not in ("rounds", "nodes", "best_round", "stop")}
    rounds = [{"kind": "round", "best_round": None, **r} for r in told["rounds"]]
    rounds[0]["shares"] = told["nodes"]
    end = {"kind": "end", "best_round": told["best_round"], "stop": told["stop"]}
    return "".join(json.dumps(line) + "\n" for line in ({"kind": "run", **start}, *rounds, end))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "history.jsonl").write_text(lines(history()))
    (tmp_path / "summary.json").write_text(json.dumps({"int8_accuracy": 0.75, "seconds": 75.2}))
    (tmp_path / "model.tflite").write_bytes(b"model")
    return tmp_path


class Page(HTMLParser):
    """Every tag, its attributes and the text outside styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_writes_everything_and_says_so(run: Path) -> None:
    written = report.write(run)
    assert [str(p.relative_to(run)) for p in written] == [
        "history.csv", "plots/rounds.png", "plots/confusion.png", "plots/data.png", "plots/nodes.png",
        "report.html",
    ]  # fmt: skip
    for path in written[1:-1]:
        with Image.open(path) as picture:
            assert picture.width > 500
            assert len(picture.getcolors(2**20) or []) > 10
    assert list(run.rglob(".*")) == []


def test_csv_has_the_start_and_every_round(run: Path) -> None:
    report.write(run)
    with (run / "history.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["round"], r["state"], r["accuracy"]) for r in rows] == [
        ("0", "initial", "0.5"), ("1", "closed", "0.8"), ("2", "failed", ""), ("3", "closed", "0.85"),
    ]  # fmt: skip
    assert (rows[1]["contributors"], rows[1]["samples"], rows[1]["rejected"]) == ("2", "40", "1")
    assert rows[2]["why"] == "1 of 2 updates"


def test_page_shows_what_a_person_wants_to_know(run: Path) -> None:
    report.write(run)
    text = " ".join(Page((run / "report.html").read_text()).text.split())
    for expected in (
        "85.0 %", "of 20 held-out pictures right", "edge_cnn", "2 nodes", "1 failed", "75.0 %", "1 min 15 s",
        "16.0 kB", "1 of 2 updates", "pi-2 missing: too hot", "apiary predict run-1 photo.jpg",
        hashlib.sha256(b"model").hexdigest(), "Ended: 3 rounds", "2023-11-14 22:13 UTC", "not set",
    ):  # fmt: skip
        assert expected in text, expected


def test_page_loads_nothing_and_takes_no_code_from_names(run: Path) -> None:
    report.write(run)
    html = (run / "report.html").read_text()
    found = Page(html)
    assert {t for t, _ in found.tags} & {"script", "iframe", "object", "img", "link", "form"} == set()
    links = [v for _, attrs in found.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert all(link and link.startswith("#") for link in links)
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "default-src 'none'" in html
    assert EVIL in found.text


def test_one_drawing_serves_light_and_dark(run: Path) -> None:
    report.write(run)
    html = (run / "report.html").read_text()
    assert "prefers-color-scheme: dark" in html
    assert html.count("<svg") == 4
    assert plots.INLINE.ink not in html
    assert "currentColor" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert set(used) & set(ids)


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    report.write(run)
    first = (run / "report.html").read_bytes()
    report.write(run)
    assert (run / "report.html").read_bytes() == first


def test_a_run_without_a_closed_round_still_has_a_page(tmp_path: Path) -> None:
    told = history(rounds=[{"round": 1, "state": "failed", "why": "no node came"}], best_round=None, nodes={})
    (tmp_path / "history.jsonl").write_text(lines(told))
    assert [p.name for p in report.write(tmp_path)] == ["history.csv", "report.html"]
    assert "no round has closed" in (tmp_path / "report.html").read_text()


def test_many_labels_and_nodes_are_drawn(tmp_path: Path) -> None:
    labels = [f"label number {i} $x$" for i in range(45)]
    counts = {f"node-{i}": dict.fromkeys(labels, i) for i in range(1, 60)}
    for style in (plots.PAPER, plots.INLINE):
        assert plots.render(plots.data_per_node(counts, labels, style=style), "png").startswith(b"\x89PNG")
    matrix = [[3 if i == j else 0 for i in range(45)] for j in range(45)]
    assert b"<svg" in plots.render(plots.confusion(matrix, labels, 7), "svg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no history.jsonl: expected the folder of a run"),
        ("{\n", r"history.jsonl cannot be read: line 1: Expecting"),
        ("[]\n", r"history.jsonl cannot be read: line 1: "),
        ("{}\n", r"history.jsonl cannot be read: line 1: no key 'kind'"),
        ("", r"history.jsonl cannot be read: its first line is not that of a run"),
        (lines(history(labels=None)), r"history.jsonl: labels: Input should be a valid list"),
        (lines(history(labels=["a"])), r"round 1: confusion is not 1 x 1"),
    ],
)
def test_a_record_that_does_not_hold_says_where(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "history.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_record(tmp_path)


def test_nodes_are_counted_as_people_do() -> None:
    assert plots.natural(["pi-10", "pi-9", "attic", "pi-1"]) == ["attic", "pi-1", "pi-9", "pi-10"]


def test_sizes_and_times_for_people() -> None:
    assert [page.human_bytes(v) for v in (None, 0, 999, 1000, 14.2e6, 3e9)] == [
        "–", "0 bytes", "999 bytes", "1.0 kB", "14.2 MB", "3.0 GB",
    ]  # fmt: skip
    assert [page.human_seconds(v) for v in (None, 2.34, 59.6, 75, 3725)] == [
        "–", "2.3 s", "1 min 0 s", "1 min 15 s", "1 h 2 min",
    ]  # fmt: skip
    assert page.percent(0.9576) == "95.8 %"


def test_a_report_that_takes_too_long_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the coordinator, which came back, drew again, and ended again: the run was never over."""
    draw_report(tmp_path, limit_s=0.001)
    assert f"the report could not be drawn within 0 s: {tmp_path} holds its numbers" in caplog.text
    draw_report(tmp_path)
    assert "the report could not be drawn: " in caplog.text


def chained(folder: Path, **changes: Any) -> Path:
    """`run-1` from scratch, `run-2` from its round 1, and this run from round 3 of that."""
    ancestors = {
        "run-1": None,
        "run-2": {"run": "run-1", "round": 1},
        "run-3": {"run": "run-2", "round": 3, "accuracy_here": 0.9, "added": ["owl"], **changes},
    }
    for name, ancestor in ancestors.items():
        (folder / name).mkdir()
        more = {"run": name, **({"ancestor": ancestor} if ancestor else {})}
        (folder / name / "history.jsonl").write_text(lines(history(**more)))
    return folder / "run-3"


def test_the_curve_goes_over_the_runs_that_it_goes_on_from(tmp_path: Path) -> None:
    run = chained(tmp_path)
    record = read_record(run)
    assert [(one.run, one.points) for one in record.chain] == [
        ("run-1", ((0, 0.5), (1, 0.8))),
        ("run-2", ((1, 0.8), (3, 0.85))),
    ]
    report.write(run)
    assert (run / "plots" / "chain.png").is_file()
    text = " ".join(Page((run / "report.html").read_text()).text.split())
    assert (
        "It began with the model of round 3 of run run-2, 90.0 % on the pictures here. New labels: owl."
        in text
    )
    assert "The result is below that: it was not published" in text


@pytest.mark.parametrize("run", ["gone", "../run-1", "run-3", None])
def test_a_run_before_that_is_not_there_ends_the_chain(tmp_path: Path, run: str | None) -> None:
    folder = chained(tmp_path, run=run)
    assert read_record(folder).chain == ()
    assert folder / "plots" / "chain.png" not in report.write(folder)
