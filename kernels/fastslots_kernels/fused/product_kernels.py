"""Kernels of many small matrix products in one launch: fold, its backward, the weights' gradients.

A program makes one tile of one product. Which product is known when the program starts, its sizes and strides
when the kernel is compiled.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import add_dot


@triton.jit
def leading_bits(x):
    """float32 cut to TF32: what the matrix units read of it. ``x`` minus that is exact."""
    return (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def product_tile(
    a_ptr,
    b_ptr,
    out_ptr,
    index,  # which tile of which head
    inner,  # entries of each sum
    P: tl.constexpr,
    Q: tl.constexpr,
    A_STRIDES: tl.constexpr,  # of head, p, i
    B_STRIDES: tl.constexpr,  # of head, i, q
    OUT_STRIDES: tl.constexpr,  # of head, p, q
    FACTOR: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Stores one tile of ``out[p, q] = FACTOR Σᵢ a[p, i] b[i, q]``, operands rounded to TILE."""
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P * ((Q + BLOCK_Q - 1) // BLOCK_Q)
    head = index // blocks
    p, q, total = sum_of_products(
        a_ptr + head * A_STRIDES[0], b_ptr + head * B_STRIDES[0], index % blocks, inner, P, Q,
        A_STRIDES[1], A_STRIDES[2], B_STRIDES[1], B_STRIDES[2],
        TILE, ACC, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
    )  # fmt: skip
    out_ptr += head * OUT_STRIDES[0] + p[:, None] * OUT_STRIDES[1] + q[None, :] * OUT_STRIDES[2]
    total = (total * FACTOR).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, total, mask=(p < P)[:, None] & (q < Q)[None, :])


