"""`[operator]`: under which name commands are sent to the coordinator."""

import getpass
from typing import Annotated

from pydantic import Field

from apiary.settings.section import Section, fits_topic


def default_operator() -> str:
    """The name of this user, made fit for a topic."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        user = ""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in user)
    return name.strip("-_")[:64] or "operator"


class OperatorSettings(Section):
    """Under which name commands are sent to the coordinator, and how long for a reply."""

    name: Annotated[str, fits_topic("operator.name")] = Field(
        default_factory=default_operator,
        description="unset: this user's name; where messages are signed, the name in the certificate",
    )
    timeout_s: float = Field(30.0, gt=0, le=3600, description="how long to wait for the coordinator's reply")
