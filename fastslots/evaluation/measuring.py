"""Runs a model over images and measures what it makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastslots.data.images import ImageSet, MaskedImageSet, check_not_empty, load_batch
from fastslots.evaluation.result import Evaluation
from fastslots.metrics import adjusted_rand_index, mean_best_overlap
from fastslots.models.checks import NotFiniteError
from fastslots.models.modes import eval_mode
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.registry import measurable_of
from fastslots.noise import sample_keys
from fastslots.pictures import save_panels
from fastslots_kernels.checks import check_count

_BROKEN = "the model gives {} for image {}: its weights are damaged, or its training diverged"
MASK_METRICS = ("fg_ari", "ari", "mean_best_overlap")


@torch.no_grad()
def evaluate(
    model: PretrainedModel,
    images: ImageSet | MaskedImageSet,
    *,
    num_images: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    masks: bool | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Measures a model on images: its reconstructions, and objects where their masks are known.

    The model is in eval mode meanwhile. What is measured says the model's `Measurable`: of a SLATE also its
    tokens (`MeasurableSLATE`), of a slot autoencoder the errors, the slots in use and the segments of its
    masks (`MeasurableSlotAutoencoder`). Segments are compared with the true masks: FG-ARI, ARI and mean best
    overlap. Those of a SLATE follow from the attention of its slots, repeated up to the size of the image,
    which is all that it has; those of a slot autoencoder from the decoder's masks, and once more from the
    attention, whose metrics have names of their own (``attention_fg_ari``).

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
        TypeError: If the model is of no known kind, a number is no int, or an image no floating point tensor.
        ValueError: If a number breaks its rule, masks are asked for where there are none, there is no
            image, one has another size or values beyond [0, 1], or the model gives no finite numbers.
    """
    measurable = measurable_of(model)
    count, batch_size = check_request(
        images, num_images=num_images, batch_size=batch_size, masks=masks
    )
    parts: dict[str, list[Tensor]] = defaultdict(list)
    counts: Tensor | None = None
    with eval_mode(model):
        for first in range(0, count, batch_size):
            numbers = range(first, min(first + batch_size, count))
            image, true = _load(images, numbers, model)
            try:
                seen = measurable.look(image, _keys(numbers, seed, image))
            except NotFiniteError as error:
                raise ValueError(_BROKEN.format("NaN", first + error.number)) from error
            for name, values in measurable.scores(image, seen).items():
                parts[name].append(_checked(name, values.cpu(), first))
            if true is not None and masks is not False:
                for prefix, segments in measurable.segments(seen).items():
                    for name, values in mask_scores(segments, true).items():
                        parts[prefix + name].append(values.cpu())
            occurrences = measurable.counts(seen).cpu()
            counts = occurrences if counts is None else counts + occurrences
            if progress is not None:
                progress(numbers.stop)
    assert counts is not None  # there is an image at least
    scores = {name: torch.cat(values) for name, values in parts.items()}
    return Evaluation(
        scores,
        measurable.overall(counts, count),
        seed,
        _unmeasured(scores, masks, measurable.segmentations),
        measurable.ranked_by,
    )


def check_request(
    images: ImageSet | MaskedImageSet,
    *,
    num_images: int | None = None,
    batch_size: int = 32,
    masks: bool | None = None,
) -> tuple[int, int]:
    """How many images are measured, and how many at a time; arguments and errors are those of `evaluate`."""
    check_not_empty("images", images)
    count = len(images) if num_images is None else num_images
    if not 1 <= count <= len(images):
        raise ValueError(f"num_images must be from 1 to {len(images)}, all there are; got {count}")
    if masks and not isinstance(images, MaskedImageSet):
        raise ValueError(f"masks were asked for, but {type(images).__name__} has none")
    return count, check_count("batch_size", batch_size, 1)


@torch.no_grad()
def draw_examples(
    model: PretrainedModel, images: ImageSet | MaskedImageSet, evaluation: Evaluation, path: Path
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
    measurable = measurable_of(model)
    examples = evaluation.examples
    numbers = [example.image for example in examples]
    with eval_mode(model):
        image, true = _load(images, numbers, model)
        seen = measurable.look(image, _keys(numbers, evaluation.seed, image))
        columns, slots = measurable.panels(image, seen, true)
    labels = [f"{example.rank} {example.score:.2f}" for example in examples]
    save_panels(path, columns, slots, row_labels=labels)


def _load(
    images: ImageSet | MaskedImageSet, numbers: Sequence[int], model: PretrainedModel
) -> tuple[Tensor, Tensor | None]:
    """Some images in dtype and on the device of a model, and their masks there if they have any."""
    image, masks = load_batch(images, list(numbers), model.config.image_shape)
    return image.to(model.device, model.dtype), None if masks is None else masks.to(model.device)


def _keys(numbers: Sequence[int], seed: int, image: Tensor) -> Tensor:
    return sample_keys(numbers, seed, "evaluation").to(image.device)


def mask_scores(segments: Tensor, true: Tensor) -> dict[str, Tensor]:
    """`MASK_METRICS` of every image, ``[B]`` float64.

    Args:
        segments: Number of the slot at every pixel, ``[B, S, S]`` of an integer dtype.
        true: Number of the object at every pixel, ``[B, S, S]``.
    """
    found = (
        adjusted_rand_index(true, segments, ignore_background=True),
        adjusted_rand_index(true, segments),
        mean_best_overlap(true, segments),
    )
    return dict(zip(MASK_METRICS, found, strict=True))


def _checked(name: str, values: Tensor, first: int) -> Tensor:
    """The values; raises for a NaN or infinity."""
    broken = ~values.isfinite()
    if broken.any():
        index = int(broken.nonzero()[0])
        raise ValueError(_BROKEN.format(f"{name} = {values[index].item()}", first + index))
    return values


def _unmeasured(
    scores: dict[str, Tensor], masks: bool | None, segmentations: Collection[str]
) -> dict[str, str]:
    """Why metrics have no mean."""
    absent = "masks were not asked for" if masks is False else "the images have no masks"
    names = [prefix + name for prefix in segmentations for name in MASK_METRICS]
    reasons = {name: absent for name in names if name not in scores}
    empty = [name for name, values in scores.items() if values.isnan().all()]
    return reasons | dict.fromkeys(empty, "no image has an object")
