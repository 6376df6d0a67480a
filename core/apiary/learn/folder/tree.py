"""A listing of a folder, as a tree of names. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Tree:
    """Names of pictures and of folders by folder, `""` the root, paths joined by `/`, all sorted.

    `tables` has the text of small files with labels by path, `foreign` the folders with pictures that are not
    read here, `empty` those with nothing in them.
    """

    files: Mapping[str, Sequence[str]]
    folders: Mapping[str, Sequence[str]]
    tables: Mapping[str, str] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    empty: frozenset[str] = frozenset()

    def kids(self, at: str) -> list[str]:
        """Folders right in this one with pictures in them or below."""
        return [k for k in self.folders.get(at, ()) if self.count(join(at, k))]

    def empty_kids(self, at: str) -> list[str]:
        """Folders right in this one that are meant for pictures, but hold none that is read."""
        paths = {k: join(at, k) for k in self.folders.get(at, ())}
        return [k for k, p in paths.items() if not self.count(p) and (p in self.empty or p in self.foreign)]

    def below(self, at: str) -> Iterator[tuple[str, Sequence[str]]]:
        """This folder and those below that hold pictures, with their names."""
        if names := self.files.get(at):
            yield at, names
        for kid in self.folders.get(at, ()):
            yield from self.below(join(at, kid))

    def paths_below(self, at: str) -> list[str]:
        """Paths of all pictures here and below, relative to this folder."""
        return [relative(join(folder, name), at) for folder, names in self.below(at) for name in names]

    def count(self, at: str) -> int:
        """How many pictures lie here and below."""
        return self._counts[at]

    @cached_property
    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for folder, names in self.files.items():
            at = folder
            while True:
                counts[at] += len(names)
                if not at:
                    break
                at = at.rpartition("/")[0]
        return counts


def join(folder: str, name: str) -> str:
    """A path; the root has none."""
    return f"{folder}/{name}" if folder else name


def relative(path: str, at: str) -> str:
    """A path below `at`, from there."""
    return path[len(at) + 1 :] if at else path


def folders_between(at: str, folder: str) -> list[str]:
    """The names of the folders on the way from `at` down to `folder`, that one among them."""
    return [p for p in relative(folder, at).split("/") if p] if folder != at else []
