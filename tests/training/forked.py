"""Commands in processes of their own that start in no time.

They are forked from a process that has imported everything once and never ran autograd, whose threads would
not survive the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from fastslots.__main__ import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "accelerate",
        "fastslots.cli.app",
        "psutil",
        "safetensors.torch",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
    ]
)
Prepare = Callable[..., None] | None


def process(target: Callable[..., object], *arguments: object, **options: object) -> BaseProcess:
    """A process that is to call a function."""
    return _context.Process(target=target, args=arguments, kwargs=options)


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int | None
    said: str


class Command:
    """A running ``fastslots ARGUMENTS``.

    It prints to a pipe, which limits on the size of files do not touch, and which holds some 800 lines.

    Args:
        *arguments: Of the command.
        prepare: Called in the new process before the command, with `given`.
        given: See there.
    """

    def __init__(self, *arguments: object, prepare: Prepare = None, given: object = None) -> None:
        self._output, output = multiprocessing.Pipe(duplex=False)
        self.process = _context.Process(
            target=_run, args=(list(map(str, arguments)), output, prepare, given)
        )
        self.process.start()
        output.close()

    def wait_for(self, file: Path) -> None:
        """Waits until a file is there and has a line, or the command has ended."""
        while self.process.is_alive() and not (file.exists() and file.stat().st_size):
            time.sleep(0.005)

    def ended(self) -> Ended:
        """Waits for its end."""
        self.process.join(120)
        os.set_blocking(self._output.fileno(), False)
        said = os.read(self._output.fileno(), 1 << 17)
        self._output.close()
        return Ended(self.process.exitcode, said.decode())


def fastslots(*arguments: object, prepare: Prepare = None, given: object = None) -> Ended:
    """Runs ``fastslots ARGUMENTS``; see `Command`."""
    return Command(*arguments, prepare=prepare, given=given).ended()


def _run(arguments: list[str], output: Connection, prepare: Prepare, given: object) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["fastslots", *arguments]
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in any program
    if prepare is not None:
        prepare(given)
    main()
