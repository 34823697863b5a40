import dataclasses

import pytest
import torch

from fastslots.benchmark import BASELINE, Step
from fastslots.benchmark.measure.memory import memory_use
from fastslots.benchmark.step.step import CLIP
from fastslots.models.slate.official import NAMES
from tests.benchmark.step.cases import CPU, EAGER, IMPLICIT, TINY

pytestmark = pytest.mark.slow


def test_all_providers_start_from_the_same_weights_and_images():
    public, *others = (Step(provider, TINY, CPU) for provider in EAGER)
    expected = public.model.state_dict()
    for step in others:
        assert torch.equal(step.image, public.image)
        for name, tensor in step.model.state_dict().items():
            assert torch.equal(tensor, expected[NAMES.get(name, name)]), name


@pytest.mark.parametrize("provider", EAGER, ids=lambda p: f"{p.label}-{p.gradient}")
def test_a_step_clips_and_changes_every_parameter_and_frees_the_gradients(provider):
    step = Step(provider, TINY, CPU)
    assert step.model.training
    before = [parameter.detach().clone() for parameter in step.parameters]
    largest = []

    def record(*_):
        largest.append(max(p.grad.abs().max().item() for p in step.parameters))

    step.optimizer.register_step_pre_hook(record)
    step.backward(step.forward())
    record()
    step.update()
    assert largest[0] > CLIP
    assert largest[1] == pytest.approx(CLIP, rel=1e-4)
    for old, new in zip(before, step.parameters, strict=True):
        assert not torch.equal(old, new)
        assert new.grad is None


def test_adam_is_fused_for_fastslots_and_has_the_rates_of_both_codes():
    public, fastslots = (Step(provider, TINY, CPU).optimizer for provider in (BASELINE, IMPLICIT))
    assert (public.defaults["fused"], fastslots.defaults["fused"]) == (None, True)
    for optimizer in (public, fastslots):
        assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 1e-4]


def test_fastslots_draws_new_noise_at_every_step():
    step = Step(IMPLICIT, TINY, CPU)
    first, second = step.forward(), step.forward()
    assert first != second
    assert Step(IMPLICIT, TINY, CPU).forward() == first


@pytest.mark.parametrize("provider", [BASELINE, IMPLICIT], ids=lambda p: p.label)
def test_bf16_rounds_the_forward_and_keeps_parameters_in_float32(provider):
    exact, rounded = (
        Step(provider, dataclasses.replace(TINY, precision=precision), CPU)
        for precision in ("float32", "bf16")
    )
    seen = []
    rounded.model.slot_attn.mlp.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    losses = []
    for step in (exact, rounded):
        torch.manual_seed(0)
        losses.append(step.run().item())
    assert seen == [torch.bfloat16]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.2)
    assert {p.dtype for p in rounded.parameters} == {torch.float32}


@pytest.mark.parametrize("provider", [BASELINE, IMPLICIT], ids=lambda p: p.label)
def test_parts_add_up_to_the_forward_and_leave_no_hooks(provider):
    step = Step(provider, TINY, CPU)
    step.run()
    assert all(part > 0 for part in step.part_times())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in step.model.modules())


@pytest.mark.parametrize("provider", EAGER, ids=lambda p: f"{p.label}-{p.gradient}")
def test_a_step_needs_the_same_memory_whatever_was_measured_before(provider):
    step = Step(provider, TINY, CPU)
    step.run()
    first = memory_use(step.forward, step.backward_and_free, CPU)
    with_gradients_left = memory_use(step.forward, step.backward, CPU)
    step.update()
    step.run()
    assert first == with_gradients_left
    assert memory_use(step.forward, step.backward_and_free, CPU) == first
    assert first.peak_bytes > sum(4 * parameter.numel() for parameter in step.parameters)
