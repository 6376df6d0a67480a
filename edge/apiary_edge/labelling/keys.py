"""Which key gives which label. Pure."""

from collections.abc import Iterable, Mapping

from apiary.learn.folder import labels as naming


def keys(numbers: Mapping[str, int]) -> dict[str, str]:
    """Label to key, for those that have one: a digit has its own, others that of their number up to 9.

    Where two labels claim a key, the one with the lower number has it and the other has none: no key changes
    its meaning as labels are added.
    """
    held: dict[str, str] = {}
    for label, n in _in_order(numbers):
        key = label if is_digit(label) else str(n)
        if len(key) == 1:
            held.setdefault(key, label)
    return {label: key for key, label in held.items()}


def typed(numbers: Mapping[str, int]) -> dict[str, str]:
    """What gives each label in a terminal: its key, its number from 10 on, its name; for a digit `=1`."""
    return keys(numbers) | {
        label: f"={label}" if is_digit(label) else str(n) if n > 9 else label
        for label, n in numbers.items()
        if label not in keys(numbers)
    }


def is_digit(label: str) -> bool:
    """Whether a label is one of 0 to 9, as MNIST's are."""
    return len(label) == 1 and label in "0123456789"


def likened(label: str, known: Iterable[str]) -> str | None:
    """The known label that a new one may be meant for; None where the label is known, or is like none.

    They have the same key (`apiary.learn.folder.labels`): "hard hat", "Hard-Hat" and "hardhat".
    """
    known = list(known)
    if label in known:
        return None
    return next((one for one in known if naming.key(one) == naming.key(label)), None)


def _in_order(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(numbers.items(), key=lambda one: one[1])
