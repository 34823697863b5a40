"""What several kernels do with a tile. Accumulators are float32, or float64 for float64."""

import triton
import triton.language as tl


@triton.jit
def layer_norm(x, valid, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Normalises rows over their `WIDTH` valid columns, without affine: ``x̃``, and ``rstd`` per row.

    Invalid columns are 0 in ``x̃``.
    """
    centred = tl.where(valid, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def layer_norm_backward(d_normed, normed, rstd, WIDTH: tl.constexpr):
    """The gradient of `layer_norm`'s ``x``; invalid columns of ``d_normed`` and ``normed`` are 0."""
    mean = tl.sum(d_normed, 1) / WIDTH
    along = tl.sum(d_normed * normed, 1) / WIDTH
    return (d_normed - mean[:, None] - normed * along[:, None]) * rstd[:, None]


@triton.jit
def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """The hyperbolic tangent: Triton has none that its interpreter knows."""
    return 2 * sigmoid(2 * x) - 1


@triton.jit
def add_dot(acc, a, b, PRECISION: tl.constexpr):
    """``acc + a b`` by the matrix units; a and b have the tile dtype."""
    return tl.dot(a, b, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def softmax(logits):
    """Softmax over the columns of each row; columns of ``-inf`` get 0."""
    exponentials = tl.exp(logits - tl.max(logits, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]
