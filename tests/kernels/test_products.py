"""Weights folded and their gradients, against autograd of the same products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastslots_kernels import SlotAttentionWeights
from fastslots_kernels.fused.products import fold, fold_backward
from tests.kernels.cases import FigureTwo

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# C, D, M, H.
WIDTHS = [
    pytest.param(10, 6, 5, 3, id="ragged"),
    pytest.param(16, 16, 16, 1, id="one-block"),
    pytest.param(70, 72, 33, 1, id="several-blocks"),
    pytest.param(33, 96, 40, 2, id="heads-wider-than-a-block"),
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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
    for name, x, y in zip(("keys", "values"), exact, plain, strict=True):
        assert_close(getattr(folded, name), x, y.to(dtype), name)
    copies = {"hidden": "gru_weight_hh", "mlp_0": "mlp_0_weight", "mlp_2": "mlp_2_weight"}
    for name, of in copies.items():
        assert torch.equal(getattr(folded, name), getattr(w, of).to(dtype)), name
    assert {x.dtype for x in folded[:5]} == {dtype}
    assert all(x.is_contiguous() for x in folded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("c", "d", "m", "heads"), WIDTHS)
def test_the_folds_backward_matches_autograd(
    c: int, d: int, m: int, heads: int, dtype: torch.dtype
) -> None:
    w = make_weights(c, d, m, dtype)
    acc = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(1)
    d_keys, d_values = (
        torch.randn(rows, heads * c, generator=generator, dtype=torch.float64).to(DEVICE, acc)
        for rows in (d, 3 * d)
    )

    def by_autograd(w: SlotAttentionWeights) -> list[Tensor]:
        leaves = [w.project_q, w.project_k, w.project_v, w.gru_weight_ih]
        upstream = [x.to(w.dtype) for x in (d_keys, d_values)]
        return list(torch.autograd.grad(products(w, heads), leaves, upstream))

    actual = fold_backward(w, heads, d_keys, d_values, dtype, "ieee")
    assert {x.dtype for x in actual.values()} == {dtype}
    for (name, x), exact, plain in zip(
        actual.items(), by_autograd(w.to(torch.float64)), by_autograd(w), strict=True
    ):
        assert_close(x, exact, plain, name)
