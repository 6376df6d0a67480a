"""Open labelled pictures wherever they are: a data set's name, LABEL/* folders, or an `.npz` of arrays."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.sample_files import PICTURES, TEXTS
from apiary_cli.datasets import catalogue

DEFAULT_DIR: Final = Path("datasets")
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArraySource:
    """uint8[N, H, W] or uint8[N, H, W, 3] in memory."""

    labels: list[str]
    x_train: NDArray[np.uint8]
    y_train: Labels
    x_test: NDArray[np.uint8]
    y_test: Labels

    def write(self, split: str, index: int, folder: Path) -> None:
        """As PNG, lightly compressed: these files are read many times and written once."""
        from PIL import Image

        x, y = (self.x_train, self.y_train) if split == "train" else (self.x_test, self.y_test)
        name = f"{self.labels[int(y[index])]}-{split}-{index:05d}.png"
        Image.fromarray(x[index]).save(folder / name, compress_level=1)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Picture files; `names` are unique within a label."""

    labels: list[str]
    train: list[tuple[Path, str]]
    y_train: Labels
    test: list[tuple[Path, str]]
    y_test: Labels

    def write(self, split: str, index: int, folder: Path) -> None:
        """As a hard link to the original, or a copy where the file system has none."""
        path, name = (self.train if split == "train" else self.test)[index]
        try:
            os.link(path.resolve(), folder / name)
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(path, folder / name)


@dataclass(frozen=True, slots=True)
class LineSource:
    """Short texts, such as names; all of them are to train on, and `y_test` is empty."""

    labels: list[str]
    lines: list[str]
    y_train: Labels
    y_test: Labels

    def write(self, split: str, index: int, folder: Path) -> None:
        """As a text file of its own: a sample is a file."""
        name = f"{self.labels[int(self.y_train[index])]}-{index:05d}.txt"
        (folder / name).write_text(self.lines[index] + "\n", encoding="utf-8")


Source = ArraySource | FolderSource | LineSource
"""Samples with a class each, as an index into `labels`, some perhaps set apart for testing: `y_train` and
`y_test`, which is empty where the source has no test split of its own. `write` puts sample `index` of `train`
or `test` into a folder, as a file with a unique name."""


def open_source(source: str | Path, data_dir: Path | None = None) -> Source:
    """Open a data set by name (its files in `data_dir`, or where `apiary data fetch` puts them), a folder of
    LABEL/* or train/LABEL/* and test/LABEL/*, or an `.npz`. Raises DataError."""
    if isinstance(source, str) and source in catalogue.all_datasets():
        return _open_dataset(catalogue.get(source), data_dir)
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(path)
    if path.is_dir():
        lines = _line_files(path) and not _label_folders(path)
        return _open_splits(path) or (open_lines(path) if lines else gather([("", path)], [], path))
    if path.suffix == ".npz" or "/" in str(source):
        raise DataError(f"{source} is not there: expected a folder LABEL/*.jpg|png or an .npz file")
    try:
        catalogue.get(str(source))
    except DataError as e:
        raise DataError(f"{source} is no folder here, and {e}") from None
    raise AssertionError  # get() raises for an unknown name


def locate(name: str, data_dir: Path | None = None) -> Path:
    """The folder that holds data set `name`: DIR/NAME, or DIR itself. Raises DataError."""
    for candidate in (data_dir / name, data_dir) if data_dir else (DEFAULT_DIR / name,):
        if candidate.is_dir():
            return candidate
    where = data_dir or DEFAULT_DIR / name
    dataset = catalogue.get(name)
    if dataset.manual:
        raise DataError(f"{name}: no folder {where}. {dataset.by_hand(where)}")
    raise DataError(f"{name}: no folder {where}; `apiary data fetch {name}` brings it, --data names another")


