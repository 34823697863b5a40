"""SLATE as evaluation and pictures know it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslots.metrics import slots_used, squared_error
from fastslots.models.measurable import Measurable
from fastslots.models.slate.model import SLATE
from fastslots.models.slate.outputs import SLATELook
from fastslots.pictures import attended_slots, segmentation, tinted_objects, tinted_segments


class MeasurableSLATE(Measurable[SLATELook]):
    """Tokens, reconstructions, and the attention of the slots, repeated up to the size of the image.

    Per image: the cross-entropy of its greedy tokens given its slots (teacher-forced), the squared errors of
    the dVAE's reconstruction of these tokens (not clamped, and of images where training's may be of whitened
    colours) and of the reconstruction through the slots (generated greedily, clamped to [0, 1]), and the
    number of slots that win a token. Over all images: the unigram entropy, what a code that knows only how
    often each token occurs would need for the tokens of an image.

    Args:
        model: The model.
    """

    model: SLATE
    ranked_by = "slots_squared_error_per_image"

    def look(self, image: Tensor, keys: Tensor) -> SLATELook:
        """Tokens, slots, attention and both reconstructions."""
        return self.model.look(image, keys)

    def scores(self, image: Tensor, seen: SLATELook) -> dict[str, Tensor]:
        """Cross-entropy, errors, and slots in use."""
        num_values = image[0].numel()
        cross_entropy = self.model.token_cross_entropy(seen.ids, seen.slots, reduction="none")
        cross_entropy = cross_entropy.double()
        dvae_error = squared_error(image, seen.recon)
        slots_error = squared_error(image, seen.through_slots)
        return {
            "cross_entropy_nats_per_image": cross_entropy,
            "cross_entropy_nats_per_token": cross_entropy / self.model.config.num_tokens,
            "dvae_squared_error_per_image": dvae_error,
            "dvae_squared_error_per_value": dvae_error / num_values,
            "slots_squared_error_per_image": slots_error,
            "slots_squared_error_per_value": slots_error / num_values,
            "slots_used_per_image": slots_used(seen.attn),
        }

    def segments(self, seen: SLATELook) -> dict[str, Tensor]:
        """The slot that attends most."""
        return {"": segmentation(seen.attn, self.model.config.image_size)}

    def counts(self, seen: SLATELook) -> Tensor:
        """How often each token occurs."""
        return torch.bincount(seen.ids.flatten(), minlength=self.model.config.vocab_size)

    def overall(self, counts: Tensor, num_images: int) -> dict[str, float]:
        """The unigram entropy, in nats per image."""
        frequencies = counts.double() / counts.sum()
        unigram = torch.special.entr(frequencies).sum().item() * self.model.config.num_tokens
        return {"unigram_entropy_nats_per_image": unigram}

    def panels(
        self, image: Tensor, seen: SLATELook, masks: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Image | dVAE | through the slots | [objects] | segments, and what each slot attends to."""
        image, attn = image.cpu(), seen.attn.cpu()
        columns = {
            "image": image,
            "dVAE": seen.recon.clamp(0, 1).cpu(),
            "slots": seen.through_slots.cpu(),
        }
        if masks is not None:
            columns["objects"] = tinted_objects(image, masks.cpu())
        columns["segments"] = tinted_segments(image, segmentation(attn, image.shape[-1]))
        return columns, attended_slots(image, attn)
