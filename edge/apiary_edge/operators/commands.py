"""What operators may have a node do: pause, resume, drain, retrain, logs. Answered by the node itself.

    command   does                                                           last word
    pause     leave the round, begin none until resumed                      at once
    resume    take part again                                                at once
    drain     begin no round; once what is in hand was answered, pause       when it is paused
    retrain   forget that the present round was answered or declined;        at once
              refused where there is nothing to forget, or the round is over
    logs      the last lines of the node's log                               at once

A pause, and who asked for it, is on disk before it is answered, so it survives a restart.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import JsonValue

from apiary.bus.inlet import Delivery
from apiary.errors import ApiaryError, RequestRefused
from apiary.files import remove, write_json
from apiary.wire.messages import Announcement, NodeCommand, NodeReply
from apiary.wire.topics import TopicKind
from apiary_edge.feature import NodeFeature, Rounds
from apiary_edge.operators.log_tail import MAX_BYTES, LogTail
from apiary_edge.training.session import SessionState
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)

MAX_REMEMBERED: Final = 64
"""Answers kept for a command that comes again; with logs at most 1 MB."""
_MAX_LINES: Final = 500
_WHO: Final = "operator"
Mode = Literal["paused", "draining"]


class Commands(NodeFeature):
    """Carries out the coordinator's commands for this node, each once."""

    kinds = (TopicKind.NODE_COMMAND,)

    def __init__(self, channel: NodeChannel, rounds: Rounds, state_dir: Path, tail: LogTail | None):
        self._channel = channel
        self._rounds = rounds
        self._file = state_dir / "paused.json"
        self._tail = tail
        self._mode: Mode | None = None
        self._by = ""
        self._answers: OrderedDict[str, NodeReply] = OrderedDict()
        self._drained: list[str] = []
        self._known: Mapping[str, Callable[[NodeCommand], JsonValue]] = {
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "retrain": self._retrain,
            "logs": self._logs,
        }

    def start(self, now: float) -> None:
        """Stay paused where an operator paused it before the restart."""
        kept = self._read()
        if kept is None:
            return
        self._mode, self._by = kept
        log.info("node=%s still %s by operator %s", self._channel.node, self._mode, self._by)
        if self._mode == "paused":
            self._rounds.hold(_WHO, self._why)

    def received(self, delivery: Delivery) -> None:
        """Carry out a command, or reply again where it was carried out."""
        command = delivery.content
        if not isinstance(command, NodeCommand):
            return
        if (before := self._answers.get(command.id)) is not None:
            self._channel.send(before)
            return
        log.info("node=%s command=%s by operator %s", self._channel.node, command.op, command.by)
        try:
            if command.op not in self._known:
                known = ", ".join(self._known)
                raise RequestRefused(f"this node knows no command {command.op!r}; it knows {known}")
            result = self._known[command.op](command)
        except ApiaryError as e:
            self._answer(NodeReply(id=command.id, state="refused", why=str(e)[:500]))
            return
        if command.op == "drain" and self._mode == "draining":
            self._drained.append(command.id)
            self._answer(NodeReply(id=command.id, state="working", result=result))
        else:
            self._answer(NodeReply(id=command.id, state="done", result=result))

    def unfit(self, announcement: Announcement) -> str | None:
        """While it drains no round begins."""
        return self._draining

    def status(self) -> Mapping[str, Any]:
        """Whoever looks at a node that drains should know that it will be paused."""
        return {"why": self._draining} if self._mode == "draining" else {}

    def tick(self, now: float) -> None:
        """Pause once everything in hand was answered."""
        if self._mode == "draining" and self._rounds.session.state is SessionState.IDLE:
            self._set("paused", self._by)
            self._finish_draining("done", {"state": "paused"})

    # -- commands --------------------------------------------------------------------------------------

    def _pause(self, command: NodeCommand) -> JsonValue:
        self._set("paused", command.by)
        self._rounds.leave()
        self._finish_draining("refused", None)
        return {"state": "paused", "still_sends": self._sending}

    def _resume(self, command: NodeCommand) -> JsonValue:
        before = self._mode
        remove(self._file)
        self._mode = None
        self._finish_draining("refused", None)
        self._rounds.hold(_WHO, None)
        return {"state": "resumed" if before is not None else "was not paused"}

    def _drain(self, command: NodeCommand) -> JsonValue:
        if self._mode == "paused" and self._sending:
            raise RequestRefused(f"{self._why} already; the update that it has in hand is still sent")
        if self._rounds.session.state is SessionState.IDLE:
            self._set("paused", command.by)
            return {"state": "paused"}
        self._set("draining", command.by)
        current = self._rounds.session.round
        return {
            "state": self._rounds.session.state.value,
            "round": current.round if current is not None else None,
        }

    def _retrain(self, command: NodeCommand) -> JsonValue:
        if self._mode is not None:
            raise RequestRefused(f"{self._why}; resume it first")
        session = self._rounds.session
        if session.state is not SessionState.IDLE:
            number = f" round {session.round.round}" if session.round is not None else ""
            raise RequestRefused(f"it is {session.state.value}{number} at the moment")
        if session.done is None:
            raise RequestRefused("it has answered or given up no round that it could train again")
        run, last = session.done
        if self._rounds.is_over(run, last):
            raise RequestRefused(f"round {last} of run {run} is over: nothing to train again")
        self._rounds.forget()
        return {"run": run, "round": last}

    def _logs(self, command: NodeCommand) -> JsonValue:
        if self._tail is None:
            raise RequestRefused("this node keeps no log in memory")
        lines, limit = command.args.get("lines", 50), command.args.get("bytes", MAX_BYTES)
        if not isinstance(lines, int) or not isinstance(limit, int):
            raise RequestRefused("lines and bytes are whole numbers")
        found = self._tail.tail(min(lines, _MAX_LINES), min(limit, MAX_BYTES))
        return {"lines": list[JsonValue](found)}

    # -- small parts -----------------------------------------------------------------------------------

    @property
    def _why(self) -> str:
        return f"{'paused' if self._mode == 'paused' else 'drained'} by operator {self._by}"

    @property
    def _draining(self) -> str | None:
        return f"{self._why}: it finishes what it has in hand" if self._mode == "draining" else None

    @property
    def _sending(self) -> bool:
        return self._rounds.session.state is SessionState.SENDING

    def _set(self, mode: Mode, by: str) -> None:
        write_json(self._file, {"mode": mode, "by": by}, indent=None)
        self._mode, self._by = mode, by
        self._rounds.hold(_WHO, self._why if mode == "paused" else None)

    def _read(self) -> tuple[Mode, str] | None:
        try:
            kept: Any = json.loads(self._file.read_text(encoding="utf-8"))
            mode, by = kept["mode"], str(kept["by"])[:64]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as e:
            # Half a file cannot be: it was written atomically. Paused is the careful reading of it.
            node = self._channel.node
            log.warning("node=%s %s cannot be read (%s): paused until resumed", node, self._file, e)
            return "paused", "unknown"
        return ("draining" if mode == "draining" else "paused"), by

    def _finish_draining(self, state: Literal["done", "refused"], result: JsonValue) -> None:
        waiting, self._drained = self._drained, []
        why = None if state == "done" else "another command came before it was drained"
        for id_ in waiting:
            self._answer(NodeReply(id=id_, state=state, why=why, result=result))

    def _answer(self, reply: NodeReply) -> None:
        self._answers[reply.id] = reply
        while len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)
        self._channel.send(reply)
