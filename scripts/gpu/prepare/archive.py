"""Compiles ahead of time what a run on a GPU launches, into one file for a machine with a GPU.

    scripts/gpu_run prepare OUTPUT --workers 2

Needs no GPU, but Triton in the version of that machine. What was compiled before is not compiled again.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import lzma
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from fastslots.tools.ahead_of_time import Configuration, build, configuration_of
from gpu.prepare.cache import LAUNCHERS, environment, unpack
from gpu.prepare.fake_gpu import CHIP
from gpu.prepare.gpu_work import Recorded, all_work
from gpu.prepare.stub_driver import launch_all
from gpu.runner import SOURCES

ARCHIVE = "kernels.tar.xz"
MOST_BYTES = 16 * 2**20
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Built(NamedTuple):
    """What became of one configuration: its folder in the cache, or why it does not compile."""

    folder: str
    failure: str = ""


def prepare(output: Path, workers: int, work: Iterable[Recorded] | None = None) -> int:
    """Compiles all work into OUTPUT/kernels.tar.xz and proves that a run finds all of it there.

    Args:
        output: Folder; its subfolder ``triton`` keeps what is compiled for the next time.
        workers: Processes that compile.
        work: What is launched. Default: everything, which is proved then.

    Returns:
        0, or 1 if something does not compile or is not found, or the archive is too large.
    """
    start = time.monotonic()
    found: dict[Configuration, str] = {}
    problems = []
    for name, launches, failure in all_work() if work is None else work:
        problems += [f"{name}: {failure}"] if failure else []
        for launch in launches:
            found.setdefault(configuration_of(launch), name)
    print(f"{len(found)} configurations, recorded in {time.monotonic() - start:.0f} s", flush=True)

    start, store = time.monotonic(), output / "triton"
    store.mkdir(parents=True, exist_ok=True)
    before = _entries(store)
    built = _build_all(list(found), store, workers)
    for configuration, one in built.items():
        if one.failure:
            problems.append(f"{found[configuration]}: {configuration.kernel}: {one.failure}")
    new, seconds = len(_entries(store) - before), time.monotonic() - start
    print(f"{new} compiled in {seconds:.0f} s by {workers} processes; the others were there")

    archive = output / ARCHIVE
    count = _pack(built, store, archive)
    size = archive.stat().st_size
    print(f"{archive}: {count} kernels, {size / 2**20:.1f} MiB")
    if size > MOST_BYTES:
        problems.append(f"{archive} has {size} bytes; at most {MOST_BYTES}")
    if work is None:
        problems += prove(archive)
    for problem in problems:
        print(f"prepare: {problem}", file=sys.stderr)
    return int(bool(problems))


def prove(archive: Path) -> list[str]:
    """Does all work with a stub driver in a fresh process; returns what it found wrong."""
    program = (
        "import sys; from gpu.prepare.archive import *; sys.exit(find_all(sys.argv[1], all_work()))"
    )
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        variables = environment(Path(folder))
        variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], *SOURCES])
        command = [sys.executable, "-c", program, folder]
        run = subprocess.run(command, env=os.environ | variables, check=False)
    return ["not all is in the archive"] if run.returncode else []


def find_all(folder: str, work: Iterable[Recorded]) -> int:
    """Launches with a stub driver what is to be in the cache that this process uses.

    Returns:
        0, or 1 if something is not there, or cannot be launched.
    """
    before = _entries(Path(folder))
    launches = [launch for recorded in work for launch in recorded.launches]
    errors = launch_all(launches)
    new = sorted(_entries(Path(folder)) - before)
    print(f"{len(launches)} launches with a stub driver: {len(new)} new entries", *errors, sep="\n")
    return int(bool(errors or new))


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _build_all(
    configurations: list[Configuration], store: Path, workers: int
) -> dict[Configuration, Built]:
    spawn = multiprocessing.get_context("spawn")  # compilers start threads, which a fork would lose
    variables = environment(store) | {"TRITON_STORE_BINARY_ONLY": "1"}
    log = str(store.with_name("errors.txt"))
    with (
        mock.patch.dict(os.environ, variables),
        ProcessPoolExecutor(workers, spawn, _start_worker, (log,)) as pool,
    ):
        built = pool.map(_build_one, configurations, chunksize=4)
        return dict(zip(configurations, built, strict=True))


def _start_worker(log: str) -> None:
    """A compiler that fails prints its whole program: into a file. None outlives this program."""
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _build_one(configuration: Configuration) -> Built:
    try:
        return Built(build(configuration, CHIP))
    except Exception as error:  # each part of Triton raises its own
        return Built("", f"{type(error).__name__}: {error}")


def _pack(built: dict[Configuration, Built], store: Path, archive: Path) -> int:
    """Machine code and metadata, and for `warm` the types of arguments."""
    good = {one.folder: key for key, one in built.items() if not one.failure}
    # Kernels of a name side by side, since they have much in common.
    folders = sorted(good, key=lambda folder: (good[folder].kernel, folder))
    signatures = sorted({tuple(launcher_types(key)) for key in good.values()})
    with (
        lzma.open(archive, "wb", preset=9) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as file,
    ):
        for folder in folders:
            for suffix in ("cubin", "json"):
                name = f"{folder}/{good[folder].kernel}.{suffix}"
                _add(file, name, (store / name).read_bytes())
        _add(file, LAUNCHERS, json.dumps(signatures).encode())
    return len(folders)


def launcher_types(configuration: Configuration) -> list[str]:
    """All pointers are alike to a launcher."""
    return ["*i8" if kind[0] == "*" else kind for _, kind in configuration.signature]


def _add(file: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    file.addfile(entry, io.BytesIO(data))


def main() -> int:
    """Reads the arguments and prepares; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_run prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="folder of the archive, and of Triton's cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: %(default)s")
    flags = parser.parse_args()
    return prepare(flags.output.resolve(), flags.workers)


if __name__ == "__main__":
    sys.exit(main())
