"""What bad links cost: bytes sent against bytes needed, for one real node behind a shaped link.

    .venv/bin/python -m benchmarks.links.traffic [--row NAME] [--json]

Coordinator and broker are in one network, the node in another; between them the kernel's `tc netem` delays,
loses or holds every packet (`netem_link.py`). Where this kernel or this user cannot have that, all of it is
done under a kernel that can (`user_kernel.py`). Bytes sent are the interfaces' own counters of IP packets,
with all headers, acknowledgements and repetitions of TCP; bytes needed are the chunks that had to cross.
Where a bound is missed the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.links import user_kernel
from benchmarks.links.broken_tcp import break_connections
from benchmarks.links.gauge import SHAPE as GAUGED
from benchmarks.links.gauge import gauge
from benchmarks.links.netem_link import MTU, NEAR, NetemLink, Shape, kernel_has_netem, own_network
from benchmarks.measuring.printing import say
from benchmarks.measuring.processes import child, python
from benchmarks.measuring.service import SAMPLES

from apiary.bus.broker import start_broker
from apiary.wire.chunks import CHUNK_BYTES, count

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
    """What crossed in each direction, all rounds together. Bytes sent are of IP packets."""

    case: Case
    round_s: float
    up_sent: int
    up_needed: int
    down_sent: int
    down_needed: int
    frames_sent: int
    """Bytes of both directions together, with Ethernet's headers."""
    dropped: tuple[int, int]
    cuts: int

    @property
    def ratio(self) -> float:
        """Of both directions together."""
        return (self.up_sent + self.down_sent) / (self.up_needed + self.down_needed)

    @property
    def framed_ratio(self) -> float:
        """The same where the link is an Ethernet."""
        return self.frames_sent / (self.up_needed + self.down_needed)

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
    if not kernel_has_netem():
        return elsewhere()
    own_network()
    check_gauge()
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


def elsewhere() -> int:
    """Do the same under a kernel that has netem."""
    if not user_kernel.usable():
        print(
            "links are shaped by `tc netem` (iproute2): it takes root and a kernel with sch_netem, or one "
            "that any user may run: `sudo apt-get install user-mode-linux kmod`",
            file=sys.stderr,
        )
        return 2
    say("no `tc netem` for this user on this kernel: doing it under user-mode-linux")
    try:
        return user_kernel.run([*python("links.traffic"), *sys.argv[1:]])
    except user_kernel.KernelError as e:
        print(e, file=sys.stderr)
        return 2


def check_gauge() -> None:
    """Refuse to measure with a link that is not what it says."""
    gauged = gauge(GAUGED)
    say(
        f"tc netem on Linux {os.uname().release}: of {gauged.packets} packets over {GAUGED.loss:.0%} loss "
        f"{gauged.loss:.1%} were lost, after {gauged.delay_s * 1e3:.0f} of {GAUGED.delay_s * 1e3:.0f} ms"
    )
    if wrong := gauged.wrong(GAUGED):
        raise SystemExit(f"the link is not what it says: {'; '.join(wrong)}")


def measure(case: Case) -> Row:
    """One coordinator, one broker, one node behind the link."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apiary-links-")))
        for label in ("a", "b"):
            (folder / "pictures" / label).mkdir(parents=True)
            for i in range(SAMPLES // 2):
                (folder / "pictures" / label / f"{i}.png").touch()
        link = stack.enter_context(closing(NetemLink(case.shape)))
        broker = stack.enter_context(start_broker(0, host=NEAR.address, prefer="mosquitto"))
        common = (
            "--host", NEAR.address, "--port", str(broker.port), "--folder", str(folder), "--nodes", "1",
            "--bytes", str(case.size), "--layers", str(LAYERS), "--rounds", str(case.rounds),
        )  # fmt: skip
        far = link.far_network.words()
        node = stack.enter_context(child("node", "--node-id", "pi-0", *common, inside=far))
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
        up, down = link.far, link.near
        for way in (up, down):
            assert way.sent_bytes <= MTU * way.sent_packets, f"packets larger than a link carries: {way}"
        return Row(
            case,
            round_s=sum(told["seconds"]) / case.rounds,
            up_sent=up.sent_bytes,
            up_needed=case.rounds * payload(told["update_bytes"]),
            down_sent=down.sent_bytes,
            down_needed=case.rounds * payload(told["model_bytes"]) + sum(map(payload, told["once_bytes"])),
            frames_sent=up.sent_frame_bytes + down.sent_frame_bytes,
            dropped=link.dropped,
            cuts=cutter.cuts,
        )


class Cutter:
    """Cuts the link once in each round, when half of the update is on its way or there."""

    def __init__(self, case: Case, link: NetemLink, node: int, port: int):
        self.cuts = 0
        self._case = case
        self._link = link
        self._node = node
        self._port = port
        self._mend_at: float | None = None

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
        if self.cuts < self._case.rounds and self._link.far.sent_bytes >= half:
            self.cuts += 1
            self._link.cut()
            self._mend_at = now + self._case.cut_s
            if self._case.breaks_tcp:
                assert break_connections(self._node, self._port), "the node has no connection"


def payload(blob_bytes: int) -> int:
    """Bytes of a blob's chunks with their envelopes."""
    return blob_bytes + 20 * count(blob_bytes)


HEAD = (
    f"{'link':34} {'round s':>8} {'up: sent':>10} {'needed':>10} {'ratio':>6} {'down: sent':>10} "
    f"{'needed':>10} {'ratio':>6} {'both':>6} {'framed':>6} {'dropped':>11} {'again a cut':>11}"
)


def line(r: Row) -> str:
    missed = r.missed()
    return (
        f"{r.case.name:34} {r.round_s:8.2f} {r.up_sent:10} {r.up_needed:10} {r.up_sent / r.up_needed:6.3f} "
        f"{r.down_sent:10} {r.down_needed:10} {r.down_sent / r.down_needed:6.3f} {r.ratio:6.3f} "
        f"{r.framed_ratio:6.3f} {r.dropped[0]:>5}/{r.dropped[1]:<5} {r.again if r.cuts else '':>11}"
        + (f"  MISSED: {'; '.join(missed)}" if missed else "")
    )


if __name__ == "__main__":
    raise SystemExit(main())
