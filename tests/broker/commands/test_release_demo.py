"""The demonstration of `make release-demo`, shortened: one round on few pictures."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in's programs are for x86_64")
def test_from_a_federation_to_its_nodes_and_bad_releases_stopped(tmp_path: Path) -> None:
    if importlib.util.find_spec("edgeimpulse") is None:
        pytest.skip("the SDK is not installed: pip install 'apiary-fl[edge-impulse]'")
    done = subprocess.run(
        [sys.executable, "-m", "tests.release_demo", "--rounds", "2", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every bad release was stopped; all 5 nodes predict with" in done.stdout
