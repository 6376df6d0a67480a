"""`constraints.py WHEEL TO`: the versions that a wheel was tested with, for this Python, as a file for pip.

An empty file where the wheel names none: for another Python, on 32-bit systems, in older wheels. Standard
library only.
"""

import sys
import zipfile
from pathlib import Path

wheel, to = sys.argv[1:]
name = f"apiary/constraints/py{sys.version_info[0]}{sys.version_info[1]}.txt"
with zipfile.ZipFile(wheel) as files:
    tested = sys.maxsize > 2**32 and name in files.namelist()
    Path(to).write_bytes(files.read(name) if tested else b"")
