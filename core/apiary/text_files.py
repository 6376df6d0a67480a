"""Text files that people write: UTF-8 whatever the locale, and an error that names file and line."""

import codecs
from pathlib import Path
from typing import Final

from apiary.errors import ApiaryError, SettingsError

_OTHERS: Final = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


def read_text(
    path: Path, *, what: str = "", error: type[ApiaryError] = SettingsError, max_bytes: int = 2**24
) -> str:
    """The whole file without a byte order mark. Raises `error`: it cannot be read, or where it is no UTF-8.

    `what` names the file in the error: `settings file`, `broker.password_file`.
    """
    name = f"{what} {path}" if what else str(path)
    if path.is_fifo() and not str(path).startswith(("/dev/fd/", "/proc/")):  # a shell's <(...) has a writer
        raise error(f"{name} is a named pipe, whose writer may never come: expected a file")
    try:
        with path.open("rb") as f:
            data = f.read(max_bytes + 1)
    except OSError as e:
        raise error(f"{name}: {e.strerror}") from None
    if len(data) > max_bytes:
        raise error(f"{name} is larger than {max_bytes} bytes")
    try:
        return decode(data, name)
    except ValueError as e:
        raise error(str(e)) from None


def decode(data: bytes, name: str) -> str:
    """The same of bytes that were read. Raises ValueError."""
    for mark, encoding in _OTHERS:
        if data.startswith(mark):
            raise ValueError(f"{name} is {encoding}, expected UTF-8: save it again as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ValueError(
            f"{name}, line {line}: byte 0x{data[e.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None


def first_line(path: Path, *, what: str, error: type[ApiaryError] = SettingsError) -> str:
    """The first line of a file that holds a secret: blanks belong to it, a line's end does not.

    Raises `error` where it is empty.
    """
    line = read_text(path, what=what, error=error, max_bytes=2**16).split("\n", 1)[0].removesuffix("\r")
    if not line:
        raise error(f"{what} {path}: its first line is empty")
    return line
