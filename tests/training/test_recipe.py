"""The recipe's numbers and schedules."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from fastslots.models.slate import SLATERecipe
from fastslots.noise import derive_seed
from fastslots.training.batches import BatchParts, StepBatches
from fastslots.training.plateau import Plateau


def test_the_defaults_are_the_papers() -> None:
    recipe = SLATERecipe()
    assert (recipe.steps, recipe.batch_size, recipe.clip) == (250_000, 50, 1.0)
    assert (recipe.lr_dvae, recipe.lr_main, recipe.warmup_steps) == (3e-4, 1e-4, 30_000)
    assert (recipe.tau_start, recipe.tau_final, recipe.tau_steps) == (1.0, 0.1, 30_000)
    assert recipe.patience == 4


def test_tau_falls_on_a_half_cosine_and_stays() -> None:
    recipe = SLATERecipe(tau_start=1.0, tau_final=0.2, tau_steps=100)
    taus = [recipe.schedule(step)["tau"] for step in (0, 25, 50, 100, 1_000)]
    assert taus == pytest.approx([1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2, 0.2])
    assert taus[0] == 1.0
    assert SLATERecipe(tau_steps=0).schedule(0) == {"tau": 0.1}


def test_warmup_rises_linearly_to_one() -> None:
    recipe = SLATERecipe(warmup_steps=4, lr_main=2.0, lr_dvae=3.0)
    rates = [recipe.rates(step) for step in range(6)]
    assert [rate["main"] for rate in rates] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert {rate["dvae"] for rate in rates} == {3.0}
    assert SLATERecipe(warmup_steps=0, lr_main=2.0).rates(0)["main"] == 2.0


def test_the_dvae_may_learn_first_and_all_else_from_then_on() -> None:
    numbers: dict[str, Any] = {
        "steps": 150,
        "dvae_steps": 50,
        "patience": 0,
        "lr_main": 2.0,
        "lr_dvae": 3.0,
    }
    recipe = SLATERecipe(**numbers, warmup_steps=10, decay="cosine")
    found = [recipe.rates(step) for step in (0, 25, 49, 50, 51, 75, 100, 125, 150, 1_000)]
    dvae, main = ([rate[name] for rate in found] for name in ("dvae", "main"))
    assert dvae[:2] == pytest.approx([3, 1.5], rel=1e-12)
    assert 0 < dvae[2] < 0.01
    assert dvae[3:] == [0.0] * 7
    assert main[:3] == [0.0] * 3
    half = math.sqrt(0.5)
    warm = [1 + half, 1, 1 - half, 0, 0]
    assert main[3:5] == pytest.approx([0.2, 0.2 * (1 + math.cos(math.pi / 100))], rel=1e-12)
    assert main[5:] == pytest.approx(warm, abs=1e-12)
    constant = replace(recipe, **SLATERecipe.no_decay)
    assert constant.rates(149) == {"dvae": 0.0, "main": 2.0}
    short = replace(recipe, steps=60)  # of which half are the dVAE's
    assert [short.rates(step)["main"] > 0 for step in (0, 29, 30, 59)] == [False, False, True, True]
    assert replace(recipe, steps=1).rates(0) == {"dvae": 3.0, "main": 0.2}


def test_the_learning_rates_halve_when_the_loss_stagnates() -> None:
    plateau = Plateau()
    losses = [5.0, 4.0, 4.5, 4.0, 3.0, 3.5, 3.5, 3.5, 3.5]
    best = [plateau.update(loss, patience=2) for loss in losses]
    assert best == [True, True, False, False, True, False, False, False, False]
    assert plateau == Plateau(factor=0.125, best=3.0, stagnant=0)


def test_a_patience_of_zero_never_halves() -> None:
    plateau = Plateau()
    for loss in (5.0, 6.0, 7.0, 8.0):
        plateau.update(loss, patience=0)
    assert plateau == Plateau(factor=1.0, best=5.0, stagnant=3)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be an int; got 2.5"),
        ({"accumulation": 0}, "accumulation must be at least 1; got 0"),
        ({"dvae_steps": -1}, "dvae_steps must be at least 0; got -1"),
        (
            {"dvae_steps": 9, "patience": 2},
            "patience must be 0 unless dvae_steps is, .*; got 2: set",
        ),
        ({"decay": "step"}, r"decay must be one of \('none', 'cosine'\); got 'step'"),
        ({"patience": -1}, "patience must be at least 0; got -1"),
        ({"precision": "float16"}, r"precision must be one of \('float32', .*; got 'float16'"),
        ({"compile": 1}, "compile must be True or False; got 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0; got -1"),
        ({"lr_main": 0.0}, "lr_main must be above 0 and finite; got 0.0"),
        ({"lr_dvae": float("inf")}, "lr_dvae must be above 0 and finite; got inf"),
        ({"tau_start": "x"}, "tau_start must be a number; got 'x'"),
        ({"clip": float("nan")}, "clip must be above 0; got nan"),
        ({"tau_final": 2.0}, "tau_final must be at most tau_start 1.0; got 2.0"),
    ],
)
def test_a_bad_number_is_named(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SLATERecipe(**numbers)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    flat = [
        index
        for batch in StepBatches(10, BatchParts(4), seed=0, first_step=0, steps=5)
        for index in batch
    ]
    epochs = [flat[:10], flat[10:]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1] != list(range(10))


def test_batches_may_begin_at_any_step() -> None:
    whole = list(StepBatches(10, BatchParts(4), seed=3, first_step=0, steps=12))
    assert list(StepBatches(10, BatchParts(4), seed=3, first_step=7, steps=12)) == whole[7:]
    assert whole != list(StepBatches(10, BatchParts(4), seed=4, first_step=0, steps=12))


def test_processes_and_micro_batches_take_neighbouring_parts_of_the_batch() -> None:
    (whole,) = StepBatches(30, BatchParts(12), seed=0, first_step=4, steps=5)
    parts = [
        part
        for process in range(3)
        for part in StepBatches(30, BatchParts(12, 2, 3, process), seed=0, first_step=4, steps=5)
    ]
    assert [len(part) for part in parts] == [2] * 6
    assert list(itertools.chain(*parts)) == whole
    assert [place for part in BatchParts(12, 2, 3, 1) for place in part] == [4, 5, 6, 7]
    assert len(StepBatches(30, BatchParts(12, 2, 3), seed=0, first_step=4, steps=9)) == 10


def test_a_batch_that_cannot_be_shared_evenly_is_named() -> None:
    message = "batch_size must be divisible by processes x accumulation, 4 x 3; got 50"
    with pytest.raises(ValueError, match=message):
        BatchParts(50, accumulation=3, processes=4)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    batches = list(StepBatches(3, BatchParts(7), seed=0, first_step=0, steps=2))
    assert [len(batch) for batch in batches] == [7, 7]
    assert sorted(batches[0][:3]) == sorted(batches[0][3:6]) == [0, 1, 2]


def test_seeds_differ_by_seed_purpose_and_step() -> None:
    seeds = {derive_seed(s, p, t) for s in (0, 1) for p in ("step", "epoch") for t in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
