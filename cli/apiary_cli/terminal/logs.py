"""How the log is written to standard error: lines for people, or one JSON object a line for programs.

A log call names its values in the format string: `log.info("node=%s round=%d trained", node, round)`. The
JSON form takes names from that string and values from the arguments, before anything is formatted: numbers
stay numbers, and a text that somebody sent cannot pass for a field.
"""

import json
import logging
import math
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from apiary.log_lines import LogLines

FORMATS: Final = ("text", "json")
OURS: Final = ("apiary", "apiary_cli", "apiary_coordinator", "apiary_edge")
_CONVERSION: Final = re.compile(r"(?:(?<!\S)([a-z][a-z0-9_]*)=)?%[-#0 +]*\d*(?:\.\d+)?([a-z%])")


class JsonLines(logging.Formatter):
    """Always the same keys: time (UTC), level, logger, message, fields (its `key=%s` pairs), error."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        values = record.args if isinstance(record.args, tuple) else ()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "fields": {k: _plain(v) for k, v in zip(_keys(str(record.msg)), values, strict=False) if k},
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps(line)


@lru_cache(maxsize=1024)
def _keys(text: str) -> list[str]:
    """For each argument of a format string its key; empty where it has none."""
    return [key for key, kind in _CONVERSION.findall(text) if kind != "%"]


def _plain(value: Any) -> Any:
    """As JSON has it: infinity and NaN, which it does not have, and all else as text."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def to_stderr(*, verbose: bool, form: str = "text") -> None:
    """Log to standard error from now on. `verbose` is for our own modules; of libraries, warnings only."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    lines = LogLines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines() if form == "json" else lines)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


def warnings_only() -> None:
    """Of our own modules too: for a command that shows its progress itself."""
    for name in OURS:
        logging.getLogger(name).setLevel(logging.WARNING)
