"""The slot update against the same formulas in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from fastslots_kernels import SlotAttentionWeights
from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import record_launches
from fastslots_kernels.fused.plans import update_plan
from fastslots_kernels.fused.products import fold
from fastslots_kernels.fused.reductions import converged, reduce_splits
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.fused.update import (
    Scratch,
    make_keys,
    new_keys,
    new_residual,
    recompute_gates,
    update_slots,
)
from fastslots_kernels.testing import FigureTwo
from tests.kernels.poisoned import poisoned_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORM_EPS = 1e-5, 2e-3, 5e-3  # such that one taken for another shows

# Rows and widths that no block divides; the last sizes take several blocks of each.
RAGGED = Sizes(
    batch=3, num_inputs=9, input_size=10, num_slots=4, slot_size=7, num_heads=3, mlp_size=5
)
ONE_SLOT = RAGGED._replace(num_slots=1, num_heads=1)
LARGE = Sizes(
    batch=4, num_inputs=9, input_size=80, num_slots=5, slot_size=72, num_heads=2, mlp_size=100
)
SIZES = [
    pytest.param(RAGGED, 3, id="ragged"),
    pytest.param(ONE_SLOT, 1, id="one-slot"),
    pytest.param(LARGE, 2, id="larger-than-a-block"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)


@dataclass(frozen=True)
class Problem:
    """What enters a slot update; no input reached the last image, and the padding of the sums is NaN."""

    sums: Tensor  # [B, S, sums_size]
    slots: Tensor  # [R, D]
    w: FoldedWeights
    sizes: Sizes

    @property
    def call(self) -> Call:
        """Without inputs."""
        return Call(self.slots.new_empty(0), None, self.w, self.sizes, 0.0, NORM_EPS, "ieee")

    def to_float64(self) -> Problem:
        w = FoldedWeights(*(tensor.double() for tensor in self.w))
        return replace(self, sums=self.sums.double(), slots=self.slots.double(), w=w)


def make_problem(sizes: Sizes, splits: int, dtype: torch.dtype = torch.float64) -> Problem:
    """Random values, rounded to the tile dtype `dtype` and its accumulator's."""
    generator = torch.Generator().manual_seed(0)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    b, _, c, k, d, heads, m = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, acc)

    def matrix(*shape: int) -> Tensor:
        return (normal(*shape) / shape[1] ** 0.5).to(dtype)

    matrices = [
        matrix(*shape) for shape in [(d, heads * c), (3 * d, heads * c), (3 * d, d), (m, d), (d, m)]
    ]
    lengths = c, c, d, d, d, d, 3 * d, 3 * d, m, d
    vectors = [normal(length) for length in lengths]
    total = 0.1 + normal(b, splits, k * heads).abs()
    sums = normal(b, splits, k * heads, c) * total.unsqueeze(-1)
    total[-1], sums[-1] = 0, 0
    padding = total.new_full((b, splits, sizes.sums_size - k * heads * (c + 1)), float("nan"))
    all_sums = torch.cat([sums.flatten(2), total, padding], 2)
    return Problem(all_sums, normal(b * k, d), FoldedWeights(*matrices, *vectors), sizes)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a bᵀ``, of operands in the dtype of the matrix b, added up in that of a."""
    return a.to(b.dtype).to(a.dtype) @ b.to(a.dtype).T


def expected_plain(slots: Tensor, p: Problem) -> Tensor:
    """Keys without the inputs' affine, ``[R, H, C]``."""
    w = p.w
    normed = F.layer_norm(
        slots, slots.shape[1:], w.norm_slots_weight, w.norm_slots_bias, NORM_EPS[1]
    )
    return product(normed, w.key_weight.T).unflatten(1, (-1, p.sizes.input_size))


def expected_keys(slots: Tensor, p: Problem) -> dict[str, Tensor]:
    w, plain = p.w, expected_plain(slots, p)
    return {"m": (plain * w.scale).flatten(1).to(w.key_weight.dtype), "bias": plain @ w.shift}


