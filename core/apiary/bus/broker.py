"""Starting a broker on this machine: mosquitto where it is installed, the embedded amqtt otherwise."""

import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from apiary.addresses import Address, reachable, read_host
from apiary.errors import BusError, SettingsError
from apiary.process.child import end, start, wait

Kind = Literal["mosquitto", "amqtt"]
START_S: Final = 15.0
STOP_S: Final = 5.0
_SYSTEM_PATHS: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/local/bin"
"""Debian puts mosquitto into /usr/sbin, which is not on everyone's PATH."""
_OURS: Final = ("persistence_location", "log_dest", "pid_file", "user")
"""Lines of the configuration that a broker started from here replaces by its own."""
DATABASE: Final = "mosquitto.db"
_HELLO: Final = bytes.fromhex("100c00044d515454040200050000")
"""An MQTT 3.1.1 CONNECT: no client id, clean session, 5 s of keep-alive."""

log = logging.getLogger(__name__)


def find_mosquitto() -> Path | None:
    """The mosquitto program, None where it is not installed."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SYSTEM_PATHS)
    return Path(found) if found else None


def default_conf() -> Path:
    """The project's mosquitto.conf, from the wheel or from the checkout. Raises BusError."""
    here = Path(__file__).resolve()
    for path in (here.with_name("mosquitto.conf"), here.parents[3] / "broker" / "mosquitto.conf"):
        if path.is_file():
            return path
    raise BusError(f"mosquitto.conf is missing beside {here}: install apiary again")


