"""A stand-in of an `.eim` program, as strict as the real one: socket, stdin, --print-info, shared memory.

It speaks the protocol of edgeimpulse/example-standalone-inferencing-linux (source/eim.cpp): requests end
where their braces balance, answers with NUL, one connection, one hello. `write_program` makes a file that
runs. Its prediction: the mean of the red channel / 255 belongs to the last label, the rest to the first;
with `tflite` in the configuration it runs that model instead.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

MODES = (
    "", "die_at_start", "never_bind", "hang", "crash", "crash_once", "garbage", "html", "wrong_labels",
    "endless", "refuse", "ignore_sigterm", "chatty", "not_finite", "stale_id", "slow_bytes", "leave_shm",
    "tiny_shm", "labels_change", "hostile", "leaves",
)  # fmt: skip
BUFFER = 10 * 2**20
SHARED = "/dev/shm"  # noqa: S108 - POSIX shared memory, no temporary file


def write_program(path: Path, *, machine: str = "x86_64", size: int = 65536, **config: Any) -> Path:
    """An executable file at `path` (ELF) that holds all it needs. See `Program` for the keys."""
    from tests.stand_ins.elf_launcher import launcher

    config = {"state": str(path) + ".state", **config}
    parts = {
        "__main__.py": f"import eim_program, sys\neim_program.main({config!r}, sys.argv[1:])\n".encode(),
        "eim_program.py": Path(__file__).read_bytes(),
    }
    if config.get("tflite"):
        parts["model.tflite"] = Path(config["tflite"]).read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, data in parts.items():
            z.writestr(zipfile.ZipInfo(name), data)
    packed = archive.getvalue()
    size = max(size, len(packed) + 4096)
    # Python looks for the archive at the end of the file.
    path.write_bytes(launcher(machine=machine, size=size)[: -len(packed)] + packed)
    path.chmod(0o755)
    return path


class Program:
    """Configuration: labels, width, height, channels, resize, mode, shm (bool), tflite (path), name."""

    def __init__(self, config: dict[str, Any]):
        self.labels: list[str] = config.get("labels", ["cat", "dog"])
        self.width, self.height = config.get("width", 8), config.get("height", 6)
        self.channels = config.get("channels", 3)
        self.resize = config.get("resize", "squash")
        self.mode = config.get("mode", "")
        assert self.mode in MODES, self.mode
        self.tflite = config.get("tflite")
        self.name = config.get("name", "stand-in")
        self.state = Path(config["state"])
        self.outside, self.port = Path(config.get("outside", "/")), config.get("port", 0)
        self.initialized = False
        self.shm_name = f"/apiary-test-{os.getpid()}" if config.get("shm") else None
        self.interpreter: Any = None

    @property
    def features(self) -> int:
        return int(self.width * self.height)

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        number = message.get("id")
        if not isinstance(number, int):
            return {"success": False, "error": "Missing 'id' field in message"}
        if "hello" in message:
            if self.initialized:
                return self.no(number, "Invalid message 'hello', already initialized")
            if message["hello"] != 1:
                return self.no(number, "Invalid value for 'hello', only 1 supported")
            self.initialized = True
            return self.hello(number)
        if not self.initialized:
            return self.no(number, "Invalid message, should initialize first")
        if isinstance(message.get("classify"), list):
            return self.classify(number, message["classify"])
        if isinstance(message.get("classify_shm"), dict) and self.shm_name:
            elements = message["classify_shm"]["elements"]
            data = Path(SHARED + self.shm_name).read_bytes()[: 4 * elements]
            return self.classify(number, [int(x) for x in struct.unpack(f"<{elements}f", data)])
        return self.no(number, "Failed to handle message")

    def no(self, number: int, why: str) -> dict[str, Any]:
        return {"id": number, "success": False, "error": why}

    def hello(self, number: int) -> dict[str, Any]:
        printing = len(sys.argv) > 1 and sys.argv[1] == "--print-info"
        changes = self.mode == "labels_change" and not printing
        labels = ["somebody", "else"] if self.mode == "wrong_labels" or changes else self.labels
        answer: dict[str, Any] = {
            "id": number,
            "success": True,
            "project": {"id": 1, "owner": "apiary", "name": self.name, "deploy_version": 3},
            "model_parameters": {
                "input_features_count": self.features, "sensor": 3, "frequency": 0, "interval_ms": 1,
                "axis_count": 1, "image_input_width": self.width, "image_input_height": self.height,
                "image_input_frames": 1, "image_channel_count": self.channels,
                "image_resize_mode": self.resize, "label_count": len(labels), "has_anomaly": 0,
                "labels": labels, "model_type": "classification", "slice_size": self.features // 4,
                "use_continuous_mode": False, "inferencing_engine": 4, "thresholds": [],
            },
            "inferencing_engine": {"engine_type": 4, "properties": []},
        }  # fmt: skip
        if self.shm_name and len(sys.argv) > 1 and not sys.argv[1].startswith("--"):
            size = 4 if self.mode == "tiny_shm" else 4 * self.features
            fd = os.open(SHARED + self.shm_name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.ftruncate(fd, size)
            os.close(fd)
            answer["features_shm"] = {
                "name": self.shm_name, "size_bytes": size, "type": "float32", "elements": self.features,
            }  # fmt: skip
        return answer

    def classify(self, number: int, values: list[int]) -> dict[str, Any]:
        if len(values) != self.features:
            return self.no(
                number,
                f"Invalid number of features in 'classify', expected {self.features} but got {len(values)}",
            )
        if not all(isinstance(v, int) and 0 <= v < 2**24 for v in values):
            return self.no(number, "Failed to parse classify array, should contain all numbers")
        found = self.predict(values)
        return {
            "id": number,
            "success": True,
            "result": {"classification": found},
            "timing": {"dsp": 1, "classification": 2, "anomaly": 0, "json": 0, "stdin": 0},
        }

    def predict(self, values: list[int]) -> dict[str, float]:
        if not self.tflite:
            red = sum(v >> 16 for v in values) / len(values) / 255
            rest = [0.0] * (len(self.labels) - 2)
            return dict(zip(self.labels, [1 - red, *rest, red], strict=True))
        import numpy as np

        if self.interpreter is None:
            try:
                from tflite_runtime.interpreter import Interpreter
            except ImportError:
                from ai_edge_litert.interpreter import Interpreter
            self.interpreter = Interpreter(model_content=_embedded("model.tflite"))
            self.interpreter.allocate_tensors()
        packed = np.array(values, np.uint32).reshape(1, self.height, self.width)
        rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1)[..., : self.channels]
        into, out = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        x = rgb.astype(np.float32)
        if into["dtype"] != np.float32:
            scale, zero = into["quantization"]
            x = np.rint(x / scale) + zero
        self.interpreter.set_tensor(into["index"], x.astype(into["dtype"]))
        self.interpreter.invoke()
        y = self.interpreter.get_tensor(out["index"])[0].astype(np.float32)
        if out["dtype"] != np.float32:
            scale, zero = out["quantization"]
            y = (y - zero) * scale
        return {label: float(p) for label, p in zip(self.labels, y, strict=True)}

    def close(self) -> None:
        if self.shm_name and self.mode != "leave_shm":
            Path(SHARED + self.shm_name).unlink(missing_ok=True)


def _embedded(name: str) -> bytes:
    """A file of the archive that this program is."""
    return bytes(__loader__.get_data(f"{__loader__.archive}/{name}"))  # type: ignore


def attempts(outside: Path, port: int) -> list[str]:
    """What a hostile program did in spite of all: read, written, connected, begun, left, signalled."""

    def connect(kind: int, where: Any) -> None:
        with socket.socket(kind) as s:
            s.settimeout(5)
            s.connect(where)

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)
        os.wait()

    parent = os.getppid()
    tries: dict[str, Any] = {
        "read a key": (outside / "key.pem").read_bytes,
        "listed pictures": lambda: os.listdir(outside),  # noqa: PTH208
        "wrote a file": lambda: (outside / "written").write_bytes(b"x"),
        "removed a file": (outside / "picture.jpg").unlink,
        "reached the network": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "reached a service here": lambda: connect(socket.AF_UNIX, str(outside / "service")),
        "began a process": fork,
        "left its session": lambda: os.setpgid(0, os.getppid()),
        "signalled its parent": lambda: os.kill(parent, 0),
        "read its parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "outlives its parent": lambda: _prctl(1, 0),
    }
    done = []
    for what, tried in tries.items():
        with contextlib.suppress(OSError):
            tried()
            done.append(what)
    return done


def _prctl(option: int, value: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def requests(read: Any) -> Any:
    """Cut a stream where braces balance, as the real program does."""
    text, opened = bytearray(), 0
    while data := read():
        for c in data:
            if opened == 0 and c != 0x7B:
                continue
            text.append(c)
            if len(text) > BUFFER - 1:
                print(
                    f"Invalid message, received more than {BUFFER} bytes, and no valid JSON message detected"
                )
                sys.exit(1)
            opened += (c == 0x7B) - (c == 0x7D)
            if opened == 0:
                yield json.loads(text)
                text.clear()


def main(config: dict[str, Any], arguments: list[str]) -> None:
    program = Program(config)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a real stream here
    if not arguments:
        sys.exit("Requires one parameter (either: '--print-info', 'stdin' or the name of a socket)")
    # What the program was given: tests look for keys in it.
    with contextlib.suppress(OSError):
        Path(str(program.state) + ".env").write_text(json.dumps(dict(os.environ)))
    if program.mode == "die_at_start":
        print("error while loading shared libraries: libexample.so.1")
        sys.exit(127)
    if arguments[0] == "--print-info":
        print("Edge Impulse Linux impulse runner - printing model metadata")
        if program.mode == "hang":
            time.sleep(600)
        print(json.dumps(program.handle({"hello": 1, "id": 1})) + "\n")
    elif arguments[0] == "stdin":
        print("Edge Impulse Linux impulse runner - listening for JSON messages on stdin")
        for message in requests(lambda: os.read(0, 65536)):
            print(json.dumps(program.handle(message)))
    else:
        _socket(program, arguments[0])


def _socket(program: Program, path: str) -> None:
    if program.mode == "never_bind":
        time.sleep(600)
    if program.mode == "ignore_sigterm":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(10)
    print(f"Waiting for connection on {path}...")
    connection, _ = listener.accept()
    print("Connected")
    try:
        for message in requests(lambda: connection.recv(65536)):
            if not _misbehave(program, connection, message):
                connection.sendall(json.dumps(program.handle(message)).encode() + b"\n\0")
    finally:
        program.close()
    if program.mode == "ignore_sigterm":
        time.sleep(600)


def _misbehave(program: Program, connection: socket.socket, message: dict[str, Any]) -> bool:
    """Whether the answer was given here already."""
    answer = program.handle
    if "hello" in message:
        return False
    match program.mode:
        case "hang":
            time.sleep(600)
        case "crash" | "leave_shm":
            print("terminate called after throwing an instance of 'std::bad_alloc'")
            os.abort()
        case "crash_once":
            if not program.state.exists():
                program.state.write_text("crashed")
                os.abort()
        case "garbage":
            connection.sendall(b"\xff\xfe}{\n\0")
            return True
        case "html":
            connection.sendall(b"<html>\n\0")
            return True
        case "endless":
            while True:
                connection.sendall(b"x" * 65536)
        case "hostile":
            done = ", ".join(attempts(program.outside, program.port)) or "nothing"
            connection.sendall(json.dumps(program.no(message["id"], f"it did {done}")).encode() + b"\n\0")
            return True
        case "leaves":
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    program.state.write_text(str(os.getpid()))
                    time.sleep(600)
                os._exit(0)
            while not program.state.exists():
                time.sleep(0.01)
        case "refuse":
            connection.sendall(json.dumps(program.no(message["id"], "out of arena")).encode() + b"\n\0")
            return True
        case "chatty":
            print("debugging\n" * 100_000)  # more than a pipe holds
        case "not_finite":
            said = answer(message)
            said["result"]["classification"][program.labels[0]] = float("nan")
            connection.sendall(json.dumps(said).encode() + b"\n\0")
            return True
        case "stale_id":
            connection.sendall(json.dumps(answer(message) | {"id": 99}).encode() + b"\n\0")
            return True
        case "slow_bytes":
            for byte in json.dumps(answer(message)).encode() + b"\n\0":
                connection.sendall(bytes([byte]))
            return True
    return False
