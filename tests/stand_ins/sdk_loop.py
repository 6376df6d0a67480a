"""The SDK's child for many jobs: one start, one import. A job a line on stdin, `{"end": code}` after each."""

from __future__ import annotations

import os
import sys

from apiary_coordinator.publishers import _transport
from apiary_coordinator.publishers._job import PublishJob
from apiary_coordinator.publishers._sdk import Reporter, serve


def main() -> None:
    _transport.PAUSE_S = 0.02
    _transport.CONNECT_S = 1.0  # type: ignore[misc]  # final for the product; tests do not wait as long
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    report = Reporter(out, os.environ["EI_API_KEY"])
    for line in sys.stdin:
        code = serve(PublishJob.model_validate_json(line), report)
        out.write(f'{{"end": {code}}}\n')
        out.flush()


if __name__ == "__main__":
    main()