def expected_gates(p: Problem) -> dict[str, Tensor]:
    w, (b, _, c, k, d, heads, _) = p.w, p.sizes
    reduced = p.sums.sum(1)[:, : k * heads * (c + 1)]
    sums, total = reduced.split([k * heads * c, k * heads], 1)
    total = total.view(b, k * heads, 1)
    mean = sums.view(b, k * heads, c) / torch.where(total > 0, total, 1)
    averaged = torch.where(total > 0, mean * w.scale + w.shift, 0).view(b * k, heads * c)
    from_updates = product(averaged, w.value_weight) + w.gru_bias_ih
    from_slots = product(p.slots, w.hidden_weight) + w.gru_bias_hh
    from_hidden = from_slots[:, 2 * d :]
    reset, keep = (from_updates + from_slots)[:, : 2 * d].sigmoid().chunk(2, 1)
    new = torch.tanh(from_updates[:, 2 * d :] + reset * from_hidden)
    return {
        "gates": torch.stack([reset, keep, new, from_hidden]),
        "output": (1 - keep) * new + keep * p.slots,
        "reduced": F.pad(reduced, (0, p.sizes.sums_size - reduced.shape[1])),
    }


def expected_update(p: Problem) -> dict[str, Tensor]:
    w, gates = p.w, expected_gates(p)
    output = gates["output"]
    hidden = F.layer_norm(output, output.shape[1:], w.norm_mlp_weight, w.norm_mlp_bias, NORM_EPS[2])
    hidden = F.relu(product(hidden, w.mlp_0) + w.mlp_0_bias)
    slots = output + product(hidden, w.mlp_2) + w.mlp_2_bias
    residual = torch.stack([(slots - p.slots).square().sum(1), slots.square().sum(1)], 1)
    found = {"slots": slots, "residual": residual, "reduced": gates["reduced"]}
    found["rounded"] = slots.to(w.key_weight.dtype)
    by_number = {f"gate {i}": gate for i, gate in enumerate(gates["gates"])}
    return found | by_number | expected_keys(slots, p)


def run_update(p: Problem, *, in_place: bool = False, stop: int = 0) -> dict[str, Tensor]:
    """All outputs of `update_slots`, and of `make_keys` for its slots."""
    with poisoned_memory():
        slots, flag = p.slots.clone(), torch.tensor(stop, dtype=torch.int32, device=DEVICE)
        new = slots if in_place else torch.empty_like(slots)
        of_all = p.call._replace(sizes=p.sizes._replace(batch=len(p.sums)))
        scratch = Scratch.new(of_all)
        scratch.rounded.copy_(slots)
        keys, residual = new_keys(of_all), new_residual(of_all)
        rounded = torch.empty_like(scratch.rounded)
        reduced = slots.new_empty(len(p.sums), p.sizes.sums_size)
        memory = slots.new_empty(4 * len(slots), slots.shape[1])
        gates, rest = memory.tensor_split([4 * p.sizes.rows])
        options = {"stop": flag, "residual": residual, "reduced": reduced, "gates": gates}
        update_slots(p.call, p.sums, slots, new, scratch, **options)
        make_keys(p.call, new, keys, rounded=rounded, stop=flag)
    assert rest.isnan().all()
    found = {"slots": new, "residual": residual.sum(1), "reduced": reduced, "rounded": rounded}
    found |= {f"gate {i}": gate for i, gate in enumerate(gates.chunk(4))}
    return found | {"m": keys.m, "bias": keys.bias.sum(2)}


def assert_close(
    actual: dict[str, Tensor], expected: Callable[[Problem], dict[str, Tensor]], p: Problem
) -> None:
    """Within 1e-12 in float64, else within twice the error of the same formulas in the same dtypes."""
    oracle, plain = expected(p.to_float64()), expected(p)
    assert {name: x.dtype for name, x in actual.items()} == {n: x.dtype for n, x in plain.items()}
    for name, exact in oracle.items():
        scale = float(exact.abs().max())
        error, allowed = (float((x[name].double() - exact).abs().max()) for x in (actual, plain))
        relative = 1e-12 if p.slots.dtype == torch.float64 else torch.finfo(p.slots.dtype).eps
        budget = 2 * allowed + relative * scale
        assert error <= budget, (
            f"{name}: error {error:.3g}, plain's {allowed:.3g}, scale {scale:.3g}"
        )


