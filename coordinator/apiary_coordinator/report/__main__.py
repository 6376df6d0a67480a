"""`python -m apiary_coordinator.report RUN` writes a run's report again."""

import sys
from pathlib import Path

from apiary.errors import ApiaryError
from apiary_coordinator.report import write

if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except ApiaryError as e:
        print(e, file=sys.stderr)
        raise SystemExit(e.exit_code) from None
