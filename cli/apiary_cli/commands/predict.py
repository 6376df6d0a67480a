"""`apiary predict`: classify pictures, the symbols on them, or short texts with a finished run's model."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from apiary.errors import DataError
from apiary.learn.folder import walk
from apiary.learn.folder.labels import shown
from apiary.settings import load_settings
from apiary_coordinator.run.finished import MODELS, find_run, read_labels

if TYPE_CHECKING:
    from apiary.learn.classifier import Classifier
    from apiary.learn.images import Bytes
    from apiary.learn.symbols import Box

NONE_READABLE: Final = DataError.exit_code
EXAMPLES = """examples:
  apiary predict latest photo.jpg
  apiary predict runs/hardhat-7f3a site/*.jpg --top 2
  apiary predict latest photos/ --json            photos/LABEL/*: also says how many are right
  apiary predict latest formula.png --symbols     each symbol on it, in reading order
  apiary predict latest --text Nowak --text Rossi --top 3      a model of texts (recipe char_rnn)
"""


@dataclass(frozen=True, slots=True)
class PredictInput:
    """A file, or a text, to classify; `truth` is its folder's name where the model knows such a label."""

    path: Path | None
    truth: str | None = None
    text: str = ""

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return shown(str(self.path)) if self.path is not None else self.text


@dataclass(frozen=True, slots=True)
class Classification:
    """The most probable labels of a sample, best first, or of one symbol on it."""

    sample: PredictInput
    top: list[tuple[str, float]]
    box: Box | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Classify pictures or short texts with the model of a run."
    parser.add_argument("run", metavar="RUN", help="a run's folder, its name under runs_dir, or `latest`")
    parser.add_argument("images", metavar="IMAGE", nargs="*", type=Path, help="picture files or folders")
    parser.set_defaults(files_in="images")
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="a text; may be repeated")
    parser.add_argument(
        "--symbols", action="store_true", help="find separate symbols on each picture and classify each"
    )
    parser.add_argument(
        "--negative", action="store_true", help="turn dark and light: for a model that knows the other way"
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="SHARE",
        help="ground around each symbol, as much as the training pictures have (default: 0.1 of its side)",
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="show the K most probable labels")
    parser.add_argument("--int8", action="store_true", help="use the small model, model_int8.tflite")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """0, or 3 where nothing could be read. Raises ApiaryError."""
    if args.top < 1:
        raise DataError(f"--top is {args.top}, expected 1 or more")
    if args.margin is not None and not 0 <= args.margin <= 2:
        raise DataError(f"--margin is {args.margin}, expected 0 to 2")
    if not args.images and not args.text:
        raise DataError("nothing to classify: name pictures or folders, or give --text")
    settings = load_settings(args.config, args.overrides).settings
    folder = find_run(args.run, settings.coordinator.runs_dir)
    labels = read_labels(folder)
    samples = collect(args.images, labels) + [PredictInput(None, text=text) for text in args.text]
    classifier = open_classifier(folder, labels, int8=args.int8)
    if classifier.input.letters and (args.symbols or args.negative):
        raise DataError(f"{folder.name} reads texts: --symbols and --negative are for pictures")
    if args.text and not classifier.input.letters:
        raise DataError(f"{folder.name} reads pictures: --text is for a run of the recipe char_rnn")
    batch = BatchClassifier(classifier, labels, args)
    results: list[Classification] = []
    width = min(max(len(sample.name) for sample in samples), 60)
    for result in batch.classify(samples):
        results.append(result)
        if not args.json:
            print(_line(result, width))
    for name, why in batch.skipped:
        print(f"{name}: skipped: {why}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(folder, results, batch.skipped)))
    elif results:
        print(_total(results))
    if not results:
        what = "texts" if classifier.input.letters else "pictures"
        print(f"apiary: none of {len(samples)} {what} could be read", file=sys.stderr)
        return NONE_READABLE
    return 0


def collect(images: list[Path], labels: list[str]) -> list[PredictInput]:
    """The files named, those in folders named, and those in the folders' folders. Raises DataError."""
    found: list[PredictInput] = []
    for path in images:
        if path.is_dir():
            contents = walk.look_for_samples(path)
            inside = [
                PredictInput(path / group.folder / name, group.label if group.label in labels else None)
                for group in contents.layout.groups
                for name in group.names
            ]
            if not inside:
                raise DataError(contents.nothing("test"))
            found += inside
        else:
            found.append(PredictInput(path))
    return found


def open_classifier(folder: Path, labels: list[str], *, int8: bool = False) -> Classifier:
    """The run's model. Raises DataError, ModelError."""
    from apiary.learn.classifier import Classifier
    from apiary.learn.manifest import read_input

    path = folder / MODELS["int8" if int8 else "float32"]
    if not path.is_file():
        raise DataError(f"{folder} holds no {path.name}: this run was not exported as int8")
    classifier = Classifier(path, read_as=read_input(folder))
    if classifier.classes != len(labels):
        raise DataError(
            f"{path} has {classifier.classes} classes, labels.txt {len(labels)}: they are of different runs"
        )
    return classifier


@dataclass(slots=True)
class BatchClassifier:
    """Classifies samples with one model; what cannot be read is in `skipped`, with the reason."""

    classifier: Classifier
    labels: list[str]
    args: argparse.Namespace
    """The command's flags: `top`, `symbols`, `negative`, `margin`."""
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def classify(self, samples: list[PredictInput]) -> Iterator[Classification]:
        """Predictions one by one."""
        for sample in samples:
            try:
                for box, values in self._values(sample):
                    shown = np.invert(values) if self.args.negative else values
                    probabilities = self.classifier.predict(shown)
                    order = (-probabilities).argsort(kind="stable")[: self.args.top]
                    top = [(self.labels[int(i)], float(probabilities[i])) for i in order]
                    yield Classification(sample, top, box)
            except DataError as e:
                self.skipped.append((sample.name, str(e)))

    def _values(self, sample: PredictInput) -> Iterator[tuple[Box | None, Bytes]]:
        from apiary.learn import images, symbols

        to = self.classifier.input
        data = images.read(sample.path) if sample.path is not None else sample.text.encode()
        if not self.args.symbols:
            yield None, images.decode(data, to)
            return
        picture = images.whole(data, to.channels)
        boxes = symbols.find(picture)
        if not boxes:
            raise DataError("no symbol stands out from the ground")
        margin: float = symbols.MARGIN if self.args.margin is None else self.args.margin
        for box in boxes:
            yield box, images.squash(symbols.cut(picture, box, margin), to)


def _line(result: Classification, width: int) -> str:
    shown = "   ".join(f"{label} {100 * p:.1f} %" for label, p in result.top)
    where = f"{f'at {result.box.left},{result.box.top}':<14}" if result.box else ""
    wrong = result.sample.truth not in (None, result.top[0][0])
    return f"{result.sample.name:<{width}}  {where}{shown}" + (f"   ✗ {result.sample.truth}" if wrong else "")


def _score(results: list[Classification]) -> tuple[int, int]:
    """How many are right, of how many whose label is known."""
    known = [r for r in results if r.sample.truth is not None and r.box is None]
    return sum(r.top[0][0] == r.sample.truth for r in known), len(known)


def _total(results: list[Classification]) -> str:
    if any(r.box for r in results):
        read: dict[str, list[str]] = {}
        for r in results:
            read.setdefault(r.sample.name, []).append(r.top[0][0])
        return "\n".join(f"{name} reads: {' '.join(labels)}" for name, labels in read.items())
    counts = Counter(r.top[0][0] for r in results)
    what = "text" if results[0].sample.path is None else "picture"
    many = f"{len(results)} {what}{'s' if len(results) > 1 else ''}"
    text = f"{many}: " + ", ".join(f"{label} {n}x" for label, n in counts.most_common())
    right, known = _score(results)
    return text + (f"; {right} of {known} right ({100 * right / known:.1f} %)" if known else "")


def _as_json(folder: Path, results: list[Classification], skipped: list[tuple[str, str]]) -> dict[str, Any]:
    right, known = _score(results)
    return {
        "run": str(folder),
        "pictures": [_entry(r) for r in results],
        "counts": dict(Counter(r.top[0][0] for r in results)),
        "accuracy": right / known if known else None,
        "skipped": [{"path": name, "why": why} for name, why in skipped],
    }


def _entry(r: Classification) -> dict[str, Any]:
    about: dict[str, Any] = {"path": str(r.sample.path)} if r.sample.path else {"text": r.sample.text}
    if r.box is not None:
        about["box"] = [r.box.left, r.box.top, r.box.width, r.box.height]
    return {
        **about,
        "label": r.top[0][0],
        "probability": round(r.top[0][1], 6),
        "top": [{"label": label, "probability": round(p, 6)} for label, p in r.top],
        "truth": r.sample.truth,
    }
