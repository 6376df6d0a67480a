"""The second half of `apiary demo --release`: the model goes to the nodes that trained it, in two waves."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apiary.eim import elf
from apiary.errors import NoAnswer, RunFailed
from apiary.settings import Settings
from apiary_cli.client.asking import ask
from apiary_cli.demo.federation import LocalFederation

OVER: Final = ("done", "halted", "aborted")
_LOOK_S: Final = 0.5
_LIMIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class RolloutFollower:
    """Follows a federation's releases. `say` gets what happens, line by line."""

    settings: Settings
    federation: LocalFederation
    say: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False

    def ask(self, op: str, **args: Any) -> Any:
        """Send the coordinator a request, as `apiary release` does. Raises ApiaryError."""
        return ask(self.settings, f"release.{op}", args, 60.0)

    def until_over(self, since: float = 0.0) -> dict[str, Any]:
        """Report each step after `since` until the roll-out is over, and its nodes have followed.

        Raises RunFailed where that takes too long, KeyboardInterrupt where it was to stop.
        """
        until = time.monotonic() + _LIMIT_S
        while time.monotonic() < until and not self.stop():
            self.federation.check()
            try:
                status: dict[str, Any] = self.ask("status")
            except NoAnswer:  # it is starting
                time.sleep(_LOOK_S)
                continue
            for noted in status["history"]:
                if noted["at"] > since:
                    self.say(f"  {noted['text']}")
                    since = noted["at"]
            if status["rollout"] is not None and status["rollout"]["state"] in OVER and _followed(status):
                return status
            time.sleep(_LOOK_S)
        if self.stop():
            raise KeyboardInterrupt
        raise RunFailed(f"the roll-out was not over within {_LIMIT_S:g} s; logs: {self.federation.folder}")


def settings_for(folder: Path) -> dict[str, dict[str, Any]]:
    """What a federation needs to release its model to itself: added to the demo's settings."""
    to = ["directory", *(["edge_impulse"] if os.environ.get("EI_API_KEY") else [])]
    machine = elf.machine_of_host(platform.machine()) or "aarch64"
    return {
        "publish": {
            "after_run": to,
            "directory": (folder / "releases").resolve(),
            "target": f"runner-linux-{machine}",
        },
        "release": {"after_publish": "eim", "waves": [0.2, 1.0], "soak_s": 3.0, "wave_s": 180.0},
    }


def table_of(status: Mapping[str, Any]) -> list[str]:
    """Each node, and what it has, in a line."""
    lines = []
    for node, one in sorted(status["nodes"].items()):
        accuracy = one.get("accuracy")
        tested = (
            "" if accuracy is None else f"{accuracy:.0%} of its {one['pictures']} held-out pictures right, "
        )
        lines.append(
            f"  {node:10} predicts with {one.get('current', 'none')}: {tested}"
            f"{one.get('inference_ms', 0.0):.1f} ms a picture"
        )
    return lines


def _followed(status: Mapping[str, Any]) -> bool:
    """Whether every node that is here predicts with the outcome's release."""
    rollout = status["rollout"]
    wanted = rollout["release"]["name"] if rollout["state"] == "done" else rollout["stable"]
    return all(one.get("current") == wanted for one in status["nodes"].values() if one["here"])
