"""The same round in Flower: its legacy gRPC server and clients that return what they got.

Run by `round/overhead.py --flwr-python PATH` with an interpreter that has `flwr`; needs nothing of Apiary.
Prints one JSON line: seconds of each round (parameters out, results in, averaged), the server's peak MB.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flwr as fl  # type: ignore[import-not-found] # in an environment of its own
import numpy as np

MESSAGE_BYTES = 1 << 30


class Returns(fl.client.NumPyClient):  # type: ignore[misc] # for the same reason
    """A client without training."""

    def fit(self, parameters: Any, config: Any) -> Any:
        return parameters, 100, {}


class Timed(fl.server.strategy.FedAvg):  # type: ignore[misc] # for the same reason
    """FedAvg with a clock: from the moment it hands the model out to the moment it has the next one."""

    seconds: list[float]
    began = 0.0

    def configure_fit(self, *args: Any, **kw: Any) -> Any:
        self.began = time.perf_counter()
        return super().configure_fit(*args, **kw)

    def aggregate_fit(self, *args: Any, **kw: Any) -> Any:
        made = super().aggregate_fit(*args, **kw)
        self.seconds.append(time.perf_counter() - self.began)
        return made


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=14_000_000)
    parser.add_argument("--layers", type=int, default=53)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if args.client:
        fl.client.start_client(
            server_address=args.client,
            client=Returns().to_client(),
            grpc_max_message_length=MESSAGE_BYTES,
            insecure=True,
        )
        return 0
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    rng = np.random.default_rng(0)
    per_layer = args.bytes // 4 // args.layers
    layers = [rng.normal(size=per_layer).astype(np.float32) for _ in range(args.layers)]
    strategy = Timed(
        min_fit_clients=args.nodes,
        min_available_clients=args.nodes,
        fraction_evaluate=0.0,
        initial_parameters=fl.common.ndarrays_to_parameters(layers),
    )
    strategy.seconds = []
    command = [sys.executable, __file__, "--client", address]
    fleet = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(args.nodes)
    ]
    try:
        fl.server.start_server(
            server_address=address,
            config=fl.server.ServerConfig(num_rounds=args.rounds),
            strategy=strategy,
            grpc_max_message_length=MESSAGE_BYTES,
        )
    finally:
        for process in fleet:
            process.kill()
            process.wait()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {"seconds": strategy.seconds, "server_peak_mb": peak * 1024 / 1e6, "version": fl.__version__}
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
