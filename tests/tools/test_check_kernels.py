from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

CHIPS = ["sm_80", "sm_90", "sm_100"]

# Compiled in a process of its own: in this one kernels may be interpreted.
PROBE = """
import importlib, json, pkgutil, sys
import torch, triton
import triton.language as tl
from fastslots.tools import check_kernels
from fastslots.tools.ahead_of_time import configuration_of
from fastslots.tools.machine_code import CHIPS
from fastslots_kernels import causal, fused
from fastslots_kernels.fused.launch import launch, record_launches

@triton.jit
def plain(x_ptr, y_ptr, size, SIZE: tl.constexpr, FLAG: tl.constexpr):
    columns = tl.arange(0, SIZE)
    x = tl.load(x_ptr + columns, mask=columns < size, other=0.0)
    tl.store(y_ptr + columns, x * 2, mask=columns < size)

@triton.jit
def spilling(x_ptr, y_ptr, size, SIZE: tl.constexpr):
    columns = tl.arange(0, SIZE)
    x = tl.load(x_ptr + columns)
    tl.store(y_ptr + columns, x / tl.sum(x))

@triton.jit
def wrong(x_ptr, y_ptr, size, SIZE: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, SIZE), size)

def tensor(offset=0, dtype=torch.float32):
    return torch.empty(2**14, device="meta", dtype=dtype)[offset:]

def configurations(*launches):
    with record_launches() as records:
        for kernel, arguments, constants in launches:
            launch(kernel, (1,), *arguments, num_warps=1, **constants)
    return [configuration_of(record) for record in records]

def check(configurations, *flags):
    check_kernels.record_all = lambda *_: {c: {"sm_90": {"probe": 132 * 32 * 2}} for c in configurations}
    sys.exit(check_kernels.main(["--arch", "sm_90", "--workers", "1", *flags]))

def describe(size, x, constants=None):
    found, = configurations((plain, (x, tensor(), size), constants or {"SIZE": 64, "FLAG": True}))
    return found

def kernels():
    names = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (causal, fused) for module in pkgutil.iter_modules(package.__path__)
    ]
    return sorted({
        name for module in names for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
        and value.__module__ != "fastslots_kernels.fused.tables"  # of no step
    })

def recorded():
    found = {chip: set() for chip in CHIPS}
    uses = check_kernels.record_all(
        (name, precision, chip)
        for name, workload in check_kernels.ALL.items()
        for precision in workload.precisions
        for chip in found
    )
    for configuration, by_chip in uses.items():
        for chip in by_chip:
            found[chip].add(configuration.kernel)
    return {chip: sorted(names) for chip, names in found.items()}

if __name__ == "__main__":
    {action}
"""


@pytest.fixture
def probe(tmp_path):
    """Runs a statement in a process that has the kernels above."""

    def run(statement):
        path = tmp_path / "probe.py"
        path.write_text(PROBE.replace("{action}", statement))
        return run_program(path)

    return run


@pytest.fixture
def ahead_of_time():
    return importlib.import_module("fastslots.tools.ahead_of_time")


def run_program(*command):
    paths = [SCRIPTS, SCRIPTS.parent, SCRIPTS.parent / "kernels"]
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", ", '--fast'"])
def test_a_spilling_kernel_is_named_and_fails(probe, flags):
    run = probe(
        "check(configurations("
        "(plain, (tensor(), tensor(), 48), {'SIZE': 64, 'FLAG': True}),"
        "(spilling, (tensor(), tensor(), 3), {'SIZE': 2**13}),"
        f"(wrong, (tensor(), tensor(), 3), {{'SIZE': 3}})){flags})"
    )
    assert run.returncode == 1, run.stderr
    offences = [line for line in run.stderr.splitlines() if line.startswith("check_kernels:")]
    assert len(offences) == 2, run.stderr
    assert re.search(
        r"spilling 1 warps on sm_90 \(probe\): \d+ bytes of stack; at most", offences[0]
    )
    assert "wrong 1 warps on sm_90 (probe): does not compile: " in offences[1]
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line.startswith("  ")}
    assert re.search(r"plain FLAG 1 warps +\| +\d+ +0 +0.0 +32 +2.0 +-$", rows["plain"])
    assert bool(re.search(r"\d+ STL, \d+ LDL", rows["spilling"])) == (not flags)


