"""The skips that a test session may end with: which tests, why, and on which machines.

Any other skip fails the session (skip_check.py), so that a test which silently no longer runs is seen. What a
test needs belongs into the extra `dev` or tests/system-packages; here is what neither can bring.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec

from tests.places import AXE


@dataclass(frozen=True, slots=True)
class AllowedSkip:
    """`tests` are patterns of test ids as pytest prints them; `when` says whether this machine is one."""

    tests: tuple[str, ...]
    why: str
    when: Callable[[], bool]


def _lacks(*programs: str) -> Callable[[], bool]:
    return lambda: not any(map(shutil.which, programs))


def _not_x86_64() -> bool:
    return platform.machine() != "x86_64"


ALLOWED = (
    AllowedSkip(
        ("tests/unit/core/learn/test_modes.py::*heic*",),
        "needs the extra heic, which has no wheel for 32 bit Raspberry Pi OS",
        lambda: find_spec("pillow_heif") is None,
    ),
    AllowedSkip(
        ("tests/contract/test_cameras.py::*[[]usb[]]",),
        "a USB camera must show the scene: APIARY_VIDEO_DEVICE names it",
        lambda: "APIARY_VIDEO_DEVICE" not in os.environ,
    ),
    AllowedSkip(
        (
            "tests/unit/edge/capture/test_capture.py::test_real_pictures_*",
            "tests/unit/cli/datasets/test_partition.py::test_the_real_*",
        ),
        "real pictures are not part of the checkout: APIARY_DATA names their folder",
        lambda: not os.environ.get("APIARY_DATA"),
    ),
    AllowedSkip(
        ("tests/browser/*",),
        "chromium is not packaged for every machine",
        _lacks("chromium", "chromium-browser"),
    ),
    AllowedSkip(
        ("tests/browser/*::test_axe_*",),
        "axe-core is fetched by `make test`, where there is npm",
        lambda: not AXE.is_file(),
    ),
    AllowedSkip(
        ("tests/unit/cli/image/test_image.py::test_cloud_init_*",),
        "cloud-init, once installed, configures the machine at its next start",
        _lacks("cloud-init"),
    ),
    AllowedSkip(
        ("tests/unit/cli/image/test_image.py::*systemd*", "tests/deploy/test_plays.py::*"),
        "the machine has no systemd",
        _lacks("systemd-analyze"),
    ),
    AllowedSkip(
        ("tests/install/test_npm_runner.py::*",),
        "the vendor's npm package is fetched by `make npm-runner` only",
        lambda: True,
    ),
    AllowedSkip(
        ("tests/install/test_other_python.py::*",),
        "the machine has one version of Python",
        _lacks("python3.13", "pyenv"),
    ),
    AllowedSkip(
        (
            "tests/contract/test_full_disk.py::*",
            "tests/unit/edge/samples/test_power_cuts.py::test_a_disk_that_is_really_full",
        ),
        "some machines, as containers, let nobody mount a small disk",
        lambda: True,
    ),
    AllowedSkip(
        (
            "tests/contract/test_runtimes.py::*tflite_runtime*",
            "tests/contract/test_runtimes.py::test_numpy_2_*",
        ),
        "tflite-runtime has no wheels for this Python or machine",
        lambda: sys.version_info >= (3, 12) or sys.platform != "linux",
    ),
    AllowedSkip(
        (
            "tests/broker/commands/test_release_demo.py::*",
            "tests/contract/publishers/*",
            "tests/unit/coordinator/releases/test_build.py::*",
            "tests/unit/core/eim/test_elf.py::test_the_launcher_*",
            "tests/unit/edge/eim/test_client.py::*",
            "tests/unit/edge/releases/test_selftest.py::*",
        ),
        "the stand-in programs are made for x86-64",
        _not_x86_64,
    ),
    AllowedSkip(
        ("tests/unit/cli/test_no_rights.py::*",), "root reads everything, without setpriv", _lacks("setpriv")
    ),
    AllowedSkip(
        ("tests/broker/brokers/test_broker_start.py::*",),
        "only Linux ends children with their parent",
        lambda: sys.platform != "linux",
    ),
)


def why_allowed(test: str) -> str | None:
    """The reason why the test of this id may be skipped on this machine; None where there is none."""
    return next((a.why for a in ALLOWED if any(fnmatchcase(test, p) for p in a.tests) and a.when()), None)
