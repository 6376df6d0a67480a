"""The record of a run for people and scripts: `history.json` after every round, `summary.json` at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apiary.files import write_json
from apiary.settings import Settings, flatten
from apiary_coordinator.rules import best_of

_SHOWN = ("federation", "run.", "coordinator.labels", "coordinator.test_data")


def history(
    *,
    run: str,
    created: float,
    settings: Settings,
    labels: tuple[str, ...],
    initial: dict[str, Any],
    rounds: list[dict[str, Any]],
    nodes: dict[str, Any],
    stop: str | None,
) -> dict[str, Any]:
    """Everything the report shows."""
    best = best_of(closed(rounds))
    return {
        "run": run,
        "created": created,
        "settings": {k: v for k, v in flatten(settings).items() if k.startswith(_SHOWN)},
        "labels": list(labels),
        "initial": initial,
        "rounds": rounds,
        "nodes": nodes,
        "best_round": best.round if best else None,
        "stop": stop,
    }


def summary(told: dict[str, Any], model_sha256: str, seconds: float, extra: dict[str, Any]) -> dict[str, Any]:
    """The run in numbers; `model_sha256` names the best round's weights, float32 in the model's order."""
    rounds = told["rounds"]
    best = best_of(closed(rounds))
    good = [r for r in rounds if r["state"] == "closed"]
    return {
        "run": told["run"],
        "best_accuracy": best.accuracy if best else None,
        "best_loss": best.loss if best else None,
        "best_round": best.round if best else None,
        "rounds_closed": len(good),
        "rounds_failed": len(rounds) - len(good),
        "nodes": len(told["nodes"]),
        "contributors": {str(r["round"]): sorted(r["contributors"]) for r in good},
        "bytes_up": sum(r["bytes_up"] for r in rounds),
        "bytes_down": sum(r["bytes_down"] for r in rounds),
        "seconds": round(seconds, 3),
        "model_sha256": model_sha256,
        "stop": told["stop"],
        **extra,
    }


def closed(rounds: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """(round, accuracy, loss) of the closed rounds."""
    return [(r["round"], r["accuracy"], r["loss"]) for r in rounds if r["state"] == "closed"]


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    """One JSON file of the run's folder, atomically."""
    # Without indentation the encoder is the fast one; after every round this is the loop's time.
    write_json(folder / name, value, indent=None)
