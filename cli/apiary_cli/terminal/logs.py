"""How the log is written to standard error: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final

FORMATS: Final = ("text", "json")
_OURS: Final = ("apiary", "apiary_cli", "apiary_coordinator", "apiary_edge")
_PAIR: Final = re.compile(r"(?<!\S)([a-z][a-z0-9_]*)=(\S+)")


class JsonLines(logging.Formatter):
    """Always the same keys: time (UTC), level, logger, message, fields (its `key=value` pairs), error."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        message = record.getMessage()
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "fields": {key: value.rstrip(",;") for key, value in _PAIR.findall(message)},
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps(told, default=str)


def to_stderr(*, verbose: bool, form: str = "text") -> None:
    """Log to standard error from now on; `verbose` is about us, libraries say their warnings only."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
