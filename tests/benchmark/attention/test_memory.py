"""What a call keeps for its backward."""

import pytest

from fastslots.benchmark import (
    Call,
    Problem,
    Provider,
    constant_memory_table,
    measure_constant_memory,
    preset,
)
from fastslots.benchmark.measure.memory import memory_use
from tests.benchmark.attention.cases import CPU, TINY

pytestmark = pytest.mark.slow


def memory(backend, gradient, iterations, case=TINY):
    call = Call(Provider(backend, gradient), Problem.make(case, CPU), iterations)
    call.run()
    return memory_use(call.forward, call.backward, CPU)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_implicit_gradients_keep_the_same_bytes_after_any_number_of_iterations(backend):
    assert memory(backend, "implicit", 1) == memory(backend, "implicit", 9)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_unrolled_iteration_keeps_as_many_bytes_again(backend):
    kept = [memory(backend, "unrolled", iterations).kept_bytes for iterations in (2, 3, 4)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_torch_backend_keeps_at_most_a_fifth_of_the_inputs():
    case = next(case for case in preset("cpu-targets") if case.name == "tokens-1024")
    few, many = (memory("torch", "implicit", iterations, case).kept_bytes for iterations in (1, 64))
    assert few == many <= 0.2 * case.input_bytes
    assert memory("reference", "implicit", 1, case).kept_bytes > case.input_bytes


def test_constant_memory_table_shows_growth_for_unrolled_alone():
    measured = measure_constant_memory(CPU, TINY, time_limit_s=0)
    kept = {(row.backend, row.gradient, row.iterations): row.kept_bytes for row in measured.rows}
    assert kept["torch", "implicit", 1] == kept["torch", "implicit", 2]
    assert kept["reference", "unrolled", 1] < kept["reference", "unrolled", 2]
    table = constant_memory_table(measured)
    assert table.row_count == 4
    assert [str(column.header) for column in table.columns] == [
        "gradient",
        "backend",
        "kept MiB\nT = 1",
        "kept MiB\nT = 2",
        "backward ms\nT = 1",
        "backward ms\nT = 2",
    ]