@pytest.mark.slow
def test_launches_are_specialised_as_triton_does_at_run_time(probe):
    run = probe(
        "print(json.dumps([describe(*a) for a in [(48, tensor()), (64, tensor(4)), (47, tensor()), "
        "(1, tensor()), (2**40, tensor()), (48, tensor(1)), (48, tensor(dtype=torch.bfloat16)), "
        "(48, tensor(), {'SIZE': 128, 'FLAG': True})]]))"
    )
    assert run.returncode == 0, run.stderr
    aligned, same, unaligned, one, long, offset, bf16, other = json.loads(run.stdout)
    module, kernel, signature, constants, attributes, warps, resident = aligned
    assert (module, kernel, warps, resident) == ("__main__", "plain", 1, 1)
    assert dict(signature) == {
        "x_ptr": "*fp32",
        "y_ptr": "*fp32",
        "size": "i32",
        "SIZE": "constexpr",
        "FLAG": "constexpr",
    }
    assert constants == [[[3], 64], [[4], True]]
    # Triton 3.8 also has an empty list for each constant.
    assert attributes[:3] == [[[i], [["tt.divisibility", 16]]] for i in range(3)]
    assert all(of_constant == [] for _, of_constant in attributes[3:])
    assert same == aligned
    assert unaligned[4][:3] == [
        [[0], [["tt.divisibility", 16]]],
        [[1], [["tt.divisibility", 16]]],
        [[2], []],
    ]
    assert [[2], 1] in one[3]
    assert dict(one[2])["size"] == "constexpr"
    assert dict(long[2])["size"] == "i64"
    assert offset[4] == [
        [[0], []],
        *attributes[1:],
    ]  # as Triton asks: empty lists are part of its key
    assert dict(bf16[2])["x_ptr"] == "*bf16"
    assert [[3], 128] in other[3]


@pytest.mark.slow
def test_arguments_that_are_not_given_are_constants_and_named(probe):
    run = probe(
        "print(json.dumps(describe(48, None))); print(check_kernels.title(describe(48, None)))"
    )
    assert run.returncode == 0, run.stderr
    configuration, title = run.stdout.splitlines()
    _, _, signature, constants, *_ = json.loads(configuration)
    assert dict(signature)["x_ptr"] == "constexpr"
    assert [[0], None] in constants
    assert title == "plain FLAG without x 1 warps"


@pytest.mark.slow
def test_script_compiles_a_workload_for_a_chip():
    run = run_program(SCRIPTS / "check_kernels", "--workload", "gradcheck", "--arch", "sm_90")
    assert run.returncode == 0, run.stderr
    assert "gradcheck fp64" in run.stdout
    assert "DMMA" in run.stdout
    assert {"sm_90"} == set(re.findall(r"sm_\d+", run.stdout))


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_chip(probe):
    run = probe("print(json.dumps([kernels(), recorded()]))")
    assert run.returncode == 0, run.stderr
    kernels, recorded = json.loads(run.stdout)
    assert len(kernels) > 5
    assert recorded == dict.fromkeys(("sm_80", "sm_90", "sm_100"), kernels)


@pytest.mark.parametrize(
    ("flags", "most", "others"),
    [
        ([], CHIPS, CHIPS),
        (["--fast"], CHIPS, ["sm_90"]),
        (["--fast", "--arch", "sm_80"], ["sm_80"], []),
    ],
)
def test_what_is_fast_has_the_papers_shapes_in_bfloat16_on_every_chip(
    ahead_of_time, monkeypatch, flags, most, others
):
    table, asked = importlib.import_module("fastslots.tools.check_kernels"), {}

    def record(calls):
        for name, precision, chip in calls:
            asked.setdefault((name, precision), []).append(chip)
        return {}

    monkeypatch.setattr(table, "record_all", record)
    monkeypatch.setattr(table, "compile_all", lambda *_, **__: [])
    assert table.main(flags) == 0
    trained = {"slate64", "slate96", "slate128", "clevr", "dinosaur", "dinosaur24", "decoder128"}
    for name, workload in table.ALL.items():
        for precision in workload.precisions:
            chips = most if name in trained and precision == "bf16" else others
            assert asked.get((name, precision), []) == chips


