from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.places import ROOT

from apiary.errors import ApiaryError, DataError
from apiary_cli.commands import data
from apiary_cli.datasets import catalogue
from apiary_cli.datasets.catalogue import Archive, DataSet
from apiary_cli.datasets.fetch import fetch
from apiary_cli.datasets.partition import hardhat_layout, materialise, read_layout
from apiary_cli.datasets.sources import open_npz, open_source

BODY = bytes(range(256)) * 2000


class Site:
    """A real HTTP server with the habits that a test asks for."""

    def __init__(self) -> None:
        self.body = BODY
        self.cut_after: list[int] = []
        """Bytes after which each of the first answers breaks off."""
        self.ignore_range = False
        self.fail: list[int] = []
        """Status codes of the first answers."""
        self.ranges: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                site.ranges.append(asked)
                if site.fail:
                    self.send_error(site.fail.pop(0))
                    return
                start = int(asked[6:-1]) if asked and not site.ignore_range else 0
                if start > len(site.body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    last = len(site.body) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(site.body)}")
                rest = site.body[start:]
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if site.cut_after:
                    self.wfile.write(rest[: site.cut_after.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(rest)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever)
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def dataset(site: Site, **archive: Any) -> DataSet:
    return DataSet(
        name="trial",
        description="",
        layout="npz",
        classes=["a", "b"],
        licence="",
        source="",
        citation="",
        archives=[Archive(url=site.url, file="trial.bin", **archive)],
    )


def get(site: Site, folder: Path, **archive: Any) -> list[float]:
    """Fetch and return the pauses taken."""
    pauses: list[float] = []
    fetch(dataset(site, **archive), folder, sleep=pauses.append)
    return pauses


def test_a_broken_download_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000, 150_000]
    pauses = get(site, tmp_path, sha256=sha256(BODY))
    assert (tmp_path / "trial.bin").read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=250000-"]
    assert len(pauses) == 2


def test_a_later_command_resumes_the_kept_part(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".trial.bin.part").write_bytes(BODY[:1234])
    get(site, tmp_path, sha256=sha256(BODY))
    assert site.ranges == ["bytes=1234-"]
    assert (tmp_path / "trial.bin").read_bytes() == BODY


def test_a_server_without_range_starts_over(site: Site, tmp_path: Path) -> None:
    site.ignore_range, site.cut_after = True, [400_000, 3]
    get(site, tmp_path, sha256=sha256(BODY), bytes=len(BODY))
    assert (tmp_path / "trial.bin").read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_wrong_bytes_are_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"sha256 {sha256(BODY)}, expected {'0' * 64}"):
        get(site, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_stale_part_costs_one_more_download_not_the_data(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".trial.bin.part").write_bytes(b"x" * 1000)
    get(site, tmp_path, sha256=sha256(BODY))
    assert (tmp_path / "trial.bin").read_bytes() == BODY
    assert site.ranges == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_starts_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".trial.bin.part").write_bytes(BODY + b"more")
    get(site, tmp_path, sha256=sha256(BODY))
    assert (tmp_path / "trial.bin").read_bytes() == BODY


def test_more_bytes_than_declared_are_refused_before_they_are_taken(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="offers 512000 bytes, expected at most 511999"):
        get(site, tmp_path, max_bytes=len(BODY) - 1)
    get(site, tmp_path, max_bytes=len(BODY))


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(site: Site, tmp_path: Path) -> None:
    site.fail = [503, 429]
    assert get(site, tmp_path, sha256=sha256(BODY)) == [1.0, 2.0]
    site.fail = [404]
    with pytest.raises(DataError, match="answered 404"):
        get(site, tmp_path / "other", sha256=sha256(BODY))


def test_without_progress_it_gives_up_and_says_what_is_kept(site: Site, tmp_path: Path) -> None:
    site.cut_after = [77, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"tried 5 times without progress. 77 bytes are kept"):
        get(site, tmp_path, sha256=sha256(BODY))


def test_nobody_there(tmp_path: Path) -> None:
    spare = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = spare.server_address[1]
    spare.server_close()
    gone = Archive(url=f"http://127.0.0.1:{port}/x", file="x.bin", sha256="0" * 64)
    with pytest.raises(DataError, match=r"no connection: .*refused; tried 5 times"):
        fetch(catalogue.get("mnist").model_copy(update={"archives": [gone]}), tmp_path, sleep=lambda _: None)


