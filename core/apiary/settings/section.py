"""What every section of the settings shares."""

from pydantic import AfterValidator, BaseModel, ConfigDict

from apiary.errors import TopicError
from apiary.wire.topics import check_name


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
