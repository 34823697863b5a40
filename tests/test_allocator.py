"""Memory that is freed and allocated again."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastslots.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
from fastslots.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def use():
    torch.ones(2**24)  # 64 MiB, beyond what the library ever keeps by itself
for _ in range(10):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("most", "asked"),
    [(1 << 30, [-3, -1]), (32 << 20, [-3, -3, -1]), (0, [-3, -3])],
    ids=["now", "before", "never"],
)
def test_the_threshold_that_a_library_refuses_is_lowered_or_nothing_is_changed(
    most: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def mallopt(parameter: int, value: int) -> int:
        found.append(parameter)
        return int(parameter != -3 or value <= most)

    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert found == asked


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_not_asked_for_again() -> None:
    assert page_faults("kept") < 0.01 * page_faults("given back")
