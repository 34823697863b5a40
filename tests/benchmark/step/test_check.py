import math

import pytest
import torch

from fastslots.benchmark import IncorrectResultError, Step, StepCase, run_step_benchmark
from fastslots.benchmark.step import check, runner
from fastslots.benchmark.step.check import check_against_public, check_losses
from fastslots.models.slate import SLATEConfig
from tests.benchmark.step.cases import CPU, EAGER, IMPLICIT, TINY, UNROLLED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_fastslots_equals_the_public_form(gradient, monkeypatch):
    compared, right = [], check._compare
    monkeypatch.setattr(
        check, "_compare", lambda what, *rest: (compared.append(what), right(what, *rest))
    )
    check_against_public(gradient, CPU)
    assert compared[:2] == [f"cross_entropy ({gradient})", f"mse ({gradient})"]
    assert ("gradient of out.weight" in compared) == (gradient == "unrolled")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("out.weight", "cross_entropy"),
        ("dvae.decoder.11.weight", "mse"),
        ("gradient", "gradient of tf_dec"),
        ("frozen", "slot_proj.weight has no gradient"),
    ],
)
def test_wrong_results_stop_the_benchmark_before_timing(monkeypatch, wrong, message):
    right = check.load_public

    def load(public, config, gradient):
        model = right(public, config, gradient)
        if wrong == "gradient":
            model.tf_dec.layer_norm.weight.register_hook(lambda grad: grad * 1.001)
        elif wrong == "frozen":
            model.slot_proj.weight.requires_grad_(False)
        else:
            with torch.no_grad():
                model.get_parameter(wrong).mul_(1 + 1e-6)
        return model

    monkeypatch.setattr(check, "load_public", load)
    monkeypatch.setattr(runner, "Step", lambda *_: pytest.fail("measured wrong results"))
    with pytest.raises(IncorrectResultError, match=message):
        run_step_benchmark([TINY], [UNROLLED], CPU)


@pytest.mark.parametrize("loss", [1.1, math.nan])
def test_a_first_loss_unlike_the_others_stops_the_benchmark(loss):
    case = StepCase(SLATEConfig(), 50)  # 12,800 tokens
    check_losses({"public": 1.0, "fastslots": 1.01}, case)
    with pytest.raises(IncorrectResultError, match=r"first loss of fastslots is .*that of public"):
        check_losses({"public": 1.0, "fastslots": loss}, case)


def test_the_first_losses_of_all_providers_are_compared(monkeypatch, unchecked):
    right = Step.run
    monkeypatch.setattr(
        Step, "run", lambda step: right(step) * (math.nan if step.provider == IMPLICIT else 1)
    )
    with pytest.raises(IncorrectResultError, match="first loss of fastslots, implicit is nan"):
        run_step_benchmark([TINY], EAGER, CPU, repeats=3)
