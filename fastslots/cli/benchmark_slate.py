"""``fastslots benchmark slate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastslots.benchmark import (
    choose_step_providers,
    plot_steps,
    run_step_benchmark,
    step_cases,
    step_markdown,
    step_tables,
)
from fastslots.benchmark.attention.cases import GRADIENTS
from fastslots.benchmark.step.cases import (
    IMAGE_SIZES,
    IMPLEMENTATIONS,
    PRECISIONS,
    VOCAB_SIZES,
)
from fastslots.benchmark.step.report import LEGEND
from fastslots.benchmark.tables import environment_line, skipped_lines
from fastslots.cli.flags import listed
from fastslots.cli.options import Device, Repeats
from fastslots.cli.paths import any_path
from fastslots.cli.tables import show_results
from fastslots.devices import choose_device
from fastslots.files import check_writable

BATCH_SIZES = {"cuda": 50, "cpu": 4}
NAME = "slate-steps"

ImageSizes = Annotated[
    list[int] | None,
    typer.Option(help=f"Pixels per side; may be repeated. Default: {listed(IMAGE_SIZES, 'and')}."),
]
VocabSizes = Annotated[
    list[int] | None,
    typer.Option(
        help=f"V, tokens of the dVAE; may be repeated. Default: {listed(VOCAB_SIZES, 'and')}."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help=f"Images per step. Default: {BATCH_SIZES['cuda']} on CUDA, {BATCH_SIZES['cpu']} on a CPU."
    ),
]
Providers = Annotated[
    list[str] | None,
    typer.Option(help=f"{listed(IMPLEMENTATIONS)}; may be repeated. Default: both."),
]
Gradients = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{listed(GRADIENTS)}, of fastslots; may be repeated. Default: both. "
        "public is always unrolled."
    ),
]
Precision = Annotated[
    str, typer.Option(help=f"{', or '.join(PRECISIONS)}: autocast with weights in float32.")
]


def slate(
    image_size: ImageSizes = None,
    vocab_size: VocabSizes = None,
    batch_size: BatchSize = None,
    provider: Providers = None,
    gradient: Gradients = None,
    precision: Precision = PRECISIONS[0],
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Measure each under torch.compile too. Default: on CUDA alone; on a CPU compiling one "
            "takes minutes.",
            show_default=False,
        ),
    ] = None,
    compile_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds for compiling per image size and vocabulary; what would take longer is left "
            "out, the first not counted. Default: none."
        ),
    ] = None,
    repeats: Repeats = 20,
    time_limit: Annotated[
        float,
        typer.Option(
            help="Seconds for timing one image size and vocabulary; no less than 3 rounds."
        ),
    ] = 60.0,
    output: Annotated[
        Path, typer.Option(parser=any_path, help="Folder for the JSON file and the plot.")
    ] = Path("runs/benchmark"),
    device: Device = "auto",
) -> None:
    """Measures SLATE's training step against SLATE in the form of its public code: time and memory.

    A step is forward, backward, L∞ clipping and Adam; the model is the paper's. Writes
    OUTPUT/slate-steps.json, anew after each image size and vocabulary, and a plot OUTPUT/slate-steps.png.
    """
    where = choose_device(device)
    cases = step_cases(
        BATCH_SIZES[where.type] if batch_size is None else batch_size,
        image_size or IMAGE_SIZES,
        vocab_size or VOCAB_SIZES,
        precision,
    )
    providers = choose_step_providers(
        provider, gradient, where.type == "cuda" if compile is None else compile
    )
    check_writable(output)
    with Console(stderr=True).status("measuring") as status:
        results = run_step_benchmark(
            cases,
            providers,
            where,
            repeats=repeats,
            time_limit_s=time_limit,
            compile_limit_s=math.inf if compile_limit is None else compile_limit,
            progress=status.update,
            keep=lambda results: results.save(output / f"{NAME}.json"),
        )
    show_results(
        step_markdown(results),
        step_tables(results),
        [*skipped_lines(results.skipped), LEGEND, environment_line(results.environment)],
    )
    typer.echo(f"wrote {output / NAME}.json")
    if results.rows:
        plot_steps(results, output / f"{NAME}.png")
        typer.echo(f"wrote {output / NAME}.png")
