"""SLATE in 16 bits: finite, near float32, and NaN stays visible where it comes."""

from __future__ import annotations

import pytest
import torch

from fastslots.evaluation import evaluate
from fastslots.metrics import slots_used
from fastslots.models.slate import SLATE
from fastslots.noise import sample_keys
from fastslots.pictures import segmentation
from tests.models.slate.small_models import images, small_config, small_model

KEYS = sample_keys(range(5), 0)
NARROW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_losses_and_gradients_in_16_bits_are_near_those_of_float32(
    dtype: torch.dtype, backend: str
) -> None:
    results = []
    for kind in (dtype, torch.float32):
        torch.manual_seed(0)
        model = SLATE(small_config(backend=backend, gradient="neumann", dropout=0.1))
        model = model.to(dtype).to(kind)  # the same rounded weights
        out = model(images().to(dtype).to(kind), 1.0, keys=KEYS)
        (out.cross_entropy + out.mse).backward()
        assert out.cross_entropy.dtype == out.mse.dtype == torch.float32
        assert out.slots.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        results.append(torch.stack((out.cross_entropy, out.mse)))
    torch.testing.assert_close(*results, rtol=0.02, atol=0)


def test_a_squared_error_above_what_float16_holds_is_finite() -> None:
    torch.manual_seed(0)
    model = SLATE(small_config()).half()
    with torch.no_grad():
        model.dvae.decoder[-1].bias.fill_(50.0)  # 5 x 3 x 16 x 16 values of 2500 and more
    mse = model(images().half(), keys=KEYS).mse
    assert 1e6 < mse.item() < 1e7


def broken_model(part: str) -> SLATE:
    model = small_model().eval()
    with torch.no_grad():
        {
            "dvae": model.dvae.encoder[-1].weight,
            "slots": model.slot_attn.slot_attention.project_q.weight,
            "decoder": model.tf_dec.layer_norm.weight,
            "out": model.out.weight,
        }[part].fill_(torch.nan)
    return model


@pytest.mark.parametrize("part", ["slots", "decoder", "out"])
def test_tokens_are_not_generated_from_nan(part: str) -> None:
    model, image = broken_model(part), images(2)
    with pytest.raises(ValueError, match="slots must lead to tokens; got NaN for number 0"):
        model.reconstruct(image)
    slots, _ = model.encode(model.tokenize(image))
    with pytest.raises(ValueError, match="slots must lead to tokens; got NaN for number 0"):
        model.generate(slots)


def test_the_image_with_nan_is_named() -> None:
    model, image = small_model().eval(), images(3)
    image[2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="image must lead to tokens; got NaN for number 2"):
        model.tokenize(image)
    with pytest.raises(ValueError, match="image must lead to tokens; got NaN for number 2"):
        model.reconstruct(image)
    slots = model.encode(model.tokenize(images(3)))[0].detach().clone()
    slots[1] = torch.nan
    with pytest.raises(ValueError, match="slots must lead to tokens; got NaN for number 1"):
        model.generate(slots)


@pytest.mark.parametrize("part", ["dvae", "slots"])
def test_a_model_with_nan_is_not_evaluated(part: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the model gives NaN for image 0: its weights are damaged"
    ):
        evaluate(broken_model(part), images(3))


def test_slots_used_of_attention_with_nan_are_nan() -> None:
    attn = torch.softmax(torch.randn(3, 4, 5), -1)
    attn[1, 2, 3] = torch.nan
    used = slots_used(attn)
    assert used.isnan().tolist() == [False, True, False]
    assert torch.equal(used[[0, 2]], slots_used(attn[[0, 2]]))


def test_attention_with_nan_has_no_segments() -> None:
    with pytest.raises(ValueError, match="attn must hold no NaN"):
        segmentation(torch.full((1, 4, 2), torch.nan), 8)
