"""The kernels of causal attention with dropout; q, k, v, o and their gradients are ``[B, N, H D]``.

With ``s = q kᵀ``, the attention ``p = exp((s - lse) / √D)`` of keys up to the query, ``kept`` the scaled
dropout, 0 or ``KEPT = 1 / (1 - dropout)``, and do the gradient of the output:

    o = (p ∘ kept) v                  lse = √D log Σ exp(s / √D), of every query
    mean = Σ do ∘ o                   ds = p ∘ (kept ∘ (do vᵀ) - mean)
    dq = ds k / √D                    dk = dsᵀ q / √D         dv = (p ∘ kept)ᵀ do

Tables of N² entries are made tile by tile where they are used, and every sum has one order
(FlashAttention-2, Dao 2023). Tiles on the diagonal come apart from the others, which need no mask.

16 bits round away what lse and mean are off. float32 and float64 do not: there lse is float64, and mean is
mended, for it and ``do vᵀ`` cancel where one key has most of the attention, and were rounded differently.
Rows of ds sum to 0; what they sum to instead is the error of mean:

    excess = Σ ds                     mean + excess, for dk   dq - excess ∘ (p k) / √D
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import add_dot, divide, exponential
from fastslots_kernels.fused.tables import mixed


@triton.jit
def of_head(x_ptr, head, length, H: tl.constexpr, D: tl.constexpr):
    """Where a head of an image begins in ``[B, N, H D]``; heads are numbered ``b H + h``."""
    return x_ptr + head // H * length * (H * D) + head % H * D


@triton.jit
def load_rows(x_ptr, at, length, ROW: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Rows of a head, ``[rows, PADDED_D]``; 0 beyond its N rows and its D columns."""
    column = tl.arange(0, PADDED_D)
    valid = (at[:, None] < length) & (column[None, :] < D)
    return tl.load(x_ptr + at[:, None] * ROW + column[None, :], mask=valid, other=0.0)


