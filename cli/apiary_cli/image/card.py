"""A card's boot partition: which system it has, and which files are written to it."""

import os
from pathlib import Path

from apiary.errors import DataError, StoreError
from apiary.settings import to_toml
from apiary_cli.image import first_boot, formats
from apiary_cli.image.plan import CardPlan
from apiary_cli.terminal import flags


def files_of(plan: CardPlan, system: str, folder: Path) -> dict[str, str]:
    """Texts by name below the card's folder. Raises DataError where Bookworm's own file is missing."""
    ours = first_boot.FOLDER
    files = {
        f"{ours}/first-boot.sh": first_boot.script(plan),
        f"{ours}/apiary-first-boot.service": first_boot.UNIT,
        f"{ours}/apiary.toml": to_toml(plan.settings),
        f"{ours}/token": f"{plan.token}\n",
    }
    if system == "trixie":
        # The last of the three that cloud-init asks for.
        return {
            **files,
            "user-data": formats.user_data(plan),
            "network-config": formats.network_config(plan),
            "meta-data": formats.meta_data(plan),
        }
    before = folder / "cmdline.txt"
    if not before.is_file():
        raise DataError(
            f"{before} is missing: with Bookworm the folder must be the card's own boot partition"
        )
    return {
        **files,
        f"{ours}/first-run.sh": first_boot.FIRST_RUN,
        "custom.toml": formats.custom_toml(plan),
        "cmdline.txt": formats.command_line(flags.read(before).decode(errors="replace")),
    }


def system_of(folder: Path) -> str:
    """`trixie` or `bookworm`. Raises DataError."""
    if (folder / "user-data").is_file() or (folder / "meta-data").is_file():
        return "trixie"
    if (folder / "cmdline.txt").is_file():
        return "bookworm"
    raise DataError(
        f"{folder} is not the boot partition of Raspberry Pi OS: say --os trixie or --os bookworm"
    )


def write(path: Path, data: bytes) -> None:
    """Plainly: the FAT of a boot partition knows neither modes nor owners."""
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}") from None
