"""`apiary broker`: run a broker in the foreground, for trying out and for small fleets."""

import argparse
import signal
import sys
import threading
from pathlib import Path

from apiary.addresses import Address, is_loopback, reachable
from apiary.bus.broker import BrokerProcess, start_broker
from apiary.errors import ApiaryError, BusError
from apiary.folder_lock import hold_folder
from apiary.settings import Settings, load_settings

_OWN_FOLDER = "use that one as it is, stop it, or give this one its own --state-dir and --port"
EXAMPLES = """examples:
  apiary broker                              for this machine alone
  apiary broker --port 1884                  where another program has 1883
  apiary broker --host 0.0.0.0               for everybody in the network, without a password: to try out

exit codes: 0 ended by Ctrl-C or SIGTERM, 4 it does not start, or ended by itself,
            8 its folder cannot be used, or another broker uses it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = "Run mosquitto in the foreground, or where it is not installed an embedded broker."
    parser.add_argument("--port", type=int, help="port to listen on (default: broker.port, 1883)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--amqtt", action="store_true", help="use the embedded broker, for trying out only")
    parser.add_argument(
        "--state-dir", type=Path, default=Path("state/broker"), help="what it keeps (default: state/broker)"
    )


def run(args: argparse.Namespace) -> int:
    """Run until Ctrl-C or SIGTERM; the exit code as in the help."""
    settings = load_settings(args.config, args.overrides).settings
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    port = settings.broker.port if args.port is None else args.port
    try:
        with (
            hold_folder(args.state_dir, "broker", _OWN_FOLDER),
            start_broker(
                port,
                host=args.host,
                state_dir=args.state_dir,
                prefer="amqtt" if args.amqtt else "auto",
                say=lambda text: print(text, file=sys.stderr),
            ) as broker,
        ):
            _announce(broker, settings)
            while not stop.wait(0.2):
                if not broker.running:
                    raise BusError(f"{broker.kind} ended by itself:\n{broker.log_tail()}")
            print("stopping", flush=True)
    except ApiaryError as e:
        print(f"apiary broker: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def _announce(broker: BrokerProcess, settings: Settings) -> None:
    here = reachable(broker.host)
    host = "" if here == "127.0.0.1" else f" -h {here}"
    print(f"{broker.kind} listens on {Address(broker.host, broker.port)}  (Ctrl-C stops it)")
    print(f"watch it:  mosquitto_sub -v -t '{settings.root}/#'{host} -p {broker.port}")
    print(f"log:       {broker.log_file}")
    if not is_loopback(broker.host):
        print(
            "careful:   anyone who reaches this address may connect, without a password or encryption; "
            "for a fleet see broker/README.md"
        )
    sys.stdout.flush()
