"""SLATE whose dVAE sees whitened colours, and one whose tokens are not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.models.slate.reference import PublicSLATE
from fastslots.models.whitening import Whitening
from fastslots.noise import sample_keys
from tests.models.slate.small_models import images, small_config, small_model

KEYS = sample_keys(range(5), 0)


def whitened_model(dtype: torch.dtype = torch.float64, **changes: Any) -> SLATE:
    """Fitted by the engine's hook, as in training."""
    model = small_model(whiten=True, dropout=0.0, **changes)
    TrainableSLATE(model).begin(list(images(20, seed=3)))
    return model.to(dtype)


def test_without_it_nothing_is_added_to_the_model() -> None:
    assert small_model().whitening is None
    added = small_model(whiten=True).state_dict().keys() - small_model().state_dict().keys()
    assert added == {"whitening.mean", "whitening.matrix", "whitening.inverse"}


def test_training_begins_with_fitting_it_to_its_images() -> None:
    expected = Whitening((3, 16, 16))
    expected.fit(list(images(20, seed=3)))
    found = whitened_model(torch.float32).whitening
    assert found is not None
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    TrainableSLATE(small_model()).begin([])  # which has none to fit, and looks at no image


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_it_is_slate_between_colours_and_images(backend: str) -> None:
    model = whitened_model(backend=backend).train()
    plain = small_model(dropout=0.0, backend=backend).double().train()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert model.whitening is not None
    image = images(dtype=torch.float64)
    colours = model.whitening(image)
    out = model(image, 0.5, keys=KEYS)
    noise_free = model.eval()(image, 0.5, keys=KEYS)
    greedy = model.tokenize(image)
    assert torch.equal(noise_free.ids, greedy)
    # What the plain model makes of colours: its checks refuse none, and its images are colours.
    expected = plain(colours, 0.5, keys=KEYS)
    assert torch.equal(out.ids, expected.ids)
    assert out.mse.item() == pytest.approx(expected.mse.item(), rel=1e-12)
    assert out.cross_entropy.item() == pytest.approx(expected.cross_entropy.item(), rel=1e-12)
    assert torch.equal(model.tokenize(image), plain.tokenize(colours))
    painted = model.whitening.invert(plain.dvae.decode_ids(greedy))
    assert torch.equal(model.detokenize(greedy), painted)
    assert torch.equal(model.look(image, KEYS).recon, painted)


def test_the_error_is_that_of_the_colours_and_the_reconstruction_an_image() -> None:
    model = whitened_model().eval()
    assert model.whitening is not None
    image = images(dtype=torch.float64)
    out = model(image, 1e-3, hard=True, keys=KEYS)
    painted = model.dvae.decode_ids(out.ids)
    error = (painted - model.whitening(image)).square().sum() / len(image)
    assert out.mse.item() == pytest.approx(error.item(), rel=1e-9)
    torch.testing.assert_close(out.recon, model.detokenize(out.ids).clamp(0, 1))
    assert torch.equal(
        model.reconstruct(image, keys=KEYS),
        model.detokenize(model.generate(model.encode(out.ids, keys=KEYS)[0])).clamp(0, 1),
    )


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = whitened_model(torch.float32)
    model.save_pretrained(tmp_path)
    loaded = SLATE.from_pretrained(tmp_path)
    image = images()
    assert torch.equal(
        loaded.look(image, KEYS).through_slots, model.eval().look(image, KEYS).through_slots
    )


def test_under_autocast_images_have_the_dtype_of_the_model() -> None:
    model = whitened_model(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(), keys=KEYS)
        assert out.recon.dtype == torch.float32
        assert model.detokenize(out.ids).dtype == torch.float32
    assert out.mse.isfinite()


def test_tokens_that_are_not_drawn_are_those_in_use() -> None:
    image = images(dtype=torch.float64)
    for drawn in (True, False):
        model = small_model(draw_tokens=drawn, dropout=0.0).double().train()
        out = model(image, keys=KEYS)
        assert torch.equal(out.ids, model.tokenize(image)) is not drawn


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(2, 16), TypeError, r"ids must be torch\.int64; got torch\.float32"),
        (torch.zeros(2, 15, dtype=torch.int64), ValueError, r"ids must have shape \(B, 16\); got"),
        (
            torch.full((2, 16), 40),
            ValueError,
            r"ids must lie in \[0, vocab_size=40\); got 40 to 40",
        ),
    ],
)
def test_tokens_that_are_none_are_not_painted(ids: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        small_model().detokenize(ids)


def test_the_public_form_has_none() -> None:
    with pytest.raises(
        ValueError, match="whiten must be False for the public code's form; got True"
    ):
        PublicSLATE(small_config(whiten=True))
