"""What a file is, by its name and by its first bytes. Pure, and cheap to import."""

from typing import Final

PICTURES: Final = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Of a GIF, an animated PNG or WebP, and a TIFF of several pages the first picture counts."""
HEIC: Final = (".heic", ".heif")
AVIF: Final = (".avif",)
TEXTS: Final = (".txt",)
"""One short text a file, such as a name."""
TABLES: Final = (".csv", ".tsv")
INFO_LABELS: Final = "info.labels"
"""What Edge Impulse's export and uploader name the file with labels of pictures beside it."""
CLASS_NAMES: Final = "labels.txt"
"""Class names in a model's order, as Teachable Machine and this project write them."""

_HEIC_ADVICE: Final = (
    "pip install 'apiary-fl[heic]', or save them as JPEG: on an iPhone Settings, Camera, Formats"
)
MISNAMED: Final = "pictures without a picture's suffix"
_BEGINNINGS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
_NOTES: Final = (
    ".cfg",
    ".htm",
    ".html",
    ".json",
    ".log",
    ".md",
    ".py",
    ".rst",
    ".toml",
    ".xml",
    ".yaml",
    ".yml",
)
_SAVE_AS_JPEG: Final = "save them as JPEG or PNG"
_FOREIGN: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "HEIC": (HEIC, _HEIC_ADVICE),
    "AVIF": (AVIF, _HEIC_ADVICE),
    "camera raw": (
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
        "develop them to JPEG",
    ),
    "other picture formats": (
        (
            ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jxl", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm",
            ".psd", ".svg", ".tga", ".xcf",
        ),
        _SAVE_AS_JPEG,
    ),
    "videos": (
        (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv"),
        "take single frames out: apiary capture --camera stream --source FILE",
    ),
    "archives": ((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"), "unpack them"),
    MISNAMED: ((), "give them the suffix of a picture, such as .jpg or .png"),
    "arrays": (
        (".h5", ".hdf5", ".mat", ".npy", ".npz", ".parquet", ".pickle", ".pkl", ".tfrecord"),
        "apiary data partition reads .npz files, and writes pictures",
    ),
}  # fmt: skip
_BY_SUFFIX: Final = {suffix: kind for kind, (suffixes, _) in _FOREIGN.items() for suffix in suffixes}
_PICTURE_KINDS: Final = frozenset({"HEIC", "AVIF", "camera raw", "other picture formats", MISNAMED})
_IGNORED: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
"""What systems leave beside pictures, in lower case; hidden names are ignored, too."""
_BRANDS: Final[dict[bytes, str]] = {
    b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"mif1": "HEIC",
    b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is no one's data: hidden, or left by a file manager."""
    return name.startswith(".") or name.lower() in _IGNORED


def suffix_of(name: str) -> str:
    """The last suffix in lower case, with its dot; empty where there is none."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def foreign(name: str) -> str | None:
    """What kind of file this is that is data, but not read here; None for what needs no mention."""
    return _BY_SUFFIX.get(suffix_of(name))


def is_foreign_picture(kind: str) -> bool:
    """Whether a kind of `foreign` is pictures."""
    return kind in _PICTURE_KINDS


def advice(kind: str) -> str:
    """What to do about files of a kind of `foreign`."""
    return _FOREIGN[kind][1]


def is_plain_text(name: str) -> bool:
    """Whether a name is that of notes or annotations: nobody calls a picture so, and sets have thousands."""
    return suffix_of(name) in (*TABLES, *TEXTS, *_NOTES)


def begins_like_a_picture(head: bytes) -> bool:
    """Whether a file is a picture by its first bytes, whatever it is called."""
    return head.startswith(_BEGINNINGS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def kind_of_bytes(head: bytes) -> str | None:
    """What a file is by its first bytes, where that explains why it is no readable picture."""
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        brand = _BRANDS.get(head[8:12])
        return f"it is {brand}: {_HEIC_ADVICE}" if brand else f"it is a video: {_FOREIGN['videos'][1]}"
    text = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: the download went wrong"
    if text.startswith((b"<svg", b"<?xml")):
        return f"it is SVG or XML: {_SAVE_AS_JPEG}"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: git lfs pull brings the picture"
    if head.startswith(b"PK\x03\x04"):
        return "it is an archive: unpack it"
    if head.startswith(b"\x00\x05\x16\x07"):
        return "it is a companion file of macOS, without a picture"
    return None
