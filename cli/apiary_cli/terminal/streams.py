"""Standard output and error of a command: printable, in any encoding, closed or full without a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from apiary.printable import printable


class OutputLost(OSError):  # noqa: N818 - reads as what happened
    """Whoever read our output is gone, or the disk that it goes to is full."""


class PrintableStream:
    """A text stream that escapes what would control a terminal; lines and tabs stay."""

    def __init__(self, raw: TextIO):
        self.raw = raw
        with contextlib.suppress(AttributeError, ValueError):
            # A terminal of another encoding shows an escape for what it has no sign for.
            cast("Any", raw).reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write the printable form. Raises OutputLost."""
        with _losing():
            self.raw.write(printable(text, keep="\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered. Raises OutputLost."""
        with _losing():
            self.raw.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Within the block, standard output and error are printable; afterwards they are as before."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        # Python has None for a stream that was closed before it began.
        sys.stdout, sys.stderr = (cast("TextIO", PrintableStream(s or nowhere)) for s in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def raw(stream: TextIO) -> TextIO:
    """The stream below: for progress in place and drawings, whose control sequences are our own."""
    return stream.raw if isinstance(stream, PrintableStream) else stream


def give_up_output() -> None:
    """Let Python not complain once more, at exit, of an output that is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def _losing() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputLost(e.errno, e.strerror) from None
