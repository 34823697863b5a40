"""The demo's processes: scenes rendered on all cores, and both arms trained side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import IO

import torch

from fastslots.data.source import DataSource, Split

_CHUNK = 100  # scenes that a worker renders at a time
_POLL_S = 0.1


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render(source: DataSource, image_size: int, counts: Mapping[Split, int]) -> None:
    """Puts scenes into the cache of their source, where several processes will look for them.

    Args:
        source: Of scenes, with a cache.
        image_size: Of the images.
        counts: How many of each split.

    Raises:
        OSError: If the cache cannot be written.
    """
    tasks = [
        (source, split, image_size, list(range(first, min(first + _CHUNK, count))))
        for split, count in counts.items()
        for first in range(0, count, _CHUNK)
    ]
    workers = min(cores(), len(tasks))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        try:
            for rendered in [pool.submit(_render, *task) for task in tasks]:
                rendered.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    """One thread each; an interrupt is for the process that waits for them."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render(source: DataSource, split: Split, image_size: int, numbers: list[int]) -> None:
    source.open(split, image_size, torch.device("cpu")).__getitems__(numbers)


def run_together(commands: Mapping[str, list[str]], say: Callable[[str], None]) -> None:
    """Runs programs at once, each with one thread, and passes their lines on.

    Args:
        commands: By name.
        say: Called with each line, its program's name in front.

    Raises:
        RuntimeError: If one fails, naming it; the others are stopped.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    running: dict[str, subprocess.Popen[str]] = {}
    readers: list[threading.Thread] = []
    try:
        for name, command in commands.items():
            running[name] = process = subprocess.Popen(
                command,
                env=environment,
                text=True,
                errors="replace",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdout is not None
            readers.append(threading.Thread(target=_pass_on, args=(name, process.stdout, say)))
            readers[-1].start()
        while any(process.poll() is None for process in running.values()):
            _check_running(running)
            time.sleep(_POLL_S)
        _check_running(running)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for reader in readers:
            reader.join()


def _check_running(running: Mapping[str, subprocess.Popen[str]]) -> None:
    for name, process in running.items():
        if process.poll():
            raise RuntimeError(f"the {name} training ended with exit code {process.returncode}")


def _pass_on(name: str, lines: IO[str], say: Callable[[str], None]) -> None:
    with lines:
        for line in lines:
            say(f"{name}: {line.rstrip()}")
