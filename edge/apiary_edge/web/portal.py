"""All pages of a node behind one address: an overview at `/`, each page in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from apiary.http.connection import BodyAllowance
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.site import Environ, Response, Site, as_json, not_found


class Portal:
    """A WSGI application: `/NAME/...` is the page of that name, a path of `roots` goes to its page as it is.

    Everything else is `home`, the overview.
    """

    def __init__(self, home: Site, pages: Mapping[str, Site], roots: Mapping[str, str]):
        self._home = home
        self._pages = pages
        self._roots = {path: pages[name] for path, name in roots.items() if name in pages}

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        site, inner = self._of(environ)
        return site(inner, start_response)

    def allowance(self, environ: Environ) -> BodyAllowance:
        """What a head may bring, by the page that it is for."""
        site, inner = self._of(environ)
        return site.allowance(inner)

    def _of(self, environ: Environ) -> tuple[Site, Environ]:
        path = environ.get("PATH_INFO", "")
        if path in self._roots:
            return self._roots[path], environ
        name, slash, rest = path.removeprefix("/").partition("/")
        if slash and name in self._pages:
            return self._pages[name], {
                **environ,
                "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + f"/{name}",
                "PATH_INFO": f"/{rest}",
            }
        return self._home, environ


class Overview:
    """What the overview asks for. `waiting` counts pictures without a label, `predicts` is the model's name.

    `pages` are those that this node serves; a path without its last slash leads there.
    """

    def __init__(
        self, node: str, federation: str, pages: Iterable[str], summary: Callable[[], Mapping[str, Any]]
    ):
        self._node = node
        self._federation = federation
        self._pages = tuple(pages)
        self._summary = summary

    def get(self, path: str, query: Mapping[str, str]) -> Response:
        """The node, its pages and what waits on them."""
        if path == "/api/overview":
            return as_json(
                {
                    "node": self._node,
                    "federation": self._federation,
                    "pages": list(self._pages),
                    **self._summary(),
                }
            )
        if path.removeprefix("/") in self._pages:
            return Response(HTTPStatus.PERMANENT_REDIRECT, b"{}", headers=(("Location", f"{path}/"),))
        raise not_found()

    def post(self, path: str, environ: Environ) -> Response:
        """Nothing: the overview changes nothing."""
        raise not_found()


def overview(gate: OwnerGate, pages: Overview, node: str) -> Site:
    """The WSGI application of `/`."""
    return Site("overview", gate, pages, package="apiary_edge.web", node=node)
