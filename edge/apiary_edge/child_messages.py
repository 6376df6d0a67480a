"""What the service and its child processes exchange: a job as JSON in, events as lines of JSON out."""

import sys
import threading
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

_PRINTING = threading.Lock()


class ChildMessage(BaseModel):
    """A job of a child process, a part of one, or an event; a field that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ChildEvent(ChildMessage):
    """One line of a child."""

    kind: str

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """A line of the child, or None for anything that a library printed."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None

    def line(self) -> str:
        """As `parse` reads it."""
        return self.model_dump_json(exclude_defaults=True) + "\n"

    def report(self) -> None:
        """Print it on standard output, whole, from whichever thread."""
        with _PRINTING:
            sys.stdout.write(self.line())
            sys.stdout.flush()
