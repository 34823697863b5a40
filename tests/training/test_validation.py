"""Held-out losses and what is said of the slots."""

from __future__ import annotations

import pytest
import torch

from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.training.validation import validate, validation_keys
from tests.training.tiny import Images, tiny, tiny_model

WARM = {"tau": 0.5}


def test_validation_decodes_one_hot_tokens() -> None:
    model, images = tiny_model(), Images(4).tensors[0]
    mse = validate(TrainableSLATE(model), [images], WARM, seed=0)["mse"]
    recon = model.eval().dvae.decode_ids(model.tokenize(images))
    assert mse == pytest.approx(float((images - recon).square().sum().detach()) / 4, rel=1e-5)


def test_validation_means_depend_neither_on_batches_nor_on_processes() -> None:
    model, images = TrainableSLATE(tiny_model().double()), Images(6, seed=1).tensors[0].double()
    whole = validate(model, [images], WARM, seed=0)
    assert validate(model, [images[:4], images[4:]], WARM, seed=0) == pytest.approx(whole, rel=1e-9)

    sums: list[torch.Tensor] = []

    def add_up(total: torch.Tensor) -> torch.Tensor:
        sums.append(total)
        return torch.stack(sums).sum(0)

    validate(model, [images[:2]], WARM, seed=0, add_up=add_up)
    both = validate(model, [images[2:]], WARM, seed=0, first_image=2, add_up=add_up)
    assert both == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_validation_is_deterministic_and_leaves_mode_and_noise_alone(training: bool) -> None:
    model, images = tiny(), Images(6, seed=1).tensors[0]
    model.model.train(training)
    state = torch.get_rng_state()
    assert validate(model, [images], WARM, seed=0) == validate(model, [images], WARM, seed=0)
    assert validate(model, [images], WARM, seed=0) != validate(model, [images], WARM, seed=1)
    assert model.model.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_unigram_entropy_is_that_of_the_token_counts() -> None:
    model, images = tiny_model(), Images(2).tensors[0]
    ids = model.tokenize(images)
    counts = torch.bincount(ids.flatten()).double()
    p = counts[counts > 0] / counts.sum()
    entropy = float(-(p * p.log()).sum()) * ids.shape[1]
    assert validate(TrainableSLATE(model), [images], WARM, seed=0)[
        "unigram_entropy"
    ] == pytest.approx(entropy)


@torch.no_grad()
def residual(model: SLATE, images: torch.Tensor) -> float:
    ids = model.tokenize(images)
    slots, _ = model.encode(ids, keys=validation_keys(0, len(images), 0))
    return float(model.residual(ids, slots))


@pytest.mark.parametrize(("gradient", "steps"), [("neumann", 0), ("unrolled", 1)])
def test_the_residual_is_that_of_one_more_step(gradient: str, steps: int) -> None:
    model = tiny_model(gradient=gradient, num_iterations=steps + 3).double().eval()
    images = Images(1).tensors[0].double()
    with torch.no_grad():
        ids = model.tokenize(images)
        slots, _ = model.encode(ids, keys=validation_keys(0, 1, 0))
        model.slot_attn.slot_attention.num_iterations = steps
        after, _ = model.encode(ids, slots=slots)
        model.slot_attn.slot_attention.num_iterations = steps + 3
    expected = float((after - slots).norm() / after.norm())
    assert expected > 1e-6
    assert residual(model, images) == pytest.approx(expected, rel=1e-9)


def test_slots_in_use_are_those_that_some_token_attends_to_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainable, images = tiny(), Images(2).tensors[0]
    attn = torch.tensor([[[5, 1, 0], [5, 1, 0], [0, 1, 5], [5, 1, 0]], [[1, 0, 0]] * 4]).float()
    monkeypatch.setattr(trainable.model, "encode", lambda *_, **__: (torch.ones(2, 3, 8), attn))
    _, used = trainable.look(images, validation_keys(0, 2, 0))
    assert float(used) == 2 + 1
