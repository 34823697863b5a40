"""Runs a model over images and measures what it makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastslots.data.images import ImageSet, MaskedImageSet, check_not_empty, load_batch
from fastslots.evaluation.result import Evaluation
from fastslots.metrics import adjusted_rand_index, mean_best_overlap, slots_used, squared_error
from fastslots.models.modes import eval_mode
from fastslots.models.slate import SLATE, SLATELook
from fastslots.models.slate.checks import NoTokensError
from fastslots.noise import sample_keys
from fastslots.pictures import save_panels, segmentation
from fastslots_kernels.checks import check_count

_BROKEN = "the model gives {} for image {}: its weights are damaged, or its training diverged"
MASK_METRICS = ("fg_ari", "ari", "mean_best_overlap")


@torch.no_grad()
def evaluate(
    model: SLATE,
    images: ImageSet | MaskedImageSet,
    *,
    num_images: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    masks: bool | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Measures a model on images: tokens, reconstructions, and objects where their masks are known.

    The model is in eval mode meanwhile. Per image: the cross-entropy of its greedy tokens given its
    slots (teacher-forced), the squared errors of the dVAE's reconstruction of these tokens (not clamped,
    as in training) and of the reconstruction through the slots (generated greedily, clamped to [0, 1]),
    and the number of slots that win a token. The attention of the slots, repeated up to the size of
    the image, is compared with the true masks: FG-ARI, ARI and mean best overlap.

    The initial slots follow from the seed and the image's number: no other image and no batch size
    changes a value, except for rounding. Only a batch of images is kept at a time.

    Args:
        model: On any device, in any mode.
        images: The data set, of images of the model's size in [0, 1].
        num_images: Takes the first so many. Default: all.
        batch_size: Images at a time.
        seed: Of the initial slots.
        masks: True: they must be there. False: they are not looked at. Default: taken where they are.
        progress: Called with the number of images done after each batch.

    Returns:
        The values of all images.

    Raises:
        TypeError: If a number is no int, or an image no floating point tensor.
        ValueError: If a number breaks its rule, masks are asked for where there are none, there is no
            image, one has another size or values beyond [0, 1], or the model gives no finite numbers.
    """
    check_not_empty("images", images)
    count = len(images) if num_images is None else num_images
    if not 1 <= count <= len(images):
        raise ValueError(f"num_images must be from 1 to {len(images)}, all there are; got {count}")
    batch_size = check_count("batch_size", batch_size, 1)
    if masks and not isinstance(images, MaskedImageSet):
        raise ValueError(f"masks were asked for, but {type(images).__name__} has none")

    parts: dict[str, list[Tensor]] = defaultdict(list)
    occurrences = torch.zeros(model.config.vocab_size, dtype=torch.int64)
    with eval_mode(model):
        for first in range(0, count, batch_size):
            numbers = range(first, min(first + batch_size, count))
            image, true = _load(images, numbers, model)
            try:
                seen = model.look(image, _keys(numbers, seed, image))
            except NoTokensError as error:
                raise ValueError(_BROKEN.format("NaN", first + error.number)) from error
            scores = _scores(model, image, None if masks is False else true, seen)
            for name, values in scores.items():
                parts[name].append(_checked(name, values.cpu(), first))
            occurrences += torch.bincount(seen.ids.flatten().cpu(), minlength=len(occurrences))
            if progress is not None:
                progress(numbers.stop)
    scores = {name: torch.cat(values) for name, values in parts.items()}
    frequencies = occurrences.double() / occurrences.sum()
    unigram = torch.special.entr(frequencies).sum().item() * model.config.num_tokens
    return Evaluation(scores, unigram, seed, _unmeasured(scores, masks))


@torch.no_grad()
def draw_examples(
    model: SLATE, images: ImageSet | MaskedImageSet, evaluation: Evaluation, path: Path
) -> None:
    """Draws the examples of an evaluation: a row each, labelled with its rank and its score.

    Args:
        model: The model that was evaluated.
        images: What it was evaluated on.
        evaluation: The result.
        path: PNG file to write.

    Raises:
        OSError: If it cannot be written.
    """
    examples = evaluation.examples
    numbers = [example.image for example in examples]
    with eval_mode(model):
        image, true = _load(images, numbers, model)
        seen = model.look(image, _keys(numbers, evaluation.seed, image))
    save_panels(
        path,
        image.cpu(),
        seen.recon.clamp(0, 1).cpu(),
        seen.through_slots.cpu(),
        seen.attn.cpu(),
        None if true is None else true.cpu(),
        row_labels=[f"{example.rank} {example.score:.2f}" for example in examples],
    )


def _load(
    images: ImageSet | MaskedImageSet, numbers: Sequence[int], model: SLATE
) -> tuple[Tensor, Tensor | None]:
    """Some images in dtype and on the device of a model, and their masks there if they have any."""
    image, masks = load_batch(images, list(numbers), model.config.image_shape)
    return image.to(model.device, model.dtype), None if masks is None else masks.to(model.device)


def _keys(numbers: Sequence[int], seed: int, image: Tensor) -> Tensor:
    return sample_keys(numbers, seed, "evaluation").to(image.device)


def _scores(model: SLATE, image: Tensor, true: Tensor | None, seen: SLATELook) -> dict[str, Tensor]:
    """Every metric of every image of a batch, ``[B]`` float64."""
    num_values = image[0].numel()
    cross_entropy = model.token_cross_entropy(seen.ids, seen.slots, reduction="none").double()
    dvae_error = squared_error(image, seen.recon)
    slots_error = squared_error(image, seen.through_slots)
    scores = {
        "cross_entropy_nats_per_image": cross_entropy,
        "cross_entropy_nats_per_token": cross_entropy / model.config.num_tokens,
        "dvae_squared_error_per_image": dvae_error,
        "dvae_squared_error_per_value": dvae_error / num_values,
        "slots_squared_error_per_image": slots_error,
        "slots_squared_error_per_value": slots_error / num_values,
        "slots_used_per_image": slots_used(seen.attn),
    }
    return scores if true is None else scores | mask_scores(seen.attn, true)


def mask_scores(attn: Tensor, true: Tensor) -> dict[str, Tensor]:
    """`MASK_METRICS` of every image, ``[B]`` float64.

    Args:
        attn: Attention over the slots, ``[B, N, K]``.
        true: Number of the object at every pixel, ``[B, S, S]``.
    """
    segments = segmentation(attn, true.shape[-1])
    found = (
        adjusted_rand_index(true, segments, ignore_background=True),
        adjusted_rand_index(true, segments),
        mean_best_overlap(true, segments),
    )
    return dict(zip(MASK_METRICS, found, strict=True))


def _checked(name: str, values: Tensor, first: int) -> Tensor:
    """The values; raises for a NaN or infinity that is none of an image without objects."""
    broken = ~values.isfinite()
    if name not in MASK_METRICS and broken.any():
        index = int(broken.nonzero()[0])
        raise ValueError(_BROKEN.format(f"{name} = {values[index].item()}", first + index))
    return values


def _unmeasured(scores: dict[str, Tensor], masks: bool | None) -> dict[str, str]:
    """Why metrics have no mean."""
    absent = "masks were not asked for" if masks is False else "the images have no masks"
    reasons = {name: absent for name in MASK_METRICS if name not in scores}
    empty = [name for name, values in scores.items() if values.isnan().all()]
    return reasons | dict.fromkeys(empty, "no image has an object")
