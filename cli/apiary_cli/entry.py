"""Where the `apiary` command begins: a Ctrl-C while the rest is loaded is no traceback either."""

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from apiary_cli.main import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("apiary: interrupted\n")
        return 130
