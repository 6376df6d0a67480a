"""A request's head to the variables of WSGI (PEP 3333). Pure."""

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote_to_bytes

END: Final = b"\r\n\r\n"
_LINE: Final = re.compile(r"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]")
_HEADER: Final = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_MAX_DIGITS: Final = 12
_BARE: Final = {"CONTENT_TYPE", "CONTENT_LENGTH"}


class BadHead(Exception):  # noqa: N818 - an answer to a peer, not an error of ours
    """A head that is answered with a status and nothing else."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


def read_head(head: bytes) -> dict[str, Any]:
    """The variables of a head without its empty line. Raises BadHead.

    A body is announced by Content-Length alone: one request a connection, so nothing else is needed.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    found = _LINE.fullmatch(first)
    if found is None:
        raise BadHead(HTTPStatus.BAD_REQUEST, "expected METHOD /path HTTP/1.1")
    path, _, query = found[2].partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": found[1],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadHead(HTTPStatus.BAD_REQUEST, "expected Name: value")
        # Name_with_underscores would pass for Name-with-dashes.
        if "_" in header[1]:
            continue
        name = header[1].upper().replace("-", "_")
        key = name if name in _BARE else f"HTTP_{name}"
        if key in environ:
            if key in (*_BARE, "HTTP_HOST"):
                raise BadHead(HTTPStatus.BAD_REQUEST, f"{header[1]} comes twice")
            environ[key] += ("; " if key == "HTTP_COOKIE" else ", ") + header[2]
        else:
            environ[key] = header[2]
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise BadHead(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
    return environ


def length_of(environ: dict[str, Any]) -> int:
    """Bytes of the body that the head announces. Raises BadHead."""
    length = environ.get("CONTENT_LENGTH", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > _MAX_DIGITS:
        raise BadHead(HTTPStatus.BAD_REQUEST, "expected a Content-Length in digits")
    return int(length)
