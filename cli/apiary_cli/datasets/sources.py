"""Open labelled pictures wherever they are: a data set's name, a folder, an `.npz`, or a CSV with pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.folder import labels as naming
from apiary.learn.folder import walk
from apiary.text_files import read_text
from apiary_cli.datasets import catalogue, pixel_tables
from apiary_cli.datasets.folders import FolderSource, Labels, OnProgress, open_folders

DEFAULT_DIR: Final = Path("datasets")


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

        x = self.x_train if split == "train" else self.x_test
        Image.fromarray(x[index]).save(folder / self.file_name(split, index), compress_level=1)

    def file_name(self, split: str, index: int) -> str:
        """What `write` calls it."""
        y = self.y_train if split == "train" else self.y_test
        return f"{self.labels[int(y[index])]}-{split}-{index:05d}.png"


@dataclass(frozen=True, slots=True)
class LineSource:
    """Short texts, such as names; all of them are to train on, and `y_test` is empty."""

    labels: list[str]
    lines: list[str]
    y_train: Labels
    y_test: Labels

    def write(self, split: str, index: int, folder: Path) -> None:
        """As a text file of its own: a sample is a file."""
        name = self.file_name(split, index)
        (folder / name).write_text(self.lines[index] + "\n", encoding="utf-8")

    def file_name(self, split: str, index: int) -> str:
        """What `write` calls it."""
        return f"{self.labels[int(self.y_train[index])]}-{index:05d}.txt"


Source = ArraySource | FolderSource | LineSource
"""Samples with a class each, as an index into `labels`, some perhaps set apart for testing: `y_train` and
`y_test`, which is empty where the source has no test split of its own. `write` puts sample `index` of `train`
or `test` into a folder, as a file with a unique name, `file_name`."""


def open_source(
    source: str | Path,
    data_dir: Path | None = None,
    *,
    join_labels: bool = False,
    on_progress: OnProgress | None = None,
) -> Source:
    """Open a data set by name (its files in `data_dir`, or where `apiary data fetch` puts them), a folder
    (docs/folders.md), an `.npz`, or a CSV with pixels. Raises DataError."""
    if isinstance(source, str) and source in catalogue.all_datasets():
        return _open_dataset(catalogue.get(source), data_dir)
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(path)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return open_pixels(path)
    if path.is_dir():
        return _open_folder(path, join_labels=join_labels, on_progress=on_progress)
    if path.is_file():
        raise DataError(f"{source}: {walk.not_a_folder(path)}, and no data set")
    if path.suffix in (".npz", ".csv") or "/" in str(source):
        raise DataError(f"{source} is not there: expected a folder of pictures, an .npz or a .csv file")
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


def open_pixels(path: Path) -> ArraySource:
    """A CSV with a column of pixels, all pictures of one size. Raises DataError."""
    (train, x_train), (test, x_test) = pixel_tables.read_pixels(path)
    labels = check_labels(sorted({*train, *test}), path)
    if len({picture.shape for picture in (*x_train, *x_test)}) != 1:
        raise DataError(f"{path}: pictures of several sizes, expected one")
    empty = np.empty((0, *x_train[0].shape) if x_train else (0, 1, 1), np.uint8)
    return ArraySource(
        labels,
        np.stack(x_train) if x_train else empty,
        np.array([labels.index(label) for label in train], np.int64),
        np.stack(x_test) if x_test else empty,
        np.array([labels.index(label) for label in test], np.int64),
    )


def open_lines(folder: Path) -> LineSource:
    """`folder`/LABEL.txt with a short text a line; the same line twice counts once. Raises DataError."""
    lines: list[str] = []
    y: list[int] = []
    files = _line_files(folder)
    if len(files) < 2:
        raise DataError(f"{folder} holds {len(files)} files LABEL.txt, expected two or more, a text a line")
    for number, path in enumerate(files):
        text = read_text(path, error=DataError)
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
    if walk.look(folder).layout.has_test_part:
        return open_folders([folder])
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


def _open_folder(folder: Path, *, join_labels: bool, on_progress: OnProgress | None) -> Source:
    contents = walk.look(folder)
    if not contents.layout.groups and not contents.layout.sets:
        tables = [p for p in _tables(folder) if pixel_tables.holds_pixels(p)]
        if len(tables) > 1:
            named = ", ".join(naming.shown(str(p)) for p in tables[:5])
            raise DataError(f"{folder} holds several tables of pictures: name one of {named}")
        if tables:
            return open_pixels(tables[0])
        if _line_files(folder) and not walk.look_for_samples(folder).layout.groups:
            return open_lines(folder)
    return open_folders([folder], join_labels=join_labels, on_progress=on_progress)


def _tables(folder: Path) -> list[Path]:
    """CSV files in a folder and in those that it holds, as archives have them."""
    return sorted(p for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}*.csv") if p.is_file())


def hardhat_source(parts: list[Path]) -> FolderSource:
    """Both clients' train pictures and all three parties' test pictures, from `hardhat_folders`."""
    return open_folders(parts[:2], tests=parts[2:], prefixed=True)


def hardhat_folders(folder: Path) -> list[Path]:
    """`dataset_client1`, `dataset_client2` and `dataset_server` below `folder`. Raises DataError."""
    names = ("dataset_client1", "dataset_client2", "dataset_server")
    for base in (folder, folder / "hardhat", folder / "datasets"):
        if all((base / n).is_dir() for n in names):
            return [base / n for n in names]
    raise DataError(
        f"{folder} has no {', '.join(names)}: name the folder that holds them, or `apiary data fetch hardhat`"
    )


def _line_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.txt") if not p.name.startswith(".") and p.is_file())


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
