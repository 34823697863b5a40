"""Weights folded and their gradients, against autograd of the same products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastslots_kernels import SlotAttentionWeights
from fastslots_kernels.fused.products import fold, fold_backward
from fastslots_kernels.testing import FigureTwo

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# C, D, M, H.
WIDTHS = [
    pytest.param(10, 6, 5, 3, id="ragged"),
    pytest.param(16, 16, 16, 1, id="one-block"),
    pytest.param(70, 72, 33, 1, id="several-blocks"),
    pytest.param(33, 96, 40, 2, id="heads-wider-than-a-block"),
]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def make_weights(c: int, d: int, m: int, dtype: torch.dtype) -> SlotAttentionWeights:
    module = FigureTwo(c, d, m, torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    return SlotAttentionWeights.from_module(module)


def products(w: SlotAttentionWeights, heads: int) -> list[Tensor]:
    """Wqᵀ Wk / √(D / H) and W_ih Wv of every head, side by side."""
    scale = (w.slot_size / heads) ** -0.5
    q, k, v = (x.unflatten(0, (heads, -1)) for x in (w.project_q, w.project_k, w.project_v))
    ih = w.gru_weight_ih.unflatten(1, (heads, -1)).transpose(0, 1)
    return [(a @ b).transpose(0, 1).flatten(1) for a, b in ((q.mT * scale, k), (ih, v))]


def assert_close(actual: Tensor, exact: Tensor, rounded: Tensor, name: str) -> None:
    """Within 1e-12 in float64, else within twice the error of plain PyTorch in the same dtype."""
    assert actual.shape == exact.shape, name
    exact = exact.detach()
    error, allowed = (float((x.detach() - exact).abs().max()) for x in (actual, rounded))
    relative = 1e-12 if actual.dtype == torch.float64 else torch.finfo(actual.dtype).eps
    assert error <= 2 * allowed + relative * float(exact.abs().max()), f"{name}: {error:.3g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("c", "d", "m", "heads"), WIDTHS)
def test_folded_weights_are_products_in_the_tile_dtype(
    c: int, d: int, m: int, heads: int, dtype: torch.dtype
) -> None:
    w = make_weights(c, d, m, torch.promote_types(dtype, torch.float32))
    folded = fold(w, heads, dtype)
    exact, plain = products(w.to(torch.float64), heads), products(w, heads)
    for name, x, y in zip(("key_weight", "value_weight"), exact, plain, strict=True):
        assert_close(getattr(folded, name), x, y.to(dtype), name)
    copies = {"hidden_weight": "gru_weight_hh", "mlp_0": "mlp_0_weight", "mlp_2": "mlp_2_weight"}
    for name, of in copies.items():
        assert torch.equal(getattr(folded, name), getattr(w, of).to(dtype)), name
    assert {x.dtype for x in folded[:5]} == {dtype}
    assert all(x.is_contiguous() for x in folded)


def gradients_of_products(
    w: SlotAttentionWeights, heads: int, upstream: list[Tensor]
) -> list[Tensor]:
    """Of the projections and of ``gru_weight_ih``, by autograd."""
    leaves = [w.project_q, w.project_k, w.project_v, w.gru_weight_ih]
    return list(torch.autograd.grad(products(w, heads), leaves, [x.to(w.dtype) for x in upstream]))


def make_upstream(c: int, d: int, heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of keys and values."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(rows, heads * c, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for rows in (d, 3 * d)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("c", "d", "m", "heads"), WIDTHS)
def test_the_folds_backward_matches_autograd(
    c: int, d: int, m: int, heads: int, dtype: torch.dtype
) -> None:
    w = make_weights(c, d, m, dtype)
    upstream = make_upstream(c, d, heads, torch.promote_types(dtype, torch.float32))
    actual = fold_backward(w, heads, *upstream, dtype, "ieee")
    assert {x.dtype for x in actual.values()} == {dtype}
    for (name, x), exact, plain in zip(
        actual.items(),
        gradients_of_products(w.to(torch.float64), heads, upstream),
        gradients_of_products(w, heads, upstream),
        strict=True,
    ):
        assert_close(x, exact, plain, name)


@pytest.mark.parametrize(("c", "d", "m", "heads"), WIDTHS)
def test_float32_weights_are_multiplied_as_such_for_16_bit_tiles(
    c: int, d: int, m: int, heads: int
) -> None:
    w = make_weights(c, d, m, torch.float32)
    upstream = make_upstream(c, d, heads, torch.float32)
    actual = fold_backward(w, heads, *upstream, torch.float16, "ieee")
    w = w.to(torch.float64)
    exact = gradients_of_products(w, heads, upstream)
    absolute = {name: x.abs() for name, x in w.named_tensors().items()}
    sizes = gradients_of_products(replace(w, **absolute), heads, [x.abs() for x in upstream])
    for (name, x), y, size in zip(actual.items(), exact, sizes, strict=True):
        # Of every term the product of two remainders, below 2⁻¹⁰ each, and what is cut off either.
        assert bool(((x - y).abs() <= 4 * 2**-20 * size).all()), name
