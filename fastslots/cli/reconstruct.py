"""``fastslots reconstruct``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastslots.cli.options import Device, Seed
from fastslots.cli.paths import any_path, utf8_path
from fastslots.data.folder import load_image
from fastslots.devices import choose_device
from fastslots.files import check_writable
from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.training.checkpoints import find_checkpoint
from fastslots.training.validation import draw


def reconstruct(
    images: Annotated[
        list[Path], typer.Argument(parser=any_path, metavar="IMAGE", help="PNG or JPEG files.")
    ],
    checkpoint: Annotated[
        Path,
        typer.Option(
            parser=utf8_path, help="A run folder (its best checkpoint), or a checkpoint's folder."
        ),
    ],
    output: Annotated[Path, typer.Option(parser=any_path, help="PNG file to write.")] = Path(
        "reconstruction.png"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draws image | dVAE | through the slots | segments | one panel per slot, for any images."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"output must be a PNG file; got {str(output)!r}")
    for path in images:
        if not path.is_file():
            raise FileNotFoundError(
                f"IMAGE must be a PNG or JPEG file; got {str(path)!r}, which is none"
            )
    if output.resolve() in {path.resolve() for path in images}:
        raise ValueError(f"output must be another file than the images; got {str(output)!r}")
    check_writable(output.parent)
    # What learns, and what is frozen, is no news to who looks at a trained model.
    logging.getLogger("fastslots").setLevel(logging.ERROR)
    where = choose_device(device)
    model = SLATE.from_pretrained(find_checkpoint(checkpoint)).to(where)
    batch = torch.stack([load_image(path, model.config.image_size) for path in images])
    draw(TrainableSLATE(model), batch.to(where), output, seed)
    typer.echo(f"wrote {output}")
