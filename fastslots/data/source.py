"""Where images come from, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastslots.data.folder import ImageFolder
from fastslots.data.scenes import Scenes
from fastslots.data.splits import Split, SplitFiles, files_of, split_images
from fastslots.settings import check_fields

__all__ = ["DataSource", "Split"]


@dataclass(frozen=True)
class DataSource:
    """A choice of images.

    Args:
        data: ``scenes`` for the rendered CLEVR-like scenes, or a folder of images (PNG, JPEG). Folders named
            train, val (valid, validation) and test in it are its splits; without val, the last 15% of train
            are held out; without any of them it is split 70-15-15 by name.
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

    def split_files(self) -> SplitFiles | None:
        """The files of each split as they are now; None for rendered scenes, which their numbers decide.

        Raises:
            ValueError: If the folder holds no image, or its folders and files are no clear splits.
            OSError: If the folder is missing, or one in it cannot be listed.
        """
        return None if self.data == "scenes" else self._split_folder()

    def open(
        self,
        split: Split,
        image_size: int,
        device: torch.device,
        files: SplitFiles | None = None,
    ) -> Scenes | ImageFolder:
        """The images of a split, ``"train"``, ``"val"`` or ``"test"``.

        Args:
            split: Which.
            image_size: Side S of the images in pixels.
            device: Where scenes are rendered.
            files: What `split_files` has found. Default: it looks again.

        Raises:
            ValueError: If a number breaks its rule, or a folder has no such split.
            OSError: If the folder is missing, or holds no usable image.
        """
        if self.data != "scenes":
            names = files_of(files or self._split_folder(), split, Path(self.data))
            return ImageFolder(
                self.data, image_size=image_size, split=split, strict=self.strict, names=names
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

    def _split_folder(self) -> SplitFiles:
        root = Path(self.data)
        if not root.is_dir():
            raise NotADirectoryError(
                f"data must be 'scenes' or a folder of images; there is no folder {self.data!r}"
            )
        return split_images(root)
