"""``fastslots reconstruct``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastslots.data.folder import load_image
from fastslots.devices import choose_device
from fastslots.slate import SLATE
from fastslots.training.checkpoints import find_checkpoint
from fastslots.training.validation import draw_panels


def reconstruct(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="PNG or JPEG files.")],
    checkpoint: Annotated[
        Path, typer.Option(help="A run folder (its best checkpoint), or a checkpoint's folder.")
    ],
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("reconstruction.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the initial slots.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draws image | dVAE | through the slots | segments | one panel per slot, for any images."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"output must be a PNG file; got {str(output)!r}")
    # What learns, and what is frozen, is no news to who looks at a trained model.
    logging.getLogger("fastslots").setLevel(logging.ERROR)
    where = choose_device(device)
    model = SLATE.from_pretrained(find_checkpoint(checkpoint)).to(where)
    batch = torch.stack([load_image(path, model.config.image_size) for path in images])
    draw_panels(model, batch.to(where), output, seed)
    typer.echo(f"wrote {output}")
