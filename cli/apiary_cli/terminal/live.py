"""A view on the terminal: a table that redraws itself, or plain lines where there is no terminal."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Self

from apiary.printable import printable
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import TopicKind
from apiary_cli.terminal.streams import raw
from apiary_cli.terminal.table import rich_table
from apiary_cli.terminal.view import RunView


class LiveView:
    """Shows a `RunView` on `stream`; feed it through `tap`. Use it as a context."""

    def __init__(self, view: RunView, *, title: str = "", quiet: bool = False):
        self.view = view
        self._title = title
        self._quiet = quiet
        self._live: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as RichLive

            self._live = RichLive(
                get_renderable=self._table,
                console=Console(file=raw(sys.stderr)),
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tap(self, kind: TopicKind, node: NodeId | None, message: Message) -> None:
        """Take a message in and show what is new."""
        for line in self.view.take(kind, node, message):
            self.say(line)

    @property
    def redraws(self) -> bool:
        """Whether a table is on the screen."""
        return self._live is not None

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        line = printable(line)
        if self._live is not None:
            self._live.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        view, announced, best = self.view, self.view.round, self.view.best
        state = (
            "waiting for nodes"
            if announced is None
            else f"round {announced.round}/{announced.rounds} {announced.state}"
        )
        if view.coordinator == "offline":
            state = f"{state}, coordinator offline"
        top = (
            f"   best {best.accuracy:.1%} (round {best.round})" if best and best.accuracy is not None else ""
        )
        rows = []
        shown = sorted(view.nodes.items())[:30]
        for node, at in shown:
            p = at.progress
            rows.append(
                [
                    node,
                    at.doing,
                    str(at.status.samples or 0) if at.status else "",
                    f"{p.loss:.3f}" if p and p.loss is not None else "",
                    f"{p.left_s:.0f} s" if p and p.left_s is not None else "",
                ]
            )
        if len(view.nodes) > len(shown):
            rows.append([f"... and {len(view.nodes) - len(shown)} more", "", "", "", ""])
        header = ("node", "state", "pictures", "loss", "left")
        return Group(Text(printable(f"{self._title}{state}{top}"), style="bold"), rich_table(header, rows))


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


def log_through(say: Callable[[str], None]) -> None:
    """Print warnings above the table instead of through it."""
    handler = _Lines(say)
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter if root.handlers else None)
    root.handlers[:] = [handler]
