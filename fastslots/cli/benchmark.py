"""``fastslots benchmark``: slot attention, and the command ``slate``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastslots.benchmark import (
    PRESETS,
    Case,
    Results,
    choose_providers,
    markdown,
    plot_case,
    preset,
    result_tables,
    run_benchmark,
)
from fastslots.benchmark.attention.cases import DEFAULT_ITERATIONS, DTYPES, GRADIENTS, PRECISIONS
from fastslots.benchmark.attention.providers import BACKENDS, PACKAGE
from fastslots.benchmark.attention.reports.rows import legend
from fastslots.benchmark.tables import environment_line, skipped_lines
from fastslots.cli.benchmark_slate import slate
from fastslots.cli.flags import listed, with_flags
from fastslots.cli.options import Device, Repeats
from fastslots.cli.paths import any_path
from fastslots.cli.tables import show_results
from fastslots.devices import choose_device
from fastslots.files import check_writable

# Compiling 63 unrolled iterations takes minutes on two cores.
CPU_COMPILE_LIMIT_S = 20.0
USUAL = {"cuda": "slate64", "cpu": "small"}
# By flag: the fields of a case that it sets, the later flag last.
FIELDS = {
    "batch": ("batch",),
    "inputs": ("num_inputs",),
    "width": ("input_size", "slot_size", "mlp_hidden_size"),
    "mlp_width": ("mlp_hidden_size",),
    "slots": ("num_slots",),
    "heads": ("num_heads",),
}

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help=f"{listed(PRESETS)}. Default: {USUAL['cuda']} on CUDA, {USUAL['cpu']} on a CPU.",
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(BACKENDS)} or, if it is installed, {PACKAGE} of PyPI; may be repeated. "
        "Default: the first three, if they can run."
    ),
]
Gradients = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(GRADIENTS)}, or no-grad for forwards alone; may be repeated. "
        "Default: the first two."
    ),
]
Iterations = Annotated[
    str | None,
    typer.Option(
        help=f"Numbers of iterations, as 1,3,7. Default: {','.join(map(str, DEFAULT_ITERATIONS))}."
    ),
]
Dtype = Annotated[
    str | None, typer.Option(help=f"{listed(DTYPES)}. Default: {next(iter(DTYPES))}.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of products: ieee (tf32 off), tf32, or bf16 (autocast); the last two with float32. "
        f"Default: {PRECISIONS[0]}."
    ),
]

app = typer.Typer()


@dataclass(frozen=True)
class Shape:
    """What may be another than the preset's.

    Args:
        batch: B. Default, as below: the preset's.
        inputs: N, inputs per image.
        width: C, D and the width of the MLP: inputs and slots.
        mlp_width: Hidden width of the MLP.
        slots: K.
        heads: H.
    """

    batch: int
    inputs: int
    width: int
    mlp_width: int
    slots: int
    heads: int


@app.callback(invoke_without_command=True)
@with_flags({"shape": Shape}, plain=True)
def benchmark(
    context: typer.Context,
    preset_name: Preset = None,
    backend: Backends = None,
    gradient: Gradients = None,
    iterations: Iterations = None,
    dtype: Dtype = None,
    precision: Precision = None,
    *,
    flags: dict[str, dict[str, int]],
    compile: Annotated[
        bool,
        typer.Option(
            help="Measure torch.compile of the reference too; on CUDA also of torch, as CUDA graphs."
        ),
    ] = True,
    graphs: Annotated[
        bool, typer.Option(help="On CUDA, measure every backend as CUDA graphs too.")
    ] = True,
    energy: Annotated[
        float,
        typer.Option(
            help="On CUDA, seconds, at least 2, for which each call is run to measure its energy."
        ),
    ] = 0.0,
    compile_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds for compiling; what would take longer is left out. "
            f"Default: {CPU_COMPILE_LIMIT_S:.0f} on a CPU, none on CUDA."
        ),
    ] = None,
    repeats: Repeats = 20,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for timing one shape; no less than 3 rounds.")
    ] = 15.0,
    plot: Annotated[bool, typer.Option(help="Draw the plots, with matplotlib.")] = True,
    output: Annotated[
        Path, typer.Option(parser=any_path, help="Folder for the JSON file and the plots.")
    ] = Path("runs/benchmark"),
    device: Device = "auto",
) -> None:
    """Measures slot attention against the number of iterations: time, memory kept, peak memory.

    Writes OUTPUT/PRESET.json and, for every shape, a plot OUTPUT/SHAPE.png. What has wrong results is left
    out, and the exit code is 1. `fastslots benchmark slate` measures whole training steps.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags(context)
        return
    where = choose_device(device)
    name = USUAL[where.type] if preset_name is None else preset_name
    cases = _cases(name, flags["shape"], dtype, precision, iterations)
    providers, skipped = choose_providers(where, backend, gradient or GRADIENTS, compile, graphs)
    check_writable(output)
    if compile_limit is None:
        compile_limit = CPU_COMPILE_LIMIT_S if where.type == "cpu" else math.inf
    with Console(stderr=True).status("measuring") as status:
        results = run_benchmark(
            cases,
            providers,
            where,
            skipped=skipped,
            repeats=repeats,
            time_limit_s=time_limit,
            compile_limit_s=compile_limit,
            energy_s=energy,
            progress=status.update,
        )
    _leave(results, output, name, plot)
    if results.wrong:
        raise typer.Exit(1)


app.command()(slate)


def _refuse_flags(context: typer.Context) -> None:
    """Flags before the name of a command would be ignored."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"{parameter.opts[0]} must come after {context.invoked_subcommand!r}, whose flags are its own"
            )


def _cases(
    name: str,
    shape: dict[str, int],
    dtype: str | None,
    precision: str | None,
    iterations: str | None,
) -> list[Case]:
    """The cases of a preset with what was given in place of what they hold."""
    cases = list(preset(name))
    if shape and len(cases) > 1:
        raise ValueError(f"preset {name!r} has several shapes: leave the flags of shapes out")
    changes: dict[str, Any] = {
        field: value for flag, value in shape.items() for field in FIELDS[flag]
    }
    if dtype is not None or precision is not None:
        changes["dtype"] = "float32" if dtype is None else dtype
        changes["precision"] = PRECISIONS[0] if precision is None else precision
    if iterations is not None:
        changes["iterations"] = _parse_iterations(iterations)
    return [replace(case, **changes) for case in cases]


def _parse_iterations(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"iterations must be positive ints, as 1,3,7; got {text!r}") from None


def _leave(results: Results, output: Path, name: str, plot: bool) -> None:
    """Shows the results and writes their files."""
    show_results(
        markdown(results),
        result_tables(results),
        [*skipped_lines(results.skipped), legend(results), environment_line(results.environment)],
    )
    results.save(output / f"{name}.json")
    if plot:
        for case in results.cases():
            plot_case(results, case, output / f"{case}.png")
    typer.echo(f"wrote {output / name}.json" + " and a plot for every shape" * plot)
