"""`python -m apiary_cli` is the `apiary` command."""

from apiary_cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
