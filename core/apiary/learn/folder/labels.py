"""Label names: one spelling for what is the same, and what differs in case, blanks or hyphens only. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from apiary.printable import printable
from apiary.wire.messages import MAX_LABEL_CHARS, fits_label

_JOINTS: Final = re.compile(r"((?<=\d)[\s_-]+(?=\d))|[\s_-]+")
_SAMPLES: Final = "-samples"
"""Teachable Machine's ending of the folder with a class's pictures."""


def readable(name: str) -> str:
    """A file's or folder's name as text in Unicode's composed form (NFC).

    A name that is not UTF-8 is read as Windows-1252, the western encoding that old archives are in.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogateescape")
        try:
            name = raw.decode("cp1252")
        except UnicodeDecodeError:
            name = raw.decode("latin-1")
    return _normalized("NFC", name)


def shown(name: str) -> str:
    """`readable`, fit for a line on a screen or in a log: line ends and escapes are written out."""
    return printable(readable(name))


def of_folder(name: str) -> str:
    """The label that a folder's name means."""
    label = readable(name)
    return label.removesuffix(_SAMPLES) or label


def pictures(n: int) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{n} picture{'s' if n != 1 else ''}"


def unfit(label: str) -> str | None:
    """Why this cannot be a label, None where it can."""
    if not fits_label(label):
        return f"expected 1 to {MAX_LABEL_CHARS} characters"
    if not label.isprintable() or "/" in label or not label.strip() or label.startswith("."):
        return "expected printable characters, no '/', and no '.' at the beginning"
    return None


def key(label: str) -> str:
    """Equal for labels that differ in case, blanks or hyphens only: `Hard hat`, `hard_hat` and `hardhat`.

    Width and form of letters (NFKC) do not count, either. Between digits something stays: 1-2 is not 12.
    """
    text = _normalized("NFKC", label).casefold().strip()
    return _JOINTS.sub(lambda m: " " if m[1] else "", text).strip() or text


def alike(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in case, blanks or hyphens only, each sorted."""
    groups: dict[str, set[str]] = {}
    for label in labels:
        groups.setdefault(key(label), set()).add(label)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def joined(counts: Mapping[str, int], known: Iterable[str] = ()) -> dict[str, str]:
    """One spelling for each label: that of `known`, else the most frequent one without outer blanks."""
    spelling = {key(label): label for label in known}
    by_key: dict[str, list[str]] = {}
    for label in counts:
        by_key.setdefault(key(label), []).append(label)
    for one, group in by_key.items():
        best = min(group, key=lambda label: (-counts[label], label))
        spelling.setdefault(one, " ".join(best.split()))
    return {label: spelling[key(label)] for label in counts}


def _normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    if text.isascii():
        return text
    import unicodedata  # 0.4 MB that a node whose labels are ASCII does not need

    return unicodedata.normalize(form, text)
