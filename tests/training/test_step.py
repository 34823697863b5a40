"""One step: clipping, accumulation, precision, compilation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from fastslots.models.slate import SLATE
from fastslots.training import find_checkpoint
from fastslots.training.batches import BatchParts
from fastslots.training.optimizers import COUNT
from fastslots.training.processes import make_accelerator
from fastslots.training.step import TrainingStep
from tests.training.runs import rows, run, same_weights
from tests.training.tiny import Images, tiny, tiny_model, tiny_recipe


def make_step(**changes: Any) -> TrainingStep:
    recipe = tiny_recipe(**changes)
    trainable = tiny(dropout=0.1)
    if recipe.precision == "float64":
        trainable.model.double()
    accelerator = make_accelerator(torch.device("cpu"), recipe.precision)
    parts = BatchParts(recipe.batch_size, recipe.accumulation)
    return TrainingStep(trainable, recipe, accelerator, parts)


def images(count: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return Images(count).tensors[0].to(dtype)


def gradients(step: TrainingStep) -> list[torch.Tensor]:
    return [p.grad for group in step.groups.values() for p in group if p.grad is not None]


@pytest.mark.parametrize("clip", [0.01, 1e6, float("inf")])
def test_gradients_are_clipped_by_their_largest_entry(
    monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    step = make_step(clip=clip)
    largest: list[float] = []
    monkeypatch.setattr(
        step.optimizers,
        "step",
        lambda: largest.extend(float(g.abs().max()) for g in gradients(step)),
    )
    values = step(0, [images()], factor=1.0)
    norm = max(values[2:].tolist())
    assert norm > 1
    assert max(largest) == pytest.approx(min(clip, norm), rel=1e-3)


def test_norms_are_those_of_the_two_groups_before_clipping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = make_step(clip=float("inf"))
    monkeypatch.setattr(step.optimizers, "step", lambda: None)
    values = step(0, [images()], factor=1.0)
    model = step.trainable.model
    dvae = {id(p) for p in model.dvae.parameters()}
    for group, norm in zip(step.groups.values(), values[2:], strict=True):
        assert norm == max(p.grad.abs().max() for p in group if p.grad is not None)
    assert {id(p) for p in step.groups["dvae"]} == dvae
    assert sum(map(len, step.groups.values())) == sum(p.requires_grad for p in model.parameters())


def test_learning_rates_follow_warmup_and_plateau() -> None:
    step = make_step(warmup_steps=10, lr_main=1.0, lr_dvae=2.0)
    step(4, [images()], factor=0.25)
    assert step.rates == pytest.approx({"dvae": 0.5, "main": 0.125})
    (adam,) = step.optimizers.all
    assert [group["lr"] for group in adam.param_groups] == list(step.rates.values())


@pytest.mark.parametrize("resting", ["dvae", "main"])
def test_a_group_whose_rate_is_0_rests(monkeypatch: pytest.MonkeyPatch, resting: str) -> None:
    """As if its gradients were computed and dropped, which they are where processes or graphs need them."""
    found = []
    for frozen in (True, False):
        step = make_step(
            dvae_steps=3, patience=0, warmup_steps=0, accumulation=2, precision="float64"
        )
        if not frozen:
            monkeypatch.setattr(step, "_frozen", lambda _: nullcontext())
        at = 0 if resting == "main" else step.recipe.steps - 1
        before = [p.detach().clone() for p in step.groups[resting]]
        values = step(at, list(images(dtype=torch.float64).chunk(2)), factor=1.0)
        assert all(p.grad is None for p in step.groups[resting])
        rested = {id(p) for p in step.groups[resting]}
        for p, key, state in step.optimizers.entries():
            assert state[key].any() or id(p) in rested
            assert not (state[key].any() and id(p) in rested)
        assert all(map(torch.equal, step.groups[resting], before))
        norms = dict(zip(step.columns, values.tolist(), strict=True))
        assert norms[f"gradient_linf_norm_{resting}"] == 0
        assert all(p.requires_grad for group in step.groups.values() for p in group)
        found.append([values, *(p for group in step.groups.values() for p in group)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    assert norms[f"gradient_linf_norm_{'dvae' if resting == 'main' else 'main'}"] > 0


def test_of_a_group_that_rests_no_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step(dvae_steps=3, patience=0)
    asked: list[bool] = []
    forward = step.trainable.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(any(p.requires_grad for p in step.groups["main"]))
        asked.append(all(p.requires_grad for p in step.groups["dvae"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(step.trainable, "forward", watched)
    step(0, [images()], factor=1.0)
    assert asked == [False, True]


@pytest.mark.parametrize("at", [2, 4])
def test_a_run_goes_on_to_the_same_bits_before_and_after_the_dvae_rests(
    tmp_path: Path, at: int
) -> None:
    recipe = tiny_recipe(
        steps=6, dvae_steps=3, patience=0, muon=20.0, decay="cosine", validate_every=2, log_every=1
    )
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    expected = run(whole, recipe)
    shutil.copytree(whole, parted)
    for checkpoint in (parted / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > at:
            shutil.rmtree(checkpoint)
    assert same_weights(run(parted, recipe, resume=True), expected)
    assert rows(parted) == rows(whole)


def test_all_groups_may_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step()
    monkeypatch.setattr(type(step.recipe), "rates", lambda *_: {"dvae": 0.0, "main": 0.0})
    before = [p.detach().clone() for group in step.groups.values() for p in group]
    values = step(0, [images()], factor=1.0)
    assert values[2:].tolist() == [0, 0]
    assert all(map(torch.equal, (p for group in step.groups.values() for p in group), before))


def test_a_parameter_without_a_gradient_is_named_when_its_group_begins_to_learn() -> None:
    step = make_step(dvae_steps=3, patience=0)
    unused = torch.nn.Parameter(torch.zeros(3))
    step.trainable.model.unused = unused
    step.groups["main"].append(unused)
    step(0, [images()], factor=1.0)
    with pytest.raises(
        ValueError, match=r"every parameter that learns must get .* for unused: use"
    ):
        step(step.recipe.steps - 1, [images()], factor=1.0)


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for accumulation in (1, 4):
        step = make_step(accumulation=accumulation, precision="float64")
        monkeypatch.setattr(step.optimizers, "step", lambda: None)
        values = step(3, list(images(dtype=torch.float64).chunk(accumulation)), factor=1.0)
        found.append((values, gradients(step)))
    (values, whole), (parts_values, parts) = found
    torch.testing.assert_close(parts_values, values, rtol=1e-10, atol=0)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_noise_changes_with_step_and_seed() -> None:
    losses = {
        float(make_step(seed=seed)(step, [images()], 1.0)[0]) for seed in (0, 1) for step in (0, 1)
    }
    assert len(losses) == 4
    assert float(make_step()(1, [images()], 1.0)[0]) in losses


def test_bf16_keeps_weights_and_optimiser_in_float32() -> None:
    full, mixed = make_step(), make_step(precision="bf16")
    before, after = (step(0, [images()], factor=1.0) for step in (full, mixed))
    assert torch.equal(before, after) is False
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)
    tensors = [*mixed.trainable.model.parameters(), *gradients(mixed)]
    tensors += [state[key] for _, key, state in mixed.optimizers.entries() if key != COUNT]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert set(mixed.trainable.state_dict()) == set(full.trainable.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_every_precision_trains_and_resumes(tmp_path: Path, precision: str) -> None:
    run(tmp_path, tiny_recipe(steps=3, precision=precision, accumulation=2))
    run(tmp_path, tiny_recipe(precision=precision), resume=True)
    assert rows(tmp_path, "train")[-1]["step"] == 6


@pytest.fixture
def _compiled_without_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiler's front, which decides about graphs; its back end takes minutes here."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **how: compile_(model, **how | {"backend": "aot_eager"})
    )
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_without_inductor")
@pytest.mark.parametrize(("precision", "accumulation"), [("float32", 1), ("bf16", 2)])
def test_a_compiled_run_equals_an_eager_one_and_compiles_once(
    tmp_path: Path, precision: str, accumulation: int
) -> None:
    recipe: dict[str, Any] = {"steps": 8, "validate_every": 4, "patience": 1, "lr_main": 0.05}
    recipe |= {"precision": precision, "accumulation": accumulation}
    run(tmp_path / "compiled", tiny_recipe(compile=True, **recipe))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
    run(tmp_path / "eager", tiny_recipe(**recipe))
    compiled, eager = rows(tmp_path / "compiled"), rows(tmp_path / "eager")
    assert len({row["tau"] for row in rows(tmp_path / "compiled", "train")}) == 3
    for one, other in zip(compiled, eager, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-4)
    loaded = SLATE.from_pretrained(find_checkpoint(tmp_path / "compiled"))
    assert loaded.state_dict().keys() == tiny_model().state_dict().keys()
