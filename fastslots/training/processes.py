"""The processes of a run, and what they must agree on.

``accelerate launch`` and ``torchrun`` start several; each runs the same program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from fastslots._extras import require
from fastslots.errors import SAID_BY_MAIN

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

T = TypeVar("T")
_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU")


def join_processes(device: torch.device) -> PartialState:
    """Meets the other processes of this run, if there are any.

    Args:
        device: What to run on. ``cuda`` without a number is a device of its own for each process.

    Returns:
        This process's place among the others, and its device.

    Raises:
        ValueError: If a process is to use the CUDA device of another.
    """
    accelerate = require("accelerate", "train")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device.type == "cuda" and device.index is not None:
        if several and device.index != int(os.environ.get("LOCAL_RANK", "0")):
            raise ValueError(
                f"device must be 'auto', 'cpu' or 'cuda' with several processes; got '{device}'"
            )
        torch.cuda.set_device(device)
    state: PartialState = accelerate.PartialState(cpu=device.type == "cpu")
    if state.device.type != device.type:  # an earlier run of this program had another
        accelerate.PartialState._reset_state()
        state = accelerate.PartialState(cpu=device.type == "cpu")
    return state


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """What trains on a device in a precision, in this and the other processes.

    Raises:
        ValueError: As `join_processes`, and if Accelerate was told to shard the model.
    """
    join_processes(device)
    accelerate = require("accelerate", "train")
    # The precision of an earlier run in this program is not this one's.
    accelerate.state.AcceleratorState._reset_state()
    handler = accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator: Accelerator = accelerate.Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[handler],
    )
    if accelerator.distributed_type.value not in _SUPPORTED:
        raise ValueError(
            "Accelerate must be set up for one or several processes with a whole model each; got "
            f"{accelerator.distributed_type.value}"
        )
    return accelerator


def end_process(state: PartialState, code: int = 0) -> None:
    """Ends a process whose run is over; one that has no others returns if its exit code is 0.

    One of several ends without the interpreter's own clearing up: the threads of Gloo's process group outlive
    `destroy_process_group`, and one that lets go of a tensor while the interpreter goes aborts the process
    (pytorch/pytorch#190489). Nothing of a run is left to be cleared up by then.
    """
    several = state.num_processes > 1
    state.destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def from_main(state: PartialState | Accelerator, value: T) -> T:
    """The main process's value of something, in every process."""
    if state.num_processes == 1:
        return value
    shared = [value]
    require("accelerate.utils", "train").broadcast_object_list(shared)
    return shared[0]


def from_all(state: PartialState | Accelerator, value: T) -> list[T]:
    """Every process's value of something, in every process."""
    if state.num_processes == 1:
        return [value]
    gathered: list[T] = require("accelerate.utils", "train").gather_object([value])
    return gathered


def on_main(state: PartialState | Accelerator, action: Callable[[], object]) -> None:
    """Does something in the main process alone; the others wait until it is done.

    Raises:
        Exception: What `action` raised, in every process.
    """
    error: Exception | None = None
    if state.is_main_process:
        try:
            action()
        except Exception as raised:
            error = raised
    theirs = from_main(state, error and _portable(error))
    if theirs is not None:
        raise error or theirs


def _portable(error: Exception) -> Exception:
    """The error without what it was made of, which may not survive the way to other processes."""
    kinds = (ValueError, TypeError, OSError, RuntimeError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
    portable = kind(str(error) if isinstance(error, kinds) else repr(error))
    portable.add_note(SAID_BY_MAIN)
    return portable
