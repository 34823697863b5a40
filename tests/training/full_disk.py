"""Disks that are full from some moment on: files cannot grow beyond a size, and the system says so."""

from __future__ import annotations

import resource
import signal
from typing import Any

from fastslots.training import run
from fastslots.training.metrics import RunLog


def limit(size: int) -> int:
    """Lets no file grow beyond some bytes from now on; returns the limit from before."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    return before


def limit_metrics(size: int) -> None:
    """The disk is full when the first row is written."""
    _limit_during(RunLog, "write", size)


def limit_pictures(size: int) -> None:
    """The disk is full while a picture is written, and has room again after that."""
    _limit_during(run, "draw", size)


def limit_checkpoints(size: int) -> None:
    """The disk is full when a checkpoint is written."""
    _limit_during(run, "save_checkpoint", size)


def _limit_during(target: Any, name: str, size: int) -> None:
    original = getattr(target, name)

    def limited(*args: Any, **kwargs: Any) -> Any:
        before = limit(size)
        try:
            return original(*args, **kwargs)
        finally:
            limit(before)

    setattr(target, name, limited)
