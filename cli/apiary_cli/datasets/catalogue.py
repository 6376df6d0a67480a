"""The data sets that Apiary knows: one TOML file each, in the checkout's `datasets/` or in the wheel."""

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import DataError

Layout = Literal["scikit-learn", "hardhat", "cifar-binary", "npz", "split-folders", "lines"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Archive(_Part):
    """One file to fetch. Without `sha256`, the first download's is recorded and holds from then on."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    file: FileName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] = 2**30
    unpack: Literal["tar.gz"] | None = None
    only: str = ""
    members: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)
    """sha256 of unpacked files by their path, where they are known though the archive's is not."""


class DataSet(_Part):
    """What a data set is, where it comes from, and how its files lie."""

    name: FileName
    description: str
    layout: Layout
    classes: Annotated[list[str], Field(min_length=2)]
    licence: str
    source: str
    citation: str
    archives: list[Archive] = Field(default_factory=list)
    manual: str | None = None

    def by_hand(self, folder: Path) -> str:
        """How to put it into `folder` oneself; empty where `apiary data fetch` does."""
        return (self.manual or "").strip().format(folder=folder, source=self.source)


def folder() -> Path:
    """Where the TOML files are: beside this package in a wheel, `datasets/` of a checkout otherwise."""
    here = Path(__file__).resolve()
    installed = here.with_name("catalogue_data")
    return installed if installed.is_dir() else here.parents[3] / "datasets"


@cache
def all_datasets() -> dict[str, DataSet]:
    """Every data set by name. Raises DataError for a file that does not hold."""
    found = {}
    for path in sorted(folder().glob("*.toml")):
        try:
            dataset = DataSet.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValidationError, tomllib.TOMLDecodeError) as e:
            raise DataError(f"{path}: {e}") from None
        if dataset.name != path.stem:
            raise DataError(f"{path}: name is {dataset.name!r}, expected {path.stem!r} as the file's")
        found[dataset.name] = dataset
    return found


def get(name: str) -> DataSet:
    """The data set of that name. Raises DataError naming what there is."""
    known = all_datasets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise DataError(f"no data set {name!r}{hint} There are: {', '.join(known)}")
    return known[name]
