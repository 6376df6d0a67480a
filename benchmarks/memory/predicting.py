"""What capturing and predicting take of a Pi's memory: the real child, by the kernel's figures.

    python -m benchmarks.memory.predicting [--recipe edge_cnn] [--fps 5] [--seconds 60] [--json]

A stream of real MJPEG over HTTP, 640x480, goes into one predicting child, as the service starts it: it judges
and stores frames, predicts `--fps` times a second with an exported model, and shows its page to a browser
that asks as fast as the page does. A picture of 12 million pixels is posted to it, and half way another model
is swapped in. VmHWM is the kernel's own high-water mark. Exit code 1 where the bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from benchmarks.measuring.kernel_figures import Memory, cpu_seconds, memory
from benchmarks.measuring.processes import end
from PIL import Image

from apiary.process.child import light_environment
from apiary.settings import CameraSettings, CaptureSettings, EdgeSettings, PredictSettings
from apiary.settings.page import PageSettings
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import Built, build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_edge.predicting import model_files
from apiary_edge.predicting.feature import PredictProcess
from apiary_edge.predicting.job import PredictionEvent, PredictJob
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.web.token import load_or_make

BOUND_MB = 120.0
LABELS = ["head", "helmet"]
OPTIONS: dict[str, dict[str, object]] = {
    "edge_cnn": {"size": 96, "channels": 3},
    "mobilenet_v2": {"size": 160, "alpha": 1.0, "weights": "random"},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=sorted(OPTIONS), default="edge_cnn")
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--exports", type=Path, help="folder of exported recipes, kept for the next time")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as scratch:
        folder = Path(scratch)
        job = BuildJob(
            recipe=args.recipe,
            options=OPTIONS[args.recipe],
            labels=LABELS,
            plan=Plan(batch_size=16),
            out=folder / "export",
        )
        built = build_in_child(job, cache=args.exports)
        with stream() as address:
            found, seen, cpu = measure(args, folder / "node", built, address)
    frames = seen / args.seconds
    print(f"{'':20} {'peak MB':>8} {'end MB':>7} {'bound':>6}", file=sys.stderr)
    print(f"{args.recipe:20} {found.peak:8.1f} {found.now:7.1f} {BOUND_MB:6.0f}", file=sys.stderr)
    print(f"{frames:.1f} predictions/s, {100 * cpu / args.seconds:.0f} % of a core", file=sys.stderr)
    if args.json:
        told = {"recipe": args.recipe, "peak_mb": found.peak, "end_mb": found.now, "frames_per_s": frames}
        print(json.dumps(told))
    return 0 if found.peak < BOUND_MB and frames > 0.9 * args.fps else 1


def measure(args: argparse.Namespace, state: Path, built: Built, address: str) -> tuple[Memory, int, float]:
    """Memory of the child, frames that it predicted, seconds of processor time."""
    describe(state, built, 0.0)
    edge = EdgeSettings(
        state_dir=state,
        camera=CameraSettings(kind="stream", source=address, fps=args.fps),
        capture=CaptureSettings(interval_s=0.2, near_duplicate_bits=-1, min_sharpness=0),
        page=PageSettings(port=0),
        predict=PredictSettings(enabled=True, fps=args.fps),
    )
    job = PredictJob(edge=edge, federation="bench")
    child = subprocess.Popen(
        [sys.executable, "-m", "apiary_edge.predicting.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=light_environment(),
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(job.model_dump_json().encode())
        child.stdin.close()
        page = next(
            t.text
            for line in child.stdout
            if isinstance(t := PredictProcess.parse(line), PredictionEvent) and t.kind == "page"
        )
        threading.Thread(target=child.stdout.read, daemon=True).start()
        seen, cpu = look(page, load_or_make(state), args, lambda: describe(state, built, 0.01), child.pid)
        found = memory(child.pid)
        assert found is not None, "the child has ended"
        return found, seen, cpu
    finally:
        end(child)


def describe(state: Path, built: Built, by: float) -> None:
    """Put a model where the child looks for it."""

    def keep(data: bytes) -> Path:
        path = state / "blobs" / hashlib.sha256(data).hexdigest()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # the child may have it mapped
            path.write_bytes(data)
        return path

    weights = type(built.initial)({k: v + np.float32(by) for k, v in built.initial.items()})
    file = keep(blob.encode(weights))
    found = ModelFile(
        kind="trainer",
        name=f"moved by {by}",
        digest=file.name,
        file=file,
        labels=tuple(LABELS),
        manifest=keep(built.manifest.encode()),
        trainer=keep(built.trainer.read_bytes()),
        base=keep(built.base.read_bytes()) if built.base else None,
    )
    model_files.folder(state).mkdir(parents=True, exist_ok=True)
    fresh = model_files.newest_file(state).with_suffix(".part")
    fresh.write_text(found.model_dump_json())
    fresh.replace(model_files.newest_file(state))


def look(
    page: str, token: str, args: argparse.Namespace, swap: Callable[[], None], pid: int
) -> tuple[int, float]:
    """As the page does, for so many seconds; frames and processor time since the first one."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    opener.open(f"{page}?token={token}", timeout=10).close()

    def ask(path: str) -> bytes:
        with opener.open(page + path, timeout=10) as answer:
            data: bytes = answer.read()
            return data

    def now() -> dict[str, object] | None:
        shown: dict[str, object] | None = json.loads(ask("api/now"))["shown"]
        return shown

    until = time.monotonic() + 30
    while (first := now()) is None:
        assert time.monotonic() < until, "no frame in 30 s"
        time.sleep(0.1)
    began, cpu = time.monotonic(), cpu_seconds(pid)
    extra: list[tuple[float, Callable[[], None]]] = [(0.25, lambda: post(page, token)), (0.5, swap)]
    while (past := time.monotonic() - began) < args.seconds:
        if extra and past > extra[0][0] * args.seconds:
            _, act = extra.pop(0)
            act()
        shown = now()
        assert shown is not None
        with contextlib.suppress(urllib.error.HTTPError):  # a moment too late
            ask(f"frame/{shown['number']}")
        time.sleep(0.15)
    last = now()
    assert last is not None
    return int(str(last["number"])) - int(str(first["number"])), cpu_seconds(pid) - cpu


def post(page: str, token: str) -> None:
    """A photo as a phone takes it."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (750, 1000, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(out, "JPEG", quality=85)
    request = urllib.request.Request(page + "api/image", out.getvalue(), method="POST")  # noqa: S310 - the child's own page
    request.add_header("Authorization", f"Bearer {token}")
    request.add_header("Content-Type", "image/jpeg")
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the child's own page
        assert answer.status == 200


class stream:  # noqa: N801 - used as a function is
    """An MJPEG camera over HTTP at 15 frames/s; gives its address."""

    def __enter__(self) -> str:
        frames = [self.frame(i) for i in range(30)]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                i = 0
                try:
                    while True:
                        data = frames[i % len(frames)]
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        i += 1
                        time.sleep(1 / 15)
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/stream.mjpg"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    @staticmethod
    def frame(i: int) -> bytes:
        """Noise in large squares, as busy as a street."""
        rng = np.random.default_rng(i)
        small = rng.integers(0, 255, (48, 64, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((640, 480)).save(out, "JPEG", quality=80)
        return out.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
