"""A Ctrl-C while the command is still being loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from apiary_cli.entry import main
raise SystemExit(main())
"""


@pytest.mark.parametrize(
    "module", ["apiary_cli.main", "apiary.errors", "apiary_cli.commands.config", "pydantic"]
)
def test_an_interrupt_while_modules_are_loaded_is_no_traceback(module: str) -> None:
    code = CODE.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", code, "config"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "apiary: interrupted\n")
