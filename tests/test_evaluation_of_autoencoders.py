"""Evaluation of slot autoencoders against their own methods, image by image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fastslots.evaluation import draw_examples, evaluate
from fastslots.metrics import adjusted_rand_index, mean_best_overlap
from fastslots.models.autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from fastslots.models.registry import measurable_of, trainable_of
from fastslots.noise import sample_keys
from fastslots.pictures import segmentation, tinted_objects, tinted_segments
from tests.test_evaluation import MASK_METRICS, NUM_IMAGES, SIZE, Images, MaskedImages, keys_of

ALL_MASK_METRICS = [prefix + name for prefix in ("", "attention_") for name in MASK_METRICS]
BACKBONES = pytest.mark.parametrize("backbone", ["pixels", "patches"])


def make_model(
    dtype: torch.dtype = torch.float64, backbone: str = "patches", **changes: Any
) -> SlotAutoencoder:
    """An untrained model whose masks and attention differ from image to image, and from each other."""
    settings: dict[str, Any] = {
        "image_size": SIZE,
        "backbone": backbone,
        "width": 8,
        "num_slots": 3,
        "slot_size": 8,
        "mlp_hidden_size": 8,
        "num_iterations": 2,
    }
    torch.manual_seed(0)
    model = SlotAutoencoder(SlotAutoencoderConfig(**settings | changes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def all_keys() -> Tensor:
    return sample_keys(range(NUM_IMAGES), 0, "evaluation")


@BACKBONES
def test_every_number_is_that_of_the_models_own_methods_on_the_image_alone(backbone: str) -> None:
    model, images = make_model(backbone=backbone), Images()
    result = evaluate(model, images, batch_size=4)
    assert result.overall == {}
    model.eval()
    for index in range(NUM_IMAGES):
        image = images.images[index : index + 1].double()
        recon = model.reconstruct(image, keys=keys_of(index))
        error = (image - recon).square().sum().item()
        segments = model.segment(image, keys=keys_of(index))
        expected = {
            "squared_error_per_image": error,
            "squared_error_per_value": error / (3 * SIZE**2),
            "slots_used_per_image": len(set(segments.flatten().tolist())),
        }
        actual = {name: values[index].item() for name, values in result.scores.items()}
        assert actual == pytest.approx(expected, rel=1e-9)
    assert len(result.scores["squared_error_per_image"].unique()) > 3
    assert result.num_images == NUM_IMAGES


@BACKBONES
def test_masks_are_compared_with_the_decoders_and_apart_with_the_attention(backbone: str) -> None:
    model, images = make_model(backbone=backbone), MaskedImages()
    scores = evaluate(model, images, batch_size=3).scores
    model.eval()
    image, keys, true = images.images.double(), all_keys(), images.masks
    of_masks = model.segment(image, keys=keys)
    with torch.no_grad():
        of_attention = segmentation(model.encode(image, keys=keys)[1], SIZE)
    assert not torch.equal(of_masks, of_attention)
    for prefix, segments in (("", of_masks), ("attention_", of_attention)):
        assert len(segments.flatten(1).unique(dim=0)) > 1
        foreground = adjusted_rand_index(true, segments, ignore_background=True)
        assert torch.equal(scores[f"{prefix}fg_ari"], foreground)
        assert torch.equal(scores[f"{prefix}ari"], adjusted_rand_index(true, segments))
        assert torch.equal(scores[f"{prefix}mean_best_overlap"], mean_best_overlap(true, segments))


def test_masks_that_are_the_objects_score_1_whatever_the_attention() -> None:
    model, images = make_model(), MaskedImages()
    segments = model.eval().segment(images.images.double(), keys=all_keys())
    images.masks = segments.to(torch.uint8) + 1
    result = evaluate(model, images)
    assert [result.means[name] for name in MASK_METRICS] == [(1.0, 0.0, NUM_IMAGES)] * 3
    assert not any(result.means[f"attention_{name}"] == (1.0, 0.0, 7) for name in MASK_METRICS)
    assert result.ranked_by == "fg_ari"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model, images = make_model(), MaskedImages()
    expected = evaluate(model, images, batch_size=4)
    actual = evaluate(model, images, batch_size=batch_size)
    assert actual.scores.keys() == expected.scores.keys()
    for name, values in expected.scores.items():
        torch.testing.assert_close(actual.scores[name], values, rtol=1e-9, atol=1e-12)


def test_images_without_masks_have_no_such_metrics_and_say_why() -> None:
    model = make_model()
    result = evaluate(model, Images())
    assert [result.means[name] for name in ALL_MASK_METRICS] == [None] * 6
    assert result.unmeasured == dict.fromkeys(ALL_MASK_METRICS, "the images have no masks")
    assert result.ranked_by == "squared_error_per_image"
    errors = result.scores["squared_error_per_image"]
    assert result.examples[0].image == int(errors.argmin())
    without = evaluate(model, MaskedImages(), masks=False)
    assert without.unmeasured == dict.fromkeys(ALL_MASK_METRICS, "masks were not asked for")
    torch.testing.assert_close(without.scores, result.scores)


def test_images_without_objects_are_not_counted() -> None:
    images = MaskedImages()
    images.masks[2] = 0
    result = evaluate(make_model(), images)
    counts = {name: mean.images for name, mean in result.means.items() if mean is not None}
    assert counts == dict.fromkeys(counts, NUM_IMAGES) | {
        prefix + name: NUM_IMAGES - 1
        for prefix in ("", "attention_")
        for name in ("fg_ari", "mean_best_overlap")
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same() -> None:
    here, images = make_model(), MaskedImages()
    there = evaluate(make_model().cuda(), images)
    for name, values in evaluate(here, images).scores.items():
        torch.testing.assert_close(there.scores[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", [Images, MaskedImages])
def test_shows_reconstruction_masks_attention_and_what_slots_paint(cls: type[Images]) -> None:
    model, images = make_model(torch.float32).eval(), cls()
    image, true = images.images, getattr(images, "masks", None)
    measurable = measurable_of(model)
    columns, slots = measurable.panels(image, measurable.look(image, all_keys()), true)
    with torch.no_grad():
        final_slots, attn = model.encode(image, keys=all_keys())
        painted, masks = model.decode(final_slots)
    expected = {
        "image": image,
        "recon": model.reconstruct(image, keys=all_keys()),
        "masks": tinted_segments(image, model.segment(image, keys=all_keys())),
        "attention": tinted_segments(image, segmentation(attn, SIZE)),
    }
    objects = {} if true is None else {"objects": tinted_objects(image, true)}
    assert list(columns) == ["image", "recon", *objects, "masks", "attention"]
    for name, column in (expected | objects).items():
        assert torch.equal(columns[name], column), name
    weights = masks.unsqueeze(2)
    torch.testing.assert_close(slots, painted.clamp(0, 1) * weights + 1 - weights)


def test_a_run_and_an_evaluation_draw_the_same_panels(tmp_path: Path) -> None:
    model, images = make_model(torch.float32).eval(), Images(3)
    result = evaluate(model, images)
    draw_examples(model, images, result, tmp_path / "examples.png")
    numbers = [example.image for example in result.examples]
    keys = sample_keys(numbers, 0, "evaluation")
    with torch.no_grad():
        trainable_of(model).draw(images.images[numbers], keys, tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as run, Image.open(tmp_path / "examples.png") as examples:
        assert run.size == (12 + 7 * 132 - 4 + 12, 32 + 3 * 132 - 4 + 12)
        labels = examples.width - run.width
        assert labels > 40  # beside the rows of the evaluation
        area = (labels + 12, 0, examples.width, examples.height)
        assert examples.crop(area).tobytes() == run.crop((12, 0, *run.size)).tobytes()


@pytest.mark.parametrize("cls", [Images, MaskedImages])
@pytest.mark.parametrize(
    ("tensor", "entry"),
    [
        pytest.param("slot_encoder.mlp.0.bias", 0, id="everything"),
        pytest.param("whitening.inverse", 0, id="colours"),
        pytest.param("decoder.out.bias", -1, id="masks"),
    ],
)
def test_a_model_that_gives_no_finite_numbers_is_named(
    cls: type[Images], tensor: str, entry: int
) -> None:
    model = make_model()
    model.state_dict()[tensor][entry] = math.nan
    message = r"^the model gives squared_error_per_image = nan for image 0: its weights are damaged"
    with pytest.raises(ValueError, match=message):
        evaluate(model, cls())


def test_the_image_that_breaks_a_model_is_named() -> None:
    model, images = make_model(), MaskedImages()
    images.images[5] = math.nan
    with pytest.raises(
        ValueError, match=r"^the model gives squared_error_per_image = nan for image 5"
    ):
        evaluate(model, images, batch_size=2)
