"""A disk that is really full, under the whole path of a picture: capture, labelling page, training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.builds import built_once, small

from apiary.wire import blob
from apiary_coordinator.export.client import Built

# Runs on a small file system of its own: argument 1 is its folder, 2 a folder of pictures, 3 the export's.
SCRIPT = """
import io, json, subprocess, sys, time, urllib.request
from pathlib import Path
import numpy as np
from PIL import Image
from apiary.process.child import light_environment
from apiary.settings import CameraSettings, CaptureSettings, EdgeSettings, StoreSettings
from apiary.wire.messages import Plan
from apiary_edge.training.job import TrainJob
from apiary_edge.samples.store import SampleStore

disk, pictures, built = map(Path, sys.argv[1:])
edge = EdgeSettings(
    state_dir=disk,
    camera=CameraSettings(kind="folder", source=str(pictures)),
    capture=CaptureSettings(min_sharpness=0, near_duplicate_bits=-1),
    store=StoreSettings(min_free_mb=0),
)
child = subprocess.Popen(
    [sys.executable, "-m", "apiary_edge.capture.worker"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=light_environment(),
)
child.stdin.write(edge.model_dump_json())
child.stdin.close()
kept = 0
for line in child.stdout:
    told = json.loads(line)
    kept += told["kind"] == "kept"
    if told["kind"] == "trouble":
        print("capture:", told["text"])
        break
assert child.poll() is None, "it waits for room"
child.terminate()
print("capture ended with", child.wait(30), "kept", kept)

# Somebody else takes what is left, to the last byte.
def fill():
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        for size in (4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                pass

fill()

store = SampleStore.of_node(edge)
ids = [s.id for s in store.page(limit=100).samples]
assert len(ids) == kept
from apiary_edge.labelling.app import Labelling, site
from apiary_edge.web.gate import OwnerGate
app = site(Labelling(lambda: store, 0.2), OwnerGate("t" * 32, 80, time.monotonic, time.sleep))

def post(path, body):
    data = json.dumps(body).encode()
    said = {}
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "HTTP_HOST": "127.0.0.1:80", "HTTP_X_APIARY": "1",
        "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(data)), "wsgi.input": io.BytesIO(data),
        "HTTP_COOKIE": cookie, "REMOTE_ADDR": "127.0.0.1",
    }
    body = b"".join(app(environ, lambda status, headers: said.update(status=status, headers=headers)))
    return said["status"], json.loads(body), dict(said["headers"])

cookie = ""
cookie = post("/api/login", {"token": "t" * 32})[2]["Set-Cookie"].partition(";")[0]
full = 0
for sample in ids:
    status, body, _ = post("/api/label", {"ids": [sample], "was": None, "label": "dark"})
    full += status.startswith("503")
    if status.startswith("503"):
        print("label:", body["error"])
        break
assert full or store.counts().labelled["dark"] == len(ids)
shown = {s.id: s.label for s in store.page(limit=100).samples}
deleted = post("/api/delete", {"ids": ids[:20], "was": [shown[s] for s in ids[:20]], "confirm": 20})
print("delete:", deleted[1])
(disk / "ballast").unlink()
half = (20 + len(ids)) // 2
assert post("/api/label", {"ids": ids[20:half], "was": None, "label": "dark"})[0].startswith("200")
assert post("/api/label", {"ids": ids[half:], "was": None, "label": "light"})[0].startswith("200")
store.close()

def train(out):
    job = TrainJob(
        run="r", round=1, node="pi-1", plan=Plan(epochs=1, batch_size=8), manifest=built / "manifest.json",
        trainer=built / "trainer.tflite", base=None, base_digest=None, model=built / "model.blob",
        store=disk / "samples", cache_dir=disk / "cache", cache_mb=10, out=out, runtime="litert", threads=1,
    )
    file = Path(sys.argv[2]) / "job.json"
    file.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "apiary_edge.training.worker", file]
    done = subprocess.run(command, capture_output=True, text=True, env=light_environment())
    return json.loads(done.stdout.splitlines()[-1]), done

out = disk / "training"
out.mkdir()
fill()
told, done = train(out)
print("train:", told["kind"], told.get("text", ""), done.stderr[-300:])
assert told["kind"] == "failed" and "the disk is full" in told["text"], (told, done)
(disk / "ballast").unlink()
told, done = train(out)
assert told["kind"] == "done", (told, done)
print("trained after room was made:", told["samples"])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = built_once(small("edge_cnn", tmp_path_factory), tmp_path_factory)
    (made.folder / "model.blob").write_bytes(blob.encode(made.initial))
    return made


@pytest.mark.tensorflow
def test_what_a_full_disk_stops_is_said_and_goes_on_once_there_is_room(built: Built, tmp_path: Path) -> None:
    disk, pictures = tmp_path / "disk", tmp_path / "pictures"
    disk.mkdir()
    pictures.mkdir()
    make = (
        "import sys; import numpy as np; from PIL import Image\n"
        "for i in range(80):\n"
        "    noise = np.random.default_rng(i).integers(20, 230, (160, 160, 3), np.uint8)\n"
        "    Image.fromarray(noise).save(f'{sys.argv[1]}/{i}.jpg', quality=95)\n"
    )
    subprocess.run([sys.executable, "-c", make, pictures], check=True, timeout=60)
    mount = f'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec {sys.executable} - "$@"'
    try:
        ran = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", disk, disk, pictures,
             built.folder],
            input=SCRIPT, text=True, capture_output=True, timeout=240, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {ran.stderr.strip()[:100]}")
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    said = ran.stdout
    assert "capture ended with 0" in said and "capture: " in said
    assert "delete: {'deleted': 20}" in said
    assert "trained after room was made" in said
