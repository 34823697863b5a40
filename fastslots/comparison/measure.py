"""What a model makes of held-out scenes."""

from __future__ import annotations

from pathlib import Path

import torch

from fastslots.comparison.memory import SceneMemory
from fastslots.evaluation import evaluate
from fastslots.evaluation.measuring import MASK_METRICS, mask_scores
from fastslots.models.modes import eval_mode
from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.pictures import segmentation
from fastslots.training.validation import draw as draw_images
from fastslots.training.validation import validate, validation_keys

AT_A_TIME = 160
PICTURED = 8


@torch.no_grad()
def look(model: SLATE, heldout: SceneMemory, tau: float, seed: int) -> dict[str, float]:
    """Means over held-out scenes: those of `validate`, and how well attention finds the objects.

    Args:
        model: In any mode.
        heldout: The scenes.
        tau: Temperature of the relaxed tokens.
        seed: Of the initial slots.
    """
    parts = [
        heldout.batch(range(first, min(first + AT_A_TIME, len(heldout))))
        for first in range(0, len(heldout), AT_A_TIME)
    ]
    images = [part.images for part in parts]
    row = validate(TrainableSLATE(model), images, {"tau": tau}, seed)
    scores, first = [], 0
    with eval_mode(model):
        for part in parts:
            keys = validation_keys(first, len(part.images), seed).to(part.images.device)
            _, attn = model.encode(model.tokenize(part.images), keys=keys)
            segments = segmentation(attn, part.masks.shape[-1])
            scores.append(torch.stack(list(mask_scores(segments, part.masks).values())))
            first += len(part.images)
    means = torch.cat(scores, 1).nanmean(1).tolist()
    return row | dict(zip(MASK_METRICS, means, strict=True))


def draw(model: SLATE, heldout: SceneMemory, path: Path, seed: int) -> None:
    """Draws the first held-out scenes: image, dVAE, through the slots, segments, every slot."""
    images = heldout.batch(range(min(PICTURED, len(heldout)))).images
    draw_images(TrainableSLATE(model), images, path, seed)


def evaluation(model: SLATE, heldout: SceneMemory, seed: int) -> dict[str, list[float | None]]:
    """Mean and standard error of every metric of `fastslots evaluate`."""
    means = evaluate(model, heldout, batch_size=AT_A_TIME, seed=seed).means
    return {
        name: [mean.mean, mean.standard_error] for name, mean in means.items() if mean is not None
    }
