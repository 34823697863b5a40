"""The autoencoder's recipe: its schedules, and its glue to the training engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastslots.metrics import slots_used, squared_error
from fastslots.models.autoencoder import SlotAutoencoderRecipe, TrainableSlotAutoencoder
from fastslots.models.autoencoder.recipe import CPU_SETTINGS
from fastslots.models.registry import MODELS
from fastslots.models.slate import SLATERecipe
from fastslots.noise import sample_keys
from fastslots.training.validation import validate
from tests.models.autoencoder.small_autoencoders import PATCHES, small_model, whitened_model
from tests.models.slate.small_models import images

KEYS = sample_keys(range(4), 0)


def recipe(**numbers: Any) -> SlotAutoencoderRecipe:
    given = {"lr_main": 2.0, "warmup_steps": 4, "steps": 100, "half_life": 10}
    return SlotAutoencoderRecipe(**(given | numbers))


def rates(steps: list[int], **numbers: Any) -> list[float]:
    found = [recipe(**numbers).rates(step) for step in steps]
    assert all(rate.keys() == {"main"} for rate in found)
    return [rate["main"] for rate in found]


def test_the_defaults_are_the_papers() -> None:
    numbers = SlotAutoencoderRecipe()
    assert (numbers.steps, numbers.batch_size, numbers.lr_main) == (500_000, 64, 4e-4)
    assert (numbers.warmup_steps, numbers.decay, numbers.half_life) == (
        10_000,
        "exponential",
        100_000,
    )
    assert (numbers.clip, numbers.muon, numbers.entropy, numbers.patience) == (math.inf, 0, 0, 0)


def test_warmup_rises_linearly_to_the_peak() -> None:
    assert rates([0, 1, 2, 3, 4, 99], decay="none") == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates([0, 1], decay="none", warmup_steps=0) == [2.0, 2.0]


def test_the_exponential_decay_halves_the_rate_from_the_first_step_on() -> None:
    found = rates([0, 10, 20, 25], warmup_steps=0)
    assert found == pytest.approx([2.0, 1.0, 0.5, 2 * 0.5**2.5], rel=1e-12)
    assert rates([1]) == pytest.approx([2.0 * 0.5 * 0.5**0.1], rel=1e-12)  # times the warm-up
    assert rates([10**6]) == [0.0]


def test_the_cosine_ends_at_0_and_stays() -> None:
    found = rates([0, 25, 50, 75, 100, 10_000], decay="cosine", warmup_steps=0)
    half = math.sqrt(0.5)
    assert found == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0, 0.0], rel=1e-12)
    assert rates([99], decay="cosine")[0] > 0
    assert rates([1], decay="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi / 100))])


def test_the_entropys_weight_rises_from_a_third_of_its_steps_on() -> None:
    numbers = recipe(entropy=0.03, entropy_steps=60)
    found = [numbers.schedule(step)["entropy_weight"] for step in (0, 20, 30, 40, 60, 99, 1_000)]
    assert found == pytest.approx([0, 0, 0.0075, 0.015, 0.03, 0.03, 0.03], rel=1e-12)
    assert recipe().schedule(50) == {"entropy_weight": 0.0}
    assert recipe(entropy=1.0, entropy_steps=1).schedule(0) == {"entropy_weight": 0.0}


def test_the_norm_that_clips_is_named() -> None:
    assert SlotAutoencoderRecipe().norm_name == "gradient_l2_norm"
    assert SLATERecipe().norm_name == "gradient_linf_norm"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"decay": "linear"}, r"decay must be one of \('exponential', 'cosine', 'none'\); got 'l"),
        ({"half_life": 0}, "half_life must be at least 1; got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0; got -1"),
        ({"lr_main": 0.0}, "lr_main must be above 0 and finite; got 0.0"),
        ({"entropy": -0.1}, "entropy must be at least 0 and finite; got -0.1"),
        ({"entropy": math.nan}, "entropy must be at least 0 and finite; got nan"),
        ({"entropy_steps": 0}, "entropy_steps must be at least 1; got 0"),
        ({"muon": -1.0}, "muon must be at least 0 and finite; got -1.0"),
        ({"muon": math.inf}, "muon must be at least 0 and finite; got inf"),
        ({"muon": "20"}, "muon must be a number; got '20'"),
        ({"clip": 0.0}, "clip must be above 0; got 0.0"),
        ({"steps": 1.5}, "steps must be an int; got 1.5"),
        ({"precision": "fp8"}, r"precision must be one of \('float32', .*; got 'fp8'"),
    ],
)
def test_a_bad_number_is_named(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SlotAutoencoderRecipe(**numbers)


def test_the_settings_for_a_cpu_are_settings() -> None:
    for known in MODELS.values():
        known.config(**known.cpu_settings["model"])
        known.recipe(**known.cpu_settings["recipe"])
    assert MODELS["autoencoder"].cpu_settings is CPU_SETTINGS


def test_the_losses_are_the_error_of_the_colours_and_the_weighted_entropy() -> None:
    trainable = TrainableSlotAutoencoder(whitened_model(torch.float32, **PATCHES))
    weight = torch.tensor(0.25)
    losses = trainable(images(4), KEYS, entropy_weight=weight)
    loss, entropy = trainable.model.losses(images(4), KEYS)
    assert torch.equal(losses[0], loss)
    assert torch.equal(losses[1], 0.25 * entropy)
    assert len(trainable.losses) == len(losses)
    assert 0 < entropy.item() <= math.log(3)


def test_a_validation_is_a_mean_over_images_whatever_the_batches() -> None:
    trainable = TrainableSlotAutoencoder(whitened_model(**PATCHES))
    image = images(4, dtype=torch.float64)
    whole = validate(trainable, [image], {"entropy_weight": 0.5}, seed=0)
    parts = validate(trainable, [image[:3], image[3:]], {"entropy_weight": 0.5}, seed=0)
    assert parts == pytest.approx(whole, rel=1e-9)
    assert whole.keys() == {"loss", "squared_error", "relative_residual", "slots_used"}


def test_a_look_says_what_the_model_makes_of_its_images() -> None:
    trainable = TrainableSlotAutoencoder(small_model(**PATCHES).double())
    image = images(4, dtype=torch.float64)
    with torch.no_grad():
        out = trainable.model(image, KEYS)
        found = trainable.look(image, KEYS)
    shown = out.masks.flatten(2).transpose(1, 2)
    expected = [
        squared_error(image, out.recon).sum(),
        trainable.model.residual(image, out.slots).sum(),
        slots_used(shown).sum(),
    ]
    assert found.tolist() == pytest.approx([float(value) for value in expected], rel=1e-12)
    assert len(trainable.looks) == 3
    assert 4 <= found[2] <= 12


def test_whitening_is_fitted_before_the_first_step_where_the_settings_ask_for_it() -> None:
    for whiten in (True, False):
        trainable = TrainableSlotAutoencoder(small_model(**PATCHES, whiten=whiten))
        before = trainable.model.whitening.matrix.clone()
        trainable.begin(list(images(4)))
        assert torch.equal(before, trainable.model.whitening.matrix) is not whiten
