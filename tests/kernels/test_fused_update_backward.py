"""The slot update's backward against autograd of the same formulas, in float64 and in the kernels' dtype.

Including the gradients of all weights as the step leaves them: of the folded matrices, and of vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import record_launches
from fastslots_kernels.fused.products import WeightGradients, weight_gradients
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.fused.update import Keys, make_keys, new_keys
from fastslots_kernels.fused.update_backward import keys_backward, new_vectors, update_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORM_EPS = 1e-5, 1e-3, 1e-2  # such that one taken for another shows
RAGGED = Sizes(2, 0, input_size=10, num_slots=4, slot_size=7, num_heads=3, mlp_size=5)
SIZES = [
    pytest.param(RAGGED, id="ragged-everywhere"),
    pytest.param(Sizes(1, 0, 16, 1, 16, 1, 16), id="one-slot"),
    pytest.param(Sizes(3, 0, 40, 7, 72, 1, 100), id="wider-than-a-block"),
    pytest.param(Sizes(5, 0, 70, 7, 24, 2, 33), id="three-tiles-of-slots"),
    pytest.param(Sizes(5, 0, 16, 7, 16, 1, 300), id="large-mlp"),
]
DTYPES = [torch.float32, torch.float16]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Problem(NamedTuple):
    """A step's arguments and the gradients that reach it, in the accumulator's dtype but for matrices."""

    w: FoldedWeights
    slots: Tensor  # [R, D]
    sums: Tensor  # [B, 1, sums_size], NaN in the padding; the first of several slots is empty
    d_new: Tensor  # [R, D]
    d_keys: Tensor  # [B, S, sums_size], NaN in the padding

    def to(self, dtype: torch.dtype) -> Problem:
        """Everything in one dtype."""
        return Problem(
            FoldedWeights(*(x.to(dtype) for x in self.w)), *(x.to(dtype) for x in self[1:])
        )


def make_problem(sizes: Sizes, dtype: torch.dtype, num_splits: int = 3) -> Problem:
    generator = torch.Generator().manual_seed(0)
    accumulator = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = accumulator) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    def sums_like(splits: int) -> Tensor:
        sums = normal(sizes.batch, splits, sizes.sums_size)
        sums[..., sizes.virtual * (sizes.input_size + 1) :] = torch.nan
        return sums

    c, d, m, width = sizes[2], sizes[4], sizes[6], sizes.width
    matrices = [(d, width), (3 * d, width), (3 * d, d), (m, d), (d, m)]
    vectors = [(c,), (c,), (d,), (d,), (d,), (d,), (3 * d,), (3 * d,), (m,), (d,)]
    w = FoldedWeights(
        *(normal(*shape, dtype=dtype) * shape[1] ** -0.5 for shape in matrices),
        *(normal(*shape) for shape in vectors),
    )
    sums = sums_like(1)
    total = sums[:, :, sizes.virtual * c :][..., : sizes.virtual]
    total.copy_(total.abs() + 0.5)
    if sizes.rows > 1:
        total[0, 0, 0] = 0
        sums[0, 0, :c] = 0
    return Problem(w, normal(sizes.rows, d), sums, normal(sizes.rows, d), sums_like(num_splits))


def parts(sums: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """``[R, H, C]`` and ``[R, H]`` of sums ``[B, sums_size]``."""
    length = sizes.virtual * sizes.input_size
    shape = sizes.rows, sizes.num_heads
    u, z = sums[:, :length], sums[:, length : length + sizes.virtual]
    return u.reshape(*shape, sizes.input_size), z.reshape(shape)


class Step(NamedTuple):
    """What the formulas give."""

    new: Tensor
    m: Tensor
    bias: Tensor
    plain: Tensor  # keys without the inputs' affine
    gates: Tensor


def step(w: FoldedWeights, slots: Tensor, sums: Tensor, sizes: Sizes, dtype: torch.dtype) -> Step:
    """The formulas, with the operands of products rounded to `dtype` and everything else as given."""

    def product(x: Tensor, matrix: Tensor) -> Tensor:
        return (x.to(dtype) @ matrix.to(dtype)).to(x.dtype)

    d = sizes.slot_size
    u, z = parts(sums[:, 0], sizes)
    filled = (z > 0)[..., None]
    mean = u / z.masked_fill(z == 0, 1)[..., None]
    averaged = ((mean * w.scale + w.shift) * filled).reshape(sizes.rows, sizes.width)
    reset_in, keep_in, new_in = (product(averaged, w.value_weight.T) + w.gru_bias_ih).split(d, 1)
    reset_slots, keep_slots, from_hidden = (
        product(slots, w.hidden_weight.T) + w.gru_bias_hh
    ).split(d, 1)
    reset, keep = (reset_in + reset_slots).sigmoid(), (keep_in + keep_slots).sigmoid()
    new = (new_in + reset * from_hidden).tanh()
    output = (1 - keep) * new + keep * slots
    normed = F.layer_norm(output, (d,), w.norm_mlp_weight, w.norm_mlp_bias, NORM_EPS[2])
    hidden = F.relu(product(normed, w.mlp_0.T) + w.mlp_0_bias)
    keys = F.layer_norm(slots, (d,), w.norm_slots_weight, w.norm_slots_bias, NORM_EPS[1])
    plain = product(keys, w.key_weight).unflatten(1, (sizes.num_heads, sizes.input_size))
    return Step(
        output + product(hidden, w.mlp_2.T) + w.mlp_2_bias,
        (plain * w.scale).flatten(1),
        plain @ w.shift,
        plain.flatten(1),
        torch.stack([reset, keep, new, from_hidden]),
    )


def by_autograd(p: Problem, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of all arguments by name, products rounded to `dtype`."""
    p = p.to(p.slots.dtype)
    leaves = p.w._asdict() | {"slots": p.slots, "sums": p.sums}
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    *weights, slots, sums = leaves.values()
    result = step(FoldedWeights(*weights), slots, sums, sizes, dtype)
    d_m, d_bias = parts(p.d_keys.sum(1), sizes)
    d_m = d_m.reshape(result.m.shape)
    grads = torch.autograd.grad(
        [result.new, result.m, result.bias], list(leaves.values()), [p.d_new, d_m, d_bias]
    )
    return without_padding(dict(zip(leaves, grads, strict=True)), sizes)


