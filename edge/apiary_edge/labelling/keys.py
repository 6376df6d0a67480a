"""Which key gives which label. Pure."""

from collections.abc import Iterable, Mapping

from apiary.learn.folder import labels as naming


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
    """The known label that differs from a new one in case or blanks only; None where the label is known."""
    known = list(known)
    if label in known:
        return None
    return next((one for one in known if naming.key(one) == naming.key(label)), None)
