"""``fastslots benchmark``: slot attention, and the command ``slate``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastslots.benchmark import (
    Case,
    choose_providers,
    markdown,
    plot_case,
    preset,
    result_tables,
    run_benchmark,
)
from fastslots.benchmark.attention.reports.rows import legend
from fastslots.benchmark.tables import environment_line, skipped_lines
from fastslots.cli.benchmark_slate import slate
from fastslots.cli.paths import any_path
from fastslots.cli.tables import show_results
from fastslots.devices import choose_device
from fastslots.files import check_writable

# Compiling 63 unrolled iterations takes minutes on two cores.
CPU_COMPILE_LIMIT_S = 20.0


app = typer.Typer()


@app.callback(invoke_without_command=True)
def benchmark(
    context: typer.Context,
    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="small, slate64, slate96, slate128, clevr, dinosaur, dinosaur24, long or cpu-targets. "
            "Default: slate64 on CUDA, small on a CPU.",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="reference, torch, triton or, if it is installed, slot-attention of PyPI; may be "
            "repeated. Default: the first three, if they can run."
        ),
    ] = None,
    gradient: Annotated[
        list[str] | None,
        typer.Option(
            help="unrolled, implicit, or no-grad for forwards alone; may be repeated. "
            "Default: the first two."
        ),
    ] = None,
    iterations: Annotated[
        str | None,
        typer.Option(help="Numbers of iterations, as 1,3,7. Default: 1,3,7,15,31,63,127."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or float64. Default: float32.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of products: ieee (tf32 off), tf32, or bf16 (autocast); the last two with float32. "
            "Default: ieee."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="B. Default, as below: the preset's.")] = None,
    inputs: Annotated[int | None, typer.Option(help="N, inputs per image.")] = None,
    width: Annotated[
        int | None, typer.Option(help="C, D and the width of the MLP: inputs and slots.")
    ] = None,
    mlp_width: Annotated[int | None, typer.Option(help="Hidden width of the MLP.")] = None,
    slots: Annotated[int | None, typer.Option(help="K.")] = None,
    heads: Annotated[int | None, typer.Option(help="H.")] = None,
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
    repeats: Annotated[int, typer.Option(help="Rounds of timing.")] = 20,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for timing one shape; no less than 3 rounds.")
    ] = 15.0,
    plot: Annotated[bool, typer.Option(help="Draw the plots, with matplotlib.")] = True,
    output: Annotated[
        Path, typer.Option(parser=any_path, help="Folder for the JSON file and the plots.")
    ] = Path("runs/benchmark"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measures slot attention against the number of iterations: time, memory kept, peak memory.

    Writes OUTPUT/PRESET.json and, for every shape, a plot OUTPUT/SHAPE.png. What has wrong results is left
    out, and the exit code is 1. `fastslots benchmark slate` measures whole training steps.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags(context)
        return
    where = choose_device(device)
    usual = "slate64" if where.type == "cuda" else "small"
    name = usual if preset_name is None else preset_name
    changes = {
        "batch": batch,
        "num_inputs": inputs,
        "input_size": width,
        "slot_size": width,
        "mlp_hidden_size": width if mlp_width is None else mlp_width,
        "num_slots": slots,
        "num_heads": heads,
    }
    cases = _cases(name, {field: value for field, value in changes.items() if value is not None})
    if dtype is not None or precision is not None:
        kind = {
            "dtype": "float32" if dtype is None else dtype,
            "precision": "ieee" if precision is None else precision,
        }
        cases = [dataclasses.replace(case, **kind) for case in cases]  # type: ignore[arg-type]
    if iterations is not None:
        counts = _parse_iterations(iterations)
        cases = [dataclasses.replace(case, iterations=counts) for case in cases]
    providers, skipped = choose_providers(
        where, backend, gradient or ("unrolled", "implicit"), compile, graphs
    )
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


def _cases(name: str, changes: dict[str, int]) -> list[Case]:
    cases = list(preset(name))
    if not changes:
        return cases
    if len(cases) > 1:
        raise ValueError(f"preset {name!r} has several shapes: leave the flags of shapes out")
    return [dataclasses.replace(cases[0], **changes)]  # type: ignore[arg-type]


def _parse_iterations(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"iterations must be positive ints, as 1,3,7; got {text!r}") from None
