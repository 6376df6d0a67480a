"""Which modules are changed: those that carry a promise of docs/guarantees.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.places import ROOT

PACKAGES = {
    "coordinator": "coordinator/apiary_coordinator",
    "edge": "edge/apiary_edge",
    "core": "core/apiary",
}
CARRY_PROMISES = {
    "coordinator": (
        "journal",
        "worker",
        "round/state",
        "round/collector",
        "round/runner",
        "round/aggregation",
        "round/deadline",
        "run/run",
        "run/announcer",
        "run/stopping",
        "updates/spool",
        "updates/uploads",
        "updates/screening",
        "updates/leave_one_out",
        "updates/counted",
        "updates/exact_sum",
        "updates/limits",
        "updates/capacity",
        "updates/model_server",
        "fleet/selection",
        "fleet/demands",
        "fleet/muster",
        "fleet/rests",
        "fleet/roster",
        "fleet/watch",
        "fleet/floods",
        "schedule/timetable",
        "combiners/mean",
        "combiners/trimmed_mean",
        "combiners/median",
        "combiners/geometric_median",
        "combiners/multi_krum",
        "server_rules/_adaptive",
        "server_rules/fedacg",
        "server_rules/fedavgm",
        "releases/rollout",
        "releases/ledger",
    ),
    "edge": (
        "training/session",
        "training/supervisor",
        "training/memory_guard",
        "training/worker",
        "releases/state",
        "releases/store",
        "transfer/outbox",
        "transfer/downloads",
        "transfer/uploads",
        "guest/rules",
        "guest/round_needs",
    ),
    "core": (
        "wire/chunks",
        "wire/blob",
        "bus/flow",
        "identity/replay_guard",
        "identity/signing",
        "identity/revocations",
        "learn/clip",
        "files",
        "blobs",
    ),
}


def _fleet(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"fleet/{folder}/test_{name}.py" for name in names)


_ROUND = (
    *_fleet(
        "rounds",
        "rounds",
        "bad_updates",
        "offers_back_to_back",
        "order_of_promises",
        "updates_on_a_bad_disk",
        "what_an_update_may_be",
        "options_of_rounds",
    ),
    *_fleet("coordinator", "disk_trouble"),
    *_fleet("nodes", "identity_and_patience"),
)
_SESSION = (
    *_fleet("rounds", "order_of_promises", "bad_updates"),
    *_fleet("nodes", "guests"),
    *_fleet("coordinator", "chaos_findings", "late_coordinator"),
)
_FILES = ("unit/test_power_cuts.py", "unit/test_power_takes_nothing.py")
_RELEASES = _fleet("releases", "releases", "release_operations")
TESTS = {
    "coordinator/journal": (*_ROUND, *_fleet("coordinator", "what_runs_leave")),
    "coordinator/worker": (),
    "coordinator/round": (
        *_ROUND,
        *_fleet("rounds", "left_out", "stages"),
        "property/test_round_properties.py",
    ),
    "coordinator/run": (*_ROUND, *_fleet("coordinator", "staying"), *_fleet("nodes", "nodes_that_decline")),
    "coordinator/updates": (
        *_ROUND,
        *_fleet("rounds", "left_out", "stages"),
        "property/test_aggregate_exact.py",
        "property/test_weight_cap.py",
        "unit/coordinator/run/test_history.py",
        "contract/test_strategies_contract.py",
        "contract/test_combiners_contract.py",
    ),
    "coordinator/fleet": (
        *_fleet("nodes", "silent_nodes", "nodes_that_decline", "roster_of_a_fleet", "mixed_versions"),
        *_fleet("coordinator", "late_coordinator"),
        *_fleet("rounds", "options_of_rounds"),
    ),
    "coordinator/schedule": (),
    "coordinator/combiners": ("contract/test_combiners_contract.py", "unit/coordinator/strategies"),
    "coordinator/server_rules": ("contract/test_server_rules_contract.py", "unit/coordinator/strategies"),
    "coordinator/releases": (*_RELEASES, "property/test_rollout_properties.py"),
    "edge/training": (*_SESSION, "property/test_session_properties.py"),
    "edge/releases": _RELEASES,
    "edge/transfer": (*_SESSION, *_fleet("rounds", "chunk_topics"), *_FILES),
    "edge/guest": _fleet("nodes", "guests"),
    "core/wire": ("golden", "property/test_wire_fuzz.py", "contract/test_codecs.py"),
    "core/bus": (),
    "core/identity": (*_fleet("rounds", "signed_rounds"), "property/test_signing.py"),
    "core/learn": _fleet("rounds", "what_an_update_may_be"),
    "core/files": _FILES,
    "core/blobs": _FILES,
}
"""By the beginning of a module's name: what is tried beside the unit tests of its folder."""

LEFT_OUT = "not broker and not slow and not tensorflow"
"""As pytest's `-m` takes it."""


def modules() -> dict[str, Path]:
    """By name, as `coordinator/round/state`: the file, from the root of the checkout."""
    return {
        f"{side}/{name}": Path(PACKAGES[side], f"{name}.py")
        for side, names in CARRY_PROMISES.items()
        for name in names
    }


def files_at(places: Sequence[str]) -> list[Path]:
    """The test files at these places of tests/, of a folder all. Raises FileNotFoundError where none is."""
    found = []
    for place in places:
        path = ROOT / "tests" / place
        files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"tests/{place}, which TESTS of {__file__} names, is not there")
        found += files
    return found


def files_for(module: str, *, quick: bool = False) -> list[Path]:
    """The test files for a module, from the root of the checkout; with `quick` none with fleets.

    Raises FileNotFoundError where TESTS names a file that is not there.
    """
    folder = ROOT / "tests" / "unit" / Path(module).parent
    # Directly in a side's folder are modules of all kinds, each with a test of its own.
    lies_alone = module.count("/") == 1
    pattern = f"test_{Path(module).name}.py" if lies_alone else "test_*.py"
    found = sorted(folder.glob(pattern))
    for beginning, places in TESTS.items():
        if module.startswith(beginning):
            found += files_at([p for p in places if not (quick and p.startswith("fleet/"))])
    return [path.relative_to(ROOT) for path in found]


def mirrors(module: str, test: str) -> bool:
    """Whether a test is one of the module's own unit tests."""
    side, *folders, name = module.split("/")
    return test.startswith("/".join(("tests/unit", side, *folders, f"test_{name}.py")))