def test_without_a_published_checksum_the_first_download_holds(site: Site, tmp_path: Path) -> None:
    trial = dataset(site)
    first = fetch(trial, tmp_path)[0]
    assert (first.trust, first.fresh, first.sha256) == ("first use", True, sha256(BODY))
    assert fetch(trial, tmp_path)[0].fresh is False
    (tmp_path / "trial.bin").unlink()
    site.body = BODY + b"!"
    with pytest.raises(DataError, match=f"expected {sha256(BODY)}"):
        fetch(trial, tmp_path)


def test_without_a_checksum_two_downloads_never_meet_in_one_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".trial.bin.part").write_bytes(b"of another day")
    site.cut_after = [1000]
    get(site, tmp_path)
    assert (tmp_path / "trial.bin").read_bytes() == BODY
    assert site.ranges == [None, None]


def test_a_damaged_file_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    get(site, tmp_path, sha256=sha256(BODY))
    (tmp_path / "trial.bin").write_bytes(b"rot")
    get(site, tmp_path, sha256=sha256(BODY))
    assert (tmp_path / "trial.bin").read_bytes() == BODY


def archive(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(info)
    return out.getvalue()


def test_unpacks_the_named_folder_only_and_no_links(site: Site, tmp_path: Path) -> None:
    site.body = archive({"repo-1/datasets/a/x": b"1", "repo-1/README": b"2"}, link="repo-1/datasets/evil")
    get(site, tmp_path, unpack="tar.gz", only="datasets/", members={"a/x": sha256(b"1")})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "fetched.json"]
    assert (tmp_path / "a" / "x").read_bytes() == b"1"
    assert get(site, tmp_path, unpack="tar.gz", only="datasets/") == []
    assert len(site.ranges) == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_that_points_outside_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    site.body = archive({name: b"1"})
    with pytest.raises(DataError, match="points outside"):
        get(site, tmp_path / "in", unpack="tar.gz")
    assert not (tmp_path / "outside").exists()


def test_a_changed_member_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = archive({"x": b"1", "y": b"2"})
    with pytest.raises(DataError, match="1 files differ from what was published, first y"):
        get(site, tmp_path, unpack="tar.gz", members={"x": sha256(b"1"), "y": sha256(b"3")})


def test_a_torn_archive_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = archive({"x": bytes(100_000)})[:-20]
    with pytest.raises(DataError, match="torn"):
        get(site, tmp_path, unpack="tar.gz")


def test_every_manifest_holds_and_travels_with_the_wheel() -> None:
    assert set(catalogue.all_datasets()) >= {"digits", "hardhat", "cifar10", "fer2013", "mnist"}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for name in catalogue.all_datasets():
        assert included[f"datasets/{name}.toml"] == f"apiary_cli/datasets/catalogue_data/{name}.toml"


def test_an_unknown_data_set_is_named_with_its_neighbours() -> None:
    with pytest.raises(DataError, match=r"no data set 'digit'; did you mean 'digits'\? There are: cifar10"):
        open_source("digit")


def test_a_folder_that_is_not_there_is_not_called_a_data_set() -> None:
    with pytest.raises(DataError, match=r"photos/ is not there: expected a folder of pictures"):
        open_source("photos/")
    with pytest.raises(DataError, match=r"photos is no folder here, and no data set 'photos'\. There are"):
        open_source("photos")


def pictures(folder: Path, counts: dict[str, int]) -> Path:
    for label, n in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / label / f"{i}.png")
    return folder


def test_folders_are_linked_not_copied(tmp_path: Path) -> None:
    source = pictures(tmp_path / "photos", {"cat": 10, "dog": 20})
    (source / "notes.txt").write_text("no picture")
    layout = materialise(source, tmp_path / "out", nodes=3, by="iid", seed=1)
    assert layout.labels == ["cat", "dog"]
    assert layout.counts["server"] == {"cat": 2, "dog": 4}
    assert layout.matrix().sum() == 24
    placed = sorted(p.stat().st_ino for p in (tmp_path / "out").glob("*/*/*.png"))
    assert placed == sorted(p.stat().st_ino for p in source.glob("*/*.png"))


