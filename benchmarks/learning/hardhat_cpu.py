"""The hard-hat job's processor time on its nodes: Apiary with cached features against Keras' fit without.

    python -m benchmarks.learning.hardhat_cpu [--data DIR] [--base-weights FILE] [--json]

The job as its author ran it: MobileNetV2 at 160x160, frozen base, Dense(128, relu) and Dense(2, softmax),
Adam, two clients with their own pictures, 6 rounds of 20 epochs, batch 8, a fifth of them for validation.

First the real thing on this machine: a broker, a coordinator and two `apiary edge` nodes; then a process for
each client that does the same number of epochs with Keras (`hardhat_keras.py`), side by side as well. Without
`--base-weights` the base is random: that changes what it sees, not what it costs. Seconds are the kernel's,
user and system: of the nodes /proc/PID/stat (the service itself, and the children that it waited for, which
are the trainings), of Keras what wait4 says of the whole process. Exit code 1 where the nodes' trainings do
not take at least 20 times less than Keras' fits, without what it takes to start Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring.hardhat_pictures import add_data_flag
from benchmarks.measuring.kernel_figures import cpu_seconds, waited_cpu_seconds
from benchmarks.measuring.processes import end, python

from apiary.bus.broker import start_broker

CLIENTS = ("dataset_client1", "dataset_client2")
AT_LEAST = 20.0
BATCH = 8
LATEST_S = 1800.0


class Spent(NamedTuple):
    """Processor seconds of one node: its training children, and its service."""

    trainings: float
    service: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_flag(parser)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--base-weights", type=Path, help="ImageNet weights of MobileNetV2 without top (.h5)")
    parser.add_argument("--exports", type=Path, help="folder of exported recipes, kept for the next time")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    pictures = [args.data / client / "train" for client in CLIENTS]
    test = args.data / "dataset_server" / "test"
    if missing := [str(p) for p in [*pictures, test] if not p.is_dir()]:
        print(f"no hard-hat pictures in {', '.join(missing)}: give --data or APIARY_DATA", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as scratch:
        nodes = apiary(args, pictures, test, Path(scratch))
    theirs = keras(args, pictures)
    trainings, services = sum(n.trainings for n in nodes), sum(n.service for n in nodes)
    whole, fits = sum(k["process_s"] for k in theirs), sum(k["fit_s"] for k in theirs)
    print(f"{'':34} {'client 1':>9} {'client 2':>9} {'both':>9}", file=sys.stderr)
    for name, each in (
        ("Apiary, training children, s", [n.trainings for n in nodes]),
        ("Apiary, services, s", [n.service for n in nodes]),
        ("Keras, processes, s", [k["process_s"] for k in theirs]),
        ("Keras, of this the fits, s", [k["fit_s"] for k in theirs]),
    ):
        print(f"{name:34} {each[0]:9.1f} {each[1]:9.1f} {sum(each):9.1f}", file=sys.stderr)
    ratio = fits / trainings
    print(
        f"Keras' fits take {ratio:.1f} times as much as Apiary's training processes (bound {AT_LEAST:.0f}).\n"
        f"Process against process it is {whole / trainings:.1f} times; against the nodes with their services "
        f"{whole / (trainings + services):.1f} times.",
        file=sys.stderr,
    )
    if args.json:
        figures = {"trainings_s": trainings, "services_s": services, "keras_s": whole, "keras_fits_s": fits}
        print(json.dumps({**figures, "ratio": ratio}))
    return 0 if ratio >= AT_LEAST else 1


def apiary(args: argparse.Namespace, pictures: list[Path], test: Path, scratch: Path) -> list[Spent]:
    """Run the federation to its end; what each node used."""
    command = [sys.executable, "-m", "apiary_cli"]
    weights = "imagenet" if args.base_weights else "random"
    with start_broker(0) as broker:
        settings = {
            "APIARY_BROKER__PORT": str(broker.port),
            "APIARY_RUN__PLAN__EPOCHS": str(args.epochs),
            "APIARY_RUN__PLAN__BATCH_SIZE": str(BATCH),
            "APIARY_RUN__PLAN__VALIDATION_SHARE": "0.2",
            "APIARY_COORDINATOR__EXPORTS_DIR": str(args.exports or scratch / "exports"),
        }
        if args.base_weights:
            settings["APIARY_COORDINATOR__BASE_WEIGHTS"] = str(args.base_weights)
        environment = {**os.environ, **settings}
        nodes = [
            subprocess.Popen(
                [*command, "edge", "--node-id", f"client-{i}", "--data", str(folder),
                 "--state-dir", str(scratch / f"node-{i}")],
                env=environment,
            )
            for i, folder in enumerate(pictures, 1)
        ]  # fmt: skip
        coordinator = subprocess.Popen(
            [*command, "coordinator", "--recipe", "mobilenet_v2",
             "--set", f"run.recipe_options.weights={weights}",
             "--test-data", str(test), "--rounds", str(args.rounds), "--min-nodes", str(len(nodes)),
             "--state-dir", str(scratch / "state"), "--runs-dir", str(scratch / "runs")],
            env=environment,
        )  # fmt: skip
        try:
            until = time.monotonic() + LATEST_S
            while coordinator.poll() is None:
                if time.monotonic() > until or any(n.poll() is not None for n in nodes):
                    raise SystemExit(f"the rounds were not over after {LATEST_S:.0f} s, or a node ended")
                time.sleep(0.1)
            if coordinator.returncode != 0:
                raise SystemExit(f"the run failed: code {coordinator.returncode}")
            return [Spent(waited_cpu_seconds(n.pid), cpu_seconds(n.pid)) for n in nodes]
        finally:
            end(coordinator, *nodes)


def keras(args: argparse.Namespace, pictures: list[Path]) -> list[dict[str, float]]:
    """Both clients' epochs in Keras, side by side as the nodes were.

    `process_s` of the whole process, `fit_s` of the fits alone.
    """
    command = [*python("learning.hardhat_keras"), "--batch", str(BATCH)]
    command += ["--rounds", str(args.rounds), "--epochs", str(args.epochs)]
    if args.base_weights:
        command += ["--base-weights", str(args.base_weights)]
    with tempfile.TemporaryFile() as notes:
        # TensorFlow's notes on devices that are not there.
        children = [
            subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, stderr=notes)
            for folder in pictures
        ]
        found = []
        for child in children:
            assert child.stdout is not None
            said = child.stdout.read().splitlines()
            _, status, used = os.wait4(child.pid, 0)
            if status != 0 or not said:
                notes.seek(0)
                raise SystemExit(f"Keras' side failed: status {status}\n{notes.read()[-2000:].decode()}")
            told = json.loads(said[-1])
            print(f"Keras: {told['pictures']} pictures, rounds of {told['rounds_s']} s", file=sys.stderr)
            found.append({"process_s": used.ru_utime + used.ru_stime, "fit_s": told["fit_s"]})
    return found


if __name__ == "__main__":
    raise SystemExit(main())
