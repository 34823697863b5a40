from functools import partial

import pytest

from fastslots.benchmark.measure.compile_budget import CompileBudget
from fastslots.benchmark.measure.timing import take_turns

pytestmark = pytest.mark.slow


def test_takes_turns_in_both_directions():
    log = []
    taken = take_turns([partial(log.append, name) for name in "abc"], 4, 60)
    assert "".join(log) == "abccbaabccba"
    assert [len(series) for series in taken] == [4, 4, 4]


def test_stops_after_three_rounds_when_the_time_is_up():
    log = []
    take_turns([partial(log.append, "a")], 100, 0)
    assert log == ["a"] * 3


def test_on_cuda_the_limit_alone_ends_compiling():
    budgets = [CompileBudget(10, predicts=predicts) for predicts in (True, False)]
    for budget in budgets:
        budget.spend(100)  # loads the compiler
        budget.spend(6)
    assert [budget.allows() for budget in budgets] == [False, True]
    budgets[1].spend(6)
    assert not budgets[1].allows()


def test_the_limit_of_compiling_is_judged_by_what_came_before():
    budget = CompileBudget(25)
    for seconds in (60, 10):  # the first also loads the compiler
        assert budget.allows()
        budget.spend(seconds)
    assert budget.allows()
    budget.spend(10)
    assert not budget.allows()
    assert CompileBudget(25).allows(1000)
