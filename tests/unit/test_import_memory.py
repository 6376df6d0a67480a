"""What a node's programs take before they do anything: an import must not cost megabytes unseen."""

from __future__ import annotations

import subprocess
import sys

import pytest

READ = (
    "import {module}; print(next(x for x in open('/proc/self/status') if x.startswith('VmRSS')).split()[1])"
)


@pytest.mark.parametrize(
    ("module", "megabytes"),
    [
        # 13 MB measured, of which Python itself 10.
        ("apiary.wire.topics", 20),
        # 33 MB: pydantic, and every message.
        ("apiary.wire.messages", 41),
        # 34 MB: what training needs beyond that is imported when it begins.
        ("apiary_edge.training.worker", 42),
        # 48 MB: the service with all its parts.
        ("apiary_edge.app", 56),
    ],
)
def test_what_an_import_takes(module: str, megabytes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ.format(module=module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) * 1024 / 1e6 < megabytes
