"""The authority: a clock that is ahead, an older backup, a race, half a character, a token among the words.

Each row has a broker and an authority of its own, and every command is a process.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import Ground
from tests.attacks.services import running
from tests.broker.secured import Secured

from apiary.bus.bus import Connected, Disconnected
from apiary.identity.revocations import load_lists, revoked_serials
from apiary.identity.roles import Role
from apiary_cli.pki.device import USES, Device

YEAR_S = 365 * 86_400.0
RACES = 10
AT_ONCE = 3
Answer = tuple[int, str]


class Orchard(Secured):
    """Its `revoke` and `issue` are processes; afterwards mosquitto has read its files again."""

    def __init__(self, ground: Ground, folder: Path):
        self._ground = ground
        super().__init__(folder, "certificates")

    def pki(self, *words: str, sets: tuple[str, ...] = ()) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return super().pki(*words, sets=sets)

    def tell(self, *words: str, ahead_s: float = 0.0) -> str:
        """Have the authority do it, and the broker read what follows; what went wrong."""
        before = self.log().count("Reloading config")
        reload = f"pki.reload=['kill', '-HUP', '{self.process.pid}']"
        done = self._ground.pki(*words, broker=self, sets=(reload,), ahead_s=ahead_s)
        if done.returncode == 0:
            end = time.monotonic() + 20
            while self.log().count("Reloading config") == before:
                assert time.monotonic() < end, "the broker did not read its files again"
                time.sleep(0.05)
        return done.stderr if done.returncode else ""

    def enrol(self, name: str) -> None:
        assert self.pki("enrol", name, "--dir", str(self.folder / name)) == 0

    def lets_in(self, name: str) -> bool:
        """Whether a party gets a connection."""
        party = self.party(name)
        try:
            end = time.monotonic() + 20
            while True:
                for event in party.poll(0.1):
                    if isinstance(event, Connected | Disconnected):
                        return isinstance(event, Connected)
                assert time.monotonic() < end, f"{name}: no answer"
        finally:
            party.close()

    def listed(self) -> frozenset[int]:
        """The serial numbers on the list that the broker has."""
        return revoked_serials(load_lists((self.folder / "apiary" / "crl.pem").read_bytes()))


@contextlib.contextmanager
def orchard(ground: Ground) -> Iterator[Orchard]:
    with tempfile.TemporaryDirectory(prefix="apiary-orchard-") as temporary:
        made = Orchard(ground, Path(temporary))
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def serving(ground: Ground, here: Orchard) -> Iterator[tuple[int, Path]]:
    """`apiary pki serve`: its port, and the file that it prints into."""
    flags = [x for pair in here.settings for x in ("--set", pair)]
    words = ["pki", *flags, "serve", "--host", "127.0.0.1", "--port", "0"]
    with running(ground, *words, until=r"https://\S+:(\d+)") as (port, folder):
        yield int(port), folder / "out"


def post(port: int, here: Orchard, path: str, body: str, files: Path | None = None) -> Answer:
    context = ssl.create_default_context(cafile=here.folder / "pki" / "ca.pem")
    context.check_hostname = False
    if files is not None:
        context.load_cert_chain(files / "tls" / "cert.pem", files / "tls" / "key.pem")
    link = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    try:
        link.request("POST", path, body)
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    finally:
        link.close()


def out_and_others_in(here: Orchard, gone: str) -> str:
    assert not here.lets_in(gone), f"{gone} is let in again"
    assert here.lets_in("pi-07")
    return "pi-07 is let in as before"


@attack("a revoked device, and an authority that works by a clock two years ahead", mend="clock")
def clock_ahead(ground: Ground) -> Outcome:
    with orchard(ground) as here:
        here.enrol("pi-gone")
        assert here.tell("revoke", "pi-gone") == ""
        said = here.tell("enrol", "pi-late", "--dir", str(here.folder / "pi-late"), ahead_s=2 * YEAR_S)
        for name in ("pi-late", "pi-08"):
            here.tell("revoke", name, ahead_s=2 * YEAR_S)
        assert here.tell("apply") == ""
        honest = out_and_others_in(here, "pi-gone")
        assert "more than 365 days before" in said, said
        assert not here.lets_in("pi-08"), "who was revoked by that clock is let in"
    return Outcome("nothing is issued by that clock, its list names all that were revoked before", honest)


@attack("a revoked device, and an authority that comes back from an older backup", mend="lists")
def older_backup(ground: Ground) -> Outcome:
    with orchard(ground) as here:
        here.enrol("pi-gone")
        pki, backup = here.folder / "pki", here.folder / "backup"
        shutil.copytree(pki, backup)
        assert here.tell("revoke", "pi-gone") == ""
        shutil.rmtree(pki)
        shutil.copytree(backup, pki)
        assert here.tell("revoke", "pi-08") == ""
        honest = out_and_others_in(here, "pi-gone")
    return Outcome("the next list names who was revoked after the backup, too", honest)


@attack("a device that renews while it is revoked", mend="lock")
def renewal_race(ground: Ground) -> Outcome:
    answers: list[int] = []
    with orchard(ground) as here, serving(ground, here) as (port, _):

        def renew(folder: Path, body: str, begin: threading.Barrier) -> None:
            begin.wait(30)
            answers.append(post(port, here, "/v1/renew", body, folder)[0])

        for race in range(ground.few(RACES)):
            name = f"pi-race-{race}"
            here.enrol(name)
            request = Device(here.folder / name, USES[Role.NODE]).request(name, renew=True)
            body = json.dumps({"request": request.decode(), "force": True, "bundle": True})
            begin = threading.Barrier(AT_ONCE + 1)
            threads = [
                threading.Thread(target=renew, args=(here.folder / name, body, begin)) for _ in range(AT_ONCE)
            ]
            for thread in threads:
                thread.start()
            begin.wait(30)
            time.sleep(0.004 * race)
            assert here.pki("revoke", name) == 0
            for thread in threads:
                thread.join(60)
            held = issued_to(here, name) - here.listed()
            assert not held, f"{name} was revoked and holds {len(held)} valid certificates"
        assert here.tell("apply") == ""
        honest = out_and_others_in(here, "pi-race-0")
    given = answers.count(200)
    return Outcome(
        f"{race + 1} devices, {AT_ONCE} renewals each at once with it: {given} were granted", honest
    )


def issued_to(here: Orchard, name: str) -> set[int]:
    index: Any = json.loads((here.folder / "pki" / "index.json").read_text())
    return {int(i["serial"], 16) for i in index["issued"] if i["name"] == name}


@attack("half a character in requests to join and to renew", mend="text")
def half_a_character(ground: Ground) -> Outcome:
    half = "\\ud800"
    with orchard(ground) as here, serving(ground, here) as (port, out):
        pem = json.dumps(Device(here.folder / "pi-new", USES[Role.NODE]).request("pi-new").decode())
        bodies = [f'{{"name": "pi-new", "token": "{half}", "request": {pem}}}']
        bodies += [f'{{"name": "{half}", "token": "t", "request": {pem}}}']
        statuses = [post(port, here, "/v1/join", body)[0] for body in bodies]
        body = f'{{"request": {pem}, "certificate": "{half}", "proof": "{half}"}}'
        statuses.append(post(port, here, "/v1/renew", body)[0])
        assert statuses == [400] * len(statuses), statuses
        assert "Traceback" not in out.read_text(errors="replace")
        honest = joined(ground, here, port)
    return Outcome(f"{len(statuses)} requests, each refused and counted against its address", honest)


def joined(ground: Ground, here: Orchard, port: int) -> str:
    """A device joins by the very command that `apiary pki token` prints, and is let in."""
    words = printed(ground, here)
    join(ground, here, port, words)
    assert here.lets_in("pi-new")
    return "pi-new joins and is let in"


def printed(ground: Ground, here: Orchard) -> tuple[str, list[str]]:
    """A token, and the words of the command to join with."""
    lines = ground.pki("token", "pi-new", broker=here).stdout.splitlines()
    assert lines[-1].startswith("apiary pki join "), lines
    return lines[-2].strip(), lines[-1].split()


def join(ground: Ground, here: Orchard, port: int, told: tuple[str, list[str]]) -> None:
    token, words = told
    url = next(word for word in words if word.startswith("https://"))
    given = [f"https://127.0.0.1:{port}" if word == url else word for word in words[1:]]
    done = ground.command(*given, "--dir", str(here.folder / "pi-new"), text=f"{token}\n")
    assert done.returncode == 0, done.stderr


@attack("another user of a device looks for the token in the list of processes", mend="token")
def token_among_the_words(ground: Ground) -> Outcome:
    with orchard(ground) as here, serving(ground, here) as (port, _):
        told = printed(ground, here)
        over, seen, looks = threading.Event(), list[str](), 0

        def look() -> None:
            nonlocal looks
            while not over.is_set():
                looks += 1
                for file in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        if told[0].encode() in file.read_bytes():
                            seen.append(str(file))
                over.wait(0.05)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            join(ground, here, port, told)
        finally:
            over.set()
            watcher.join()
        assert not seen, f"the token was in {seen[0]}"
        assert here.lets_in("pi-new")
    return Outcome(f"{looks} looks while a device joined as it was told", "pi-new joins and is let in")
