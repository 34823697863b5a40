"""What kernels calculate with a tile. Accumulators are float32, or float64 for float64."""

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """``a / b``, rounded correctly: of float32 the plain operator is 2 units in the last place off."""
    if b.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def ratio(a, b, TILE: tl.constexpr):
    """``a / b`` for a tile dtype, where b has few entries: 16 bits round away what a reciprocal is off."""
    if TILE.primitive_bitwidth > 16:
        return divide(a, b)
    else:
        return a * (1 / b)


@triton.jit
def inverse_root(x, TILE: tl.constexpr):
    """``1 / √x``, for a tile dtype: rounded correctly, but for 16 bits."""
    if x.dtype != tl.float32:
        return 1 / tl.sqrt(x)
    elif TILE.primitive_bitwidth > 16:
        return tl.div_rn(1.0, tl.sqrt_rn(x))
    else:
        return tl.rsqrt(x)


@triton.jit
def mean_of(sums, WIDTH: tl.constexpr):
    """Sums over `WIDTH` entries, divided by their number: multiplied, which takes one instruction."""
    return sums * (1.0 / WIDTH)


@triton.jit
def layer_norm(x, valid, WIDTH: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr = tl.float32):
    """Normalises rows over their `WIDTH` valid columns, without affine: ``x̃``, and ``rstd`` per row.

    Invalid columns are 0 in ``x̃``. TILE is the dtype that it is for.
    """
    centred = tl.where(valid, x - mean_of(tl.sum(x, 1), WIDTH)[:, None], 0.0)
    rstd = inverse_root(mean_of(tl.sum(centred * centred, 1), WIDTH) + EPS, TILE)
    return centred * rstd[:, None], rstd


@triton.jit
def layer_norm_backward(d_normed, normed, rstd, WIDTH: tl.constexpr):
    """The gradient of `layer_norm`'s ``x``; invalid columns of ``d_normed`` and ``normed`` are 0."""
    mean = mean_of(tl.sum(d_normed, 1), WIDTH)
    along = mean_of(tl.sum(d_normed * normed, 1), WIDTH)
    return (d_normed - mean[:, None] - normed * along[:, None]) * rstd[:, None]


@triton.jit
def exponential(x, TILE: tl.constexpr):
    """``eˣ`` for a tile dtype; of float32, but for 16 bits, ``2ⁿ eʳ`` with ``x = n ln 2 + r``.

    The device takes powers of 2, and ``x log₂ e`` alone would be rounded more, the larger x is. The first
    part of ln 2 has so few bits that its multiples are exact (Cody & Waite 1980).
    """
    if x.dtype != tl.float32 or TILE.primitive_bitwidth <= 16:
        return tl.exp(x)
    else:
        # What is below gives 0, what is above inf; NaN stays NaN. Infinities would leave NaN over.
        x = tl.where(x < -1e4, -1e4, tl.where(x > 1e4, 1e4, x))
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = x - n * 0.693359375 + n * 2.121944400546905827679e-4
        return tl.exp2(n) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def sigmoid(x, TILE: tl.constexpr):
    """The logistic function, for a tile dtype."""
    return ratio(1.0, 1 + exponential(-x, TILE), TILE)


@triton.jit
def tanh(x, TILE: tl.constexpr):
    """The hyperbolic tangent, for a tile dtype: Triton has none that its interpreter knows."""
    return 2 * sigmoid(2 * x, TILE) - 1


@triton.jit
def to_tf32(x):
    """float32 rounded to TF32, ties away from zero: the matrix units cut the lower 13 bits off."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # NaN stays NaN


@triton.jit
def add_dot(acc, a, b, PRECISION: tl.constexpr):
    """``acc + a b`` by the matrix units; a and b have the tile dtype."""
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a, b = to_tf32(a), to_tf32(b)
    if PRECISION == "ieee" and a.dtype == tl.float32:
        # Added up apart: one chain through all of a long sum would round more. The compiler takes a zero for
        # what it is, and would join the two.
        return acc + tl.dot(a, b, acc=acc * 0, input_precision=PRECISION, out_dtype=acc.dtype)
    return tl.dot(a, b, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def softmax(logits, TILE: tl.constexpr):
    """Softmax over the columns of each row for a tile dtype; columns of ``-inf`` get 0."""
    exponentials = exponential(logits - tl.max(logits, 1)[:, None], TILE)
    return ratio(exponentials, tl.sum(exponentials, 1)[:, None], TILE)


@triton.jit
def softmax_backward(attn, d_attn):
    """The gradient of `softmax`'s logits: ``P ∘ (dP - Σ P dP)`` of each row."""
    return attn * (d_attn - tl.sum(attn * d_attn, 1)[:, None])