def speaks_mqtt(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether something at `host:port` answers an MQTT CONNECT, be it with a refusal."""
    try:
        with socket.create_connection((host, port), timeout_s) as s:
            s.sendall(_HELLO)
            s.settimeout(timeout_s)
            return s.recv(4)[:1] == b"\x20"
    except OSError:
        return False


@dataclass(slots=True, eq=False)
class BrokerProcess:
    """A broker running as our child. A context manager; it also ends when this process does (Linux)."""

    kind: Kind
    host: str
    port: int
    log_file: Path
    process: subprocess.Popen[bytes]
    temporary: tempfile.TemporaryDirectory[str] | None = None
    """Its folder, where that is to be removed at the end."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end; the exit code, or None where it runs on after `timeout_s`."""
        return wait(self.process, timeout_s)

    def kill(self) -> None:
        """End it as a power cut would."""
        end(self.process)

    def stop(self) -> None:
        """End it in order: SIGTERM, and SIGKILL where that does not help in time."""
        end(self.process, STOP_S)
        if self.temporary is not None:
            self.temporary.cleanup()

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it wrote."""
        try:
            return "\n".join(
                self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            )
        except OSError:
            return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_broker(
    port: int,
    *,
    host: str = "127.0.0.1",
    state_dir: Path | None = None,
    prefer: Literal["auto", "mosquitto", "amqtt"] = "auto",
    conf: Path | None = None,
    more: str = "",
    say: Callable[[str], None] | None = None,
) -> BrokerProcess:
    """Start a broker and wait until it answers. `port` 0 takes a free one.

    `conf` replaces the project's mosquitto.conf; its listeners are replaced by one on `host:port`. `more` are
    lines for mosquitto after that one, as further listeners.
    `state_dir` holds the log and what the broker keeps; without it a temporary folder, gone at the end.
    `say` gets a line where amqtt is used instead. Raises BusError: port taken, nothing to start, no answer.
    """
    program = find_mosquitto() if prefer != "amqtt" else None
    if program is None and prefer == "mosquitto":
        raise BusError("mosquitto is not installed: `sudo apt install mosquitto`, or use --amqtt to try out")
    if program is None and importlib.util.find_spec("amqtt") is None:
        raise BusError(
            "no broker to start: install mosquitto (`sudo apt install mosquitto`), "
            "or amqtt to try out (`pip install 'apiary-fl[demo]'`)"
        )
    try:
        host = read_host(host)
    except ValueError as e:
        raise SettingsError(f"--host {e}") from None
    port = _claim(host, port)
    temporary = tempfile.TemporaryDirectory(prefix="apiary-broker-") if state_dir is None else None
    folder = Path(temporary.name) if temporary else Path(state_dir or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        errors = log_file = folder.resolve() / "broker.err"
        if program is not None:
            written = _write_conf(conf or default_conf(), host, port, errors.parent, more)
            command = [str(program), "-c", str(written)]
            log_file = errors.with_name("mosquitto.log")
            log_file.unlink(missing_ok=True)
        else:
            (say or log.warning)(
                ("mosquitto is not installed; " if prefer == "auto" else "")
                + "using the embedded broker amqtt (MQTT 3.1.1, nothing kept on disk): for trying out only"
            )
            command = [sys.executable, "-m", "apiary.bus.embedded", "--host", host, "--port", str(port)]
        with errors.open("wb") as err:
            process = start(command, stdout=err)
    except OSError as e:
        raise BusError(f"cannot start the broker in {folder}: {e.strerror or e}") from None
    kind: Kind = "mosquitto" if program else "amqtt"
    broker = BrokerProcess(kind, host, port, log_file, process, temporary)
    try:
        _await_answer(broker)
    except BusError as e:
        broker.stop()
        if not _set_aside(broker, folder, str(e)):
            raise
        return start_broker(
            port, host=host, state_dir=state_dir, prefer=prefer, conf=conf, more=more, say=say
        )
    except BaseException:
        broker.stop()
        raise
    return broker


def mosquitto_conf(base: str, host: str, port: int, folder: Path) -> str:
    """`base` with its listeners and places replaced: one anonymous listener, everything in `folder`.

    A listener's options follow it in the file, so all from the first `listener` line on is left out.
    """
    kept: list[str] = []
    for line in base.splitlines():
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if word == "listener":
            break
        if word not in _OURS:
            kept.append(line)
    ours = [
        f"persistence_location {folder}/",
        f"log_dest file {folder / 'mosquitto.log'}",
        f"listener {port} {host}",
        "allow_anonymous true",
    ]
    if os.geteuid() == 0:
        # Otherwise mosquitto becomes the user `mosquitto`, who may not write into our folder.
        ours.insert(0, "user root")
    return "\n".join([*kept, "", "# Added by `apiary broker`:", *ours, ""])


def _write_conf(base: Path, host: str, port: int, folder: Path, more: str) -> Path:
    conf = folder / "mosquitto.conf"
    try:
        text = base.read_text(encoding="utf-8")
    except OSError as e:
        raise BusError(f"mosquitto's configuration {base}: {e.strerror}") from None
    conf.write_text(mosquitto_conf(text, host, port, folder) + more, encoding="utf-8")
    return conf


def _set_aside(broker: BrokerProcess, folder: Path, output: str) -> bool:
    """Whether a database that mosquitto could not read was put out of its way.

    A power cut may tear it. It holds nothing that the parties do not send again when they connect.
    """
    database = folder / DATABASE
    code = broker.wait(0)
    fell = code is not None and code < 0 and code not in (-signal.SIGTERM, -signal.SIGKILL)
    torn = fell or "database" in output
    if broker.kind != "mosquitto" or not torn or not database.is_file():
        return False
    aside = database.with_name(f"{DATABASE}.damaged")
    log.warning("mosquitto could not read its database: moved to %s, starting without it", aside)
    database.replace(aside)
    return True


def _claim(host: str, port: int) -> int:
    """A port that is free at this moment. Raises BusError saying who may have it."""
    if not 0 <= port <= 65535:
        raise BusError(f"port {port} is none: expected 0 to 65535 (0 takes a free one)")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            return int(s.getsockname()[1])
    except PermissionError:
        raise BusError(
            f"port {port}: this user may not listen there; choose one above 1023 with --port"
        ) from None
    except socket.gaierror as e:
        raise BusError(f"cannot listen on {host}: the name is not known ({e.strerror})") from None
    except OSError as e:
        if e.errno != 98 and "in use" not in str(e):  # EADDRINUSE
            raise BusError(f"cannot listen on {Address(host, port)}: {e.strerror or e}") from None
        who = (
            "an MQTT broker answers there already: use it as it is"
            if speaks_mqtt(reachable(host), port)
            else "another program has it"
        )
        raise BusError(
            f"port {port} on {host} is taken: {who} (`ss -ltnp 'sport = :{port}'` names it; a mosquitto "
            "service is stopped by `sudo systemctl stop mosquitto`), or choose another with --port"
        ) from None


def _await_answer(broker: BrokerProcess) -> None:
    host = reachable(broker.host)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if not broker.running:
            errors = (
                broker.log_file.with_name("broker.err").read_text(encoding="utf-8", errors="replace").strip()
            )
            output = "\n".join(filter(None, [errors[-1000:], broker.log_tail()])) or "it printed nothing"
            raise BusError(f"{broker.kind} ended at once on {Address(broker.host, broker.port)}:\n{output}")
        if speaks_mqtt(host, broker.port):
            return
        time.sleep(0.03)
    raise BusError(
        f"{broker.kind} did not answer on {Address(broker.host, broker.port)} within {START_S:.0f} s"
    )