def test_the_same_wish_finds_its_folder_and_another_is_refused(tmp_path: Path) -> None:
    source = pictures(tmp_path / "photos", {"cat": 10, "dog": 20})
    first = materialise(source, tmp_path / "out", nodes=2)
    assert materialise(source, tmp_path / "out", nodes=2) == first == read_layout(tmp_path / "out")
    with pytest.raises(DataError, match=r"holds another partition \(nodes=2\)"):
        materialise(source, tmp_path / "out", nodes=3)


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not empty"):
        materialise("digits", tmp_path, nodes=2)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_digits_come_from_scikit_learn_as_they_are(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    layout = materialise(
        "digits", tmp_path / "out", nodes=5, by="dirichlet", on_progress=lambda a, b: seen.append((a, b))
    )
    assert seen[-1] == (1797, 1797)
    assert layout.matrix().sum() + sum(layout.counts["server"].values()) == 1797
    for node in layout.nodes:
        assert {p.name: len(list(p.iterdir())) for p in node.iterdir()} == layout.counts[node.name]
    from sklearn.datasets import load_digits

    digits = load_digits()
    some = next((tmp_path / "out" / "server" / "7").iterdir())
    index = int(some.stem.split("-")[-1])
    assert digits.target[index] == 7
    assert np.array_equal(np.asarray(Image.open(some)), np.rint(digits.images[index] * 255 / 16))


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_npz_with_a_test_split_gives_it_to_the_server(tmp_path: Path) -> None:
    x = np.arange(40 * 4 * 4 * 3, dtype=np.uint8).reshape(40, 4, 4, 3)
    y = np.tile(np.arange(2, dtype=np.uint8), 20)
    path = npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], classes=["on", "off"])
    layout = materialise(path, tmp_path / "out", nodes=2, by="quantity", limit=10)
    assert layout.matrix().sum() == 10
    assert layout.counts["server"] == {"on": 1, "off": 1}
    assert materialise(path, tmp_path / "all", nodes=2).counts["server"] == {"on": 3, "off": 3}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 4, 4), np.float32)}, r"x_train is float32\[2, 4, 4\], expected uint8"),
        ({"y_train": np.zeros(3, np.uint8)}, r"y_train is uint8\[3\], expected 2 integers"),
        ({"y_train": np.array([0, 5])}, r"a label is 5, expected below 2"),
        ({"classes": np.array(["a", "../b"])}, r"label '../b' cannot be a folder's name"),
        ({"classes": np.array(["a", "a"])}, r"two classes have one name"),
        ({"classes": np.array([{"a": 1}, None])}, r"cannot be read as .npz: .*allow_pickle=False"),
    ],
)
def test_an_npz_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "x_train": np.zeros((2, 4, 4), np.uint8), "y_train": np.array([0, 1]), "classes": np.array(["a", "b"])
    }  # fmt: skip
    with pytest.raises(DataError, match=message):
        open_npz(npz(tmp_path / "a.npz", **{**good, **arrays}))


def test_other_sources_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"torn or no \.npz"):
        open_source(tmp_path / "torn.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures; expected a folder for each label"):
        open_source(tmp_path / "empty")
    with pytest.raises(DataError, match=r"found 1 class \(cat\), expected two or more"):
        open_source(pictures(tmp_path / "one", {"cat": 3}))
    with pytest.raises(DataError, match="is not there"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"mnist: no folder .*apiary data fetch mnist"):
        open_source("mnist", tmp_path / "gone")
    with pytest.raises(DataError, match=r"Kaggle asks for a login.*\nhttps://www\.kaggle\.com/"):
        open_source("fer2013", tmp_path / "gone")
    with pytest.raises(DataError, match=r"has no dataset_client1"):
        hardhat_layout(tmp_path, tmp_path / "out")


def test_folders_with_a_split_of_their_own(tmp_path: Path) -> None:
    labels = dict.fromkeys(catalogue.get("fer2013").classes, 3)
    pictures(tmp_path / "fer2013" / "train", labels)
    pictures(tmp_path / "fer2013" / "test", dict.fromkeys(labels, 1))
    layout = materialise("fer2013", tmp_path / "out", nodes=3, data_dir=tmp_path)
    assert layout.labels == catalogue.get("fer2013").classes
    assert layout.counts["server"] == dict.fromkeys(labels, 1)
    assert int(layout.matrix().sum()) == 21
    pictures(tmp_path / "fer2013" / "test", {"bored": 1})
    with pytest.raises(DataError, match="bored: a test label that no training picture has"):
        open_source("fer2013", tmp_path)


