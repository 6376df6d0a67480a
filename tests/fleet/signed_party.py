"""A fleet's keys and the gates made from them, for fleets on the in-memory bus."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from tests.stand_ins.fleet_keys import NOW
from tests.stand_ins.fleet_keys import Fleet as Keys
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.identity.credentials import SigningGate
from apiary.identity.gate import MessageGate
from apiary.identity.replay_guard import DiskMarks
from apiary.identity.roles import Role
from apiary.identity.signing import Signer, Verifier


class Party:
    """A fleet's keys, and gates from them; marks on disk, so that a restart does not forget."""

    def __init__(self, broker: MemoryBroker):
        self.keys = Keys()
        self.broker = broker
        self.signers: dict[tuple[Role, str], Signer] = {}
        self.revoked: list[Signer] = []
        self.gates: list[SigningGate] = []

    def gate(self, role: Role, name: str, folder: Path) -> MessageGate:
        marks = DiskMarks(folder / "marks.sqlite", lambda: self.broker.now)
        known = self.signers.get((role, name)) or self.keys.signer(name, role)
        signer = self.signers[role, name] = Signer(known._key, known.certificate, marks.issue)
        verifier = Verifier(self.keys.trust(*(s.certificate for s in self.revoked)), marks, self.now)
        self.gates.append(gate := SigningGate(role, verifier, signer))
        return gate

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.broker.now)

    def revoke(self, signer: Signer) -> None:
        self.revoked.append(signer)
        for gate in self.gates:
            assert isinstance(gate.verifier, Verifier)
            gate.verifier.trust = self.keys.trust(*(s.certificate for s in self.revoked))
