"""What the service and its child processes exchange: a job as JSON in, events as lines of JSON out."""

import sys
import threading
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from apiary.printable import printable

_PRINTING = threading.Lock()


class ChildMessage(BaseModel):
    """A job of a child process, a part of one, or an event; a field that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ChildEvent(ChildMessage):
    """One line of a child."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _text_fits(cls, data: Any) -> Any:
        """What it says to people may name a file whose name is no UTF-8, which JSON cannot carry."""
        if isinstance(data, dict) and isinstance(text := data.get("text"), str):
            return {**data, "text": printable(text)}
        return data

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
            # UTF-8, whatever the locale: the reader of this line is the service.
            sys.stdout.buffer.write(self.line().encode())
            sys.stdout.buffer.flush()
