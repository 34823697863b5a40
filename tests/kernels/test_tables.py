"""Tables of random numbers by one kernel: the same bits as PyTorch's passes."""

from __future__ import annotations

import pytest
import torch

from fastslots.noise import Draw, Noise, sample_keys
from fastslots_kernels.fused.tables import drop_table, uniform_table

SHAPES = [
    pytest.param(3, 5, 700, id="ragged"),
    pytest.param(2, 300, 1, id="one-column"),
    pytest.param(1, 1, 2048, id="one-row"),
    pytest.param(0, 4, 4, id="no-sample"),
]


def draw(samples: int, rows: int, columns: int) -> Draw:
    return Noise(sample_keys(range(samples), 0, "step")).draw(rows, columns)


def limit(p: float) -> int:
    return round(p * 2**32) - 2**31


@pytest.mark.parametrize(("samples", "rows", "columns"), SHAPES)
def test_the_kernel_makes_the_same_tables(samples, rows, columns):
    made = draw(samples, rows, columns)
    for p in (0.1, 0.9):
        assert torch.equal(drop_table(made.rows, made.columns, limit(p)), made.drop(p))
    uniform = uniform_table(made.rows, made.columns)
    assert uniform.dtype == torch.float32
    assert torch.equal(uniform, made.uniform(torch.float32))


def test_the_kernel_reads_parts_of_heads_as_attention_takes_them():
    heads, length, head = 3, 40, slice(8, 33)
    made = draw(4, heads * length, length)
    part = Draw(
        made.rows.view(4, heads, length, 1)[1:3, :, head], made.columns[1:3, None, :, : head.stop]
    )
    expected = part.drop(0.3)
    assert expected.shape == (2, heads, 25, 33)
    assert torch.equal(drop_table(part.rows, part.columns, limit(0.3)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_makes_the_tables_of_the_cpu():
    here = draw(3, 65, 700)
    there = Draw(here.rows.cuda(), here.columns.cuda())
    dropped, uniform = there.drop(0.1), there.uniform(torch.float32)
    gumbel = there.gumbel(torch.float32)
    assert torch.equal(there.bits().cpu(), here.bits())
    assert torch.equal(dropped.cpu(), here.drop(0.1))
    assert torch.equal(uniform.cpu(), here.uniform(torch.float32))
    assert gumbel.isfinite().all()
    torch.testing.assert_close(gumbel.cpu(), here.gumbel(torch.float32), rtol=1e-4, atol=1e-5)
