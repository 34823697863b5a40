"""What SLATE computes in parts: token sampling, causal attention, cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots.models.slate import chunks
from fastslots.models.slate.causal_attention import causal_attention
from fastslots.models.slate.cross_entropy import linear_cross_entropy
from fastslots.models.slate.token_sampling import (
    TokenSample,
    TokenWeights,
    likeliest_tokens,
    sample_tokens,
)
from fastslots.noise import Noise, sample_keys

B, N, V, D, E = 3, 10, 7, 4, 5
KEYS = sample_keys(range(B), 0)


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return list(torch.autograd.grad(output, inputs, grad))


def assert_equal(actual: list[Tensor], expected: list[Tensor], rtol: float = 1e-12) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert (a - e).abs().max() <= rtol * e.abs().max()


@pytest.fixture
def entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(chunks, "_CPU_ENTRIES", request.param)
    return request.param


def parts_of(batch_size: int, rows: int, columns: int, entries: int) -> list[chunks.Part]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_CPU_ENTRIES", entries)
        return list(chunks.parts(batch_size, rows, columns, torch.device("cpu")))


@pytest.mark.parametrize("entries", [1, 3, 7, 11, 23, 70, 1000])
def test_parts_cover_every_row_of_every_sample_once_and_are_no_larger_than_asked(entries):
    covered = torch.zeros(5, 7, dtype=torch.int64)
    for part in parts_of(5, 7, 3, entries):
        part.of(covered).add_(1)
        assert part.of(covered).numel() * 3 <= max(3, entries)
    assert (covered == 1).all()


def test_nothing_has_no_parts():
    assert parts_of(0, 7, 3, 10) == []


def token_problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, TokenWeights]:
    features, *weights = tensors((B, N, D), (V, D), (V,), (E, V), dtype=dtype)
    return features, TokenWeights(*weights)


def whole_sample(features, weights, tau, hard, noise) -> TokenSample:
    """`sample_tokens` by autograd, all at once."""
    logits = features @ weights.to_logits.t() + weights.bias
    g = [noise.draw(N, V).gumbel(logits.dtype) if noise else 0 for _ in range(2)]
    z = torch.softmax((logits + g[0]) / tau, -1)
    if hard:
        z = F.one_hot(z.argmax(-1), V) - z.detach() + z
    return TokenSample(z @ weights.from_tokens.t(), (logits + g[1]).argmax(-1))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("entries", [2**18, 2 * N * V, 4 * V, 1], indirect=True)
def test_tokens_drawn_in_parts_equal_those_drawn_at_once(entries, hard, noisy):
    features, weights = token_problem()
    noise = (Noise(KEYS), Noise(KEYS)) if noisy else (None, None)
    actual = sample_tokens(features, weights, 0.7, hard, noise[0])
    expected = whole_sample(features, weights, 0.7, hard, noise[1])
    assert torch.equal(actual.ids, expected.ids)
    assert not actual.ids.requires_grad
    inputs = [features, *weights]
    assert_equal([actual.decoded], [expected.decoded])
    assert_equal(gradients(actual.decoded, inputs), gradients(expected.decoded, inputs))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_tokens_that_are_not_drawn_are_the_likeliest(backend):
    features, weights = token_problem()
    drawn, likeliest = (
        sample_tokens(features, weights, 0.7, False, Noise(KEYS), backend, draw)
        for draw in (True, False)
    )
    assert torch.equal(likeliest.ids, likeliest_tokens(features, weights))
    assert not torch.equal(likeliest.ids, drawn.ids)
    assert torch.equal(likeliest.decoded, drawn.decoded)
    inputs = [features, *weights]
    assert_equal(gradients(likeliest.decoded, inputs), gradients(drawn.decoded, inputs))


@pytest.mark.parametrize("entries", [4 * V], indirect=True)
def test_gradients_of_token_sampling_pass_gradcheck(entries):
    features, weights = token_problem()

    def decoded(*inputs: Tensor) -> Tensor:
        return sample_tokens(inputs[0], TokenWeights(*inputs[1:]), 0.7, False, Noise(KEYS)).decoded

    assert torch.autograd.gradcheck(decoded, (features, *weights))


def test_a_temperature_may_be_a_tensor():
    features, weights = token_problem()
    samples = [
        sample_tokens(features, weights, tau, False, Noise(KEYS)).decoded
        for tau in (0.7, torch.tensor(0.7, dtype=torch.float64))
    ]
    assert torch.equal(*samples)


def test_tokens_are_drawn_with_the_probabilities_of_the_logits():
    bias = torch.tensor([2.0, 0.0, 1.0, -1.0])
    weights = TokenWeights(torch.zeros(4, 1), bias, torch.zeros(1, 4))
    ids = sample_tokens(
        torch.zeros(4, 10_000, 1), weights, 1.0, False, Noise(sample_keys(range(4), 0))
    ).ids
    frequencies = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    # four standard deviations of a frequency over 40,000 draws are at most 0.01
    torch.testing.assert_close(frequencies, bias.softmax(0), rtol=0, atol=0.01)


def test_tokens_and_relaxed_tokens_are_independent_draws():
    weights = TokenWeights(torch.zeros(8, 1), torch.zeros(8), torch.eye(8))
    z, ids = sample_tokens(
        torch.zeros(1, 10_000, 1), weights, 1.0, True, Noise(sample_keys([0], 0))
    )
    agreement = (z.argmax(-1) == ids).double().mean().item()
    assert abs(agreement - 1 / 8) < 0.014  # four standard deviations over 10,000 draws


@pytest.mark.parametrize("entries", [2**18, 2 * N * V, 4 * V, 1], indirect=True)
def test_cross_entropy_in_parts_equals_that_of_all_logits(entries):
    features, weight = tensors((B, N, D), (V, D))
    ids = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(2))
    actual = linear_cross_entropy(features, weight, ids)
    logits = (features @ weight.t()).flatten(0, 1)
    expected = F.cross_entropy(logits, ids.flatten(), reduction="sum")
    assert_equal([actual], [expected])
    inputs = [features, weight]
    assert_equal(gradients(actual, inputs), gradients(expected, inputs))


def test_cross_entropy_without_gradients_keeps_none():
    features, weight = tensors((B, N, D), (V, D))
    ids = torch.zeros(B, N, dtype=torch.int64)
    with torch.no_grad():
        assert not linear_cross_entropy(features, weight, ids).requires_grad
    only_weight = linear_cross_entropy(features.detach(), weight, ids)
    assert_equal(
        gradients(only_weight, [weight]),
        gradients(linear_cross_entropy(features, weight, ids), [weight]),
    )


def test_cross_entropy_of_large_logits_is_finite():
    features, weight = tensors((B, N, D), (V, D), dtype=torch.float32)
    loss = linear_cross_entropy(1e4 * features, weight, torch.zeros(B, N, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()


def whole_attention(q, k, v, dropout, noise) -> Tensor:
    """`causal_attention` by autograd, all at once."""
    length, size = q.shape[2:]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    logits = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(future, -torch.inf)
    attn = logits.softmax(-1)
    rows = attn.flatten(1, 2)
    return noise.dropout(rows, dropout).view_as(attn) @ v


@pytest.mark.parametrize("entries", [2**18, 2 * N * N * 8, 3 * N * 8, 1], indirect=True)
def test_attention_in_parts_equals_attention_at_once(entries):
    inputs = tensors(*[(B, 2, N, D)] * 3)
    actual = causal_attention(*inputs, 0.3, Noise(KEYS))
    expected = whole_attention(*inputs, 0.3, Noise(KEYS))
    assert_equal([actual], [expected])
    assert_equal(gradients(actual, inputs), gradients(expected, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("entries", [3 * N * 8], indirect=True)
def test_gradients_of_attention_pass_gradcheck(entries):
    inputs = tensors(*[(B, 2, N, D)] * 3)
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, 0.3, Noise(KEYS)), inputs)


def test_attention_without_dropout_or_noise_is_the_fused_one():
    inputs = tensors(*[(B, 2, N, D)] * 3)
    expected = F.scaled_dot_product_attention(*inputs, is_causal=True)
    assert torch.equal(causal_attention(*inputs, 0.3, None), expected)
    assert torch.equal(causal_attention(*inputs, 0.0, Noise(KEYS)), expected)


def test_under_autocast_products_are_bfloat16_and_what_adds_up_is_float32():
    features, weight = tensors((B, N, D), (V, D), dtype=torch.float32)
    tokens, weights = token_problem(torch.float32)
    q, k, v = tensors(*[(B, 2, N, D)] * 3, dtype=torch.float32)
    ids = torch.zeros(B, N, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(features, weight, ids)
        decoded = sample_tokens(tokens, weights, 0.7, False, Noise(KEYS)).decoded
        attended = causal_attention(q, k, v, 0.3, Noise(KEYS))
    assert (loss.dtype, decoded.dtype, attended.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    (loss + decoded.float().sum() + attended.float().sum()).backward()
    for tensor in (features, weight, tokens, *weights, q, k, v):
        assert tensor.grad.dtype == torch.float32
    exact = linear_cross_entropy(features.double(), weight.double(), ids)
    assert abs(loss - exact) <= 0.02 * exact


@pytest.mark.parametrize("entries", [2**18, 2 * N * V, 4 * V, 1], indirect=True)
def test_the_likeliest_tokens_in_parts_are_those_of_all_logits(entries):
    features, weights = token_problem()
    logits = features @ weights.to_logits.t() + weights.bias
    assert torch.equal(likeliest_tokens(features, weights), logits.argmax(-1))
