"""The package of PyPI: here a stand-in."""

import dataclasses
import sys
import types

import pytest
from torch import nn

from fastslots.benchmark import (
    Call,
    IncorrectResultError,
    Problem,
    Provider,
    check_call,
    choose_providers,
    markdown,
    run_benchmark,
)
from fastslots.benchmark.attention import providers
from fastslots.benchmark.attention.check import BY_RUNNING
from fastslots.benchmark.attention.providers import PACKAGE
from tests.benchmark.attention.cases import CPU, TINY

pytestmark = pytest.mark.slow


class FakeModel(nn.Module):
    """Has the constructor and the call of the package's module."""

    def __init__(self, num_slots, dim, iters=3, eps=1e-8, hidden_dim=128):
        super().__init__()
        self.num_slots, self.iters = num_slots, iters
        self.layer = nn.Linear(dim, dim)

    def forward(self, inputs):
        slots = inputs[:, : self.num_slots]
        for _ in range(self.iters):
            slots = slots + self.layer(slots).tanh()
        return slots


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("slot_attention")
    module.SlotAttention = FakeModel
    monkeypatch.setitem(sys.modules, "slot_attention", module)
    return module


def test_measures_the_package_of_pypi_and_says_how_it_was_checked(package):
    chosen, skipped = choose_providers(CPU, [PACKAGE], providers.MODES, compiled=False)
    assert ([p.gradient for p in chosen], skipped) == (["unrolled", "no-grad"], [])
    results = run_benchmark([TINY], chosen, CPU, repeats=3)
    assert [row.check for row in results.rows] == [BY_RUNNING] * 4
    assert "slot-attention of PyPI has parameters of its own" in markdown(results)


def test_the_package_must_give_finite_slots(package, monkeypatch):
    monkeypatch.setattr(FakeModel, "forward", lambda self, x: self.layer(x[:, :3]) / 0)
    call = Call(Provider(PACKAGE, "unrolled"), Problem.make(TINY, CPU), 1)
    with pytest.raises(IncorrectResultError, match=r"slot-attention .*not finite are \['slots'"):
        check_call(call)


def test_sizes_that_the_package_does_not_have_are_left_out(package):
    case = dataclasses.replace(TINY, input_size=4)
    results = run_benchmark([case], [Provider(PACKAGE, "unrolled")], CPU)
    assert not results.rows
    assert {s.reason for s in results.skipped} == {
        "slot-attention needs inputs and slots of one width, an MLP at least as wide, and one head; "
        "got widths 4, 8 and 8, 1 heads"
    }


def test_a_package_that_is_missing_says_how_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "slot_attention", None)
    with pytest.raises(RuntimeError, match=r"cannot be imported .*pip install slot-attention"):
        choose_providers(CPU, [PACKAGE])
    _, skipped = providers.sort_out([Provider(PACKAGE, "unrolled")], CPU)
    assert skipped[0].provider == PACKAGE
