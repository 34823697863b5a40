"""Kernels that were compiled ahead of time, where there is a GPU: see `archive`.

    python scripts/gpu/prepare/cache.py ARCHIVE FOLDER   unpacks, and builds what only this machine can build

After that, processes that run with `environment(FOLDER)` compile no kernel that is in the archive.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAUNCHERS = "launchers.json"  # of an archive: the types of arguments that `warm` needs


def environment(folder: Path) -> dict[str, str]:
    """Variables of processes that are to find their kernels in an unpacked folder."""
    paths = [str(HERE / "fixed_key"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"TRITON_CACHE_DIR": str(folder.resolve()), "PYTHONPATH": os.pathsep.join(paths)}


def unpack(archive: Path, folder: Path) -> None:
    """Makes Triton's cache of an archive; use it with `environment`."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    for metadata in folder.resolve().glob("*/*.json"):
        files = [metadata, metadata.with_suffix(".cubin")]
        group = {"child_paths": {path.name: str(path) for path in files}}
        (metadata.parent / f"__grp__{metadata.name}").write_text(json.dumps(group))


def warm(folder: Path, workers: int) -> int:
    """Builds, in parallel, what Triton compiles with the C compiler at first use; returns how many.

    Needs a GPU's driver. This process uses the folder's `environment` from then on.
    """
    from triton.backends.nvidia import driver  # noqa: PLC0415 - where no kernels are used, it costs time
    from triton.runtime.build import compile_module_from_src  # noqa: PLC0415

    os.environ.update(environment(folder))
    driver.CudaUtils()

    def build(signature: list[str]) -> None:
        compile_module_from_src(
            src=driver.make_launcher({}, dict(enumerate(signature)), None),
            name="__triton_launcher",
            library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )

    signatures = json.loads((folder / LAUNCHERS).read_text())
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(build, signatures))
    return len(signatures)


if __name__ == "__main__":
    archive, folder = map(Path, sys.argv[1:])
    unpack(archive, folder)
    start = time.monotonic()
    count = warm(folder, os.cpu_count() or 1)
    print(f"{count} launchers built in {time.monotonic() - start:.1f} s")
