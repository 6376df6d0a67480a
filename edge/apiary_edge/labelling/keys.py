"""Which key gives which label. Pure."""

import unicodedata
from collections.abc import Iterable, Mapping


def keys(numbers: Mapping[str, int]) -> dict[str, str]:
    """Label to key, for those that have one: a digit is its own key, others have their number's up to 9.

    A number whose digit is itself a label is nobody's key.
    """
    own = {label: label for label in numbers if is_digit(label)}
    others = {label: str(n) for label, n in numbers.items() if n <= 9 and label not in own}
    return own | {label: key for label, key in others.items() if key not in own}


def is_digit(label: str) -> bool:
    """Whether a label is one of 0 to 9, as MNIST's are."""
    return len(label) == 1 and label in "0123456789"


def likened(label: str, known: Iterable[str]) -> str | None:
    """The known label that a new one may be meant for; None where the label is known, or is like none.

    They differ in case, in blanks ("hard hat", "hardhat") or in width and form (Unicode's NFKC) only.
    """
    known = list(known)
    if label in known:
        return None
    return next((one for one in known if _bare(one) == _bare(label)), None)


def _bare(label: str) -> str:
    return "".join(unicodedata.normalize("NFKC", label).casefold().split())
