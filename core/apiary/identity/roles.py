"""The parts that a certificate lets its holder play. Free of `cryptography`: every module may name them."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Stands in a certificate as its organizational unit (OU)."""

    NODE = "node"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"
    VIEWER = "viewer"
    SERVER = "server"
    """The broker and the enrolment service: what others connect to."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a certificate speaks of: the common name (a node's id, an operator's name) and the role."""

    name: str
    role: Role

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"
