"""Entry point of the command line."""

from __future__ import annotations

import os
import sys

from fastslots._extras import require
from fastslots.errors import SAID_BY_MAIN


def main() -> None:
    """Runs a command; bad input ends in one line that says what to change, and exit code 2.

    FASTSLOTS_DEBUG=1 in the environment shows the traceback instead.
    """
    try:
        for module in ("typer", "rich"):
            require(module, "train")
        from fastslots.cli.app import app  # noqa: PLC0415 - needs the extras checked above

        app(prog_name="fastslots")
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("FASTSLOTS_DEBUG"):
            raise
        if SAID_BY_MAIN not in getattr(error, "__notes__", ()):
            print(f"fastslots: error: {error}", file=sys.stderr)  # noqa: T201 - the output of a command
        sys.exit(2)


if __name__ == "__main__":
    main()
