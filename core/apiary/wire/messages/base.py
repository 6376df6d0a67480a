"""What every JSON control message shares: bounds, encoding, decoding.

Unknown keys are ignored, so that a minor version may add some; an unknown version is refused. A message
stays below `MAX_BYTES`, checked before it is parsed; MQTT Explorer shows 20,000 bytes, which all but the
announcement to a very large cohort respect.
"""

import json
from typing import Annotated, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from apiary.errors import MessageError, VersionError
from apiary.printable import printable
from apiary.wire import PROTOCOL
from apiary.wire.topics import TopicKind

MAX_BYTES: Final = 256_000
MAX_BLOB_BYTES: Final = 256 * 2**20
READABLE_BYTES: Final = 20_000
SEAL_BYTES: Final = 900
"""What a signature with its certificate adds to a message."""
MAX_LABELS: Final = 1000
MAX_LABEL_CHARS: Final = 64

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MAX_TEXT_CHARS: Final = 500


def _shown(value: object) -> object:
    """What people read of a peer cannot control their terminal; a name that is no UTF-8 fits into JSON."""
    fits = isinstance(value, str) and len(value) <= MAX_TEXT_CHARS
    return printable(value)[:MAX_TEXT_CHARS] if fits and isinstance(value, str) else value


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS), BeforeValidator(_shown)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
Count = Annotated[int, Field(ge=0, le=2**40)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(lambda x: round(x, 6))]
Number = Annotated[
    float, Field(ge=-1e12, le=1e12, allow_inf_nan=False), AfterValidator(lambda x: round(x, 6))
]
"""Measured figures; six decimals are more than they are good for, and people read them."""
Ranges = Annotated[list[tuple[Count, Count]], Field(max_length=2_000)]
"""Half-open runs of chunk indices, `[[0, 4], [7, 8]]`."""


def fits_label(name: str) -> bool:
    """Whether a message can carry a folder's name as a label."""
    # A name that is no UTF-8 comes from the system with surrogates, which JSON cannot carry.
    return 1 <= len(name) <= MAX_LABEL_CHARS and not any("\ud800" <= c <= "\udfff" for c in name)


class Part(BaseModel):
    """A piece of a message; unknown keys are ignored."""

    # Validators are built when they are first used: all of them take 9 MB, a child of a node uses few.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class Message(Part):
    """A control message: `encode` and `decode`, and the kind of topic it travels on."""

    kind: ClassVar[TopicKind]
    v: int = PROTOCOL

    def encode(self) -> bytes:
        """Compact JSON; keys that are None are left out."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, payload: bytes, *, who: str) -> Self:
        """Parse a payload from `who`. Raises VersionError or MessageError, never anything else."""
        what = f"{who}: {cls.__name__.lower()}"
        if len(payload) > MAX_BYTES:
            raise MessageError(f"{what} of {len(payload)} bytes, expected at most {MAX_BYTES}")
        try:
            raw = json.loads(payload)
        except (ValueError, RecursionError) as e:
            raise MessageError(f"{what} is not JSON: {str(e)[:80]}") from None
        if not isinstance(raw, dict):
            raise MessageError(f"{what} is a JSON {type(raw).__name__}, expected an object")
        if raw.get("v") != PROTOCOL:
            raise VersionError(
                f"{what} has protocol version {str(raw.get('v'))[:20]}, expected {PROTOCOL}: "
                "upgrade the older party"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as e:
            raise MessageError(f"{what}: {first_error(e)}") from None


def first_error(error: ValidationError, whole: str = "message") -> str:
    """The first thing that is wrong: its key (`whole` where it is all of it), its value, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(p) for p in first["loc"]) or whole
    return f"{where} is {str(first.get('input'))[:60]!r}: {first['msg']}"


class BlobRef(Part):
    """A blob by digest and size in bytes; the number of chunks follows from the size."""

    digest: Hex
    bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)]
