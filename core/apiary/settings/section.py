"""What every section of the settings shares."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from apiary.addresses import read_host
from apiary.errors import TopicError
from apiary.wire.topics import check_name

Host = Annotated[str, AfterValidator(read_host)]
"""The name or address of one host."""


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


def fits_topic(what: str) -> AfterValidator:
    """Refuse a text that cannot stand in a topic, naming `what` it is."""

    def check(value: str) -> str:
        try:
            return check_name(value, what)
        except TopicError as e:
            raise ValueError(str(e)) from None

    return AfterValidator(check)
