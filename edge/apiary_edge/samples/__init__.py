"""The pictures of one node: SQLite says what they are, files hold them. `store.SampleStore` is the way in."""

from typing import Final

MAX_FILE_BYTES: Final = 64 * 2**20
"""As in `apiary.learn.images`, which imports numpy: a test holds the two together."""
MAX_PIXELS: Final = 50_000_000
MAX_DECODED_PIXELS: Final = 16_000_000