@triton.jit
def sum_of_products(
    a_ptr,
    b_ptr,
    index,  # which tile
    inner,
    P,
    Q,
    a_stride_p,
    a_stride_i,
    b_stride_i,
    b_stride_q,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``p``, ``q`` and ``Σᵢ a[p, i] b[i, q]`` of a tile, operands rounded to TILE.

    With ``"tf32x3"`` float32 operands are split in two TF32 each, of whose products all but that of the two
    remainders are added up, each kind by itself: an error of about 2⁻²⁰ of a term, that of sums in float32.
    """
    blocks_q = (Q + BLOCK_Q - 1) // BLOCK_Q
    p = index // blocks_q * BLOCK_P + tl.arange(0, BLOCK_P)
    q = index % blocks_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    a_ptr += p[:, None] * a_stride_p
    b_ptr += q[None, :] * b_stride_q
    total = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
    rest_a = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
    rest_b = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
    for first in tl.range(0, inner, CHUNK, num_stages=STAGES):
        i = (first + tl.arange(0, CHUNK)).to(tl.int64)
        a_at, a_valid = a_ptr + i[None, :] * a_stride_i, (p < P)[:, None] & (i < inner)[None, :]
        b_at, b_valid = b_ptr + i[:, None] * b_stride_i, (i < inner)[:, None] & (q < Q)[None, :]
        a = tl.load(a_at, mask=a_valid, other=0.0).to(TILE)
        b = tl.load(b_at, mask=b_valid, other=0.0).to(TILE)
        if PRECISION == "tf32x3":
            a_first, b_first = leading_bits(a), leading_bits(b)
            total = tl.dot(a_first, b_first, acc=total, input_precision="tf32")
            rest_a = tl.dot(a - a_first, b_first, acc=rest_a, input_precision="tf32")
            rest_b = tl.dot(a_first, b - b_first, acc=rest_b, input_precision="tf32")
        else:
            total = add_dot(total, a, b, PRECISION)
    return p, q, total + rest_a + rest_b


@triton.jit
def copy_block(from_ptr, to_ptr, index, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Copies one block of a contiguous tensor into another dtype."""
    i = index * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(from_ptr + i, mask=i < SIZE, other=0.0)
    tl.store(to_ptr + i, x.to(to_ptr.dtype.element_ty), mask=i < SIZE)


@triton.jit
def sum_vectors_block(
    vectors_ptr,  # [tiles, VECTORS]: that of the inputs' affine comes per head
    d_vectors_ptr,  # out [VECTORS - 2 (W - C)]
    index,
    num_tiles,
    W: tl.constexpr,  # H C
    C: tl.constexpr,
    VECTORS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Stores one block of the vectors' gradients: sums over tiles of slots, and over heads.

    First come both vectors of the inputs' LayerNorm, for every head: see `vectors`.
    """
    column = index * BLOCK + tl.arange(0, BLOCK)
    by_head = column < 2 * C
    valid = column < VECTORS - 2 * (W - C)
    first = tl.where(by_head, column // C * W + column % C, column + 2 * (W - C))
    tile = tl.arange(0, 32)
    total = tl.zeros([32, BLOCK], ACC)
    for first_tile in range(0, num_tiles, 32):
        at = vectors_ptr + (first_tile + tile).to(tl.int64)[:, None] * VECTORS + first[None, :]
        inside = (first_tile + tile < num_tiles)[:, None] & valid[None, :]
        total += tl.load(at, mask=inside, other=0.0)
        for head_column in range(C, W, C):
            total += tl.load(at + head_column, mask=inside & by_head[None, :], other=0.0)
    total = tl.sum(total, 0).to(d_vectors_ptr.dtype.element_ty)
    tl.store(d_vectors_ptr + column, total, mask=valid)


@triton.jit
def _fold_kernel(
    project_q_ptr,  # [D, D]
    project_k_ptr,  # [D, C]
    project_v_ptr,  # [D, C]
    weight_ih_ptr,  # [3 D, D]
    weight_hh_ptr,  # [3 D, D]
    weight_0_ptr,  # [M, D]
    weight_2_ptr,  # [D, M]
    key_weight_ptr,  # out [D, H C]: G
    value_weight_ptr,  # out [3 D, H C]: W′
    hidden_weight_ptr,  # out [3 D, D]
    mlp_0_ptr,  # out [M, D]
    mlp_2_ptr,  # out [D, M]
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / √(D / H)
    DOUBLE: tl.constexpr,
    END_KEYS: tl.constexpr,  # the first program that is not of the keys, and so on
    END_VALUES: tl.constexpr,
    END_HIDDEN: tl.constexpr,
    END_MLP_0: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_COPY: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``G = Wqᵀ Wk / √(D / H)`` and ``W′ = W_ih Wv``, both by head; copies in the tile dtype of the others.

    One program: one tile of a product, or one block of a copy.
    """
    acc: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    head_size: tl.constexpr = D // H
    pid = tl.program_id(0)
    if pid < END_KEYS:  # Wq_hᵀ Wk_h
        product_tile(
            project_q_ptr, project_k_ptr, key_weight_ptr, pid, head_size, D, C,
            (head_size * D, 1, D), (head_size * C, C, 1), (C, H * C, 1),
            SCALE, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    elif pid < END_VALUES:  # W_ih Wv
        product_tile(
            weight_ih_ptr, project_v_ptr, value_weight_ptr, pid - END_KEYS, head_size, 3 * D, C,
            (head_size, D, 1), (head_size * C, C, 1), (C, H * C, 1),
            1.0, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    elif pid < END_HIDDEN:
        copy_block(weight_hh_ptr, hidden_weight_ptr, pid - END_VALUES, 3 * D * D, BLOCK_COPY)
    elif pid < END_MLP_0:
        copy_block(weight_0_ptr, mlp_0_ptr, pid - END_HIDDEN, M * D, BLOCK_COPY)
    else:
        copy_block(weight_2_ptr, mlp_2_ptr, pid - END_MLP_0, M * D, BLOCK_COPY)


@triton.jit
def _fold_backward_kernel(
    project_q_ptr,  # [D, D]
    project_k_ptr,  # [D, C]
    project_v_ptr,  # [D, C]
    weight_ih_ptr,  # [3 D, D]
    d_key_weight_ptr,  # [D, H C]: dG
    d_value_weight_ptr,  # [3 D, H C]: dW′
    d_project_q_ptr,  # out
    d_project_k_ptr,  # out
    d_project_v_ptr,  # out
    d_weight_ih_ptr,  # out
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / √(D / H)
    END_V: tl.constexpr,
    END_Q: tl.constexpr,
    END_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``dWv = W_ihᵀ dW′``, ``dWq = Wk dGᵀ / √(D / H)``, ``dWk = Wq dG / √(D / H)`` and ``dW_ih = dW′ Wvᵀ``.

    Each by head. One program: one tile of one of them; the longest sums come first.
    """
    acc: tl.constexpr = d_key_weight_ptr.dtype.element_ty
    head_size: tl.constexpr = D // H
    pid = tl.program_id(0)
    if pid < END_V:  # W_ih_hᵀ dW′_h
        product_tile(
            weight_ih_ptr, d_value_weight_ptr, d_project_v_ptr, pid, 3 * D, head_size, C,
            (head_size, 1, D), (C, H * C, 1), (head_size * C, C, 1),
            1.0, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    elif pid < END_Q:  # Wk_h dG_hᵀ
        product_tile(
            project_k_ptr, d_key_weight_ptr, d_project_q_ptr, pid - END_V, C, head_size, D,
            (head_size * C, C, 1), (C, 1, H * C), (head_size * D, D, 1),
            SCALE, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    elif pid < END_K:  # Wq_h dG_h
        product_tile(
            project_q_ptr, d_key_weight_ptr, d_project_k_ptr, pid - END_Q, D, head_size, C,
            (head_size * D, D, 1), (C, H * C, 1), (head_size * C, C, 1),
            SCALE, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    else:  # dW′_h Wv_hᵀ
        product_tile(
            d_value_weight_ptr, project_v_ptr, d_weight_ih_ptr, pid - END_K, C, 3 * D, head_size,
            (C, H * C, 1), (head_size * C, 1, C), (head_size, D, 1),
            1.0, acc, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip


@triton.jit
def _weight_gradients_kernel(
    normed_slots_ptr,  # [R, D]: s̃
    d_plain_ptr,  # [R, H C]: dg
    d_input_gates_ptr,  # [R, 3 D]
    averaged_ptr,  # [R, H C]: ū
    d_hidden_gates_ptr,  # [R, 3 D]
    slots_ptr,  # [R, D]
    d_hidden_ptr,  # [R, M]
    normed_ptr,  # [R, D]: LNₘ(s')
    d_new_ptr,  # [R, D]
    hidden_ptr,  # [R, M]
    vectors_ptr,  # [tiles, VECTORS]
    d_key_weight_ptr,  # out [D, H C]: dG
    d_value_weight_ptr,  # out [3 D, H C]: dW′
    d_weight_hh_ptr,  # out [3 D, D]
    d_weight_0_ptr,  # out [M, D]
    d_weight_2_ptr,  # out [D, M]
    d_vectors_ptr,  # out [VECTORS - 2 (H - 1) C]
    num_rows,  # R
    num_tiles,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    END_HIDDEN: tl.constexpr,
    END_KEYS: tl.constexpr,
    END_VALUES: tl.constexpr,
    END_MLP_0: tl.constexpr,
    END_MLP_2: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``dW_hh = d_hidden_gatesᵀ s``, ``dG = s̃ᵀ dg``, ``dW′ = d_input_gatesᵀ ū``, ``dW₀`` and ``dW₂``.

    Of the MLP ``dW₀ = d_hiddenᵀ LNₘ(s')`` and ``dW₂ = d_newᵀ hidden``. One program: one tile of one of them,
    or a block of the vectors' gradients, summed over tiles of slots, and over heads.

    Four of the five products run the same code, and are chosen among as it runs: of branches that differ in
    their operands alone, Triton 3.8 joins the ends, and keeps the shared memory of all of them at once.
    """
    tile: tl.constexpr = d_plain_ptr.dtype.element_ty
    acc: tl.constexpr = d_key_weight_ptr.dtype.element_ty
    pid = tl.program_id(0)
    if pid < END_HIDDEN:  # slots are in the accumulator's dtype
        product_tile(
            d_hidden_gates_ptr, slots_ptr, d_weight_hh_ptr, pid, num_rows, 3 * D, D,
            (0, 1, 3 * D), (0, D, 1), (0, D, 1),
            1.0, tile, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
    elif pid < END_MLP_2:
        a_ptr, b_ptr, first, P, Q = normed_slots_ptr, d_plain_ptr, END_HIDDEN, D, H * C
        if pid >= END_MLP_0:
            a_ptr, b_ptr, first, P, Q = d_new_ptr, hidden_ptr, END_MLP_0, D, M
        elif pid >= END_VALUES:
            a_ptr, b_ptr, first, P, Q = d_hidden_ptr, normed_ptr, END_VALUES, M, D
        elif pid >= END_KEYS:
            a_ptr, b_ptr, first, P, Q = d_input_gates_ptr, averaged_ptr, END_KEYS, 3 * D, H * C
        p, q, total = sum_of_products(
            a_ptr, b_ptr, pid - first, num_rows, P, Q, 1, P, Q, 1,
            tile, acc, PRECISION, BLOCK_P, BLOCK_Q, CHUNK, STAGES,
        )  # fmt: skip
        at, inside = p[:, None] * Q + q[None, :], (p < P)[:, None] & (q < Q)[None, :]
        if pid < END_KEYS:
            tl.store(d_key_weight_ptr + at, total, mask=inside)
        elif pid < END_VALUES:
            tl.store(d_value_weight_ptr + at, total, mask=inside)
        else:
            weight_ptr = d_weight_2_ptr if pid >= END_MLP_0 else d_weight_0_ptr
            tl.store(weight_ptr + at, total.to(weight_ptr.dtype.element_ty), mask=inside)
    else:
        sum_vectors_block(
            vectors_ptr, d_vectors_ptr, pid - END_MLP_2, num_tiles, H * C, C, VECTORS, acc, BLOCK_VECTOR
        )  # fmt: skip
