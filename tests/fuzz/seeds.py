"""Writes a first corpus for `fuzz_wire.py` from the golden bytes: `python tests/fuzz/seeds.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

WAYS = 32
"""No fewer than `fuzz_wire.py` tells apart, which takes the first byte modulo its own number."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1"


def main(folder: Path) -> None:
    """Every golden file behind every first byte that `fuzz_wire.py` tells apart."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = [*GOLDEN.iterdir(), GOLDEN.parent / "signed" / "receipt.json"]
    for path in sorted(p for p in frozen if p.is_file()):
        data = path.read_bytes()
        for which in range(WAYS):
            (folder / f"{path.stem}-{which}").write_bytes(bytes([which]) + data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
