from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastslots_kernels import testing

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = [
    *("--batch", "2", "--inputs", "13", "--input-size", "10", "--slots", "3", "--slot-size", "8"),
    *("--mlp", "6", "--device", "cpu"),
]
ROWS = 2 + 2 + 17  # outputs, gradients of inputs and slots, of the weights


@pytest.fixture
def program(monkeypatch):
    """The module behind the script; `run` takes its arguments as one text."""
    module = importlib.import_module("fastslots.tools.gradcheck")
    run = lambda text: module.main([*SMALL, *text.split()])  # noqa: E731
    monkeypatch.setattr(module, "run", run, raising=False)
    return module


def scaled_gradient(monkeypatch, backends):
    """Makes the gradient through the slots wrong."""
    right = testing.slot_attention

    def wrong(*args, backend, **options):
        slots, attn, used = right(*args, backend=backend, **options)
        if backend in backends and slots.requires_grad:
            slots.register_hook(lambda grad: None if grad is None else grad * 1.01)
        return slots, attn, used

    monkeypatch.setattr(testing, "slot_attention", wrong)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_script_prints_a_row_per_output_and_per_gradient_and_exits_with_0(backend):
    paths = [SCRIPTS.parent, SCRIPTS.parent / "kernels"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment.pop("TRITON_INTERPRET", None)  # the script sets it
    run = subprocess.run(
        [sys.executable, SCRIPTS / "gradcheck", *SMALL, "--backend", backend, "--float64"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(f"{backend} on cpu: B 2, N 13, C 10, K 3, D 8, M 6, H 1, neumann") == 2
    rows = [line.split() for line in run.stdout.splitlines() if line.endswith(("ok", "FAILS"))]
    assert len(rows) == 2 * ROWS, "a table in float32 and one in float64"
    assert [row[0] for row in rows[:2]] == ["slots", "attn"]
    assert {"inputs", "slots", "project_q", "mlp_2_bias"} <= {row[1] for row in rows[2:]}
    for *_, error, _, _, allowed, _, verdict in rows:
        assert verdict == "ok"
        assert float(error) <= float(allowed)


@pytest.mark.parametrize(
    "options",
    [
        "--dtype float32 --masked --heads 2",
        "--dtype float16 --gradient unrolled",
        "--dtype bfloat16 --mean 3",
        "--dtype float64 --epsilon 1e-3 --numeric",
        "--dtype float64 --gradient unrolled --iterations 2 --masked --heads 4 --numeric",
    ],
)
def test_torch_backend_passes(program, options, capsys):
    assert program.run(f"--backend torch {options}") == 0
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_offsets")
@pytest.mark.parametrize(
    "options",
    [
        "--dtype float16 --masked --heads 2",
        "--dtype float64 --gradient unrolled --iterations 1 --heads 4 --numeric",
    ],
)
def test_triton_backend_passes(program, options, capsys):
    assert program.run(f"--backend triton {options}") == 0
    assert "FAILS" not in capsys.readouterr().out


def test_wrong_gradients_fail_by_name(program, monkeypatch, capsys):
    scaled_gradient(monkeypatch, ["torch"])
    assert program.run("--backend torch") == 1
    printed = capsys.readouterr()
    assert "torch fails: float32" in printed.err
    verdicts = {line[:20].strip(): line.split()[-1] for line in printed.out.splitlines() if line}
    assert verdicts["slots"] == verdicts["attn"] == "ok"
    assert verdicts["d mlp_2_weight"] == verdicts["d gru_weight_hh"] == "FAILS"


def test_finite_differences_find_what_the_reference_shares(program, monkeypatch, capsys):
    scaled_gradient(monkeypatch, ["torch", "reference"])
    assert program.run("--backend torch --numeric") == 1
    printed = capsys.readouterr()
    assert printed.err.strip() == "gradcheck: torch fails: finite differences"
    assert "finite differences in float64: FAILS" in printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--heads 3", "slot_size must be a multiple of num_heads 3; got 8"),
        ("--gradient unrolled --iterations 0", "num_iterations must be at least 1"),
        ("--epsilon -1", "epsilon must be at least 0 and below 1e+30; got -1"),
        ("--device gpu", "device must be 'auto', 'cpu'"),
        ("--backend triton --dtype bfloat16", "Triton's interpreter computes bfloat16 wrongly"),
    ],
)
def test_arguments_that_cannot_be_run_end_with_a_message(program, capsys, options, message):
    assert program.run(f"--backend torch {options}") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_counts_are_positive_integers(program, capsys, count):
    with pytest.raises(SystemExit, match="2"):
        program.run(f"--slots {count}")
    assert f"--slots: must be a positive integer; got '{count}'" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_table(program, capsys):
    tables = []
    for seed in (1, 1, 2):
        program.run(f"--backend torch --seed {seed}")
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] != tables[2]
