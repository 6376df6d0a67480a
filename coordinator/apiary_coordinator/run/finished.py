"""Finished runs on disk: the folder that a name means, and the labels of its model."""

from pathlib import Path, PurePath
from typing import Final

from apiary.errors import DataError
from apiary.text_files import read_text

MODELS: Final = {"float32": "model.tflite", "int8": "model_int8.tflite"}
_MODEL: Final = MODELS["float32"]
_SHOWN: Final = 10


def find_run(name: str, runs_dir: Path, *, anywhere: bool = True) -> Path:
    """The folder of a finished run: `latest`, its name in `runs_dir`, or its own path.

    Without `anywhere`, for a request that came from another machine, a path is a run's where its last two
    parts are a folder named as `runs_dir` and a run in it. Raises DataError naming the newest runs there are.
    """
    models = sorted(runs_dir.glob(f"*/{_MODEL}"), key=lambda p: p.stat().st_mtime)
    runs = [path.parent for path in models]
    if name == "latest":
        if not runs:
            raise DataError(f"{runs_dir} holds no finished run; `apiary demo` makes one")
        return runs[-1]
    parts = PurePath(name).parts[-2:]
    there = {(p.name,): p for p in runs} | {(runs_dir.name, p.name): p for p in runs}
    named = [Path(name), runs_dir / name] if anywhere else [there[parts]] if parts in there else []
    for folder in named:
        if (folder / _MODEL).is_file():
            return folder
        if folder.is_dir():
            raise DataError(f"{folder} holds no {_MODEL}: the run has not finished, or failed")
    known = ", ".join(sorted(p.name for p in runs[-_SHOWN:])) or "none"
    raise DataError(f"no finished run {name!r} in {runs_dir}. There are: {known}")


def run_name(text: str) -> str:
    """The name of a run that is given by name or, as elsewhere, by its folder: `runs/autumn/` is `autumn`."""
    return PurePath(text).name


def read_labels(folder: Path) -> list[str]:
    """The labels of a run's model in its order. Raises DataError."""
    path = folder / "labels.txt"
    labels = read_text(path, error=DataError).splitlines()
    if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
        raise DataError(f"{path}: expected two or more different labels, one a line")
    return labels
