"""`apiary capture`: frames of this node's camera into its sample store, in the foreground."""

import argparse
import threading
from pathlib import Path

from apiary.errors import CameraError, SettingsError
from apiary_cli.terminal.flags import settings_of
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_edge.cameras.base import kinds
from apiary_edge.capture.job import CaptureEvent

EXAMPLES = """examples:
  apiary capture --camera picamera2 --count 20
  apiary capture --camera usb --source /dev/video0 --interval 5
  apiary capture --camera stream --source rtsp://camera.local/live
  apiary capture --camera folder --source /srv/dropbox

Blurred, dark and burnt-out frames and those like a late one are dropped; [edge.capture] sets what counts as
that. The service captures by itself where edge.camera.kind is set: stop it first, a camera serves one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Keep frames of a camera for labelling, until interrupted."
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="the node's folder (edge.state_dir)")
    parser.add_argument("--camera", choices=kinds(), help="kind of camera (edge.camera.kind)")
    parser.add_argument("--source", help="device, address, file or folder (edge.camera.source)")
    parser.add_argument("--interval", type=float, metavar="S", help="seconds (edge.capture.interval_s)")
    parser.add_argument("--count", type=int, metavar="N", help="stop after so many pictures")


def run(args: argparse.Namespace) -> int:
    """Capture until a signal, `--count` or the end of a file. Raises ApiaryError."""
    from apiary_edge.capture import worker

    edge = settings_of(
        args,
        edge__state_dir=args.state_dir,
        edge__camera__kind=args.camera,
        edge__camera__source=args.source,
        edge__capture__interval_s=args.interval,
    ).edge
    if edge.camera.kind is None:
        there = ", ".join(kinds())
        raise SettingsError(f"no camera is set: --camera KIND (edge.camera.kind); there are {there}")
    if args.count is not None and args.count < 1:
        raise SettingsError(f"--count {args.count}: expected 1 or more")
    stop = threading.Event()
    kept: list[str] = []
    opened: list[str] = []
    never: list[str] = []

    def on_event(event: CaptureEvent) -> None:
        match event.kind:
            case "kept":
                kept.append(event.id)
                print(f"kept {event.id[:12]}", flush=True)
                if args.count is not None and len(kept) >= args.count:
                    stop.set()
            case "back":
                opened.append(event.text)
                print(f"{event.text}: open", flush=True)
            case "gone":
                if opened:
                    print(f"{event.text}; tried again in {event.retry_s:.0f} s", flush=True)
                else:
                    # Somebody is watching: what never was there is an error, not a reason to wait.
                    never.append(event.text)
                    stop.set()
            case "trouble" | "ended" | "failed":
                print(event.text, flush=True)
            case "alive":
                dropped = ", ".join(f"{n} {why}" for why, n in event.dropped.items())
                print(f"kept {event.kept}{f'; dropped {dropped}' if dropped else ''}", flush=True)

    with stop_on_signals(stop.set) as signals:
        worker.run(edge, on_event, stop)
    if never:
        raise CameraError(never[0])
    return signals.exit_code
