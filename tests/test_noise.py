"""Noise that follows from keys: distributions, independence, and what a number depends on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastslots.noise import Draw, Noise, derive_seed, fresh_keys, sample_keys

CORRELATION_SIGMAS = 6.0


def keys(*samples: int, step: int = 0) -> Tensor:
    return sample_keys(samples, 0, "step", step)


def uniform_bits(rows: int, columns: int) -> Tensor:
    """Bits of one draw as numbers of mean 0 and variance 1, ``[32, rows, columns]``."""
    bits = Noise(keys(7)).draw(rows, columns).bits()[0]
    places = torch.arange(32, dtype=torch.int32).view(-1, 1, 1)
    return ((bits >> places) & 1).float() * 2 - 1


def test_a_number_depends_on_its_sample_draw_and_place_alone():
    together, alone = Noise(keys(3, 4, 5)), Noise(keys(4))
    for _ in range(2):
        whole, single = together.draw(6, 9), alone.draw(6, 9)
        assert torch.equal(whole.bits()[1:2], single.bits())
    part = Draw(whole.rows[1:2, 2:5], whole.columns[1:2])
    assert torch.equal(part.bits(), whole.bits()[1:2, 2:5])
    assert torch.equal(together.draw(8, 12).bits()[1:2, :6, :9], alone.draw(6, 9).bits())


def test_samples_steps_draws_rows_and_columns_differ():
    noise = Noise(keys(0, 1))
    first, second = noise.draw(4, 4).bits(), noise.draw(4, 4).bits()
    other = Noise(keys(0, 1, step=1)).draw(4, 4).bits()
    numbers = torch.cat([first, second, other]).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_every_bit_is_fair():
    bits = uniform_bits(256, 4096)
    deviation = bits.mean((1, 2)).abs() * math.sqrt(256 * 4096)
    assert deviation.max() < CORRELATION_SIGMAS


def test_no_two_rows_and_no_two_columns_are_correlated_in_any_bit():
    bits = uniform_bits(128, 4096)
    for table in (bits, uniform_bits(4096, 128).transpose(1, 2)):
        correlation = table @ table.transpose(1, 2) / math.sqrt(4096)
        correlation.diagonal(dim1=1, dim2=2).zero_()
        assert correlation.abs().max() < CORRELATION_SIGMAS


def test_rectangles_of_entries_are_independent():
    """The product of four would give away a hash that merely combines a row's with a column's."""
    bits = uniform_bits(512, 512)
    product = bits[:, ::2, ::2] * bits[:, 1::2, ::2] * bits[:, ::2, 1::2] * bits[:, 1::2, 1::2]
    assert product.mean((1, 2)).abs().max() * 256 < CORRELATION_SIGMAS


def test_draws_and_samples_are_independent():
    noise = Noise(keys(0, 1))
    first, second = noise.draw(256, 1024), noise.draw(256, 1024)
    a, b = first.uniform(torch.float64) - 0.5, second.uniform(torch.float64) - 0.5
    for x, y in ((a[0], b[0]), (a[0], a[1]), (a[0], b[1])):
        assert abs((x * y).mean() * 12) * 512 < CORRELATION_SIGMAS


def test_uniform_excludes_both_ends_and_has_equal_bins():
    numbers = Noise(keys(0)).draw(1024, 1024).uniform(torch.float32)
    assert 0 < numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1
    counts = torch.histc(numbers, 64, 0, 1)
    expected = numbers.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 63 - 5 * math.sqrt(126) < chi_square < 63 + 5 * math.sqrt(126)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_are_those_of_the_distributions(dtype):
    noise = Noise(keys(0, 1))
    gumbel = noise.draw(512, 1024).gumbel(dtype)
    normal = noise.normal(512, 1024, dtype)
    assert gumbel.dtype == normal.dtype == dtype
    sigma = 1 / math.sqrt(2 * 512 * 1024)
    assert abs(gumbel.mean() - 0.57721566) < 5 * 1.2825 * sigma
    assert abs(gumbel.var() - math.pi**2 / 6) < 5 * 3.5 * sigma
    assert abs(normal.mean()) < 5 * sigma
    assert abs(normal.var() - 1) < 5 * math.sqrt(2) * sigma
    assert abs(normal.pow(4).mean() - 3) < 5 * math.sqrt(96) * sigma
    assert gumbel.isfinite().all()
    assert normal.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_numbers_of_16_bits_are_rounded_at_their_end_alone(dtype):
    narrow, wide = Noise(keys(0)), Noise(keys(0))
    for kind in ("exponential", "gumbel"):
        numbers = getattr(narrow.draw(64, 64), kind)(dtype)
        assert torch.equal(numbers, getattr(wide.draw(64, 64), kind)(torch.float32).to(dtype))
        assert numbers.isfinite().all()
    assert torch.equal(narrow.normal(64, 64, dtype), wide.normal(64, 64, torch.float32).to(dtype))
    with pytest.raises(TypeError, match="dtype must be float32 or float64; got torch"):
        narrow.draw(2, 2).uniform(dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_as_often_as_asked_and_keeps_the_mean(p):
    x = torch.ones(2, 512, 512, requires_grad=True)
    output = Noise(keys(0, 1)).dropout(x, p)
    output.sum().backward()
    dropped = (output == 0).double().mean().item()
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / x.numel())
    torch.testing.assert_close(output.max().item(), 1 / (1 - p))
    assert torch.equal(x.grad, output.detach())


def test_keys_follow_from_seed_purpose_and_sample():
    assert torch.equal(sample_keys([3], 0, "a"), sample_keys(range(5), 0, "a")[3:4])
    made = [sample_keys(range(8), seed, purpose) for seed in (0, 1) for purpose in ("a", "b")]
    assert len(torch.cat(made).unique(dim=0)) == 32
    assert sample_keys([], 0).shape == (0, 2)
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", 2)


def test_fresh_keys_follow_the_global_generator():
    torch.manual_seed(0)
    first = fresh_keys(4, torch.device("cpu"))
    second = fresh_keys(4, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(first, fresh_keys(4, torch.device("cpu")))
    assert len(torch.cat([first, second]).unique(dim=0)) == 8


def test_no_samples_have_no_noise():
    noise = Noise(sample_keys([], 0))
    assert noise.normal(3, 4, torch.float32).shape == (0, 3, 4)


def test_keys_of_another_kind_are_named():
    with pytest.raises(TypeError, match=r"keys must be torch.int32; got torch.int64"):
        Noise(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"keys must have shape \(B, 2\); got \(3,\)"):
        Noise(torch.zeros(3, dtype=torch.int32))


def test_running_out_of_draws_is_said():
    noise = Noise(keys(0))
    noise.num_draws = 1024
    with pytest.raises(RuntimeError, match="1024 draws, and all have been made"):
        noise.draw(1, 1)


@pytest.mark.slow
def test_compiled_numbers_are_the_same():
    def draw(k: Tensor) -> tuple[Tensor, Tensor]:
        noise = Noise(k)
        return noise.draw(5, 7).bits(), noise.draw(5, 7).uniform(torch.float32)

    compiled = torch.compile(draw, fullgraph=True, dynamic=False)
    for actual, expected in zip(compiled(keys(0, 1)), draw(keys(0, 1)), strict=True):
        assert torch.equal(actual, expected)
