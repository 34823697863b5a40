"""SLATE as the training engine knows it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastslots.data.images import ImageSet
from fastslots.metrics import slots_used
from fastslots.models.slate.checks import NoTokensError
from fastslots.models.slate.measurable import MeasurableSLATE
from fastslots.models.slate.model import SLATE
from fastslots.models.trainable import Trainable
from fastslots.pictures import save_panels

_MEASURED = ("cross_entropy", "mse", "relative_residual", "slots_used")


class TrainableSLATE(Trainable):
    """Two losses, the tokens' and the dVAE's, two groups of parameters, and the temperature ``tau``.

    Args:
        model: The model.
    """

    model: SLATE
    losses: ClassVar = {
        "cross_entropy": "nats per image",
        "mse": "squared error per image, of colours as the dVAE sees them",
    }
    looks: ClassVar = {"relative_residual": "a ratio", "slots_used": "slots per image"}
    step_line = "cross-entropy {cross_entropy:.1f}  mse {mse:.1f}  slots used {slots_used:.1f}"
    validation_line = (
        "held-out cross-entropy {cross_entropy:.1f} nats per image "
        "(unigram entropy {unigram_entropy:.1f}), mse {mse:.1f}, slots used {slots_used:.1f}"
    )

    def begin(self, images: ImageSet) -> None:
        """Fits the whitening, where the settings ask for it."""
        if self.model.whitening is not None:
            self.model.whitening.fit(images)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The dVAE, and all else that is not frozen."""
        dvae = {id(p) for p in self.model.dvae.parameters()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return {
            "dvae": [p for p in trained if id(p) in dvae],
            "main": [p for p in trained if id(p) not in dvae],
        }

    def forward(self, image: Tensor, keys: Tensor, **schedule: Tensor) -> tuple[Tensor, ...]:
        """Cross-entropy and squared error."""
        out = self.model(image, schedule["tau"], keys=keys)
        return out.cross_entropy, out.mse

    def look(self, image: Tensor, keys: Tensor) -> Tensor:
        """How well the slots have converged, and how many attend most to at least one token."""
        try:
            ids = self.model.tokenize(image)
        except NoTokensError:
            return image.new_full((2,), math.nan).double()
        slots, attn = self.model.encode(ids, keys=keys)
        return self._slot_sums(ids, slots, attn)

    @property
    def num_sums(self) -> int:
        """Of what is measured, and a count for each token."""
        return len(_MEASURED) + self.model.config.vocab_size

    def validation_sums(self, image: Tensor, keys: Tensor, **schedule: float) -> Tensor:
        """Both losses with greedy, one-hot tokens, what `look` gives, and how often each token occurs."""
        out = self.model(image, schedule["tau"], hard=True, keys=keys)
        losses = len(image) * torch.stack((out.cross_entropy, out.mse)).double()
        counts = torch.bincount(out.ids.flatten(), minlength=self.model.config.vocab_size)
        return torch.cat((losses, self._slot_sums(out.ids, out.slots, out.attn), counts))

    def validation_means(self, sums: Tensor, num_images: int) -> dict[str, float]:
        """Per image: both losses and their sum, what `look` gives, and the unigram entropy.

        ``unigram_entropy`` is what a code that knows only how often each token occurs would need for an
        image's tokens, in nats.
        """
        measured, counts = sums[: len(_MEASURED)].tolist(), sums[len(_MEASURED) :]
        cross_entropy, mse, residual, used = (value / num_images for value in measured)
        unigram = torch.special.entr(counts / counts.sum()).sum().item()
        return {
            "cross_entropy": cross_entropy,
            "mse": mse,
            "loss": (measured[0] + measured[1]) / num_images,
            "unigram_entropy": unigram * self.model.config.num_tokens,
            "relative_residual": residual,
            "slots_used": used,
        }

    def draw(self, image: Tensor, keys: Tensor, path: Path) -> None:
        """Image | dVAE | through the slots | segments | one panel per slot."""
        measurable = MeasurableSLATE(self.model)
        save_panels(path, *measurable.panels(image, measurable.look(image, keys)))

    def _slot_sums(self, ids: Tensor, slots: Tensor, attn: Tensor) -> Tensor:
        residual = self.model.residual(ids, slots).double().sum()
        return torch.stack((residual, slots_used(attn).sum()))
