"""How a log record becomes a line: whatever was sent to us stays within it."""

import logging

from apiary.printable import printable


class LogLines(logging.Formatter):
    """A formatter whose message is one printable line; only a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """The format string with the record's values."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return printable(super().format(record), keep="\n\t")
