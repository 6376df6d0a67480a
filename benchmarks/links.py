"""What bad links cost: bytes sent against bytes needed, for one real node behind a shaped link. Needs root.

    sudo .venv/bin/python benchmarks/links.py [--row NAME] [--json]

Coordinator and broker are in one network, the node in another; between them every packet is delayed, lost
or held by `shaped_link.py`. Bytes sent are the interfaces' own counters, with all headers,
acknowledgements and repetitions of TCP; bytes needed are the chunks that had to cross. Where a bound is
missed the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet import SAMPLES
from round_overhead import child, python, say
from shaped_link import Shape, ShapedLink, ip, own_network

from apiary.bus.broker import start_broker
from apiary.wire.chunks import CHUNK_BYTES, count

NETWORK, NEAR, FAR = "10.213.77.0", "10.213.77.1", "10.213.77.2"
MODEL, LARGE_MODEL = 840_000, 6_000_000
LAYERS = 12
WINDOW = 20
"""broker.inflight: what may be on its way when a link breaks."""
RATIO = 1.15
"""At most this many bytes for each that had to cross, with 5 % loss."""
LATEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `breaks` are done once in each round, when half of the update has been sent."""

    name: str
    shape: Shape
    size: int = MODEL
    rounds: int = 2
    cut_s: float = 0.0
    breaks_tcp: bool = False
    bounded: bool = False


CASES = (
    Case("clean", Shape(), rounds=3),
    Case("200 ms", Shape(delay_s=0.2)),
    Case("5 % loss", Shape(delay_s=0.01, loss=0.05), rounds=3, bounded=True),
    Case("1 Mbit/s", Shape(delay_s=0.01, mbit=1.0)),
    Case("200 ms, 5 % loss, 1 Mbit/s", Shape(delay_s=0.2, loss=0.05, mbit=1.0), bounded=True),
    Case("cut for 5 s in each upload", Shape(delay_s=0.01, mbit=8.0), size=LARGE_MODEL, cut_s=5.0),
    Case("the same, TCP broken too", Shape(delay_s=0.01, mbit=8.0), LARGE_MODEL, cut_s=5.0, breaks_tcp=True),
    Case("partition of 60 s in each upload", Shape(delay_s=0.01, mbit=8.0), size=LARGE_MODEL, cut_s=60.0),
)


@dataclass(slots=True)
class Row:
    """What crossed in each direction, all rounds together."""

    case: Case
    round_s: float
    up_sent: int
    up_needed: int
    down_sent: int
    down_needed: int
    dropped: tuple[int, int]
    cuts: int

    @property
    def ratio(self) -> float:
        """Of both directions together."""
        return (self.up_sent + self.down_sent) / (self.up_needed + self.down_needed)

    @property
    def again(self) -> int:
        """Bytes sent up besides what was needed, for each cut: headers and acknowledgements count too."""
        return (self.up_sent - self.up_needed) // max(1, self.cuts)

    def missed(self) -> list[str]:
        """The bounds that this row breaks, in words."""
        told = []
        if self.case.bounded and self.ratio > RATIO:
            told.append(f"ratio over {RATIO}")
        if self.case.cut_s and self.again > allowed_again(self.case):
            told.append(f"more than a window of {WINDOW} chunks again")
        if self.case.cut_s and self.cuts != self.case.rounds:
            told.append(f"{self.cuts} cuts, expected {self.case.rounds}")
        return told


def allowed_again(case: Case) -> int:
    """A window of chunks, and a twentieth of all for headers, acknowledgements and small messages."""
    return WINDOW * CHUNK_BYTES + (case.size + WINDOW * CHUNK_BYTES) // 20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", action="append", choices=[c.name for c in CASES], help="only this row")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    try:
        own_network()
    except OSError as e:
        print(
            f"links need a network of their own, which takes root (`sudo make links`): {e}", file=sys.stderr
        )
        return 2
    rows = []
    for case in CASES:
        if args.row is None or case.name in args.row:
            say(f"{case.name}: {case.size / 1e6:.2f} MB, {case.rounds} rounds")
            rows.append(measure(case))
            say(line(rows[-1]))
    print("\n".join([HEAD, *map(line, rows)]), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps([{**asdict(r), "ratio": r.ratio, "missed": r.missed()} for r in rows]))
    return 1 if any(r.missed() for r in rows) else 0


