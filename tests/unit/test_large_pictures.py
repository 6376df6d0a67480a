"""Pictures that are small as files and large as pixels, by every way into a node, in a measured child."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

# Each way takes the file and says how large it came, or why it did not.
WAYS = {
    "import": """
from apiary_edge.samples.clean import clean
def take(path):
    made = clean(path.read_bytes())
    return [made.height, made.width]
""",
    "watched folder": """
from apiary_edge.cameras._still import read_still
def take(path):
    return list(read_still(path).shape[:2])
""",
    "training": """
from apiary.learn import images
from apiary.learn.manifest import PictureInput
def take(path):
    return list(images.decode(images.read(path), PictureInput(height=96, width=96, channels=3)).shape[:2])
""",
    "labelling page": """
import io
from PIL import Image
from apiary_edge.labelling.thumbnails import Thumbnails
def take(path):
    shown = Image.open(io.BytesIO(Thumbnails().get("x", path, "small")))
    return [shown.height, shown.width]
""",
}
CHILD = """
import json, resource, sys, warnings
from pathlib import Path
import PIL.Image, PIL.ImageOps, PIL.JpegImagePlugin, PIL.PngImagePlugin
from apiary.errors import DataError
{way}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    size, why = take(Path(sys.argv[1])), ""
except DataError as e:
    size, why = None, str(e)
print(json.dumps([size, why, peak() - before]))
"""


def take(way: str, path: Path) -> tuple[list[int] | None, str, float]:
    """The size that came, or why none did; and by how many MB the child's memory grew."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(way=WAYS[way]), path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    size, why, grown = json.loads(done.stdout)
    return size, why, grown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files, each of a few hundred kB: one bit a pixel keeps this process small."""
    made = tmp_path_factory.mktemp("large")
    Image.new("1", (7000, 7000)).save(made / "49.png")
    Image.new("1", (10_000, 10_000)).save(made / "100.png")
    Image.new("L", (10_000, 10_000)).save(made / "100.jpg", quality=20)
    Image.new("L", (8000, 6000), 90).save(made / "48.jpg", quality=20)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (8000, 6000), 90).save(made / "48-turned.jpg", quality=20, exif=turned)
    assert max(p.stat().st_size for p in made.iterdir()) < 2 * 2**20
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["100.jpg", "100.png", "49.png"])
def test_a_hundred_megapixels_and_a_bomb_are_refused_with_the_reason_in_little_memory(
    folder: Path, way: str, name: str
) -> None:
    size, why, grown_mb = take(way, folder / name)
    assert size is None
    expected = "can only be decoded" if name == "49.png" else "at most 50"
    assert expected in why, why
    assert grown_mb < 20


@pytest.mark.parametrize(("way", "size"), [("import", [6000, 8000]), ("watched folder", [3000, 4000])])
def test_a_phones_48_megapixels_are_taken(folder: Path, way: str, size: list[int]) -> None:
    assert take(way, folder / "48.jpg")[:2] == (size, "")


@pytest.mark.parametrize(("way", "size"), [("import", [4000, 3000]), ("watched folder", [4000, 3000])])
def test_a_large_picture_that_has_to_be_turned_comes_at_half_its_size(
    folder: Path, way: str, size: list[int]
) -> None:
    found, why, grown_mb = take(way, folder / "48-turned.jpg")
    assert (found, why) == (size, "")
    assert grown_mb < 110  # 12 million pixels twice, while they are turned; 288 MB at full size


def test_a_transparent_picture_at_the_limit_is_shown(tmp_path: Path) -> None:
    Image.new("LA", (4000, 4000), (9, 0)).save(tmp_path / "16.png")
    size, why, _ = take("labelling page", tmp_path / "16.png")
    assert (size, why) == ([240, 240], "")
    out = io.BytesIO()
    Image.new("1", (4001, 4000)).save(out, "PNG")
    (tmp_path / "17.png").write_bytes(out.getvalue())
    assert "can only be decoded whole" in take("labelling page", tmp_path / "17.png")[1]
