"""Where the hard-hat pictures are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Declare --data; the folder `hardhat` in $APIARY_DATA where that is set."""
    known = os.environ.get("APIARY_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(known) / "hardhat" if known else None,
        required=not known,
        help="holds dataset_client1/train, dataset_client2/train, dataset_server/test ($APIARY_DATA/hardhat)",
    )
