"""`apiary predict`: classify pictures with the model of a finished run."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apiary.errors import DataError
from apiary.settings import load_settings
from apiary_cli.sources import pictures_in

if TYPE_CHECKING:
    from apiary.learn.classifier import Classifier

MODEL: Final = "model.tflite"
MODEL_INT8: Final = "model_int8.tflite"
NONE_READABLE: Final = DataError.exit_code
_EXAMPLES = """examples:
  apiary predict latest photo.jpg
  apiary predict runs/hardhat-7f3a site/*.jpg --top 2
  apiary predict latest photos/ --json         photos/LABEL/*: also says how many are right
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to classify; `truth` is its folder's name where the model knows a label of that name."""

    path: Path
    truth: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable labels of one picture, best first."""

    picture: Picture
    top: list[tuple[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Classify pictures with the model of a run."
    parser.epilog = _EXAMPLES
    parser.add_argument("run", metavar="RUN", help="a run's folder, its name under runs_dir, or `latest`")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="picture files or folders")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="show the K most probable labels")
    parser.add_argument("--int8", action="store_true", help="use the small model, model_int8.tflite")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """0, or 3 where no picture could be read. Raises ApiaryError."""
    if args.top < 1:
        raise DataError(f"--top is {args.top}, expected 1 or more")
    settings = load_settings(args.config, args.overrides).settings
    folder = find_run(args.run, settings.coordinator.runs_dir)
    labels = read_labels(folder)
    pictures = collect(args.images, labels)
    classifier = open_classifier(folder, labels, int8=args.int8)
    skipped: list[tuple[Path, str]] = []
    results: list[Prediction] = []
    width = min(max(len(str(p.path)) for p in pictures), 60)
    for result in predict(classifier, labels, pictures, args.top, skipped):
        results.append(result)
        if not args.json:
            print(_line(result, width))
    for path, why in skipped:
        print(f"{path}: skipped: {why}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(folder, results, skipped)))
    elif results:
        print(_total(results))
    if not results:
        print(f"apiary: none of {len(pictures)} pictures could be read", file=sys.stderr)
        return NONE_READABLE
    return 0


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run that has a model. Raises DataError naming the runs there are."""
    if name == "latest":
        found = sorted(_runs(runs_dir), key=lambda p: (p / MODEL).stat().st_mtime)
        if not found:
            raise DataError(f"{runs_dir} holds no finished run; `apiary demo` makes one")
        return found[-1]
    for folder in (Path(name), runs_dir / name):
        if (folder / MODEL).is_file():
            return folder
        if folder.is_dir():
            raise DataError(f"{folder} holds no {MODEL}: the run has not finished, or failed")
    known = ", ".join(p.name for p in _runs(runs_dir)) or "none"
    raise DataError(f"no run {name!r}: neither a folder nor in {runs_dir}. There are: {known}")


def read_labels(folder: Path) -> list[str]:
    """The run's labels in the model's order. Raises DataError."""
    path = folder / "labels.txt"
    try:
        labels = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if len(labels) < 2 or not all(labels):
        raise DataError(f"{path} holds {len(labels)} lines, expected a label on each of two or more")
    return labels


def collect(images: list[Path], labels: list[str]) -> list[Picture]:
    """The files named, those in folders named, and those in the folders' folders. Raises DataError."""
    found: list[Picture] = []
    for path in images:
        if path.is_dir():
            inside = [Picture(p) for p in pictures_in(path)]
            for sub in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
                truth = sub.name if sub.name in labels else None
                inside += [Picture(p, truth) for p in pictures_in(sub)]
            if not inside:
                raise DataError(f"{path} holds no pictures: expected *.jpg|jpeg|png, or folders of them")
            found += inside
        else:
            found.append(Picture(path))
    return found


def open_classifier(folder: Path, labels: list[str], *, int8: bool = False) -> Classifier:
    """The run's model. Raises DataError, ModelError."""
    from apiary.learn.classifier import Classifier

    path = folder / (MODEL_INT8 if int8 else MODEL)
    if not path.is_file():
        raise DataError(f"{folder} holds no {path.name}: this run was not exported as int8")
    classifier = Classifier(path)
    if classifier.classes != len(labels):
        raise DataError(
            f"{path} has {classifier.classes} classes, labels.txt {len(labels)}: they are of different runs"
        )
    return classifier


def predict(
    classifier: Classifier,
    labels: list[str],
    pictures: list[Picture],
    top: int,
    skipped: list[tuple[Path, str]],
) -> Iterator[Prediction]:
    """Predictions one by one; what cannot be read is appended to `skipped` with the reason."""
    from apiary.learn.images import decode, read

    for picture in pictures:
        try:
            pixels = decode(read(picture.path), classifier.input)
        except DataError as e:
            skipped.append((picture.path, str(e)))
            continue
        probabilities = classifier.predict(pixels)
        order = (-probabilities).argsort(kind="stable")[:top]
        yield Prediction(picture, [(labels[int(i)], float(probabilities[i])) for i in order])


def _runs(runs_dir: Path) -> list[Path]:
    if not runs_dir.is_dir():
        return []
    return sorted(p for p in runs_dir.iterdir() if (p / MODEL).is_file() and (p / "labels.txt").is_file())


def _line(result: Prediction, width: int) -> str:
    said = "   ".join(f"{label} {100 * p:.1f} %" for label, p in result.top)
    wrong = result.picture.truth not in (None, result.top[0][0])
    return f"{result.picture.path!s:<{width}}  {said}" + (f"   ✗ {result.picture.truth}" if wrong else "")


def _score(results: list[Prediction]) -> tuple[int, int]:
    """How many are right, of how many whose label is known."""
    known = [r for r in results if r.picture.truth is not None]
    return sum(r.top[0][0] == r.picture.truth for r in known), len(known)


def _total(results: list[Prediction]) -> str:
    counts = Counter(r.top[0][0] for r in results)
    pictures = f"{len(results)} picture{'s' if len(results) > 1 else ''}"
    text = f"{pictures}: " + ", ".join(f"{label} {n}x" for label, n in counts.most_common())
    right, known = _score(results)
    return text + (f"; {right} of {known} right ({100 * right / known:.1f} %)" if known else "")


def _as_json(folder: Path, results: list[Prediction], skipped: list[tuple[Path, str]]) -> dict[str, Any]:
    right, known = _score(results)
    return {
        "run": str(folder),
        "pictures": [
            {
                "path": str(r.picture.path),
                "label": r.top[0][0],
                "probability": round(r.top[0][1], 6),
                "top": [{"label": label, "probability": round(p, 6)} for label, p in r.top],
                "truth": r.picture.truth,
            }
            for r in results
        ],
        "counts": dict(Counter(r.top[0][0] for r in results)),
        "accuracy": right / known if known else None,
        "skipped": [{"path": str(path), "why": why} for path, why in skipped],
    }
