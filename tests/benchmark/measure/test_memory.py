import pytest
import torch

from fastslots.benchmark.measure.memory import memory_use
from tests.benchmark.attention.cases import CPU

pytestmark = pytest.mark.slow


def test_counts_the_bytes_of_a_hand_made_case():
    def forward():
        kept = torch.empty(1000)
        torch.empty(500, dtype=torch.float64)
        return kept

    def backward(kept):
        assert kept.numel() == 1000
        first = torch.empty(2000)
        del first
        torch.empty(3000)

    assert memory_use(forward, backward, CPU) == (4000, 16_000)
    assert memory_use(lambda: None, lambda _: torch.empty(10), CPU) == (0, 40)


def test_counts_what_autograd_saves():
    x = torch.zeros(1000, requires_grad=True)
    grad = torch.ones(1000)
    kept, peak = memory_use(lambda: x.exp().exp(), lambda y: torch.autograd.grad(y, x, grad), CPU)
    assert kept == 8000
    assert peak >= 16_000


def test_what_an_earlier_measurement_left_behind_does_not_count():
    left, older = [], []

    def leave():
        left.extend(torch.empty(100_000) for _ in range(20))

    assert memory_use(leave, lambda _: None, CPU) == (8_000_000, 8_000_000)
    known = {block.data_ptr() for block in left}
    left.clear()
    blocks = [torch.empty(100_000) for _ in range(20)]
    older += [block for block in blocks if block.data_ptr() in known]
    assert older, "the allocator gave no address twice: nothing is tested"
    del blocks
    assert memory_use(older.clear, lambda _: torch.empty(1000), CPU) == (0, 4000)