@DTYPES
@pytest.mark.parametrize(("sizes", "splits"), SIZES)
def test_keys_match_plain_pytorch(sizes: Sizes, splits: int, dtype: torch.dtype) -> None:
    p = make_problem(sizes, splits, dtype)
    with poisoned_memory():
        keys = make_keys(p.call, p.slots, new_keys(p.call))
    assert_close({"m": keys.m, "bias": keys.bias.sum(2)}, lambda p: expected_keys(p.slots, p), p)


@DTYPES
@pytest.mark.parametrize(("sizes", "splits"), SIZES)
def test_update_matches_plain_pytorch(sizes: Sizes, splits: int, dtype: torch.dtype) -> None:
    p = make_problem(sizes, splits, dtype)
    assert_close(run_update(p), expected_update, p)


@DTYPES
@pytest.mark.parametrize(("sizes", "splits"), SIZES)
def test_gates_match_plain_pytorch(sizes: Sizes, splits: int, dtype: torch.dtype) -> None:
    p = make_problem(sizes, splits, dtype)
    p = replace(p, sums=p.sums.sum(1, keepdim=True))
    with poisoned_memory():
        gates = recompute_gates(p.call, p.sums, p.slots)

    assert_close({"gates": gates}, lambda p: {"gates": expected_gates(p)["gates"]}, p)


def test_outputs_that_nobody_wants_change_nothing() -> None:
    p = make_problem(RAGGED, 3)
    new, scratch = torch.empty_like(p.slots), Scratch.new(p.call)
    scratch.rounded.copy_(p.slots)
    update_slots(p.call, p.sums, p.slots, new, scratch)
    assert torch.equal(new, run_update(p)["slots"])


@pytest.mark.slow
def test_many_rows_take_larger_tiles() -> None:
    narrow = {"input_size": 20, "slot_size": 24, "mlp_size": 20, "num_heads": 1}
    p = make_problem(RAGGED._replace(batch=240, num_slots=10, **narrow), 2, torch.float16)
    assert update_plan(p.sizes, torch.float16).rows == 32
    assert_close(run_update(p), expected_update, p)


def test_new_slots_may_take_the_memory_of_the_old() -> None:
    p = make_problem(RAGGED._replace(batch=5), 2)
    apart, in_place = run_update(p), run_update(p, in_place=True)
    for name, expected in apart.items():
        assert torch.equal(in_place[name], expected), name


def test_a_set_flag_leaves_everything_untouched() -> None:
    p = make_problem(RAGGED, 3)
    outputs = run_update(p, in_place=True, stop=1)
    assert torch.equal(outputs.pop("slots"), p.slots)
    for name, output in outputs.items():
        assert output.isnan().all(), name


def test_nan_stays_within_its_image_and_is_not_taken_for_an_empty_one() -> None:
    p = make_problem(RAGGED, 3)
    clean = run_update(p)["slots"].unflatten(0, (RAGGED.batch, -1))
    p.sums[1] = torch.nan
    slots = run_update(p)["slots"].unflatten(0, (RAGGED.batch, -1))
    assert slots[1].isnan().all()
    assert torch.equal(slots[[0, 2]], clean[[0, 2]])


def test_rows_past_the_last_are_not_written() -> None:
    p = make_problem(RAGGED, 3)
    all_images, first_image = run_update(p), run_update(replace(p, sizes=RAGGED._replace(batch=1)))
    for name, output in first_image.items():
        written = len(all_images[name]) // RAGGED.batch
        assert torch.equal(output[:written], all_images[name][:written]), name
        assert output[written:].isnan().all(), name


def test_an_empty_batch_launches_nothing() -> None:
    sizes = RAGGED._replace(batch=0)
    p = make_problem(RAGGED, 1)
    p = Problem(p.sums[:0], p.slots[:0], p.w, sizes)
    stop, used = torch.zeros(2, dtype=torch.int64, device=DEVICE).unbind()
    with record_launches() as launches:
        outputs = run_update(p)
        make_keys(p.call, p.slots, new_keys(p.call))
        gates = recompute_gates(p.call, p.sums, p.slots)
        converged(outputs["residual"], stop.int(), used, sizes, 1e-3)
        assert reduce_splits(p.sums, sizes).shape == (0, 1, sizes.sums_size)
    assert launches == []
    assert gates.shape == (4, 0, sizes.slot_size)


