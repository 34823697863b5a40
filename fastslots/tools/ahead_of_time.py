"""Compiles recorded launches for chips that are not here, and reads what the machine code needs of them."""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from fastslots.tools.machine_code import CHIPS, longest_loop
from fastslots_kernels.fused.launch import Launch, compiler_options

TENSOR_MEMORY_COLUMNS = 512
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# Older compilers keep a few bytes of the stack for what newer ones hold in registers.
STACK_LIMIT = 0 if TRITON_VERSION >= (3, 9) else 32
# Of the matrix units, of stores to and loads from the stack, of asynchronous copies to shared memory.
COUNTED = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "DMMA", "STL", "LDL", "LDGSTS")


class Configuration(NamedTuple):
    """What a kernel is compiled for, as plain values: the same for every launch that shares a binary."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]  # argument, type
    constants: tuple[tuple[tuple[int, ...], Any], ...]  # position, value
    attributes: tuple[tuple[tuple[int, ...], Any], ...]  # position, such as divisibility by 16
    num_warps: int
    resident: int = 1  # programs that a multiprocessor is to hold at a time


class Resources(NamedTuple):
    """What one block, or one of its threads, takes on a chip; where no code was read, no instructions."""

    registers: int  # per thread
    stack: int  # bytes per thread
    local: int  # bytes per thread
    shared: int  # bytes per block
    tensor_memory: int  # columns per block
    instructions: dict[str, int]  # how many there are of those in `COUNTED`
    loop: int  # instructions of the longest loop


def configuration_of(launch: Launch) -> Configuration:
    """How Triton would compile a launch, by its own rules; tensors need no memory."""
    kernel = launch.kernel
    backend = make_backend(
        GPUTarget("cuda", 90, 32)
    )  # arguments are specialised alike on all chips
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.constants, **compiler_options(launch.num_warps, launch.resident)}
    bound, specialization, options = bind(*launch.arguments, **keywords)
    _, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    return Configuration(
        kernel.fn.__module__,
        kernel.fn.__qualname__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple((where, tuple(map(tuple, pairs))) for where, pairs in attributes.items()),
        launch.num_warps,
        launch.resident,
    )


def compile_configuration(configuration: Configuration, chip: str, listing: bool) -> Resources:
    """Compiles for a key of `CHIPS`, or finds it in Triton's cache.

    Args:
        configuration: What.
        chip: For what.
        listing: Whether to read the machine code, without which there are no instructions.

    Raises:
        Exception: If Triton cannot compile it, of whatever type Triton chose.
    """
    compiled = _compiled(configuration, chip)
    return _read(
        compiled.asm["cubin"],
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        listing,
    )


def build(configuration: Configuration, chip: str) -> str:
    """As `compile_configuration`; returns the name of its folder in Triton's cache."""
    (path,) = (
        p for p in _compiled(configuration, chip).metadata_group.values() if p.endswith(".json")
    )
    return Path(path).parent.name


def _compiled(configuration: Configuration, chip: str) -> Any:
    """Asks as Triton itself does at a launch, down to empty lists of attributes: they are in the key."""
    kernel = getattr(importlib.import_module(configuration.module), configuration.kernel)
    source = ASTSource(
        kernel,
        signature=dict(configuration.signature),
        constexprs=dict(configuration.constants),
        attrs={where: [list(pair) for pair in pairs] for where, pairs in configuration.attributes},
    )
    target = GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    options = compiler_options(configuration.num_warps, configuration.resident)
    return triton.compile(source, target, options)


def compile_all(
    jobs: Sequence[tuple[Configuration, str]], workers: int, listing: bool
) -> Iterator[Resources | str]:
    """Resources of every pair of a configuration and a chip, in order; of a failure, why."""
    spawn = multiprocessing.get_context("spawn")  # compilers start threads, which a fork would lose
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        yield from pool.map(partial(_compile_or_say_why, listing=listing), jobs)


def faults(found: Resources | str, chip: str) -> list[str]:
    """What must not be in a shipped configuration."""
    if isinstance(found, str):
        return [found]
    limit = CHIPS[chip].shared_of_program
    rules = {
        f"{found.stack} bytes of stack; at most {STACK_LIMIT}": found.stack > STACK_LIMIT,
        "32 registers and a stack: ptxas gave up": found.registers == 32 and found.stack > 0,
        f"{found.local} bytes of local memory; at most 0": found.local > 0,
        f"{found.shared} bytes of shared memory; a block of {chip} has at most {limit}": found.shared
        > limit,
        f"{found.tensor_memory} columns of tensor memory; a block has at most "
        f"{TENSOR_MEMORY_COLUMNS}": found.tensor_memory > TENSOR_MEMORY_COLUMNS,
    }
    return [message for message, broken in rules.items() if broken]


def _compile_or_say_why(job: tuple[Configuration, str], listing: bool) -> Resources | str:
    try:
        return compile_configuration(*job, listing)
    except Exception as error:  # each part of Triton raises its own
        return f"does not compile: {type(error).__name__}: {error}"


def _read(cubin: bytes, shared: int, tensor_memory: int, listing: bool) -> Resources:
    wanted = ["--dump-resource-usage", *(["--dump-sass"] if listing else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, *wanted, path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    instructions = Counter(re.findall(rf"\b({'|'.join(COUNTED)})\b", text))
    return Resources(
        usage["REG"],
        usage["STACK"],
        usage["LOCAL"],
        shared,
        tensor_memory,
        {name: instructions[name] for name in COUNTED if instructions[name]},
        longest_loop(text),
    )
