"""The slot autoencoder as the training engine knows it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastslots.data.images import ImageSet
from fastslots.metrics import slots_used, squared_error
from fastslots.models.autoencoder.measurable import MeasurableSlotAutoencoder
from fastslots.models.autoencoder.model import SlotAutoencoder
from fastslots.models.autoencoder.outputs import SlotAutoencoderOutput
from fastslots.models.trainable import Trainable
from fastslots.pictures import save_panels

_MEASURED = ("squared_error", "relative_residual", "slots_used")


class TrainableSlotAutoencoder(Trainable):
    """The squared error of colours, and the entropy of the masks times its weight.

    Args:
        model: The model.
    """

    model: SlotAutoencoder
    losses: ClassVar = {
        "colour_error": "squared error per value, of colours as the model sees them",
        "entropy_penalty": "nats per pixel, times their weight",
    }
    looks: ClassVar = {
        "squared_error": "squared error per image",
        "relative_residual": "a ratio",
        "slots_used": "slots per image",
    }
    step_line = (
        "error {colour_error:.3f}  per image {squared_error:.1f}  slots used {slots_used:.1f}"
    )
    validation_line = (
        "held-out error {loss:.3f}, per image {squared_error:.1f}, slots used {slots_used:.1f}"
    )
    num_sums = 1 + len(_MEASURED)

    def begin(self, images: ImageSet) -> None:
        """Fits the whitening, where the settings ask for it."""
        if self.model.config.whiten:
            self.model.whitening.fit(images)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """All that is not frozen."""
        return {"main": [p for p in self.model.parameters() if p.requires_grad]}

    def forward(self, image: Tensor, keys: Tensor, **schedule: Tensor) -> tuple[Tensor, ...]:
        """Squared error and weighted entropy."""
        loss, entropy = self.model.losses(image, keys)
        return loss, schedule["entropy_weight"] * entropy

    def look(self, image: Tensor, keys: Tensor) -> Tensor:
        """The error of an image, how well its slots have converged, how many show at least at one pixel."""
        return self._measured(image, self.model(image, keys))

    def validation_sums(self, image: Tensor, keys: Tensor, **schedule: float) -> Tensor:
        """The error of the colours, and what `look` gives."""
        out = self.model(image, keys)
        loss = len(image) * out.loss.double()
        return torch.cat((loss.unsqueeze(0), self._measured(image, out)))

    def validation_means(self, sums: Tensor, num_images: int) -> dict[str, float]:
        """Per image: the error of the colours, ``"loss"``, and what `look` gives."""
        return dict(zip(("loss", *_MEASURED), (sums / num_images).tolist(), strict=True))

    def draw(self, image: Tensor, keys: Tensor, path: Path) -> None:
        """Image | reconstruction | masks | attention | one panel per slot."""
        measurable = MeasurableSlotAutoencoder(self.model)
        save_panels(path, *measurable.panels(image, measurable.look(image, keys)))

    def _measured(self, image: Tensor, out: SlotAutoencoderOutput) -> Tensor:
        return torch.stack(
            (
                squared_error(image, out.recon).sum(),
                self.model.residual(image, out.slots).double().sum(),
                slots_used(out.masks.flatten(2).transpose(1, 2)).sum(),
            )
        )
