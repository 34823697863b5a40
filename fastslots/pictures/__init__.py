"""Sample pictures: an image, its reconstructions and what each slot stands for."""

from fastslots.pictures.panels import (
    attended_slots,
    painted_slots,
    tinted_objects,
    tinted_segments,
)
from fastslots.pictures.saving import save_panels
from fastslots.pictures.segments import label_map, mask_segmentation, segmentation

__all__ = [
    "attended_slots",
    "label_map",
    "mask_segmentation",
    "painted_slots",
    "save_panels",
    "segmentation",
    "tinted_objects",
    "tinted_segments",
]