def open_npz(path: Path, classes: list[str] | None = None) -> ArraySource:
    """Arrays x_train, y_train and, if there, x_test, y_test, classes. Never unpickles. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as z:
            got = {k: z[k] for k in ("x_train", "y_train", "x_test", "y_test", "classes") if k in z.files}
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{path} cannot be read as .npz: {e}") from None
    except Exception as e:  # zipfile.BadZipFile and zlib.error have no common root but Exception
        raise DataError(f"{path} is torn or no .npz: {e}") from None
    if missing := {"x_train", "y_train"} - set(got):
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: expected x_train and y_train")
    x, y = _pictures(path, "train", got["x_train"], got["y_train"])
    x_test, y_test = x[:0], y[:0]
    if "x_test" in got and "y_test" in got:
        x_test, y_test = _pictures(path, "test", got["x_test"], got["y_test"])
    top = int(max(y.max(initial=-1), y_test.max(initial=-1))) + 1
    labels = [str(c) for c in got["classes"]] if "classes" in got else classes or [str(i) for i in range(top)]
    if top > len(labels):
        raise DataError(f"{path}: a label is {top - 1}, expected below {len(labels)} as there are classes")
    return ArraySource(check_labels(labels, path), x, y, x_test, y_test)


def open_lines(folder: Path) -> LineSource:
    """`folder`/LABEL.txt with a short text a line; the same line twice counts once. Raises DataError."""
    lines: list[str] = []
    y: list[int] = []
    files = _line_files(folder)
    if len(files) < 2:
        raise DataError(f"{folder} holds {len(files)} files LABEL.txt, expected two or more, a text a line")
    for number, path in enumerate(files):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise DataError(f"{path} cannot be read: {e}") from None
        found = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
        lines += found
        y += [number] * len(found)
    labels = check_labels([path.stem for path in files], folder)
    return LineSource(labels, lines, np.array(y, np.int64), np.array([], np.int64))


def check_labels(labels: list[str], where: object) -> list[str]:
    """Labels that can be folder names, and at least two. Raises DataError."""
    for label in labels:
        if not label or len(label) > 64 or label.startswith(".") or set(label) & set('/\\\0\n"'):
            raise DataError(f"{where}: label {label!r} cannot be a folder's name; rename the class")
    if len(set(labels)) != len(labels):
        raise DataError(f"{where}: two classes have one name: {', '.join(sorted(labels))}")
    if len(labels) < 2:
        raise DataError(f"{where}: found {len(labels)} class ({', '.join(labels)}), expected two or more")
    return labels


def _open_dataset(dataset: catalogue.DataSet, data_dir: Path | None) -> Source:
    if dataset.layout == "scikit-learn":
        return _digits()
    folder = locate(dataset.name, data_dir)
    arrays = sorted(folder.glob("*.npz"))
    if len(arrays) > 1:
        raise DataError(f"{folder} holds {len(arrays)} .npz files, expected one: name the one to take")
    if arrays:
        return open_npz(arrays[0], dataset.classes)
    match dataset.layout:
        case "cifar-binary":
            return _cifar(folder, dataset.classes)
        case "hardhat":
            return hardhat_source(hardhat_folders(folder))
        case "lines":
            return open_lines(folder)
        case "npz":
            raise DataError(f"{folder} holds no .npz: `apiary data fetch {dataset.name}` brings it")
    if split := _open_splits(folder):
        return split
    hint = dataset.by_hand(folder)
    raise DataError(f"{folder} holds neither train/ and test/ folders nor an .npz. {hint}")


def _digits() -> ArraySource:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits ship with scikit-learn: pip install 'apiary-fl[demo]'") from None
    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    y = digits.target.astype(np.int64)
    return ArraySource([str(i) for i in range(10)], x, y, x[:0], y[:0])


def _cifar(folder: Path, classes: list[str]) -> ArraySource:
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    arrays: list[Any] = []
    for files in ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]):
        records = []
        for name in files:
            try:
                raw = np.fromfile(folder / name, dtype=np.uint8)
            except OSError as e:
                raise DataError(f"{folder / name}: {e.strerror}; `apiary data fetch cifar10`") from None
            if raw.size == 0 or raw.size % 3073:
                raise DataError(f"{folder / name} has {raw.size} bytes, expected a multiple of 3073")
            records.append(raw.reshape(-1, 3073))
        rows = np.concatenate(records)
        arrays += [rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int64)]
    x, y, x_test, y_test = arrays
    return ArraySource(classes, np.ascontiguousarray(x), y, np.ascontiguousarray(x_test), y_test)


def _open_splits(folder: Path) -> FolderSource | None:
    train, test = folder / "train", folder / "test"
    if not (train.is_dir() and test.is_dir() and _label_folders(train)):
        return None
    return gather([("", train)], [("", test)], folder)


def hardhat_source(parts: list[Path]) -> FolderSource:
    """Both clients' train pictures and all three parties' test pictures, from `hardhat_folders`."""
    train = [(f"{p.name}-", p / "train") for p in parts[:2]]
    return gather(train, [(f"{p.name}-", p / "test") for p in parts], parts[0].parent)


def hardhat_folders(folder: Path) -> list[Path]:
    """`dataset_client1`, `dataset_client2` and `dataset_server` below `folder`. Raises DataError."""
    names = ("dataset_client1", "dataset_client2", "dataset_server")
    for base in (folder, folder / "hardhat", folder / "datasets"):
        if all((base / n).is_dir() for n in names):
            return [base / n for n in names]
    raise DataError(
        f"{folder} has no {', '.join(names)}: name the folder that holds them, or `apiary data fetch hardhat`"
    )


def gather(train: list[tuple[str, Path]], test: list[tuple[str, Path]], where: Path) -> FolderSource:
    """Pictures of several LABEL/* folders, names prefixed so that they stay unique. Raises DataError."""
    labels = sorted({label for _, folder in train for label in _label_folders(folder)})
    if not labels:
        raise DataError(f"{where} holds no pictures: expected folders LABEL/*.jpg|jpeg|png")
    check_labels(labels, where)
    found: list[tuple[list[tuple[Path, str]], Labels]] = []
    for parts in (train, test):
        files: list[tuple[Path, str]] = []
        y: list[int] = []
        for prefix, folder in parts:
            for label in _label_folders(folder):
                if label not in labels:
                    raise DataError(f"{folder / label}: a test label that no training picture has")
                for path in pictures_in(folder / label):
                    files.append((path, f"{prefix}{path.name}"))
                    y.append(labels.index(label))
        found.append((files, np.array(y, dtype=np.int64)))
    return FolderSource(labels, *found[0], *found[1])


def pictures_in(folder: Path) -> list[Path]:
    """Picture files right in `folder`, or texts where there are none, by name; hidden files are none."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    return pictures or [p for p in files if p.suffix.lower() in TEXTS]


def _line_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.txt") if not p.name.startswith(".") and p.is_file())


def _label_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not there: expected a folder LABEL/*.jpg|png")
    return sorted(
        p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and pictures_in(p)
    )


def _pictures(path: Path, split: str, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.uint8], Labels]:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: x_{split} is {x.dtype}{list(x.shape)}, expected uint8[N, H, W] or uint8[N, H, W, 1|3]"
        )
    if y.shape != (x.shape[0],) or not np.issubdtype(y.dtype, np.integer) or (y.size and int(y.min()) < 0):
        raise DataError(
            f"{path}: y_{split} is {y.dtype}{list(y.shape)}, expected {x.shape[0]} integers from 0"
        )
    return (x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x), y.astype(np.int64)
