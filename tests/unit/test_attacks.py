"""The table of `make attacks`: each row's mend can still be taken out, and each row is described."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.attacks.attack import attacks
from tests.attacks.unmended import MENDS
from tests.places import ROOT

README = ROOT / "tests" / "attacks" / "README.md"
OF_THE_BROKER = {
    "retained", "subscriptions_while_connected", "subscriptions_that_stay", "qos_0_at_a_slow_coordinator",
}  # fmt: skip
"""Their mends are its configuration and its unit."""


def test_each_row_has_a_mend_that_can_be_taken_out() -> None:
    rows = attacks()
    assert {row.mend for row in rows.values() if row.mend} == set(MENDS)
    assert {name for name, row in rows.items() if row.mend is None} == OF_THE_BROKER
    code = "from tests.attacks.unmended import MENDS\nfor take_out in MENDS.values(): take_out()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_the_readme_describes_each_row() -> None:
    text = README.read_text()
    assert [name for name in attacks() if f"`{name}`" not in text] == []
    assert [name for name in MENDS if f"`{name}`" not in text] == []


def test_a_mend_that_cannot_be_taken_out_ends_the_process() -> None:
    """`site` would go on without a word, and the row would hold with its mend in place."""
    site = Path(README).with_name("site")
    done = subprocess.run(
        [sys.executable, "-c", "print('it goes on')"],
        env={"PYTHONPATH": str(site), "ATTACK_WITHOUT": "nothing"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 99 and "KeyError" in done.stderr
