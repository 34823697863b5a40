"""Splits of the inputs that the estimate finds for the shapes of the papers, on 132 multiprocessors."""

from __future__ import annotations

import pytest

from fastslots_kernels.fused.plans import Plan, num_splits, split_size

# Of tiles of 64 rows with 2 to 5 programs at a time: the fastest of those measured on an H200.
_FASTEST = [
    pytest.param(50, 256, 2, 4, id="slate-64"),
    pytest.param(50, 1024, 2, 4, id="slate-128"),
    pytest.param(64, 1369, 2, 4, id="dinosaur"),
    pytest.param(64, 16_384, 2, 4, id="clevr-backward"),
    pytest.param(64, 16_384, 4, 8, id="clevr"),
]


@pytest.mark.parametrize(("batch", "num_inputs", "resident", "expected"), _FASTEST)
def test_splits_are_the_fastest_measured(
    batch: int, num_inputs: int, resident: int, expected: int
) -> None:
    assert num_splits(batch, num_inputs, Plan(64, 4, 1, resident, 64), 132) == expected


def test_all_programs_run_at_once_where_there_are_few_images() -> None:
    plan = Plan(64, 4, 1, 2, 64)
    splits = num_splits(1, 1_048_576, plan, 132)
    assert 132 < splits <= 264
    assert split_size(1_048_576, splits, plan) * splits >= 1_048_576


@pytest.mark.parametrize("num_inputs", [0, 1, 63, 64, 65])
def test_no_split_is_empty(num_inputs: int) -> None:
    plan = Plan(64, 4, 1, 2, 64)
    splits = num_splits(1, num_inputs, plan, 132)
    assert splits == max(1, -(-num_inputs // 64))