def call_of(p: Problem, sizes: Sizes) -> Call:
    """Without inputs."""
    return Call(p.slots.new_empty(0), None, p.w, sizes, 0.0, NORM_EPS, "ieee")


def by_kernels(p: Problem, sizes: Sizes) -> dict[str, Tensor]:
    """As `by_autograd`."""
    forward = step(p.w, p.slots, p.sums, sizes, p.w.key_weight.dtype)
    call, (made, plain) = call_of(p, sizes), empty_keys(p)
    vectors = new_vectors(call)
    update = update_backward(call, p.d_new, p.slots, p.sums, forward.gates, vectors, made, plain)
    d_plain = keys_backward(call, p.d_keys, plain, p.slots, update.d_slots, vectors)
    weights = weight_gradients(call, update, d_plain, vectors, p.slots.dtype)
    gradients = weights_by_name(weights, p.w)
    return without_padding(gradients | {"slots": update.d_slots, "sums": update.d_sums}, sizes)


def empty_keys(p: Problem) -> tuple[Keys, Tensor]:
    """Memory for the keys, and for those without the inputs' affine."""
    rows, width = len(p.slots), p.w.key_weight.shape[1]
    m, bias = (
        p.w.key_weight.new_empty(rows, width),
        p.slots.new_empty(rows, width // len(p.w.scale)),
    )
    return Keys(m, bias), p.slots.new_empty(rows, width)


def weights_by_name(weights: WeightGradients, w: FoldedWeights) -> dict[str, Tensor]:
    """By the names of `FoldedWeights`, whose vectors have the order of `SlotAttentionWeights`."""
    vectors = weights.vectors.split([len(vector) for vector in w[5:]])
    return dict(zip(w._fields, (*weights[:5], *vectors), strict=True))


def without_padding(gradients: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    length = sizes.virtual * (sizes.input_size + 1)
    return gradients | {"sums": gradients["sums"][..., :length]}


def largest_error(actual: Tensor, oracle: Tensor) -> float:
    return float((actual.double() - oracle).abs().max())


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_match_autograd_in_float64(sizes: Sizes) -> None:
    p = make_problem(sizes, torch.float64)
    actual, oracle = by_kernels(p, sizes), by_autograd(p, sizes, torch.float64)
    assert actual.keys() == oracle.keys()
    for name, expected in oracle.items():
        assert actual[name].shape == expected.shape, name
        error, scale = largest_error(actual[name], expected), float(expected.abs().max())
        assert error <= 1e-11 * scale, f"{name}: error {error:.3g}, scale {scale:.3g}"


@pytest.mark.usefixtures("gpu_products")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_within_twice_the_error_of_autograd(sizes: Sizes, dtype: torch.dtype) -> None:
    p = make_problem(sizes, dtype)
    oracle = by_autograd(p.to(torch.float64), sizes, torch.float64)
    eager, actual = by_autograd(p, sizes, dtype), by_kernels(p, sizes)
    for name, expected in oracle.items():
        error, allowed = (largest_error(x[name], expected) for x in (actual, eager))
        budget = 2 * allowed + torch.finfo(dtype).eps * float(expected.abs().max())
        assert error <= budget, f"{name}: error {error:.3g}, autograd's {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_keys_are_made_again_as_they_were(sizes: Sizes, dtype: torch.dtype) -> None:
    p = make_problem(sizes, dtype)
    gates = step(p.w, p.slots, p.sums, sizes, dtype).gates
    call, (keys, plain) = call_of(p, sizes), empty_keys(p)
    update_backward(call, p.d_new, p.slots, p.sums, gates, new_vectors(call), keys, plain)
    expected = make_keys(call, p.slots, new_keys(call))
    m = plain.unflatten(1, (sizes.num_heads, -1)) * p.w.scale
    for made, again in (
        (keys.m, expected.m),
        (keys.bias, expected.bias.sum(2)),
        (m.flatten(1).to(keys.m.dtype), expected.m),
    ):
        torch.testing.assert_close(made, again)
        assert made.isfinite().all()


def test_an_empty_slot_passes_no_gradient_to_its_sums_nor_to_the_inputs_affine() -> None:
    sizes = Sizes(1, 0, 16, 1, 16, 1, 16)
    p = make_problem(sizes, torch.float64)
    p.sums[..., :17] = 0
    p = p._replace(d_keys=torch.zeros_like(p.d_keys))  # which would reach the affine another way
    gradients = by_kernels(p, sizes)
    for name in ("sums", "scale", "shift", "value_weight"):
        assert torch.equal(gradients[name], torch.zeros_like(gradients[name])), name
    assert gradients["slots"].abs().min() > 0


def test_a_nan_in_one_slot_stays_in_its_row_and_in_the_sums_over_rows() -> None:
    p = make_problem(RAGGED, torch.float64)
    p.sums[1, 0, RAGGED.width * RAGGED.num_slots] = torch.nan  # Z of the second image's first slot
    gradients = by_kernels(p, RAGGED)
    broken = gradients["slots"].isnan().any(1)
    assert broken.tolist() == [row == RAGGED.num_slots for row in range(RAGGED.rows)]
    assert gradients["mlp_2_bias"].isfinite().all()
    assert gradients["gru_bias_ih"].isnan().any()


def test_results_are_the_same_bits_again() -> None:
    p = make_problem(RAGGED, torch.float32)
    first, second = by_kernels(p, RAGGED), by_kernels(p, RAGGED)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_empty_batch_has_zero_gradients_which_one_launch_writes() -> None:
    sizes = RAGGED._replace(batch=0)
    with record_launches() as launches:
        by_kernels(make_problem(sizes, torch.float32), sizes)
    assert [launch.kernel.__name__ for launch in launches] == ["_weight_gradients_kernel"]
    gradients = by_kernels(make_problem(sizes, torch.float32), sizes)
    assert gradients["slots"].shape == (0, sizes.slot_size)
    weights = {name: x for name, x in gradients.items() if name not in ("slots", "sums")}
    assert all(float(x.abs().max()) == 0 for x in weights.values())
