"""`pack.py FOLDER ARCHIVE`: a tar.gz of a folder, for the owner of the place it goes to. Stdlib only."""

import os
import sys
import tarfile
from pathlib import Path

folder, archive = Path(sys.argv[1]), Path(sys.argv[2])
os.umask(0o077)
with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
    packed.add(folder, ".")
owner = archive.parent.stat()
os.chown(archive, owner.st_uid, owner.st_gid)
