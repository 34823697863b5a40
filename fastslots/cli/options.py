"""Flags that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Repeats = Annotated[int, typer.Option(help="Rounds of timing.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the initial slots.")]
