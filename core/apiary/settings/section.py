"""What every section of the settings shares."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from apiary.addresses import read_host
from apiary.errors import TopicError
from apiary.wire.topics import check_name

Host = Annotated[str, AfterValidator(read_host)]
"""The name or address of one host."""


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _an_empty_path_is_none(cls, value: Any) -> Any:
        """`data_dir = ""` is not the folder that the process was started in."""
        if not isinstance(value, dict):
            return value
        paths = {n for n, f in cls.model_fields.items() if Path in (f.annotation, *get_args(f.annotation))}
        return {k: v for k, v in value.items() if not (k in paths and v == "")}


def fits_topic(what: str) -> AfterValidator:
    """Refuse a text that cannot stand in a topic, naming `what` it is."""

    def check(value: str) -> str:
        try:
            return check_name(value, what)
        except TopicError as e:
            raise ValueError(str(e)) from None

    return AfterValidator(check)
