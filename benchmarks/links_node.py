"""A node of `fleet.py` in a network of its own: says `ready`, waits for a byte on a descriptor, begins."""

from __future__ import annotations

import os
import sys

from fleet import main
from shaped_link import own_network

if __name__ == "__main__":
    own_network()
    print("ready", flush=True)
    os.read(int(sys.argv.pop(1)), 1)
    raise SystemExit(main())
