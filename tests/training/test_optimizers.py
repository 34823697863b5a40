"""Muon for matrices beside Adam for all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastslots.training import train
from fastslots.training.batches import BatchParts
from fastslots.training.muon import Muon
from fastslots.training.optimizers import Optimizers
from fastslots.training.processes import make_accelerator
from fastslots.training.restoring import DamagedError
from fastslots.training.step import TrainingStep
from tests.training.tiny import Images, tiny, tiny_recipe
from tests.training.tiny_autoencoder import (
    autoencoder_recipe,
    tiny_autoencoder,
    train_autoencoder,
)

RATES = {"one": 0.25, "other": 0.5}


def parameters() -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"one": [(3, 4), (5,), (6, 2), ()], "other": [(2, 3, 1), (4, 4), (1, 7), (2, 2, 3, 3)]}
    found = {
        name: [nn.Parameter(torch.randn(shape, generator=generator)) for shape in group]
        for name, group in shapes.items()
    }
    for group in found.values():
        for p in group:
            p.grad = torch.randn(p.shape, generator=generator)
    return found


def taken(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, list[int]]]:
    """By group the rate and what is taken."""
    return {
        group["name"]: (group["lr"], [id(p) for p in group["params"]])
        for group in optimizer.param_groups
    }


def test_muon_takes_the_matrices_and_adam_the_rest_at_their_rates() -> None:
    groups = parameters()
    optimizers = Optimizers(groups, muon=20.0)
    optimizers.set_rates(RATES)
    adam, muon = optimizers.all
    assert (type(adam), type(muon)) == (torch.optim.Adam, Muon)
    for optimizer, is_muon in ((adam, False), (muon, True)):
        assert taken(optimizer) == {
            name: (
                RATES[name] * (20 if is_muon else 1),
                [id(p) for p in group if (p.ndim == 2) is is_muon],
            )
            for name, group in groups.items()
        }


def test_tables_are_adams_whatever_their_dimensions() -> None:
    groups = parameters()
    table = groups["one"][0]
    adam, muon = Optimizers(groups, muon=20.0, tables=[table]).all
    assert id(table) in taken(adam)["one"][1]
    assert id(table) not in taken(muon)["one"][1]
    assert id(groups["one"][2]) in taken(muon)["one"][1]


def test_embeddings_of_a_model_are_tables() -> None:
    recipe = tiny_recipe(muon=20.0)
    accelerator = make_accelerator(torch.device("cpu"), recipe.precision)
    trainable = tiny()
    step = TrainingStep(trainable, recipe, accelerator, BatchParts(recipe.batch_size))
    adam, muon = step.optimizers.all
    assert id(trainable.model.dictionary.dictionary.weight) in taken(adam)["main"][1]
    assert id(trainable.model.out.weight) in taken(muon)["main"][1]


def test_without_muon_adam_takes_all() -> None:
    groups = parameters()
    optimizers = Optimizers(groups)
    optimizers.set_rates(RATES)
    (adam,) = optimizers.all
    assert taken(adam) == {n: (RATES[n], [id(p) for p in group]) for n, group in groups.items()}


@pytest.mark.parametrize(("kept", "kind"), [(2, Muon), (1, torch.optim.Adam)])
def test_one_of_them_may_have_nothing_to_do(kept: int, kind: type) -> None:
    groups = {name: [p for p in group if p.ndim == kept] for name, group in parameters().items()}
    optimizers = Optimizers(groups, muon=1.0)
    optimizers.set_rates(RATES)
    assert [type(optimizer) for optimizer in optimizers.all] == [kind]
    optimizers.step()
    assert any(kept.any() for _, key, state in optimizers.entries() for kept in [state[key]])


def test_steps_are_those_of_both_by_themselves() -> None:
    groups, others = parameters(), parameters()
    optimizers = Optimizers(groups, muon=20.0)
    for name, rate in RATES.items():
        alone = [
            Muon([{"params": [p for p in others[name] if p.ndim == 2], "lr": 20 * rate}]),
            torch.optim.Adam([p for p in others[name] if p.ndim != 2], rate, fused=True),
        ]
        for _ in range(3):
            for optimizer in alone:
                optimizer.step()
    for _ in range(3):
        optimizers.set_rates(RATES)
        optimizers.step()
    for before, group, other in zip(
        parameters().values(), groups.values(), others.values(), strict=True
    ):
        assert all(map(torch.equal, group, other))
        assert not any(map(torch.equal, group, before))
    kept = {key for _, key, _ in optimizers.entries()}
    assert kept == {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}
    assert all(key in state for _, key, state in optimizers.entries())


def test_what_has_not_learned_yet_is_kept_as_zeros_and_begins_as_if_nothing_was() -> None:
    groups, others = parameters(), parameters()
    fresh, kept = Optimizers(groups, muon=20.0), Optimizers(others, muon=20.0)
    assert not any(state[key].any() for _, key, state in kept.entries())
    for optimizers in (fresh, kept):
        optimizers.set_rates(RATES)
        optimizers.step()
    for group, other in zip(groups.values(), others.values(), strict=True):
        assert all(map(torch.equal, group, other))
    for (_, key, state), (_, _, other_state) in zip(fresh.entries(), kept.entries(), strict=True):
        assert torch.equal(state[key], other_state[key])
        assert state[key].dtype == other_state[key].dtype


def autoencoder_step(**changes: Any) -> TrainingStep:
    recipe = autoencoder_recipe(**changes)
    accelerator = make_accelerator(torch.device("cpu"), recipe.precision)
    return TrainingStep(tiny_autoencoder(), recipe, accelerator, BatchParts(recipe.batch_size))


def images() -> Tensor:
    return Images(4).tensors[0]


@pytest.mark.parametrize("clip", [1e-3, 1e6, float("inf")])
def test_gradients_of_the_autoencoder_are_clipped_by_their_euclidean_norm(
    monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    step = autoencoder_step(clip=clip)
    found: list[Tensor] = []
    monkeypatch.setattr(
        step.optimizers,
        "step",
        lambda: found.extend(p.grad.flatten() for p in step.groups["main"]),
    )
    values = dict(zip(step.columns, step(0, [images()], factor=1.0).tolist(), strict=True))
    assert set(values) == {"colour_error", "entropy_penalty", "gradient_l2_norm_main"}
    norm = values["gradient_l2_norm_main"]
    assert norm > 0.01
    # PyTorch adds 1e-6 to the norm that it divides by.
    assert float(torch.cat(found).norm()) == pytest.approx(min(clip, norm), rel=1e-6 / norm + 1e-5)


def test_the_log_says_adams_rate_and_muon_has_its_multiple() -> None:
    step = autoencoder_step(warmup_steps=4, decay="none", lr_main=1e-3)
    step(1, [images()], factor=0.5)
    assert step.rates == {"main": 1e-3 * 0.5 * 0.5}
    assert [group["lr"] for o in step.optimizers.all for group in o.param_groups] == [
        step.rates["main"],
        20 * step.rates["main"],
    ]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (20.0, 0.0, "is of a run with Muon: muon must be above 0 to go on from it; got 0$"),
        (0.0, 20.0, "is of a run without Muon: muon must be 0 to go on from it; got 20$"),
    ],
)
def test_a_run_goes_on_with_muon_if_it_began_with_it(
    tmp_path: Path, before: float, after: float, message: str
) -> None:
    train_autoencoder(tmp_path, steps=4, muon=before)
    with pytest.raises(ValueError, match=message) as caught:
        train_autoencoder(tmp_path, resume=True, muon=after)
    assert not isinstance(caught.value, DamagedError)
    train_autoencoder(tmp_path, resume=True, muon=before / 2)


def test_a_checkpoint_of_another_kind_of_model_is_not_called_damaged(tmp_path: Path) -> None:
    train_autoencoder(tmp_path, steps=4)
    with pytest.raises(ValueError, match=r"must be of a SLATE; got a SlotAutoencoder$") as caught:
        train(tiny(), tiny_recipe(steps=9), Images(10), Images(6), tmp_path, resume=True)
    assert not isinstance(caught.value, DamagedError)
