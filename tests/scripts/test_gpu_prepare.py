"""Kernels are compiled without a GPU for a machine that has one, and found there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[2]
GPU = ROOT / "scripts" / "gpu"
PATHS = [GPU.parent, ROOT, ROOT / "kernels"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not triton.__version__.startswith("3.6."), reason="what is prepared is for Triton 3.6"
    ),
]
# In processes of their own: in this one kernels may be interpreted.
COMMON = """
import sys
from pathlib import Path
import torch
from gpu.prepare import archive, cache, gpu_work
from gpu.prepare.fake_gpu import Pointer, fake_gpu, record
from fastslots import SlotAttention

def attend(size):
    module = SlotAttention(1, 3, 16, 16, 16, backend="triton")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        module(torch.randn(2, size, 16), torch.randn(2, 3, 16), return_attn=False)

def work(*sizes):
    return [gpu_work.Recorded(str(size), record(lambda: attend(size))) for size in sizes]

if __name__ == "__main__":
"""


def run_python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([variables.pop("first", ""), *map(str, PATHS)]).strip(os.pathsep)
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path} | variables
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def prepare(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_python(f"{COMMON}    sys.exit(archive.prepare(Path({str(folder)!r}), 1, work(48)))")


@pytest.fixture(scope="module")
def num_kernels() -> int:
    """How many kernels one small call launches, each once."""
    run = run_python(f"{COMMON}    print(len(work(48)[0].launches))")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, num_kernels: int) -> Path:
    """An archive of what that call launches."""
    folder = tmp_path_factory.mktemp("prepared")
    run = prepare(folder)
    assert run.returncode == 0, run.stderr
    assert f"\n{num_kernels} compiled in" in run.stdout
    return folder / "kernels.tar.xz"


def test_what_is_there_is_not_compiled_again(archive: Path) -> None:
    before = archive.read_bytes()
    run = prepare(archive.parent)
    assert run.returncode == 0, run.stderr
    assert "\n0 compiled in" in run.stdout
    assert archive.read_bytes() == before


def find(archive: Path, folder: Path, size: int) -> subprocess.CompletedProcess[str]:
    program = f"{COMMON}    cache.unpack(Path({str(archive)!r}), Path({str(folder)!r}))"
    assert run_python(program).returncode == 0
    program = f"{COMMON}    sys.exit(archive.find_all({str(folder)!r}, work({size})))"
    return run_python(
        program, first=str(GPU / "prepare" / "fixed_key"), TRITON_CACHE_DIR=str(folder)
    )


def test_what_was_prepared_is_found_elsewhere(
    archive: Path, num_kernels: int, tmp_path: Path
) -> None:
    run = find(archive, tmp_path, 48)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{num_kernels} launches with a stub driver: 0 new entries" in run.stdout


def test_what_was_not_prepared_is_named(archive: Path, num_kernels: int, tmp_path: Path) -> None:
    run = find(archive, tmp_path, 47)  # no multiple of 16
    assert run.returncode == 1
    new = 2  # the raw inputs, and those that were stored, are attended to in rows of another number
    assert f"{num_kernels} launches with a stub driver: {new} new entries" in run.stdout


def test_a_launcher_for_any_pointer_is_that_of_the_kernel(num_kernels: int) -> None:
    run = run_python(
        f"""{COMMON}
    from fastslots.tools.ahead_of_time import configuration_of
    from triton.backends.nvidia.driver import make_launcher
    for launch in work(48)[0].launches:
        key = configuration_of(launch)
        types = dict(enumerate(archive.launcher_types(key)))
        own = make_launcher(dict(key.constants), dict(key.signature), None)
        assert make_launcher({{}}, types, None) == own
        print(key.kernel)
"""
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == num_kernels


def test_every_gpu_test_is_recorded_to_where_it_compares_numbers() -> None:
    run = run_python(
        f"{COMMON}    import json\n"
        "    print(json.dumps([(r.name, len(r.launches), r.failure) for r in gpu_work.gpu_tests()]))"
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert [(name, failure) for name, _, failure in found if failure] == []
    silent = [name.partition("::")[2] for name, launches, _ in found if not launches]
    assert silent == ["test_auto_takes_the_kernels_on_a_gpu"]


def test_a_fake_gpu_launches_what_the_kernels_launch_for_such_tensors() -> None:
    run = run_python(
        f"""{COMMON}
    from fastslots.tools.ahead_of_time import configuration_of
    from fastslots.tools.workloads import PRECISIONS, WORKLOADS
    from fastslots.tools import workloads
    expected = workloads.record(WORKLOADS["slate64"], PRECISIONS["mixed"], "sm_90")
    names = dict(gpu_work.timings())
    actual = record(names["times slate64 implicit"])
    missing = {{configuration_of(one) for one in expected}} - {{configuration_of(one) for one in actual}}
    assert not missing, missing
    kinds = Pointer, int, float, type(None)
    assert all(isinstance(one, kinds) for launch in actual for one in launch.arguments)
"""
    )
    assert run.returncode == 0, run.stderr


def test_keys_are_fixed_and_nothing_is_imported_for_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the next one runs')")
    run = run_python(
        "import sys; print('triton' in sys.modules, 'torch' in sys.modules)\n"
        "from triton.runtime.autotuner import triton_key; print(triton_key())",
        first=os.pathsep.join([str(GPU / "prepare" / "fixed_key"), str(tmp_path)]),
    )
    assert run.stdout.splitlines() == [
        "the next one runs",
        "False False",
        f"triton {triton.__version__}",
    ], run.stderr