@triton.jit
def store_rows(x_ptr, x, at, length, ROW: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Writes what `load_rows` reads."""
    column = tl.arange(0, PADDED_D)
    valid = (at[:, None] < length) & (column[None, :] < D)
    x = x.to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + at[:, None] * ROW + column[None, :], x, mask=valid)


@triton.jit
def product(a, b, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """``a bᵀ`` of rows of one head."""
    return add_dot(tl.zeros([a.shape[0], b.shape[0]], ACC), a, tl.trans(b), PRECISION)


@triton.jit
def power(s, largest, SCALE: tl.constexpr, TILE: tl.constexpr):
    """``exp((s - largest) SCALE)`` for a tile dtype; for 16 bits a multiply-add and a power of 2.

    What float32 cannot hold of a float64 `largest` is subtracted from the difference.
    """
    if TILE.primitive_bitwidth > 16:
        rounded = largest.to(s.dtype)
        difference = s - rounded
        if s.dtype != largest.dtype:
            difference -= (largest - rounded).to(s.dtype)
        return exponential(difference * SCALE, TILE)
    else:
        to_bits: tl.constexpr = SCALE * 1.4426950408889634
        return tl.exp2(s * to_bits - largest * to_bits)


@triton.jit
def queries_of(num_blocks, BLOCK_QUERIES: tl.constexpr):
    """A program's head, int64, and the first of its queries: the last ones, which read most, come first."""
    pid = tl.program_id(0)
    return (pid // num_blocks).to(tl.int64), (num_blocks - 1 - pid % num_blocks) * BLOCK_QUERIES


@triton.jit
def read_keys(
    q, query, first, k_ptr, v_ptr, columns_ptr, length, ON_DIAGONAL: tl.constexpr,
    ROW: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys from ``first`` on, their values and hashes, and ``s = q kᵀ``, -inf for those past the query."""
    key = first + tl.arange(0, BLOCK_KEYS)
    k = load_rows(k_ptr, key, length, ROW, D, PADDED_D)
    v = load_rows(v_ptr, key, length, ROW, D, PADDED_D)
    column_hash = tl.load(columns_ptr + key, mask=key < length, other=0)
    logits = product(q, k, ACC, PRECISION)
    if ON_DIAGONAL:
        logits = tl.where(query[:, None] >= key[None, :], logits, float("-inf"))
    return k, v, column_hash, logits


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,  # [B, H N] int32: hashes
    columns_ptr,  # [B, N] int32: hashes
    o_ptr,
    lse_ptr,  # [B, H N], `lse_dtype`
    limit,
    length,
    num_blocks,
    KEPT: tl.constexpr,
    SCALE: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,  # a multiple of BLOCK_KEYS
    BLOCK_KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``o = (p ∘ kept) v`` and ``lse``. One program: some queries of a head of an image."""
    ROW: tl.constexpr = H * D
    ACC: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    head, start = queries_of(num_blocks, BLOCK_QUERIES)
    k_ptr = of_head(k_ptr, head, length, H, D)
    v_ptr = of_head(v_ptr, head, length, H, D)
    columns_ptr += head // H * length
    query = start + tl.arange(0, BLOCK_QUERIES)
    q = load_rows(of_head(q_ptr, head, length, H, D), query, length, ROW, D, PADDED_D)
    row_hash = tl.load(rows_ptr + head * length + query, mask=query < length, other=0)
    total = tl.zeros([BLOCK_QUERIES, PADDED_D], ACC)
    weights = tl.zeros([BLOCK_QUERIES], ACC)
    largest = tl.full([BLOCK_QUERIES], float("-inf"), ACC)
    for ON_DIAGONAL in tl.static_range(2):
        for first in tl.range(
            ON_DIAGONAL * start, start + ON_DIAGONAL * BLOCK_QUERIES, BLOCK_KEYS, num_stages=STAGES
        ):
            _, v, column_hash, logits = read_keys(
                q, query, first, k_ptr, v_ptr, columns_ptr, length, ON_DIAGONAL,
                ROW, D, PADDED_D, BLOCK_KEYS, ACC, PRECISION,
            )  # fmt: skip
            larger = tl.maximum(largest, tl.max(logits, 1))
            shrink = power(largest, larger, SCALE, q.dtype)
            attn = power(logits, larger[:, None], SCALE, q.dtype)
            weights = weights * shrink + tl.sum(attn, 1)
            dropped = mixed(row_hash[:, None] ^ column_hash[None, :]) < limit
            attn = tl.where(dropped, 0.0, attn).to(q.dtype)
            total = add_dot(total * shrink[:, None], attn, v, PRECISION)
            largest = larger
    o = total * divide(KEPT, weights)[:, None]
    store_rows(of_head(o_ptr, head, length, H, D), o, query, length, ROW, D, PADDED_D)
    lse = largest.to(lse_ptr.dtype.element_ty) + tl.log(weights) * (1 / SCALE)
    tl.store(lse_ptr + head * length + query, lse, mask=query < length)


@triton.jit
def queries_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    columns_ptr,
    o_ptr,
    lse_ptr,
    grad_ptr,  # do
    d_q_ptr,
    mean_ptr,  # [B, H N]
    limit,
    length,
    num_blocks,
    KEPT: tl.constexpr,
    SCALE: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,  # a multiple of BLOCK_KEYS
    BLOCK_KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``mean = Σ do ∘ o``, ``ds = p ∘ (kept ∘ (do vᵀ) - mean)``, ``dq = ds k / √D``; mended but for 16 bits.

    Programs as those of `attention_kernel`.
    """
    ROW: tl.constexpr = H * D
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    EXACT: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth > 16
    head, start = queries_of(num_blocks, BLOCK_QUERIES)
    k_ptr = of_head(k_ptr, head, length, H, D)
    v_ptr = of_head(v_ptr, head, length, H, D)
    columns_ptr += head // H * length
    query = start + tl.arange(0, BLOCK_QUERIES)
    valid, at = query < length, head * length + query
    q = load_rows(of_head(q_ptr, head, length, H, D), query, length, ROW, D, PADDED_D)
    o = load_rows(of_head(o_ptr, head, length, H, D), query, length, ROW, D, PADDED_D)
    grad_ptr = of_head(grad_ptr, head, length, H, D)
    grad = load_rows(grad_ptr, query, length, ROW, D, PADDED_D)
    mean = tl.sum(grad.to(ACC) * o.to(ACC), 1)
    row_hash = tl.load(rows_ptr + at, mask=valid, other=0)
    lse = tl.load(lse_ptr + at, mask=valid, other=0.0)
    total = tl.zeros([BLOCK_QUERIES, PADDED_D], ACC)
    excess = tl.zeros([BLOCK_QUERIES], ACC)
    mean_key = tl.zeros([BLOCK_QUERIES, PADDED_D], ACC)
    for ON_DIAGONAL in tl.static_range(2):
        for first in tl.range(
            ON_DIAGONAL * start, start + ON_DIAGONAL * BLOCK_QUERIES, BLOCK_KEYS, num_stages=STAGES
        ):
            k, v, column_hash, logits = read_keys(
                q, query, first, k_ptr, v_ptr, columns_ptr, length, ON_DIAGONAL,
                ROW, D, PADDED_D, BLOCK_KEYS, ACC, PRECISION,
            )  # fmt: skip
            attn = power(logits, lse[:, None], SCALE, q.dtype)
            dropped = mixed(row_hash[:, None] ^ column_hash[None, :]) < limit
            d_attn = product(grad, v, ACC, PRECISION) * KEPT - mean[:, None]
            d_logits = attn * tl.where(dropped, -mean[:, None], d_attn)
            total = add_dot(total, d_logits.to(q.dtype), k, PRECISION)
            if EXACT:
                excess += tl.sum(d_logits, 1)
                mean_key = add_dot(mean_key, attn.to(q.dtype), k, PRECISION)
    if EXACT:
        mean += excess
        total -= excess[:, None] * mean_key
    tl.store(mean_ptr + at, mean, mask=valid)
    d_q_ptr = of_head(d_q_ptr, head, length, H, D)
    store_rows(d_q_ptr, total * SCALE, query, length, ROW, D, PADDED_D)


@triton.jit
def keys_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    columns_ptr,
    lse_ptr,
    grad_ptr,  # do
    mean_ptr,
    d_k_ptr,
    d_v_ptr,
    limit,
    length,
    num_blocks,
    KEPT: tl.constexpr,
    SCALE: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,  # a multiple of BLOCK_QUERIES
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``dk = dsᵀ q / √D`` and ``dv = (p ∘ kept)ᵀ do``; ``ds`` as in the backward of the queries.

    One program: some keys of a head of an image, the most read ones first.
    """
    ROW: tl.constexpr = H * D
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    head = (tl.program_id(0) // num_blocks).to(tl.int64)
    start = tl.program_id(0) % num_blocks * BLOCK_KEYS
    q_ptr = of_head(q_ptr, head, length, H, D)
    grad_ptr = of_head(grad_ptr, head, length, H, D)
    rows_ptr += head * length
    lse_ptr += head * length
    mean_ptr += head * length
    columns_ptr += head // H * length
    key = start + tl.arange(0, BLOCK_KEYS)
    k = load_rows(of_head(k_ptr, head, length, H, D), key, length, ROW, D, PADDED_D)
    v = load_rows(of_head(v_ptr, head, length, H, D), key, length, ROW, D, PADDED_D)
    column_hash = tl.load(columns_ptr + key, mask=key < length, other=0)
    d_k = tl.zeros([BLOCK_KEYS, PADDED_D], ACC)
    d_v = tl.zeros([BLOCK_KEYS, PADDED_D], ACC)
    for OFF_DIAGONAL in tl.static_range(2):
        for first in tl.range(
            start + OFF_DIAGONAL * BLOCK_KEYS,
            OFF_DIAGONAL * length + (1 - OFF_DIAGONAL) * (start + BLOCK_KEYS),
            BLOCK_QUERIES,
            num_stages=STAGES,
        ):
            query = first + tl.arange(0, BLOCK_QUERIES)
            valid = query < length
            q = load_rows(q_ptr, query, length, ROW, D, PADDED_D)
            grad = load_rows(grad_ptr, query, length, ROW, D, PADDED_D)  # 0: such rows add nothing
            row_hash = tl.load(rows_ptr + query, mask=valid, other=0)
            lse = tl.load(lse_ptr + query, mask=valid, other=0.0)
            mean = tl.load(mean_ptr + query, mask=valid, other=0.0)
            logits = product(k, q, ACC, PRECISION)
            if not OFF_DIAGONAL:
                logits = tl.where(query[None, :] >= key[:, None], logits, float("-inf"))
            attn = power(logits, lse[None, :], SCALE, k.dtype)
            dropped = mixed(row_hash[None, :] ^ column_hash[:, None]) < limit
            d_v = add_dot(d_v, tl.where(dropped, 0.0, attn).to(k.dtype), grad, PRECISION)
            d_attn = product(v, grad, ACC, PRECISION) * KEPT - mean[None, :]
            d_logits = attn * tl.where(dropped, -mean[None, :], d_attn)
            d_k = add_dot(d_k, d_logits.to(k.dtype), q, PRECISION)
    d_k_ptr = of_head(d_k_ptr, head, length, H, D)
    store_rows(d_k_ptr, d_k * SCALE, key, length, ROW, D, PADDED_D)
    d_v_ptr = of_head(d_v_ptr, head, length, H, D)
    store_rows(d_v_ptr, d_v * KEPT, key, length, ROW, D, PADDED_D)
