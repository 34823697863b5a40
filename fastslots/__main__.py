"""Entry point of the command line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastslots._extras import require
from fastslots.errors import INTERRUPTED, SAID_BY_MAIN


def main() -> None:
    """Runs a command; bad input ends in one line that says what to change, and exit code 2.

    Ctrl-C ends in one line and 130. FASTSLOTS_DEBUG=1 in the environment shows the traceback of an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a "?" rather than no message at all
    try:
        with _ended_by_interrupts():
            for module in ("typer", "rich"):
                require(module, "train")
            from fastslots.cli.app import run  # noqa: PLC0415 - needs the extras checked above

        sys.exit(run())
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)  # noqa: T201 - the output of a command
        sys.exit(130)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("FASTSLOTS_DEBUG"):
            raise
        if SAID_BY_MAIN not in getattr(error, "__notes__", ()):
            line, *more = str(error).strip().splitlines() or [repr(error)]
            hint = " (FASTSLOTS_DEBUG=1 shows more)" if more else ""
            print(f"fastslots: error: {line}{hint}", file=sys.stderr)  # noqa: T201 - as above
        sys.exit(2)


@contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """For imports: a KeyboardInterrupt that PyTorch catches meanwhile it takes for something missing."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler:  # such as ignored, in the background of a shell
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _end(*_: object) -> None:
    """Ends the program at once, which has nothing to lose yet."""
    os.write(sys.stderr.fileno(), f"{INTERRUPTED}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
