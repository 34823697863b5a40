"""``fastslots segment``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastslots.cli.options import Device, Seed
from fastslots.cli.paths import any_path, check_are_files
from fastslots.cli.saved import DEFAULT_MODEL, Model, find_saved, load_saved
from fastslots.data.decoding import load_image, open_image
from fastslots.devices import choose_device
from fastslots.files import check_writable, write_together
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.registry import measurable_of
from fastslots.pictures import label_map, save_panels
from fastslots.training.validation import validation_keys

OVERVIEW = "overview"
AT_A_TIME = 16
MOST_ROWS = 64
LABEL_LENGTH = 20


def segment(
    images: Annotated[
        list[Path], typer.Argument(parser=any_path, metavar="IMAGE", help="PNG or JPEG files.")
    ],
    model: Model = DEFAULT_MODEL,
    output: Annotated[Path, typer.Option(parser=any_path, help="Folder to write to.")] = Path(
        "segments"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Gives every pixel of any images its slot.

    Writes NAME.png for every image NAME, a label map: a PNG with a palette
    whose pixels are the numbers of slots, from 0. It has the model's size, to
    which images are resized, larger ones too: enlarge it without smoothing to
    lay it over one. And overview.png, which shows what the model makes of the
    first 64 images. A slot autoencoder segments by its decoder's masks, SLATE
    by the attention of its slots. No other image changes the slots of one.
    """
    check_are_files(images)
    maps = _maps(images, output)
    where = choose_device(device)
    folder = find_saved(model)
    loaded = load_saved(folder, where)
    for path in images:
        with open_image(path):  # a file that is no image ends this before there is a folder
            pass
    check_writable(output)
    segments: list[Tensor] = []
    columns: dict[str, list[Tensor]] = defaultdict(list)
    slots: list[Tensor] = []
    for found, panels in _segmented(loaded, images, seed):
        segments += found
        if panels is not None:
            for name, column in panels[0].items():
                columns[name].append(column)
            slots.append(panels[1])
    pictures = [label_map(labels, loaded.config.num_slots) for labels in segments]
    write_together(
        {
            path: partial(picture.save, format="PNG")
            for path, picture in zip(maps, pictures, strict=True)
        }
    )
    save_panels(
        output / f"{OVERVIEW}.png",
        {name: torch.cat(parts)[:MOST_ROWS] for name, parts in columns.items()},
        torch.cat(slots)[:MOST_ROWS],
        row_labels=[_label(path) for path in images[:MOST_ROWS]],
    )
    shown = f" of the first {MOST_ROWS}" if len(images) > MOST_ROWS else ""
    typer.echo(f"wrote {len(maps)} label maps and {OVERVIEW}.png{shown} to {output}")


@torch.no_grad()
def _segmented(
    model: PretrainedModel, images: list[Path], seed: int
) -> Iterator[tuple[Tensor, tuple[dict[str, Tensor], Tensor] | None]]:
    """Segments, ``[B, S, S]``, and the panels, of those that are shown, of some images after the other."""
    measurable = measurable_of(model)
    key = validation_keys(0, 1, seed).to(model.device)  # of an image that is drawn by itself
    for first in range(0, len(images), AT_A_TIME):
        paths = images[first : first + AT_A_TIME]
        image = torch.stack([load_image(path, model.config.image_size) for path in paths])
        image = image.to(model.device, model.dtype)
        seen = measurable.look(image, key.repeat(len(image), 1))
        panels = measurable.panels(image, seen) if first < MOST_ROWS else None
        yield measurable.segments(seen)[""].cpu(), panels


def _maps(images: list[Path], output: Path) -> list[Path]:
    """Where the label map of every image is written.

    Raises:
        ValueError: If two are one file, or one is that of the overview or an image.
    """
    names: dict[str, Path] = {}  # in small letters: some file systems know no others
    for image in images:
        name = image.stem.casefold()
        if name == OVERVIEW:
            raise ValueError(
                f"IMAGE must be called otherwise than {OVERVIEW}; got {str(image)!r}, whose label map would "
                f"take the place of {OVERVIEW}.png: rename it"
            )
        if name in names:
            raise ValueError(
                f"IMAGE must be files whose names differ before their endings; got {str(names[name])!r} and "
                f"{str(image)!r}, both of which would become {image.stem}.png: rename one, or segment it "
                "into another --output"
            )
        names[name] = image
    maps = [output / f"{image.stem}.png" for image in images]
    originals = {image.resolve() for image in images}
    for path in (*maps, output / f"{OVERVIEW}.png"):
        if path.resolve() in originals:
            raise ValueError(
                f"output must be a folder without the images, which would be replaced; got {str(output)!r}, "
                f"where {path.name} lies: name another"
            )
    return maps


def _label(path: Path) -> str:
    """A file's name in one line."""
    name = "".join(letter if letter.isprintable() else "?" for letter in path.stem)
    return name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 3]}..."
