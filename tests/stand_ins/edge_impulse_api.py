"""A stand-in of Edge Impulse's API and ingestion service: strict about what it is sent, able to misbehave.

What it is sent wrongly is answered with an error and kept in `violations`. A build answers with a program
that runs (`eim_program`), made from what was uploaded and saved. `faults` maps a route (see `_ROUTES`), a
job's category or `bytes` (what is downloaded) to faults, taken one after another; the last one stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.stand_ins.eim_program import write_program

KEY = "ei_0123456789abcdef0123456789abcdef0123456789abcdef"
PROJECT = 4711
DEVICES = ["cortex-m4f-80mhz", "raspberry-pi-4", "raspberry-pi-5", "jetson-nano"]
TARGETS = ["zip", "arduino", "runner-linux-aarch64", "runner-linux-armv7", "runner-linux-x86_64"]
_MACHINES = {
    "runner-linux-aarch64": "aarch64",
    "runner-linux-armv7": "armv7",
    "runner-linux-x86_64": "x86_64",
}
_ROUTES = [
    ("projects", "GET", r"/projects"),
    ("info", "GET", r"/(\d+)"),
    ("targets", "GET", r"/(\d+)/deployment/targets/data-sources"),
    ("upload", "POST", r"/(\d+)/pretrained-model/upload"),
    ("status", "GET", r"/(\d+)/jobs/(\d+)/status"),
    ("stdout", "GET", r"/(\d+)/jobs/(\d+)/stdout"),
    ("cancel", "POST", r"/(\d+)/jobs/(\d+)/cancel"),
    ("profile", "POST", r"/(\d+)/pretrained-model/profile"),
    ("model", "GET", r"/(\d+)/pretrained-model"),
    ("save", "POST", r"/(\d+)/pretrained-model/save"),
    ("build", "POST", r"/(\d+)/jobs/build-ondevice-model"),
    ("download", "GET", r"/(\d+)/deployment/download"),
]
FAULTS = {
    "": "none",
    "unauthorized": "401 with JSON",
    "server": "503 with a web page",
    "refuse": "200 with success false",
    "html": "200 with a web page",
    "hang": "the request is taken, nothing comes back",
    "close": "the connection is closed at once",
    "redirect": "302 to another host",
    "echo": "200 with success false, and the key in the reason",
    "job_fails": "status: finished, not successful",
    "job_never_ends": "status: not finished",
    "truncated": "download: half of it, with its own length",
    "broken_off": "download: half of it, then the connection closes",
    "armv7": "download: a program for another machine",
    "wrong_labels": "download: a program with other labels",
    "wrong_input": "download: a program with another input",
    "large": "download: 3 MB",
    "empty": "download: nothing",
    "slow": "download: a byte at a time",
}


class EdgeImpulseApi:
    """Listens on a free port of 127.0.0.1 while the `with` block lasts. `folder` holds the built programs."""

    def __init__(self, folder: Path, *, job_s: float = 0.0, eim_shm: bool = False):
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.job_s = job_s
        self.eim_shm = eim_shm
        self.violations: list[str] = []
        self.seen: list[str] = []
        self.uploads: list[dict[str, Any]] = []
        self.saved: dict[str, Any] = {}
        self.samples: dict[str, tuple[str, bytes]] = {}
        self.built: dict[str, Any] = {}
        self.jobs: dict[int, dict[str, Any]] = {}
        self.cancelled: list[int] = []
        self.keys: list[str | None] = []
        self.profiled = False
        self.wrong = ""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def ingestion(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def counts(self) -> Counter[str]:
        """How often each route was asked for."""
        return Counter(self.seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def reset(self) -> None:
        """Forget what came and what was to go wrong."""
        self.__dict__ |= {
            "faults": {}, "violations": [], "seen": [], "uploads": [], "saved": {}, "samples": {},
            "built": {}, "jobs": {}, "cancelled": [], "keys": [], "profiled": False, "job_s": 0.0,
        }  # fmt: skip

    def fault(self, route: str) -> str:
        with self._lock:
            waiting = self.faults.get(route, [])
            fault = waiting[0] if waiting else ""
            if len(waiting) > 1:
                waiting.pop(0)
        assert fault in FAULTS, fault
        return fault

    # -- what the routes do: (status, JSON or bytes) -----------------------------------------------------

    def projects(self, **_: Any) -> dict[str, Any]:
        return {"projects": [{"id": PROJECT, "name": "hats", "owner": "apiary"}]}

    def info(self, **_: Any) -> dict[str, Any]:
        return {"latencyDevices": [{"mcu": d, "name": d, "selected": False} for d in DEVICES]}

    def targets(self, **_: Any) -> dict[str, Any]:
        return {"targets": [{"format": t, "name": t, "engines": ["tflite"]} for t in TARGETS]}

    def upload(self, request: Request) -> dict[str, Any]:
        fields, files = request.multipart()
        request.need(set(fields) <= {"modelFileName", "modelFileType", "device"}, f"fields {sorted(fields)}")
        request.need(set(files) <= {"modelFile", "representativeFeatures"}, f"files {sorted(files)}")
        request.need(fields.get("modelFileType") == "tflite", f"modelFileType {fields.get('modelFileType')}")
        request.need(str(fields.get("modelFileName")).endswith(".tflite"), "modelFileName has no .tflite")
        data = files.get("modelFile", b"")
        request.need(data[4:8] == b"TFL3", "modelFile is no tflite file")
        if "device" in fields:
            request.need(fields["device"] in DEVICES, f"device {fields['device']}")
        features = files.get("representativeFeatures")
        if features is not None:
            import numpy as np

            array = np.load(io.BytesIO(features), allow_pickle=False)
            request.need(
                array.dtype == np.float32 and array.ndim == 4, f"features {array.dtype}{array.shape}"
            )
            request.need(array.min() >= 0 and 1 < array.max() <= 255, "features are not pixels 0..255")
            features = array
        upload = {"name": fields.get("modelFileName"), "data": data, "features": features, **_look(data)}
        upload["device"] = fields.get("device")
        self.uploads.append(upload)
        self.profiled = False
        return {"id": self.start("Uploading model")}

    def start(self, category: str) -> int:
        job = 1000 + len(self.jobs)
        self.jobs[job] = {"category": category, "ends": time.monotonic() + self.job_s}
        return job

    def status(self, request: Request) -> dict[str, Any]:
        number = int(request.parts[1])
        request.need(number in self.jobs, f"no job {number}")
        job = self.jobs[number]
        told = {
            "id": number, "category": job["category"], "categoryKey": "x", "key": "x",
            "created": "2026-01-01T00:00:00Z", "jobNotificationUids": [],
        }  # fmt: skip
        fault = self.fault(job["category"])
        if fault == "job_never_ends" or time.monotonic() < job["ends"]:
            return {"job": told}
        told["finished"] = "2026-01-01T00:01:00Z"
        told["finishedSuccessful"] = fault != "job_fails"
        return {"job": told}

    def stdout(self, request: Request) -> dict[str, Any]:
        lines = ["ERR: the arena is too small", "Building...", "Scheduling job in cluster..."]
        return {"stdout": [{"data": line + "\n", "created": "2026-01-01T00:00:00Z"} for line in lines]}

    def cancel(self, request: Request) -> dict[str, Any]:
        request.need(request.query.get("forceCancel") == ["true"], "no forceCancel")
        self.cancelled.append(int(request.parts[1]))
        return {"id": int(request.parts[1])}

    def profile(self, request: Request) -> dict[str, Any]:
        request.need(request.body in (b"", b"null"), f"profile has a body: {request.body[:40]!r}")
        request.need(bool(self.uploads), "profile before upload")
        self.profiled = True
        return {"id": self.start("Profiling model")}

    def model(self, request: Request) -> dict[str, Any]:
        request.need(bool(self.uploads), "nothing was uploaded")
        up = self.uploads[-1]
        kinds = ["int8"] if up["dtype"] != "float32" else ["float32"]
        if up["features"] is not None:
            kinds = ["float32", "int8"]
        told: dict[str, Any] = {
            "fileName": up["name"],
            "inputs": [{"dataType": up["dtype"], "name": "x", "shape": up["input"]}],
            "outputs": [{"dataType": up["dtype"], "name": "y", "shape": up["output"]}],
        }
        if self.profiled:
            mcu = {"description": "an MCU", "supported": False}
            mine: dict[str, Any] = {
                "variant": kinds[0], "device": up["device"] or "", "tfliteFileSizeBytes": len(up["data"]),
                "isSupportedOnMcu": True, "timePerInferenceMs": 7, "customMetrics": [],
                "hasPerformance": True,
                "memory": {"tflite": {"ram": 345678, "rom": 456789, "arenaSize": 300000}},
            }  # fmt: skip
            table = {
                "variant": kinds[0], "lowEndMcu": mcu, "highEndMcu": mcu, "highEndMcuPlusAccelerator": mcu,
                "mpu": {"description": "a board", "timePerInferenceMs": 9, "rom": 4e5, "supported": True},
                "gpuOrMpuAccelerator": {"description": "a GPU", "supported": True},
            }  # fmt: skip
            told["profileInfo"] = {kinds[0]: mine, "table": table}
        return {"specificDeviceSelected": bool(up["device"]), "availableModelTypes": kinds, "model": told}

    def save(self, request: Request) -> dict[str, Any]:
        told = request.json()
        picture, model = told.get("input", {}), told.get("model", {})
        request.need(picture.get("inputType") == "image", f"input {picture}")
        request.need(picture.get("inputScaling") == "0..255", f"inputScaling {picture.get('inputScaling')}")
        request.need(picture.get("resizeMode") == "squash", f"resizeMode {picture.get('resizeMode')}")
        request.need(model.get("modelType") == "classification", f"model {model}")
        labels = model.get("labels") or []
        request.need(len(labels) == self.uploads[-1]["output"][-1], f"{len(labels)} labels")
        self.saved = told
        return {}

    def build(self, request: Request) -> dict[str, Any]:
        told = request.json()
        target = request.query.get("type", [""])[0]
        request.need(target in TARGETS, f"target {target}")
        request.need(set(told) == {"engine", "modelType"}, f"build {told}")
        request.need(told.get("engine") in ("tflite", "tflite-eon"), f"engine {told.get('engine')}")
        request.need(told.get("modelType") in ("float32", "int8"), f"modelType {told.get('modelType')}")
        request.need(bool(self.saved), "build before save")
        self.built = {"target": target, **told}
        return {"id": self.start("Building binary")}

    def download(self, request: Request) -> bytes:
        want = [self.built["target"], self.built["modelType"], self.built["engine"]]
        got = [request.query.get(k, [""])[0] for k in ("type", "modelType", "engine")]
        request.need(got == want, f"download of {got}, built was {want}")
        request.need(
            request.headers.get("Accept") == "application/zip", f"Accept {request.headers.get('Accept')}"
        )
        self.wrong = self.fault("bytes")
        return self.program(self.wrong)

    def program(self, fault: str = "") -> bytes:
        """What a build gives, or what goes wrong with it."""
        if self.built["target"] not in _MACHINES:
            return b"PK\x05\x06" + bytes(18)  # an empty archive
        labels, shape = self.saved["model"]["labels"], self.uploads[-1]["input"]
        machine = "armv7" if fault == "armv7" else _MACHINES[self.built["target"]]
        path = self.folder / f"built-{len(self.jobs)}-{fault}.eim"
        model = path.with_suffix(".tflite")
        model.write_bytes(self.uploads[-1]["data"])
        write_program(
            path,
            machine=machine,
            size=3 * 2**20 if fault == "large" else 65536,
            labels=labels,
            height=shape[1] + (fault == "wrong_input"),
            width=shape[2],
            channels=shape[3],
            mode="wrong_labels" if fault == "wrong_labels" else "",
            shm=self.eim_shm,
            tflite=str(model),
            name="hats",
        )
        data = path.read_bytes()
        if fault == "empty":
            return b""
        return data[: len(data) // 2] if fault == "truncated" else data


class Request:
    """One request; `need` notes a violation and ends it with 400."""

    def __init__(self, handler: _Handler, parts: tuple[str, ...], query: dict[str, list[str]], body: bytes):
        self.headers, self.parts, self.query, self.body = handler.headers, parts, query, body
        self.api = handler.server.api

    def need(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(otherwise)

    def json(self) -> dict[str, Any]:
        self.need(self.headers.get_content_type() == "application/json", "no application/json")
        try:
            value: dict[str, Any] = json.loads(self.body)
        except ValueError:
            raise Violation(f"no JSON: {self.body[:40]!r}") from None
        return value

    def multipart(self) -> tuple[dict[str, str], dict[str, bytes]]:
        self.need(self.headers.get_content_type() == "multipart/form-data", "no multipart/form-data")
        boundary = b"--" + str(self.headers.get_param("boundary")).encode()
        fields, files = {}, {}
        first, *parts, last = self.body.split(boundary)
        self.need(first == b"" and last.startswith(b"--"), "a multipart body that is not whole")
        for part in parts:
            head, _, data = part.removesuffix(b"\r\n").partition(b"\r\n\r\n")
            told = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
            if "filename" in told:
                files[told["name"]] = data
                self.filename = told["filename"]
            else:
                fields[told["name"]] = data.decode()
        return fields, files


class Violation(Exception):  # noqa: N818 - what the client did
    """The client sent what the API does not take."""


def _look(data: bytes) -> dict[str, Any]:
    """Input, output and numbers of an uploaded model."""
    from apiary.learn.runtimes import litert

    with tempfile.NamedTemporaryFile(suffix=".tflite") as f:
        f.write(data)
        f.flush()
        model = litert.open_model(Path(f.name), threads=1)
    into, out = model.get_input_details()[0], model.get_output_details()[0]
    return {
        "input": [int(d) for d in into["shape"]],
        "output": [int(d) for d in out["shape"]],
        "dtype": into["dtype"].__name__,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    api: EdgeImpulseApi

    def handle_error(self, *_: Any) -> None:
        """A client that was killed hangs up in the middle: that is what is tried."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, method: str) -> None:
        api = self.server.api
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api.keys.append(self.headers.get("x-api-key"))
        if url.path == "/api/testing/files" and method == "POST":
            self._ingest(body)
            return
        found = [
            (name, match)
            for name, wanted, pattern in _ROUTES
            if method == wanted and (match := re.fullmatch(r"/v1/api" + pattern, url.path))
        ]
        if not found:
            api.violations.append(f"{method} {self.path}: no such route")
            self._json({"success": False, "error": "no such route"}, 404)
            return
        name, match = found[0]
        api.seen.append(name)
        if self._misbehave(api.fault(name)):
            return
        if self.headers.get("x-api-key") != KEY:
            self._json({"success": False, "error": "Invalid API key"}, 401)
            return
        request = Request(self, match.groups(), parse_qs(url.query), body)
        try:
            request.need(not match.groups() or match[1] == str(PROJECT), f"project {match.groups()}")
            told = getattr(api, name)(request=request)
        except Violation as e:
            api.violations.append(f"{name}: {e}")
            self._json({"success": False, "error": str(e)}, 400)
            return
        if isinstance(told, bytes):
            self._download(told, api.wrong)
        else:
            self._json({"success": True, **told})

    def _ingest(self, body: bytes) -> None:
        api = self.server.api
        api.seen.append("ingest")
        if self._misbehave(api.fault("ingest")):
            return
        if self.headers.get("x-api-key") != KEY:
            self._json({"success": False, "error": "Invalid API key"}, 401)
            return
        request = Request(self, (), {}, body)
        _, files = request.multipart()
        if set(files) != {"data"} or not self.headers.get("x-label"):
            api.violations.append(f"ingest: {sorted(files)}, label {self.headers.get('x-label')}")
        known = request.filename in api.samples
        api.samples[str(request.filename)] = (str(self.headers.get("x-label")), files["data"])
        told = {"success": not known, "fileName": request.filename, "sampleId": len(api.samples)}
        if known:
            told["error"] = "An item with this hash already exists (ids: 7)"
        self._json({"success": not known, "files": [told]})

    def _json(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _download(self, data: bytes, fault: str) -> None:
        if fault == "broken_off":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self._drop()
        elif fault == "html":
            self._send(b"<!DOCTYPE html><title>Sign in</title>" * 2000, "text/html")
        else:
            self._send(data, "application/zip")

    def _misbehave(self, fault: str) -> bool:
        """Whether the request was dealt with here."""
        match fault:
            case "unauthorized":
                self._json({"success": False, "error": "Invalid API key"}, 401)
            case "server":
                self._send(b"<html><title>503 Service Unavailable</title></html>", "text/html", 503)
            case "refuse":
                self._json({"success": False, "error": "You have no compute time left"})
            case "echo":
                self._json({"success": False, "error": f"key {self.headers.get('x-api-key')} has no rights"})
            case "html":
                self._send(b"<!DOCTYPE html><title>Sign in</title>", "text/html")
            case "hang":
                self.server.api._closing.wait(60)
                self._drop()
            case "close":
                self._drop()
            case "redirect":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                return False
        return True

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
