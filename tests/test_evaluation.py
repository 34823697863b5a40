"""Evaluation against the model's own methods, image by image."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fastslots.data.scenes import Scenes
from fastslots.evaluation import Evaluation, draw_examples, evaluate
from fastslots.metrics import adjusted_rand_index, mean_best_overlap
from fastslots.models.registry import measurable_of, trainable_of
from fastslots.models.slate import SLATE, SLATEConfig
from fastslots.noise import sample_keys
from fastslots.pictures import attended_slots, segmentation, tinted_objects, tinted_segments
from tests.training.colours import ColourConfig, ColourModel

SIZE = 16
NUM_IMAGES = 7
MASK_METRICS = ["fg_ari", "ari", "mean_best_overlap"]


def make_model(dtype: torch.dtype = torch.float64, **changes: Any) -> SLATE:
    """An untrained model whose tokens and attention differ from image to image."""
    settings: dict[str, Any] = {
        "image_size": SIZE,
        "vocab_size": 12,
        "d_model": 8,
        "num_decoder_blocks": 1,
        "num_decoder_heads": 2,
        "dropout": 0.5,
        "num_slots": 3,
        "slot_size": 8,
        "mlp_hidden_size": 8,
        "num_iterations": 2,
    }
    torch.manual_seed(0)
    model = SLATE(SLATEConfig(**settings | changes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


class Images:
    """Random images ``[3, S, S]``; remembers which were asked for at a time."""

    def __init__(self, count: int = NUM_IMAGES) -> None:
        self.images = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.asked.append(indices)
        return [self.images[i] for i in indices]


class MaskedImages(Images):
    """The same with random masks, of up to three objects."""

    def __init__(self, count: int = NUM_IMAGES) -> None:
        super().__init__(count)
        generator = torch.Generator().manual_seed(2)
        self.masks = torch.randint(4, (count, SIZE, SIZE), generator=generator, dtype=torch.uint8)

    def batch(self, indices: Sequence[int]) -> SimpleNamespace:
        chosen = list(indices)
        return SimpleNamespace(images=self.images[chosen], masks=self.masks[chosen])


def keys_of(index: int, seed: int = 0) -> Tensor:
    return sample_keys([index], seed, "evaluation")


def attention(model: SLATE, images: Images) -> Tensor:
    model.eval()
    batch = images.images.to(model.out.weight)
    keys = sample_keys(range(len(images)), 0, "evaluation")
    with torch.no_grad():
        return model.encode(model.tokenize(batch), keys=keys)[1]


def test_every_number_is_that_of_the_models_own_methods_on_the_image_alone() -> None:
    model, images = make_model(), Images()
    scores = evaluate(model, images, batch_size=4).scores
    model.eval()
    num_values, num_tokens = 3 * SIZE**2, (SIZE // 4) ** 2
    for index in range(NUM_IMAGES):
        image = images.images[index : index + 1].double()
        with torch.no_grad():
            out = model(image, 0.7, hard=True, keys=keys_of(index))
            through_slots = model.reconstruct(image, keys=keys_of(index))
        slots_error = (image - through_slots).square().sum().item()
        expected = {
            "cross_entropy_nats_per_image": out.cross_entropy.item(),
            "cross_entropy_nats_per_token": out.cross_entropy.item() / num_tokens,
            "dvae_squared_error_per_image": out.mse.item(),
            "dvae_squared_error_per_value": out.mse.item() / num_values,
            "slots_squared_error_per_image": slots_error,
            "slots_squared_error_per_value": slots_error / num_values,
            "slots_used_per_image": len(set(out.attn.argmax(2).flatten().tolist())),
        }
        actual = {name: values[index].item() for name, values in scores.items()}
        assert actual == pytest.approx(expected, rel=1e-9)
    assert len(scores["slots_squared_error_per_image"].unique()) > 3


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model, images = make_model(), MaskedImages()
    expected = evaluate(model, images, batch_size=4)
    actual = evaluate(model, images, batch_size=batch_size)
    assert actual.scores.keys() == expected.scores.keys()
    for name, values in expected.scores.items():
        torch.testing.assert_close(actual.scores[name], values, rtol=1e-9, atol=1e-12)
    assert actual.overall == expected.overall
    assert actual.num_images == NUM_IMAGES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same() -> None:
    here, images = make_model(), MaskedImages()
    there = evaluate(make_model().cuda(), images)
    for name, values in evaluate(here, images).scores.items():
        torch.testing.assert_close(there.scores[name], values, rtol=1e-6, atol=1e-6)


def test_the_number_of_images_does_not_change_the_first_ones() -> None:
    model, images = make_model(), Images()
    few, all_of_them = evaluate(model, images, num_images=3), evaluate(model, images)
    for name, values in all_of_them.scores.items():
        torch.testing.assert_close(few.scores[name], values[:3], rtol=1e-9, atol=1e-12)


def test_only_a_batch_is_asked_for_at_a_time() -> None:
    images = Images()
    done: list[int] = []
    evaluate(make_model(), images, num_images=6, batch_size=4, progress=done.append)
    assert images.asked == [[0, 1, 2, 3], [4, 5]]
    assert done == [4, 6]


def test_takes_a_data_set_that_gives_one_image_at_a_time() -> None:
    model, images = make_model(), Images(3)
    actual = evaluate(model, list(images.images))  # a list serves as well
    torch.testing.assert_close(actual.scores, evaluate(model, images).scores)


def test_the_seed_decides_the_initial_slots_and_nothing_else_is_drawn() -> None:
    model, images = make_model(), Images()
    first = evaluate(model, images, seed=0).scores["cross_entropy_nats_per_image"]
    state = torch.get_rng_state()
    again = evaluate(model, images, seed=0).scores["cross_entropy_nats_per_image"]
    other = evaluate(model, images, seed=1).scores["cross_entropy_nats_per_image"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_gets_its_mode_back(training: bool) -> None:
    model, images = make_model().train(training), Images()
    evaluate(model, images)
    assert model.training is training
    model.out.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="weights"):
        evaluate(model, images)
    assert model.training is training


def test_unigram_entropy_is_that_of_the_tokens_of_all_images() -> None:
    model, images = make_model(), Images()
    ids = model.tokenize(images.images.double()).flatten().tolist()
    shares = [count / len(ids) for count in Counter(ids).values()]
    assert len(shares) > 1
    expected = -sum(p * math.log(p) for p in shares) * len(ids) / NUM_IMAGES
    result = evaluate(model, images, batch_size=2)
    assert result.overall == {"unigram_entropy_nats_per_image": pytest.approx(expected, rel=1e-12)}
    unigram = result.overall["unigram_entropy_nats_per_image"]
    assert result.means["unigram_entropy_nats_per_image"] == (unigram, None, NUM_IMAGES)


def test_masks_are_compared_with_the_attention_of_the_slots() -> None:
    model, images = make_model(), MaskedImages()
    scores = evaluate(model, images).scores
    segments = segmentation(attention(model, images), SIZE)
    assert len(segments.flatten(1).unique(dim=0)) > 1
    foreground = adjusted_rand_index(images.masks, segments, ignore_background=True)
    assert torch.equal(scores["fg_ari"], foreground)
    assert torch.equal(scores["ari"], adjusted_rand_index(images.masks, segments))
    assert torch.equal(scores["mean_best_overlap"], mean_best_overlap(images.masks, segments))


def test_slots_that_are_the_objects_score_1() -> None:
    model, images = make_model(), MaskedImages()
    images.masks = segmentation(attention(model, images), SIZE) + 1
    means = evaluate(model, images).means
    assert [means[name] for name in MASK_METRICS] == [(1.0, 0.0, NUM_IMAGES)] * 3


def test_the_rendered_scenes_have_masks() -> None:
    model, scenes = make_model(torch.float32), Scenes(5, split="test", image_size=SIZE)
    result = evaluate(model, scenes, batch_size=2)
    assert result.unmeasured == {}
    masks, attn = scenes.batch(range(5)).masks, attention(model, _held(scenes))
    expected = adjusted_rand_index(masks, segmentation(attn, SIZE), ignore_background=True)
    torch.testing.assert_close(result.scores["fg_ari"], expected)


def _held(scenes: Scenes) -> Images:
    images = Images(len(scenes))
    images.images = scenes.batch(range(len(scenes))).images
    return images


def test_images_without_masks_have_no_such_metrics_and_say_why() -> None:
    result = evaluate(make_model(), Images())
    assert [result.means[name] for name in MASK_METRICS] == [None] * 3
    assert result.unmeasured == dict.fromkeys(MASK_METRICS, "the images have no masks")
    assert result.ranked_by == "slots_squared_error_per_image"


def test_masks_may_be_left_out() -> None:
    model, images = make_model(), MaskedImages()
    without, plain = evaluate(model, images, masks=False), evaluate(model, Images())
    assert without.unmeasured == dict.fromkeys(MASK_METRICS, "masks were not asked for")
    torch.testing.assert_close(without.scores, plain.scores)


def test_images_without_objects_are_not_counted() -> None:
    images = MaskedImages()
    images.masks[2] = 0
    result = evaluate(make_model(), images)
    counts = {name: mean.images for name, mean in result.means.items() if mean is not None}
    assert counts["fg_ari"] == counts["mean_best_overlap"] == NUM_IMAGES - 1
    assert counts["ari"] == counts["slots_used_per_image"] == NUM_IMAGES
    objects = result.scores["fg_ari"][[0, 1, 3, 4, 5, 6]]
    assert result.means["fg_ari"] is not None
    assert result.means["fg_ari"].mean == pytest.approx(objects.mean().item(), rel=1e-12)
    assert 2 not in [example.image for example in result.examples]


def test_a_split_without_objects_says_so() -> None:
    images = MaskedImages()
    images.masks.zero_()
    result = evaluate(make_model(), images)
    reason = "no image has an object"
    assert result.unmeasured == {"fg_ari": reason, "mean_best_overlap": reason}
    assert result.means["fg_ari"] is None
    assert result.means["ari"] is not None
    assert result.ranked_by == "slots_squared_error_per_image"


def made_of(scores: list[float], name: str = "fg_ari") -> Evaluation:
    values = {"slots_squared_error_per_image": torch.ones(len(scores)).double()}
    values[name] = torch.tensor(scores, dtype=torch.float64)
    unmeasured = {} if name == "fg_ari" else {"fg_ari": "the images have no masks"}
    return Evaluation(values, {}, 0, unmeasured, "slots_squared_error_per_image")


def test_means_and_their_standard_errors() -> None:
    values = [0.5, 0.1, 0.9, 0.2]
    mean = made_of(values).means["fg_ari"]
    assert mean == pytest.approx((0.425, statistics.stdev(values) / 2, 4), rel=1e-12)
    with_nan = made_of([*values, math.nan]).means["fg_ari"]
    assert with_nan == mean
    assert made_of([0.5]).means["fg_ari"] == (0.5, None, 1)


@pytest.mark.parametrize(
    ("scores", "examples"),
    [
        ([0.2, 0.9, 0.5, 0.1, 0.4], [("best", 1), ("median", 4), ("worst", 3)]),
        ([0.2, 0.9, 0.5, 0.1, 0.4, math.nan], [("best", 1), ("median", 4), ("worst", 3)]),
        ([0.2, 0.9, 0.5, 0.1], [("best", 1), ("median", 2), ("worst", 3)]),
        ([0.5, 0.5, 0.5], [("best", 0), ("median", 1), ("worst", 2)]),
        ([0.1, 0.9], [("best", 1), ("worst", 0)]),
        ([0.1], [("best", 0)]),
    ],
    ids=["odd", "nan", "even", "ties", "two", "one"],
)
def test_the_best_the_median_and_the_worst_image(
    scores: list[float], examples: list[tuple[str, int]]
) -> None:
    result = made_of(scores)
    assert result.ranked_by == "fg_ari"
    assert [(e.rank, e.image) for e in result.examples] == examples
    assert [e.score for e in result.examples] == [scores[image] for _, image in examples]


def test_without_masks_the_smallest_error_is_the_best() -> None:
    result = made_of([3.0, 1.0, 2.0], "slots_squared_error_per_image")
    assert [(e.rank, e.image) for e in result.examples] == [
        ("best", 1),
        ("median", 2),
        ("worst", 0),
    ]


@pytest.mark.parametrize("cls", [Images, MaskedImages])
def test_draws_a_row_for_each_example(cls: type[Images], tmp_path: Path) -> None:
    model, images = make_model(torch.float32), cls()
    result = evaluate(model, images)
    draw_examples(model, images, result, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
    assert pixels.shape[0] == 32 + 3 * 128 + 2 * 4 + 12
    columns = 7 + (cls is MaskedImages)
    left = pixels.shape[1] - 12 - columns * 132 + 4
    for row, example in enumerate(result.examples):
        top = 32 + row * 132
        panel = pixels[top : top + 128 : 8, left : left + 128 : 8].permute(2, 0, 1)
        assert torch.equal(panel, images.images[example.image].mul(255).round().byte())


@pytest.mark.parametrize("cls", [Images, MaskedImages])
def test_shows_the_image_both_reconstructions_the_segments_and_what_slots_attend_to(
    cls: type[Images],
) -> None:
    model, images = make_model(torch.float32).eval(), cls()
    image, masks = images.images, getattr(images, "masks", None)
    keys, measurable = sample_keys(range(NUM_IMAGES), 0, "evaluation"), measurable_of(model)
    columns, slots = measurable.panels(image, measurable.look(image, keys), masks)
    attn = attention(model, images)
    expected = {
        "image": image,
        "dVAE": model.dvae.decode_ids(model.tokenize(image)).clamp(0, 1),
        "slots": model.reconstruct(image, keys=keys),
        "segments": tinted_segments(image, segmentation(attn, SIZE)),
    }
    objects = {} if masks is None else {"objects": tinted_objects(image, masks)}
    assert list(columns) == ["image", "dVAE", "slots", *objects, "segments"]
    for name, column in (expected | objects).items():
        assert torch.equal(columns[name], column), name
    assert torch.equal(slots, attended_slots(image, attn))


@pytest.mark.parametrize("num_images", [0, -1, NUM_IMAGES + 1])
def test_rejects_a_number_of_images_that_is_not_there(num_images: int) -> None:
    message = f"^num_images must be from 1 to 7, all there are; got {num_images}$"
    with pytest.raises(ValueError, match=message):
        evaluate(make_model(), Images(), num_images=num_images)


def test_rejects_a_data_set_without_images() -> None:
    with pytest.raises(ValueError, match=r"^images must hold at least one image; got 0$"):
        evaluate(make_model(), Images(0))


def test_rejects_a_model_of_no_known_kind() -> None:
    model = ColourModel(ColourConfig())
    message = r"^model must be a SLATE or SlotAutoencoder; got ColourModel$"
    for call in (lambda: evaluate(model, Images()), lambda: trainable_of(model)):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("cls", [Images, MaskedImages])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (255 * x).byte(), TypeError, "be floating point in [0, 1]; got torch.uint8"),
        (lambda x: 255 * x, ValueError, "lie in [0, 1]; got 0."),
        (lambda x: x.where(x < 0.9, math.inf), ValueError, "to inf: divide"),
        (lambda x: x[:, :, :8], ValueError, "have the model's shape (3, 16, 16); got (3, 8, 16)"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, "(3, 16, 16); got (16, 16, 3)"),
    ],
    ids=["uint8", "255", "inf", "size", "channels-last"],
)
def test_rejects_images_that_are_not_the_models(
    cls: type[Images], change: Any, error: type[Exception], message: str
) -> None:
    images = cls()
    images.images = change(images.images)
    with pytest.raises(error, match=rf"^images\[0\] must .*{re.escape(message)}"):
        evaluate(make_model(), images)


def test_names_the_image_that_is_not_in_range() -> None:
    images = Images()
    images.images[5] *= 2
    with pytest.raises(ValueError, match=r"^images\[5\] must lie in \[0, 1\]; got 0\..* to 1\.9"):
        evaluate(make_model(), images, batch_size=2)


def test_rejects_a_batch_without_images() -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1; got 0$"):
        evaluate(make_model(), Images(), batch_size=0)


def test_rejects_asking_for_masks_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"^masks were asked for, but Images has none$"):
        evaluate(make_model(), Images(), masks=True)


def test_a_model_that_gives_no_finite_numbers_is_named() -> None:
    model = make_model()
    model.out.weight.data[0] = math.nan
    message = (
        r"^the model gives NaN for image 0: its weights are damaged, or its training diverged$"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(model, Images())


def test_the_image_that_breaks_a_model_is_named() -> None:
    model, images = make_model(), Images()
    images.images[5] = math.nan
    with pytest.raises(ValueError, match=r"^the model gives NaN for image 5: its weights are"):
        evaluate(model, images, batch_size=2)


@pytest.mark.parametrize("training", [True, False])
def test_a_slate_segments_by_its_attention_without_dropout(training: bool) -> None:
    model, images = make_model(), Images()
    image, keys = images.images.double(), sample_keys(range(NUM_IMAGES), 0, "evaluation")
    expected = segmentation(attention(model, images), SIZE)
    actual = model.train(training).segment(image, keys=keys)
    assert actual.dtype == torch.int64
    assert torch.equal(actual, expected.long())
    slots = torch.randn(NUM_IMAGES, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        attn = model.eval().encode(model.tokenize(image), slots)[1]
    assert torch.equal(model.train(training).segment(image, slots), segmentation(attn, SIZE).long())
    with pytest.raises(
        ValueError, match=r"^slots must have shape \(7, K, 8\) with K at least 1; got"
    ):
        model.segment(image, slots[:2])