@pytest.mark.parametrize("splits", [1, 17, 40])
def test_many_splits_are_added_up(splits: int) -> None:
    p = make_problem(RAGGED._replace(input_size=30), splits)  # NaN in the padding
    with poisoned_memory():
        sums = reduce_splits(p.sums, p.sizes)
    expected = p.sums.nan_to_num().sum(1, keepdim=True)
    torch.testing.assert_close(sums, expected, rtol=1e-13, atol=1e-13)


MANY = RAGGED._replace(batch=150, num_slots=19)  # more images and slots than a block


@pytest.mark.parametrize(
    ("image", "change", "stops"),
    [(0, 0.0, 1), (0, 2e-4, 0), (149, 2e-4, 0), (149, 0.9e-4, 1), (70, torch.nan, 0)],
    ids=["all-below", "first-above", "last-above", "last-just-below", "nan"],
)
def test_iterations_stop_when_every_image_has_converged(
    image: int, change: float, stops: int
) -> None:
    residual = torch.ones(MANY.batch, MANY.num_slots, 2, dtype=torch.float64, device=DEVICE)
    residual[..., 0] = 0
    residual[image, -1, 0] = change**2 * MANY.num_slots  # relative to all slots of the image
    stop = torch.zeros((), dtype=torch.int32, device=DEVICE)
    used = torch.tensor(3, device=DEVICE)
    converged(residual.view(-1, 1, 2), stop, used, MANY, 1e-4)
    assert (int(stop), int(used)) == (stops, 4)


def test_iterations_after_the_last_are_not_counted() -> None:
    stop = torch.ones((), dtype=torch.int32, device=DEVICE)
    used = torch.tensor(3, device=DEVICE)
    converged(torch.ones(RAGGED.rows, 1, 2, device=DEVICE), stop, used, RAGGED, 1e-4)
    assert (int(stop), int(used)) == (1, 3)


@pytest.mark.parametrize("heads", [1, 3])
def test_folded_weights_give_the_products_of_figure_two(heads: int) -> None:
    c, d, k = 10, 12, 4
    module = FigureTwo(c, d, 5, torch.Generator().manual_seed(0)).to(DEVICE, torch.float64)
    weights = SlotAttentionWeights.from_module(module)
    generator = torch.Generator().manual_seed(1)
    inputs, slots, attn = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for shape in [(6, c), (k, d), (heads, k, 6)]
    )
    attn = attn.softmax(-1)

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(1, (heads, -1)).transpose(0, 1)

    with torch.no_grad():
        w = fold(weights, heads, torch.float64)
        normed, normed_slots = module.norm_inputs(inputs), module.norm_slots(slots)
        keys, values = by_head(module.project_k(normed)), by_head(module.project_v(normed))
        queries = by_head(module.project_q(normed_slots)) * (d // heads) ** -0.5
        updates = (attn @ values).transpose(0, 1).flatten(1)

        x = F.layer_norm(inputs, (c,))
        plain = (normed_slots @ w.key_weight).unflatten(1, (heads, c)).transpose(0, 1)
        m, constants = plain * w.scale, plain @ w.shift
        averaged = (attn @ x * w.scale + w.shift).transpose(0, 1).flatten(1)
    logits = m @ x.T + constants.unsqueeze(-1)
    torch.testing.assert_close(logits, queries @ keys.mT, rtol=1e-12, atol=1e-12)
    from_updates = F.linear(updates, weights.gru_weight_ih)
    torch.testing.assert_close(averaged @ w.value_weight.T, from_updates, rtol=1e-12, atol=1e-12)
    assert all(
        torch.equal(folded, original)
        for folded, original in [
            (w.hidden_weight, weights.gru_weight_hh),
            (w.mlp_0, weights.mlp_0_weight),
            (w.mlp_2, weights.mlp_2_weight),
        ]
    )