def test_of_two_arrays_none_is_guessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        npz(tmp_path / f"{name}.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=np.array([0, 1]))
    with pytest.raises(DataError, match=r"holds 2 \.npz files, expected one"):
        open_source("mnist", tmp_path)


def test_what_is_fetched_can_be_opened(site: Site, tmp_path: Path) -> None:
    out, x = io.BytesIO(), np.zeros((4, 28, 28), np.uint8)
    np.savez(out, x_train=x, y_train=np.arange(4), x_test=x[:1], y_test=np.array([9]))
    site.body = out.getvalue()
    mnist = catalogue.get("mnist")
    local = mnist.archives[0].model_copy(update={"url": site.url, "sha256": sha256(site.body)})
    fetch(mnist.model_copy(update={"archives": [local]}), tmp_path / "mnist")
    source = open_source("mnist", tmp_path)
    assert (source.labels, source.y_train.size, source.y_test.tolist()) == (mnist.classes, 4, [9])


def test_an_interrupted_layout_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise("digits", tmp_path / "out", nodes=2, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_cifar_binary_records_become_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    planes = rng.integers(0, 256, (6, 10, 3, 32, 32), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        rows = [bytes([c]) + planes[i, c].tobytes() for c in range(10)]
        (folder / name).write_bytes(b"".join(rows))
    source = open_source("cifar10", tmp_path)
    assert (source.y_train.size, source.y_test.tolist()) == (50, list(range(10)))
    source.write("train", 13, tmp_path)
    written = np.asarray(Image.open(tmp_path / "cat-train-00013.png"))
    assert np.array_equal(written, planes[1, 3].transpose(1, 2, 0))


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    code = data.run(parser.parse_args(argv))
    return code, capsys.readouterr().out


def test_command_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Kaggle" in command(capsys, "list")[1]
    names = [d["name"] for d in json.loads(command(capsys, "list", "--json")[1])]
    assert names == sorted(catalogue.all_datasets())


def test_command_fetch_of_what_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "1797 train and 0 test pictures with scikit-learn" in command(capsys, "fetch", "digits")[1]


def test_command_fetch_of_what_needs_a_login(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ApiaryError, match=re.escape(f"{tmp_path}/fer2013/train/angry/*.jpg")) as e:
        command(capsys, "fetch", "fer2013", "--dir", str(tmp_path))
    assert e.value.exit_code == 3


def test_command_partition(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, plot = tmp_path / "out", tmp_path / "shares.png"
    argv = ["partition", "digits", "--nodes", "3", "--by", "shards", "--limit", "60", "--out", str(out)]
    code, text = command(capsys, *argv, "--plot", str(plot))
    assert code == 0
    assert re.search(r"node-3 .* \d+ █", text)
    assert plot.read_bytes().startswith(b"\x89PNG")
    said = json.loads(command(capsys, *argv, "--json")[1])
    assert sum(sum(said["counts"][f"node-{i}"].values()) for i in (1, 2, 3)) == 60
    with pytest.raises(DataError, match=r"expected a name that ends in .png or .svg"):
        command(capsys, *argv, "--plot", "x.jpg")


def test_the_real_hard_hats_as_their_clients_hold_them(shared_data: Path, tmp_path: Path) -> None:
    layout = hardhat_layout(shared_data, tmp_path / "out")
    totals = {name: sum(counts.values()) for name, counts in layout.counts.items()}
    assert totals == {"node-1": 208, "node-2": 207, "server": 118}
    assert hardhat_layout(shared_data, tmp_path / "out") == layout


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("fer2013", 7)])
def test_the_real_arrays(shared_data: Path, tmp_path: Path, name: str, classes: int) -> None:
    layout = materialise(name, tmp_path / "out", nodes=3, by="dirichlet", limit=200, data_dir=shared_data)
    assert (len(layout.labels), int(layout.matrix().sum())) == (classes, 200)
