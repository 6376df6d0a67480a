"""Pictures of any mode as plain 8 bit grey or RGB, the way they look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_WIDE: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_MAX_12_BITS: Final = 2**12 - 1
_MAX_16_BITS: Final = 2**16 - 1


def plain(picture: PillowImage, channels: int) -> PillowImage:
    """Any mode as RGB (3) or L (1), 8 bits; transparent pixels lie on white.

    16 bit grey is scaled to 8; where all values fit into 12 bits, as depth and thermal cameras store them in
    16, by those.
    """
    from PIL import Image

    if picture.mode in _WIDE:
        picture = _eight_bits(picture)
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = _eight_bit_key(picture).convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bits(picture: PillowImage) -> PillowImage:
    """Grey of more than 8 bits as L, or LA where a value is transparent. Pillow's own conversion clips."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture)
    grey: Any = Image.fromarray(_scaled(values), "L")
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8), "L"))
    made: PillowImage = grey
    return made


def _scaled(values: Any) -> Any:
    """Values of any range as uint8, in integers: 16 million float64 would take 128 MB."""
    import numpy as np

    top = values.max(initial=0)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        top = values.max(initial=0)
        full = 1.0 if top <= 1 else 255.0 if top <= 255 else float(max(top, _MAX_16_BITS))
        return (values * (255 / full)).clip(0, 255).astype(np.uint8)
    if top <= _MAX_12_BITS:
        return (values // 16).clip(0, 255).astype(np.uint8)
    if top <= _MAX_16_BITS:
        return (values // 257).clip(0, 255).astype(np.uint8)
    return (values // (int(top) // 255 + 1)).clip(0, 255).astype(np.uint8)


def _eight_bit_key(picture: PillowImage) -> PillowImage:
    """A transparent colour of 16 bits, as a PNG has it, in the 8 bits that Pillow decodes to."""
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and max(key, default=0) > 255:
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    return picture
