"""``fastslots reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastslots.cli.options import Device, Seed
from fastslots.cli.paths import any_path, check_are_files
from fastslots.cli.saved import DEFAULT_MODEL, Model, find_saved, load_saved
from fastslots.data.folder import load_image
from fastslots.devices import choose_device
from fastslots.files import check_writable
from fastslots.models.registry import trainable_of
from fastslots.training.validation import draw


def reconstruct(
    images: Annotated[
        list[Path], typer.Argument(parser=any_path, metavar="IMAGE", help="PNG or JPEG files.")
    ],
    model: Model = DEFAULT_MODEL,
    output: Annotated[Path, typer.Option(parser=any_path, help="PNG file to write.")] = Path(
        "reconstruction.png"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draws what a model makes of any images, a row each.

    Of a SLATE: image | dVAE | through the slots | segments | what each slot
    attends to. Of a slot autoencoder: image | reconstruction | masks |
    attention | what each slot paints.
    """
    if output.suffix.lower() != ".png":
        raise ValueError(f"output must be a PNG file; got {str(output)!r}")
    check_are_files(images)
    if output.resolve() in {path.resolve() for path in images}:
        raise ValueError(f"output must be another file than the images; got {str(output)!r}")
    check_writable(output.parent)
    where = choose_device(device)
    loaded = load_saved(find_saved(model), where)
    batch = torch.stack([load_image(path, loaded.config.image_size) for path in images])
    draw(trainable_of(loaded), batch.to(where, loaded.dtype), output, seed)
    typer.echo(f"wrote {output}")