def measure(case: Case) -> Row:
    """One coordinator, one broker, one node behind the link."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apiary-links-")))
        for label in ("a", "b"):
            (folder / "pictures" / label).mkdir(parents=True)
            for i in range(SAMPLES // 2):
                (folder / "pictures" / label / f"{i}.png").touch()
        link = ShapedLink("apb0", "apb1", case.shape)
        stack.callback(link.close)
        ip("addr", "add", f"{NEAR}/30", "dev", "apb0")
        ip("link", "set", "apb0", "up")
        cubic("apb0")
        broker = stack.enter_context(start_broker(0, host=NEAR, prefer="mosquitto"))
        common = (
            "--host", NEAR, "--port", str(broker.port), "--folder", str(folder), "--nodes", "1",
            "--bytes", str(case.size), "--layers", str(LAYERS), "--rounds", str(case.rounds),
        )  # fmt: skip
        node = stack.enter_context(behind("apb1", FAR, "node", "--node-id", "pi-0", *common))
        link.start()
        coordinator = stack.enter_context(child("coordinator", *common, "--sync"))
        cutter = Cutter(case, link, node.pid, broker.port)
        end = time.monotonic() + LATEST_S
        while coordinator.poll() is None:
            if node.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{case.name}: the node has ended, or the rounds took too long")
            cutter.turn()
            time.sleep(0.02)
        assert coordinator.stdout is not None
        said = coordinator.stdout.read()
        if coordinator.returncode != 0:
            raise SystemExit(f"the coordinator ended with code {coordinator.returncode}")
        told = json.loads(said.splitlines()[-1])
        assert all(counted == [1, SAMPLES] for counted in told["counted"]), told["counted"]
        down, up = sent("apb0"), sent("apb1", node.pid)
        chunks = case.rounds * payload(told["update_bytes"])
        return Row(
            case,
            round_s=sum(told["seconds"]) / case.rounds,
            up_sent=up,
            up_needed=chunks,
            down_sent=down,
            down_needed=case.rounds * payload(told["model_bytes"]) + sum(map(payload, told["once_bytes"])),
            dropped=link.dropped,
            cuts=cutter.cuts,
        )


class Cutter:
    """Cuts the link once in each round, when half of the update is on its way or there."""

    def __init__(self, case: Case, link: ShapedLink, node: int, port: int):
        self.cuts = 0
        self._case = case
        self._link = link
        self._node = node
        self._port = port
        self._mend_at: float | None = None
        self._sent_before = 0

    def turn(self) -> None:
        """Cut or mend, where it is time."""
        if not self._case.cut_s:
            return
        now = time.monotonic()
        if self._mend_at is not None:
            if now >= self._mend_at:
                self._link.mend()
                self._mend_at = None
            return
        half = (self.cuts + 0.5) * self._case.size
        # What was sent again counts as sent: of each later round a cut is a little earlier than its half.
        if self.cuts < self._case.rounds and sent("apb1", self._node) - self._sent_before >= half:
            self.cuts += 1
            self._link.cut()
            self._mend_at = now + self._case.cut_s
            if self._case.breaks_tcp:
                kill_connections(self._node, self._port)


def kill_connections(pid: int, port: int) -> None:
    """End the connections of a process' network to a port, as a modem does that restarts."""
    subprocess.run(
        ["nsenter", "--target", str(pid), "--net", "ss", "-K", "dst", NEAR, "dport", "=", str(port)],
        check=True,
        capture_output=True,
    )


@contextmanager
def behind(interface: str, address: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of `fleet.py` in a network of its own, with this interface as its only way out."""
    go_r, go_w = os.pipe()
    process = subprocess.Popen(
        [*python("links_node.py"), str(go_r), *arguments], pass_fds=(go_r,), stdout=subprocess.PIPE, text=True
    )
    os.close(go_r)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the node has no network of its own"
        ip("link", "set", interface, "netns", str(process.pid))
        ip("addr", "add", f"{address}/30", "dev", interface, netns_of=process.pid)
        ip("link", "set", interface, "up", netns_of=process.pid)
        cubic(interface, netns_of=process.pid)
        os.write(go_w, b"\n")
        yield process
    finally:
        os.close(go_w)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cubic(interface: str, netns_of: int | None = None) -> None:
    """Have TCP use the congestion control of Raspberry Pi OS there, whatever is this machine's."""
    route = ("route", "replace", f"{NETWORK}/30", "dev", interface, "congctl", "cubic")
    ip(*route, netns_of=netns_of)


def sent(interface: str, pid: int | str = "self") -> int:
    """Bytes that went into an interface, as the network of a process counts them."""
    for text in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, figures = text.partition(":")
        if name.strip() == interface:
            return int(figures.split()[8])
    raise SystemExit(f"{interface} is gone from the network of process {pid}")


def payload(blob_bytes: int) -> int:
    """Bytes of a blob's chunks with their envelopes."""
    return blob_bytes + 20 * count(blob_bytes)


HEAD = (
    f"{'link':34} {'round s':>8} {'up: sent':>10} {'needed':>10} {'ratio':>6} {'down: sent':>10} "
    f"{'needed':>10} {'ratio':>6} {'both':>6} {'dropped':>11} {'again a cut':>11}"
)


def line(r: Row) -> str:
    missed = r.missed()
    return (
        f"{r.case.name:34} {r.round_s:8.2f} {r.up_sent:10} {r.up_needed:10} {r.up_sent / r.up_needed:6.3f} "
        f"{r.down_sent:10} {r.down_needed:10} {r.down_sent / r.down_needed:6.3f} {r.ratio:6.3f} "
        f"{r.dropped[0]:>5}/{r.dropped[1]:<5} {r.again if r.cuts else '':>11}"
        + (f"  MISSED: {'; '.join(missed)}" if missed else "")
    )


if __name__ == "__main__":
    raise SystemExit(main())