GOOD = {
    "registers": 255,
    "stack": 0,
    "local": 0,
    "shared": 163 * 1024,
    "tensor_memory": 512,
    "instructions": {},
    "loop": 0,
}


def test_what_fits_a_chip_has_no_fault(ahead_of_time):
    for chip in ahead_of_time.CHIPS:
        assert ahead_of_time.faults(ahead_of_time.Resources(**GOOD), chip) == []


@pytest.mark.parametrize(
    ("found", "chip", "message"),
    [
        ({"stack": 1}, "sm_90", "1 bytes of stack; at most 0"),
        ({"registers": 32, "stack": 8}, "sm_90", "32 registers and a stack: ptxas gave up"),
        ({"local": 8}, "sm_90", "8 bytes of local memory; at most 0"),
        ({"shared": 163 * 1024 + 1}, "sm_80", "a block of sm_80 has at most 166912"),
        ({"shared": 227 * 1024 + 1}, "sm_90", "a block of sm_90 has at most 232448"),
        ({"shared": 227 * 1024 + 1}, "sm_100", "a block of sm_100 has at most 232448"),
        ({"tensor_memory": 513}, "sm_100", "513 columns of tensor memory"),
    ],
)
def test_what_does_not_fit_is_a_fault(ahead_of_time, monkeypatch, found, chip, message):
    monkeypatch.setattr(ahead_of_time, "STACK_LIMIT", 0)
    faults = ahead_of_time.faults(ahead_of_time.Resources(**{**GOOD, **found}), chip)
    assert any(message in fault for fault in faults)


def test_a_few_bytes_of_stack_are_left_to_older_compilers(ahead_of_time, monkeypatch):
    monkeypatch.setattr(ahead_of_time, "STACK_LIMIT", 32)
    for stack, faults in ((32, 0), (40, 1)):
        found = ahead_of_time.Resources(**{**GOOD, "stack": stack})
        assert len(ahead_of_time.faults(found, "sm_90")) == faults


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "chip", "programs"),
    [
        (16, 0, 1, "sm_90", 32),  # no more than that
        (16, 0, 8, "sm_90", 8),  # 64 warps
        (168, 0, 4, "sm_90", 3),  # 12 warps have the registers: 3 for each scheduler
        (169, 0, 4, "sm_90", 2),
        (255, 0, 8, "sm_90", 1),
        (64, 113 * 1024, 4, "sm_90", 2),  # one KiB of each is the driver's
        (64, 113 * 1024 + 1, 4, "sm_90", 1),
        (64, 81 * 1024, 4, "sm_80", 2),
        (64, 228 * 1024, 4, "sm_90", 0),
    ],
)
def test_programs_that_a_multiprocessor_holds(
    ahead_of_time, registers, shared, warps, chip, programs
):
    machine_code = importlib.import_module("fastslots.tools.machine_code")
    assert machine_code.resident_programs(registers, shared, warps, chip) == programs


LISTING = """
\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   LDC R1, c[0x0][0x28] ;         /* 0x00000a00ff017b82 */
                                                                  /* 0x000fe20000000f00 */
        /*0010*/                   MOV R2, R1 ;                   /* 0x0000000100027202 */
        /*0020*/                   FADD R2, R2, R2 ;              /* 0x0000000202027221 */
        /*0030*/              @P1  BRA 0x20 ;                     /* 0xfffffffc00f81947 */
        /*0040*/              @!P0 BRA 0x10 ;                     /* 0xfffffffc00f80947 */
        /*0050*/                   EXIT ;                         /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                      /* 0xfffffffc00fc7947 */
"""


def test_the_longest_loop_is_counted(ahead_of_time):
    machine_code = importlib.import_module("fastslots.tools.machine_code")
    assert machine_code.longest_loop(LISTING) == 4
    assert machine_code.longest_loop(LISTING.replace("BRA 0x10", "BRA 0x50")) == 2
    assert machine_code.longest_loop("") == 0
