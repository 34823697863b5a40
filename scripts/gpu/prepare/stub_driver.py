"""Launches kernels without a GPU: Triton compiles, or finds in its cache, and then nothing runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fastslots.tools.machine_code import CHIPS
from fastslots_kernels.fused.launch import Launch


class StubDriver:
    """What Triton asks a driver, answered as an H100's would."""

    class utils:
        """Loads nothing; the name is Triton's."""

        @staticmethod
        def load_binary(*_: Any) -> tuple[int, int, int, int, int]:
            """Module, function, registers, spills, threads."""
            return 1, 1, 32, 0, 1024

        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            """Of those, the one that is asked for."""
            return {"max_shared_mem": CHIPS["sm_90"].shared_of_program}

    @staticmethod
    def launcher_cls(source: Any, metadata: Any) -> Any:
        """A launcher that does nothing."""
        return lambda *_: None

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """An H100."""
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        """The only one."""
        return torch.device("cuda", 0)


def launch_all(launches: Iterable[Launch]) -> list[str]:
    """Launches through Triton as a program would; returns what it raised."""
    driver.set_active(StubDriver())
    errors = []
    for one in launches:
        try:
            one.run()
        except Exception as error:  # each part of Triton raises its own
            errors.append(f"{one.kernel.fn.__name__}: {type(error).__name__}: {error}")
    return errors
