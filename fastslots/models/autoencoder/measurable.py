"""The slot autoencoder as evaluation and pictures know it."""

from __future__ import annotations

from torch import Tensor

from fastslots.metrics import slots_used, squared_error
from fastslots.models.autoencoder.model import SlotAutoencoder
from fastslots.models.autoencoder.outputs import SlotAutoencoderLook
from fastslots.models.measurable import Measurable
from fastslots.pictures import (
    mask_segmentation,
    painted_slots,
    segmentation,
    tinted_objects,
    tinted_segments,
)


class MeasurableSlotAutoencoder(Measurable[SlotAutoencoderLook]):
    """The reconstruction, the decoder's masks, and apart from these the attention of the slots.

    Per image: the squared error of the reconstruction (clamped to [0, 1]), and the number of slots whose mask
    is the greatest at one pixel or more. Metrics of segments are those of the decoder's masks; those whose
    names begin with ``attention_`` are of the attention, repeated up to the size of the image.

    Args:
        model: The model.
    """

    model: SlotAutoencoder
    ranked_by = "squared_error_per_image"
    segmentations = ("", "attention_")

    def look(self, image: Tensor, keys: Tensor) -> SlotAutoencoderLook:
        """Reconstruction, masks, each slot's own image, attention."""
        return self.model.look(image, keys)

    def scores(self, image: Tensor, seen: SlotAutoencoderLook) -> dict[str, Tensor]:
        """Errors, and slots in use."""
        error = squared_error(image, seen.recon)
        return {
            "squared_error_per_image": error,
            "squared_error_per_value": error / image[0].numel(),
            "slots_used_per_image": slots_used(seen.masks.flatten(2).transpose(1, 2)),
        }

    def segments(self, seen: SlotAutoencoderLook) -> dict[str, Tensor]:
        """The slot whose mask is the greatest, and the one that attends most."""
        return {
            "": mask_segmentation(seen.masks),
            "attention_": segmentation(seen.attn, self.model.config.image_size),
        }

    def panels(
        self, image: Tensor, seen: SlotAutoencoderLook, masks: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Image | reconstruction | [objects] | masks | attention, and what each slot paints."""
        image, found = image.cpu(), self.segments(seen)
        columns = {"image": image, "recon": seen.recon.cpu()}
        if masks is not None:
            columns["objects"] = tinted_objects(image, masks.cpu())
        columns["masks"] = tinted_segments(image, found[""].cpu())
        columns["attention"] = tinted_segments(image, found["attention_"].cpu())
        return columns, painted_slots(seen.slot_images.cpu(), seen.masks.cpu())
