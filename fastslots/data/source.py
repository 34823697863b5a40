"""Where images come from, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastslots.data.folder import ImageFolder
from fastslots.data.scenes import Scenes
from fastslots.settings import check_fields

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DataSource:
    """A choice of images.

    Args:
        data: ``scenes`` for the rendered CLEVR-like scenes, or a folder of images (PNG, JPEG).
        strict: With a folder: end with an error at a corrupt file instead of leaving it out.
        num_scenes: Scenes to train on; a seventh as many are held out.
        scene_seed: Decides the scenes.
        min_objects: Fewest objects in a scene.
        max_objects: Most objects in a scene.
        mirror: Whether scenes have a mirror.
        cache: Folder that keeps rendered scenes, or none.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a number breaks its rule.
    """

    data: str = "scenes"
    strict: bool = False
    num_scenes: int = 70_000
    scene_seed: int = 0
    min_objects: int = 3
    max_objects: int = 6
    mirror: bool = True
    cache: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero=("scene_seed",))

    def open(self, split: Split, image_size: int, device: torch.device) -> Scenes | ImageFolder:
        """The images of a split, ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ValueError: If a number breaks its rule.
            OSError: If the folder is missing, or holds no usable image.
        """
        if self.data != "scenes":
            if not Path(self.data).is_dir():
                raise NotADirectoryError(
                    f"data must be 'scenes' or a folder of images; there is no folder {self.data!r}"
                )
            return ImageFolder(
                Path(self.data), image_size=image_size, split=split, strict=self.strict
            )
        return Scenes(
            self.num_scenes if split == "train" else max(1, self.num_scenes // 7),
            split=split,
            seed=self.scene_seed,
            image_size=image_size,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
            mirror=self.mirror,
            cache=self.cache,
            device=device,
        )
