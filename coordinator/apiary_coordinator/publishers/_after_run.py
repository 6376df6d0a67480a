"""What follows a run: its report, then its publishing; a publisher that fails does not hold up the others."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from apiary import plugins
from apiary.errors import ApiaryError
from apiary.process.child import run_to_end
from apiary.settings import Settings
from apiary_coordinator.publishers._record import PublishRecord, alone
from apiary_coordinator.publishers.base import (
    PACKAGE,
    Candidate,
    Publisher,
    PublishProgress,
    below_its_start,
    candidate,
    file_sha256,
)

log = logging.getLogger(__name__)

_INT8_LOSS: Final = 0.02
"""Quantising costs well below two points on the data sets of the project; more speaks of a fault."""

_REPORT_S: Final = 120.0
"""A report takes seconds; on a machine that swaps, minutes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one publisher: its result, or the error. `fresh` is false where it was done before."""

    publisher: str
    result: dict[str, Any] | None
    error: ApiaryError | None = None
    fresh: bool = True


def after_run(folder: Path, *, settings: Settings, stop: Callable[[], bool]) -> None:
    """What follows a run, on the worker's thread: neither may fail it."""
    draw_report(folder)
    publish_after_run(folder, settings, stop)


def draw_report(folder: Path, limit_s: float = _REPORT_S) -> None:
    """Draw the report in a child: its plotting library would stay in the coordinator's memory."""
    try:
        code, printed = run_to_end(
            [sys.executable, "-m", "apiary_coordinator.report", str(folder)], timeout_s=limit_s
        )
    except OSError as e:
        code, printed = 1, str(e)
    if code is None:
        log.warning("the report could not be drawn within %.0f s: %s holds its numbers", limit_s, folder)
    elif code != 0:
        log.warning("the report could not be drawn: %s", printed[-500:])


def publish(
    folder: Path,
    names: Sequence[str],
    settings: Settings,
    *,
    say: Callable[[str, str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    again: bool = False,
) -> tuple[Candidate, list[Outcome]]:
    """Publish the run in `folder`. `say(publisher, line)` gets its progress; `again` redoes what is done.

    Raises SettingsError for an unknown publisher, DataError, ModelError, PublishError where the run's files
    do not hold; what a publisher raises is in its outcome.
    """
    found = {name: cast("Publisher", plugins.load(PACKAGE, name)) for name in dict.fromkeys(names)}
    chosen = candidate(folder, settings.publish.model_type)
    _report_accuracy(chosen)
    outcomes = []
    with alone(folder):
        # What needs no network goes out before anything waits for one.
        for name, publisher in sorted(found.items(), key=lambda item: item[1].REMOTE):
            report = _reporter(name, say)
            outcomes.append(
                _one(name, publisher, chosen, settings, PublishProgress(report, stop), again=again)
            )
    return chosen, outcomes


def publish_after_run(folder: Path, settings: Settings, stop: Callable[[], bool] = lambda: False) -> None:
    """What `publish.after_run` asks for. Failures are logged: the run itself is over, and good."""
    if not settings.publish.after_run:
        return
    try:
        if below_its_start(folder):
            log.warning(
                "run=%s ended below the model that it began with, and is not published; `apiary publish %s` "
                "does it all the same",
                folder.name,
                folder.name,
            )
            return
        _, outcomes = publish(folder, settings.publish.after_run, settings, stop=stop)
    except ApiaryError as e:
        log.warning("run=%s was not published: %s", folder.name, e)
        return
    for outcome in outcomes:
        if outcome.error is not None:
            log.warning(
                "run=%s publisher=%s failed: %s; `apiary publish %s --to %s` goes on with it",
                folder.name,
                outcome.publisher,
                outcome.error,
                folder.name,
                outcome.publisher,
            )


def _report_accuracy(chosen: Candidate) -> None:
    """Both kinds, before anything goes out: whoever publishes int8 should know what it costs."""
    accuracies = " ".join(f"{kind}={value:.1%}" for kind, value in chosen.accuracy.items())
    log.info(
        "run=%s publishing %s, accuracy on the held-out pictures: %s", chosen.run, chosen.kind, accuracies
    )
    lost = chosen.accuracy.get("float32", 0.0) - chosen.accuracy.get("int8", 0.0)
    if chosen.kind == "int8" and lost > _INT8_LOSS:
        log.warning("run=%s int8 is %.1f points less accurate than float32", chosen.run, 100 * lost)


def _one(
    name: str,
    publisher: Publisher,
    chosen: Candidate,
    settings: Settings,
    watch: PublishProgress,
    *,
    again: bool,
) -> Outcome:
    record = None
    try:
        record = PublishRecord(
            chosen.folder, publisher.entry(chosen, settings), publisher.wanted(chosen, settings), again=again
        )
        if record.result is not None and _still_there(chosen.folder, record.result):
            watch.say("is published already, and unchanged")
            return Outcome(name, record.result, fresh=False)
        result = publisher.publish(chosen, settings, record, watch)
        record.done(result)
    except ApiaryError as e:
        if record is not None:
            record.failed(str(e))
        return Outcome(name, None, e)
    return Outcome(name, result)


def _still_there(folder: Path, result: dict[str, Any]) -> bool:
    try:
        return all(file_sha256(folder / path) == digest for path, digest in result["files"].items())
    except ApiaryError:
        return False


def _reporter(name: str, say: Callable[[str, str], None] | None) -> Callable[[str], None]:
    def report(line: str) -> None:
        log.info("publisher=%s %s", name, line)
        if say is not None:
            say(name, line)

    return report
