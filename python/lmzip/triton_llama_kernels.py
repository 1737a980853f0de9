"""The stages of the engine for pretrained models, as Triton kernels: docs/numerics-llama.md.

Names and order are those of llama_reference.py; rows are positions of lanes, row = lane * count +
t.  Why the integers are those of the document on every device is said in triton_kernels.py, of
which these kernels use the pieces.  One thing more: some floats here may be subnormal (section 7),
so no instruction may flush them; tests look for that in the PTX.

A product's input of more than 8 bits is kept as two planes of int8, 128 * high + low: the sums of
both halves come from one pass over the weights.
"""

# mypy: ignore-errors
# Kernels have no annotations: Triton would read them as code of the kernel.

import triton
import triton.language as tl

from lmzip.triton_kernels import LOGIT_MAX, LOWEST, rint, turn

RESIDUAL_MAX = tl.constexpr((1 << 30) - 64)
HEADS_MAX = tl.constexpr(1 << 24)  # of queries, keys and values, and of scores
TINY = tl.constexpr(2.0**-100)
LEVEL = tl.constexpr(8191)
FEED_FORWARD = tl.constexpr(2.0**-16)
POST_LIMIT, POST_UNIT = tl.constexpr(1 << 22), tl.constexpr(2.0**-22)
MIN_UNIT, MAX_UNIT = tl.constexpr(2.0**-40), tl.constexpr(2.0**60)
MAX_EPSILON = tl.constexpr(2.0**60)
INTEGERS = tl.constexpr(2.0**23)  # floats from here on have no fraction
FREQ_TOTAL = tl.constexpr(1 << 30)
# Places of token_answers.py.
LIKELY_SHIFT, LIKELY = tl.constexpr(9), tl.constexpr(512)
RECALLED, RECALL_BLOCK = tl.constexpr(20), tl.constexpr(32)
TARGET, RECALL, QUESTION_WORDS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(22)
COUNT, INTERVAL, BELOW = tl.constexpr(2), tl.constexpr(3), tl.constexpr(5)
LIST, ANSWER_WORDS = tl.constexpr(25), tl.constexpr(1049)


# ── quantizers ──


@triton.jit
def _inverse(m, LIMIT: tl.constexpr, N: tl.constexpr):
    """LIMIT / m, 0 where m < TINY; and m / LIMIT likewise.  (N) float32."""
    most = tl.full((N,), LIMIT, tl.float32)
    zero = m < TINY
    inverse = tl.where(zero, 0.0, tl.div_rn(most, tl.maximum(m, TINY)))
    return inverse, tl.where(zero, 0.0, tl.div_rn(m, most))


@triton.jit
def _store_halves(q_ptr, plane, at, q, inside, LIMIT: tl.constexpr):
    """plane: from the high halves to the low ones."""
    if LIMIT > 127:
        tl.store(q_ptr + at, (q >> 7).to(tl.int8), mask=inside)
        tl.store(q_ptr + plane + at, (q & 127).to(tl.int8), mask=inside)
    else:
        tl.store(q_ptr + at, q.to(tl.int8), mask=inside)


@triton.jit
def _store_normalized(
    x, row, channel, inside, gain_ptr, q_ptr, r_ptr, plane, epsilon, n_rows,
    D: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """normalize(x, gain, LIMIT) of section 4; x is 0 outside."""
    gain = tl.load(gain_ptr + channel, mask=channel < D, other=0.0)
    y = x.to(tl.float32) * gain[None, :]
    inverse, r = _inverse(tl.max(tl.abs(y), axis=1), LIMIT, ROWS)
    q = rint(y * inverse[:, None], -LIMIT, LIMIT)
    _store_halves(q_ptr, plane, row[:, None].to(tl.int64) * D + channel[None, :], q, inside, LIMIT)
    m = tl.max(tl.abs(x), axis=1)
    s = tl.zeros((ROWS,), tl.int32)
    for bits in tl.static_range(24, 31):
        s += (m >> bits != 0).to(tl.int32)
    small = (x >> s[:, None]).to(tl.int64)
    total = tl.sum(small * small, axis=1) + (tl.full((ROWS,), epsilon, tl.int64) >> 2 * s)
    divisor = tl.maximum(total, 1).to(tl.float32)
    root = tl.sqrt_rn(tl.div_rn(tl.full((ROWS,), D, tl.float32), divisor))
    power = ((127 - s) << 23).to(tl.float32, bitcast=True)  # 2^-s
    tl.store(r_ptr + row, r * (root * power), mask=row < n_rows)


@triton.jit
def embed(
    tokens_ptr,  # (rows) int32
    weight_ptr, scale_ptr,  # (V, D) int8, (V) float32
    x_ptr,  # (rows, D) int32
    gain_ptr, q_ptr, r_ptr,  # as in normalize
    plane, epsilon, n_rows,
    RESIDUAL: tl.constexpr,  # 2^residual_bits
    D: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Section 3, then normalize() for the first layer."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    valid = row < n_rows
    inside = valid[:, None] & (channel < D)[None, :]
    token = tl.load(tokens_ptr + row, mask=valid, other=0).to(tl.int64)
    e = tl.load(weight_ptr + token[:, None] * D + channel[None, :], mask=inside, other=0)
    factor = tl.load(scale_ptr + token, mask=valid, other=0.0) * RESIDUAL
    x = rint(e.to(tl.float32) * factor[:, None], -RESIDUAL_MAX, RESIDUAL_MAX)
    tl.store(x_ptr + row[:, None].to(tl.int64) * D + channel[None, :], x, mask=inside)
    _store_normalized(
        x, row, channel, inside, gain_ptr, q_ptr, r_ptr, plane, epsilon, n_rows, D, LIMIT, ROWS
    )  # fmt: skip


@triton.jit
def normalize(
    x_ptr,  # (rows, D) int32
    gain_ptr,  # (D) float32
    q_ptr, r_ptr,  # (1 or 2, rows, D) int8, (rows) float32
    plane,  # numbers from one half to the next
    epsilon,  # E
    n_rows,
    D: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """normalize() of section 4."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < n_rows)[:, None] & (channel < D)[None, :]
    x = tl.load(x_ptr + row[:, None].to(tl.int64) * D + channel[None, :], mask=inside, other=0)
    _store_normalized(
        x, row, channel, inside, gain_ptr, q_ptr, r_ptr, plane, epsilon, n_rows, D, LIMIT, ROWS
    )  # fmt: skip


@triton.jit
def quantize(
    y_ptr,  # (rows, N) float32
    r_ptr,  # (rows) float32: the scale that DOWN multiplies into the factor
    q_ptr,  # (1 or 2, rows, N) int8
    factor_ptr,  # (rows) float32: what add_product() multiplies sums by
    plane, n_rows,
    RESIDUAL: tl.constexpr,  # 2^residual_bits
    N: tl.constexpr, LIMIT: tl.constexpr, DOWN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """quantize() of section 4 with limit LIMIT, and the factor of section 5: r * RESIDUAL for the
    output projection, for the feed-forward (DOWN) (r * row scale) * (RESIDUAL * 2^-16).  Two
    passes, unless a row fits in a block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < n_rows
    m = tl.zeros((ROWS,), tl.float32)
    y = tl.zeros((ROWS, BLOCK), tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        channel = begin + tl.arange(0, BLOCK)
        inside = valid[:, None] & (channel < N)[None, :]
        at = row[:, None].to(tl.int64) * N + channel[None, :]
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        m = tl.maximum(m, tl.max(tl.abs(y), axis=1))
    inverse, r = _inverse(m, LIMIT, ROWS)
    for begin in tl.static_range(0, N, BLOCK):
        channel = begin + tl.arange(0, BLOCK)
        inside = valid[:, None] & (channel < N)[None, :]
        at = row[:, None].to(tl.int64) * N + channel[None, :]
        if N > BLOCK:
            y = tl.load(y_ptr + at, mask=inside, other=0.0)
        _store_halves(q_ptr, plane, at, rint(y * inverse[:, None], -LIMIT, LIMIT), inside, LIMIT)
    if DOWN:
        shared = tl.load(r_ptr + row, mask=valid, other=0.0)
        factor = (r * shared) * (RESIDUAL * FEED_FORWARD)
    else:
        factor = r * RESIDUAL
    tl.store(factor_ptr + row, factor, mask=valid)


# ── products ──


@triton.jit
def _sums(
    q_ptr, plane, weight_ptr, row, column,
    K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows of q times rows of the weights: (BM, BN) int32; both (BM) and (BN) may repeat.

    Some tensor cores' sums saturate: those of each half stay below 127^2 * 65,536 < 2^31.  128
    times those of the high halves may pass it, and come back with the low ones, modulo 2^32.
    """
    k = tl.arange(0, BK)
    q_at = q_ptr + row[:, None].to(tl.int64) * K + k[None, :]
    w_at = weight_ptr + column[:, None].to(tl.int64) * K + k[None, :]
    acc = tl.zeros((BM, BN), tl.int32)
    low = tl.zeros((BM, BN), tl.int32)
    for begin in range(0, K, BK):
        w = tl.trans(tl.load(w_at + begin))
        acc = tl.dot(tl.load(q_at + begin), w, acc, out_dtype=tl.int32)
        if WIDE:
            low = tl.dot(tl.load(q_at + plane + begin), w, low, out_dtype=tl.int32)
    if WIDE:
        acc = (acc << 7) + low
    return acc


@triton.jit
def _tile(n_rows, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Rows and columns of this program, where they are loaded from, and which of them exist.
    Programs that share weights are neighbors."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (row < n_rows)[:, None] & (column < N)[None, :]
    return row % n_rows, column % N, inside


@triton.jit
def project_heads(
    q_ptr, plane, r_ptr, weight_ptr, scale_ptr,
    bias_ptr,  # (N) int32
    u_ptr,  # (rows, N) int32
    n_rows, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values of section 5, in units of 2^-12."""
    row, column, inside = _tile(n_rows, N, BM, BN)
    acc = _sums(q_ptr, plane, weight_ptr, row, column, K, WIDE, BM, BN, BK)
    factor = tl.load(r_ptr + row) * 4096.0
    y = (acc.to(tl.float32) * factor[:, None]) * tl.load(scale_ptr + column)[None, :]
    u = rint(y, -HEADS_MAX, HEADS_MAX) + tl.load(bias_ptr + column)[None, :]
    tl.store(u_ptr + row[:, None].to(tl.int64) * N + column[None, :], u, mask=inside)


@triton.jit
def _add_residual(at, y, inside):
    """Float y, rounded, onto the residual stream at the pointers."""
    x = tl.load(at, mask=inside, other=0) + rint(y, -RESIDUAL_MAX, RESIDUAL_MAX)
    tl.store(at, tl.minimum(tl.maximum(x, -RESIDUAL_MAX), RESIDUAL_MAX), mask=inside)


@triton.jit
def add_product(
    q_ptr, plane, factor_ptr, weight_ptr, scale_ptr,
    x_ptr,  # (rows, N) int32, changed
    n_rows, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Output projection and down projection, onto the residual stream."""
    row, column, inside = _tile(n_rows, N, BM, BN)
    acc = _sums(q_ptr, plane, weight_ptr, row, column, K, WIDE, BM, BN, BK)
    factor = tl.load(factor_ptr + row)
    y = (acc.to(tl.float32) * factor[:, None]) * tl.load(scale_ptr + column)[None, :]
    at = x_ptr + row[:, None].to(tl.int64) * N + column[None, :]
    _add_residual(at, y, inside)


@triton.jit
def part_sums(
    q_ptr, plane, _factor_ptr, weight_ptr, _scale_ptr,
    sums_ptr,  # (rows, N) int32
    n_rows, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The product of add_product() alone, for add_post_norm(), which needs whole rows."""
    row, column, inside = _tile(n_rows, N, BM, BN)
    acc = _sums(q_ptr, plane, weight_ptr, row, column, K, WIDE, BM, BN, BK)
    tl.store(sums_ptr + row[:, None].to(tl.int64) * N + column[None, :], acc, mask=inside)


@triton.jit
def _round_wide(a):
    """0 <= a <= 2^60 rounded to nearest, ties to even; int64."""
    small = rint(a, 0, 1 << 23).to(tl.int64)
    return tl.where(a < INTEGERS, small, a.to(tl.int64))


@triton.jit
def add_post_norm(
    sums_ptr,  # (rows, D) int32
    factor_ptr, scale_ptr,  # (rows), (D) float32
    gain_ptr,  # (D) float32
    x_ptr,  # (rows, D) int32, changed
    epsilon,  # E
    n_rows,
    RESIDUAL: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Section 5, the norm after a part, onto the residual stream."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    valid = row < n_rows
    inside = valid[:, None] & (channel < D)[None, :]
    at = row[:, None].to(tl.int64) * D + channel[None, :]
    acc = tl.load(sums_ptr + at, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=channel < D, other=0.0)
    m = tl.max(tl.abs(acc * scale[None, :]), axis=1)
    # m is 0 or at least 2^-40; where it is 0, so is acc
    most = tl.full((ROWS,), POST_LIMIT, tl.float32)
    inverse = tl.div_rn(most, tl.maximum(m, TINY))
    u = rint((acc * inverse[:, None]) * scale[None, :], -RESIDUAL_MAX, RESIDUAL_MAX)
    unit = (m * POST_UNIT) * tl.load(factor_ptr + row, mask=valid, other=0.0)
    unit = tl.minimum(tl.maximum(unit, MIN_UNIT), MAX_UNIT)
    e = tl.div_rn(tl.full((ROWS,), epsilon, tl.int64).to(tl.float32), unit * unit)
    wide = u.to(tl.int64)
    total = tl.sum(wide * wide, axis=1) + _round_wide(tl.minimum(e, MAX_EPSILON))
    divisor = tl.maximum(total, 1).to(tl.float32)
    root = tl.sqrt_rn(tl.div_rn(tl.full((ROWS,), D, tl.float32), divisor))
    gain = tl.load(gain_ptr + channel, mask=channel < D, other=0.0)
    y = (u.to(tl.float32) * (root * RESIDUAL)[:, None]) * gain[None, :]
    _add_residual(x_ptr + at, y, inside)


@triton.jit
def gate(
    q_ptr, plane, r_ptr, weight_ptr, scale_ptr,
    sigmoid_ptr,  # (8192) int32
    h_ptr,  # (rows, N) float32
    n_rows, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """SwiGLU: gates are the first N rows of the weights, ups the others."""
    row, column, inside = _tile(n_rows, N, BM, BN)
    acc = _sums(q_ptr, plane, weight_ptr, row, column, K, WIDE, BM, BN, BK)
    r = tl.load(r_ptr + row)
    g = (acc.to(tl.float32) * r[:, None]) * tl.load(scale_ptr + column)[None, :]
    sigmoid = tl.load(sigmoid_ptr + (rint(g * 256.0, -4096, 4095) + 4096))
    g = g * sigmoid.to(tl.float32)
    acc = _sums(q_ptr, plane, weight_ptr, row, column + N, K, WIDE, BM, BN, BK)
    h = g * (acc.to(tl.float32) * tl.load(scale_ptr + column + N)[None, :])
    tl.store(h_ptr + row[:, None].to(tl.int64) * N + column[None, :], h, mask=inside)


@triton.jit
def head(
    q_ptr, plane, r_ptr, weight_ptr, scale_ptr,
    unused_ptr,  # (N) int8: tokens that are never coded
    logits_ptr,  # (rows, N) int32
    n_rows, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Section 6."""
    row, column, inside = _tile(n_rows, N, BM, BN)
    acc = _sums(q_ptr, plane, weight_ptr, row, column, K, WIDE, BM, BN, BK)
    r = tl.load(r_ptr + row)
    y = (acc.to(tl.float32) * r[:, None]) * tl.load(scale_ptr + column)[None, :]
    unused = tl.load(unused_ptr + column) != 0
    logit = tl.where(unused[None, :], -LOGIT_MAX, rint(y, -LOGIT_MAX, LOGIT_MAX))
    tl.store(logits_ptr + row[:, None].to(tl.int64) * N + column[None, :], logit, mask=inside)


# ── attention ──


@triton.jit
def _rotate(a, b, scale, position, frequency, cosine_ptr, HEADS: tl.constexpr):
    """Halves (HEADS, d / 2) of 14-bit heads to int8 at a position (HEADS), and their scales."""
    c, z = turn(position, frequency, cosine_ptr)
    first, second = a * c - b * z, b * c + a * z
    m = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))
    most = tl.full((HEADS,), 127, tl.float32)
    inverse = tl.div_rn(most, tl.maximum(m, 1).to(tl.float32))
    first = rint(first.to(tl.float32) * inverse[:, None], -127, 127)
    second = rint(second.to(tl.float32) * inverse[:, None], -127, 127)
    scale = (scale * 0.00006103515625) * tl.div_rn(m.to(tl.float32), most)  # 2^-14
    return first.to(tl.int8), second.to(tl.int8), scale


@triton.jit
def _slot(position, sinks: tl.constexpr, slots: tl.constexpr):
    return tl.where(position < sinks, position, sinks + (position - sinks) % (slots - sinks))


@triton.jit
def split_heads(
    u_ptr,  # (rows, (H + 2G) d) int32
    gain_ptr,  # (H + G, d) float32, with QK_NORM
    frequency_ptr,  # (d / 2) int32: the bits of uint32
    cosine_ptr,  # (4096) int16
    position_ptr,  # (1) int64: of t = 0
    q_ptr, q_scale_ptr,  # (2, rows, H, d) int8, (2, rows, H) float32: rotated, and as sinks meet it
    keys_ptr, values_ptr,  # (lanes, G, slots, d) int8
    key_scale_ptr, value_scale_ptr,  # (lanes, G, slots) float32
    epsilon,  # Eh
    n_rows,
    rotated_blocks,  # programs before the first that takes values
    count: tl.constexpr, window: tl.constexpr, sinks: tl.constexpr, slots: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, d: tl.constexpr, QK_NORM: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Section 5 up to the cache: leveling, rotation, values.  A program takes HEADS heads of any
    rows, all of one sort."""
    pid = tl.program_id(0)
    base = tl.load(position_ptr).to(tl.int32)
    half = d // 2
    j = tl.arange(0, HALF)
    stride = (H + 2 * G) * d
    if pid < rotated_blocks:
        n = pid * HEADS + tl.arange(0, HEADS)
        row, head = n // (H + G), n % (H + G)
        valid = row < n_rows
        inside = valid[:, None] & (j < half)[None, :]
        channel = head[:, None] * d + j[None, :]
        at = u_ptr + row[:, None].to(tl.int64) * stride + channel
        a = tl.load(at, mask=inside, other=0)
        b = tl.load(at + half, mask=inside, other=0)
        fa, fb = a.to(tl.float32), b.to(tl.float32)
        if QK_NORM:
            fa = fa * tl.load(gain_ptr + channel, mask=inside, other=0.0)
            fb = fb * tl.load(gain_ptr + channel + half, mask=inside, other=0.0)
        m = tl.maximum(tl.max(tl.abs(fa), axis=1), tl.max(tl.abs(fb), axis=1))
        inverse, scale = _inverse(m, LEVEL, HEADS)
        if QK_NORM:
            wide_a, wide_b = a.to(tl.int64), b.to(tl.int64)
            total = tl.sum(wide_a * wide_a + wide_b * wide_b, axis=1)
            total += tl.full((HEADS,), epsilon, tl.int64)
            divisor = tl.maximum(total, 1).to(tl.float32)
            root = tl.sqrt_rn(tl.div_rn(tl.full((HEADS,), d, tl.float32), divisor))
            scale = scale * root
        else:
            scale = scale * 0.000244140625  # 2^-12
        a = rint(fa * inverse[:, None], -LEVEL, LEVEL)
        b = rint(fb * inverse[:, None], -LEVEL, LEVEL)
        frequency = tl.load(frequency_ptr + j, mask=j < half, other=0).to(tl.uint32, bitcast=True)
        position = base + row % count
        first, second, near = _rotate(a, b, scale, position, frequency, cosine_ptr, HEADS)
        is_query = valid & (head < H)
        query = inside & (head < H)[:, None]
        to_query = (row.to(tl.int64) * H + head)[:, None] * d + j[None, :]
        tl.store(q_ptr + to_query, first, mask=query)
        tl.store(q_ptr + to_query + half, second, mask=query)
        tl.store(q_scale_ptr + row.to(tl.int64) * H + head, near, mask=is_query)
        slot = (row // count * G + head - H).to(tl.int64) * slots + _slot(position, sinks, slots)
        key = inside & (head >= H)[:, None]
        to_key = slot[:, None] * d + j[None, :]
        tl.store(keys_ptr + to_key, first, mask=key)
        tl.store(keys_ptr + to_key + half, second, mask=key)
        tl.store(key_scale_ptr + slot, near, mask=valid & (head >= H))
        if sinks > 0:
            before = tl.minimum(position, window + sinks - 1)
            first, second, far = _rotate(a, b, scale, before, frequency, cosine_ptr, HEADS)
            plane = tl.full((HEADS,), n_rows, tl.int64) * H
            to_query += plane[:, None] * d
            tl.store(q_ptr + to_query, first, mask=query)
            tl.store(q_ptr + to_query + half, second, mask=query)
            tl.store(q_scale_ptr + plane + row.to(tl.int64) * H + head, far, mask=is_query)
    else:
        n = (pid - rotated_blocks) * HEADS + tl.arange(0, HEADS)
        row, head = n // G, n % G
        valid = row < n_rows
        inside = valid[:, None] & (j < half)[None, :]
        v_at = u_ptr + row[:, None].to(tl.int64) * stride
        v_at += (H + G + head)[:, None] * d + j[None, :]
        fa = tl.load(v_at, mask=inside, other=0).to(tl.float32)
        fb = tl.load(v_at + half, mask=inside, other=0).to(tl.float32)
        m = tl.maximum(tl.max(tl.abs(fa), axis=1), tl.max(tl.abs(fb), axis=1))
        inverse, scale = _inverse(m, 127, HEADS)
        slot = (row // count * G + head).to(tl.int64) * slots
        slot += _slot(base + row % count, sinks, slots)
        to = values_ptr + slot[:, None] * d + j[None, :]
        tl.store(to, rint(fa * inverse[:, None], -127, 127).to(tl.int8), mask=inside)
        tl.store(to + half, rint(fb * inverse[:, None], -127, 127).to(tl.int8), mask=inside)
        tl.store(value_scale_ptr + slot, scale * 0.000244140625, mask=valid)


@triton.jit
def _keys(
    begin, low, high, position, j,
    window: tl.constexpr, sinks: tl.constexpr, slots: tl.constexpr,
):  # fmt: skip
    """Of the tile of keys at `begin`: slots, which exist (KEYS), which are seen (KEYS, QUERIES).
    The tile before `low` holds the sinks."""
    sink = begin < low
    key = tl.where(sink, j, begin + j)
    slot = (low - sinks) % (slots - sinks) + (key - low)
    slot = sinks + tl.where(slot < slots - sinks, slot, slot - (slots - sinks))
    slot = tl.where(sink, j, slot)
    exists = tl.where(sink, j < sinks, key <= high)
    age = position[None, :] - key[:, None]
    seen = exists[:, None] & (age >= 0) & (sink | (age < window))
    return slot, exists, seen


@triton.jit
def _scores(
    keys_ptr, key_scale_ptr, near, far, near_scale, far_scale,
    sink, slot, exists, c, d: tl.constexpr,
):  # fmt: skip
    """u_j of section 5, (KEYS, QUERIES) int32."""
    at = keys_ptr + slot[:, None] * d + c[None, :]
    k = tl.load(at, mask=exists[:, None] & (c < d)[None, :], other=0)
    k_scale = tl.load(key_scale_ptr + slot, mask=exists, other=0.0)
    q = tl.where(sink, far, near)
    q_scale = tl.where(sink, far_scale, near_scale)
    dot = tl.dot(k, q, out_dtype=tl.int32).to(tl.float32)
    return rint(dot * (q_scale[None, :] * k_scale[:, None]), -HEADS_MAX, HEADS_MAX)


@triton.jit
def _scores_again(
    kept_at, valid, keys_ptr, key_scale_ptr, near, far, near_scale, far_scale,
    sink, slot, exists, c, d: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """As _scores(), for the passes that may find them kept."""
    if KEEP:
        u = tl.load(kept_at, mask=valid[None, :] & exists[:, None], other=0)
    else:
        u = _scores(
            keys_ptr, key_scale_ptr, near, far, near_scale, far_scale, sink, slot, exists, c, d
        )  # fmt: skip
    return u


@triton.jit
def _exponentials(u, m, seen, exp16_ptr):
    gap = tl.maximum(m[None, :] - u, 0)
    e = tl.load(exp16_ptr + (gap & 31)) >> tl.minimum(gap >> 5, 16)
    return tl.where(seen, e, 0)


@triton.jit
def attention(
    q_ptr, q_scale_ptr, keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr,  # of split_heads
    softmax_ptr,  # (1) float32
    exp16_ptr,  # (32) int32
    position_ptr,
    kept_ptr,  # KEEP: (rows, H, kept) int32, for scores
    p_ptr,  # (rows, H d) float32
    n_rows,
    kept,  # numbers from one query's scores to the next's
    count: tl.constexpr, window: tl.constexpr, sinks: tl.constexpr, slots: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, d: tl.constexpr, LIMIT: tl.constexpr, KEEP: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Section 5, attention.  A program takes one key/value head of one lane, and QUERIES of the
    count * H / G queries that read it, in order of position.

    Three passes over the keys, for the maximum score, the sum of exponentials with the largest
    weight, and the average: each rounds relative to what the one before has found.  Scores are made
    anew, or kept (KEEP): then keys come from memory once, which is what a step's time is.
    Keys are the rows of products and queries the columns, as in triton_kernels.attention.
    """
    group = H // G
    lane, kv = tl.program_id(0) // G, tl.program_id(0) % G
    first = tl.program_id(1) * QUERIES
    base = tl.load(position_ptr).to(tl.int32)
    n = first + tl.arange(0, QUERIES)
    last = count * group - 1
    valid = n <= last
    t = tl.minimum(n, last) // group  # padding repeats the last position
    head = kv * group + n % group
    position = base + t
    c = tl.arange(0, HEAD)
    j = tl.arange(0, KEYS)
    query = (lane * count + t).to(tl.int64) * H + head
    q_at = query[None, :] * d + c[:, None]
    q_mask = valid[None, :] & (c < d)[:, None]
    softmax = tl.load(softmax_ptr)
    near = tl.load(q_ptr + q_at, mask=q_mask, other=0)  # (HEAD, QUERIES)
    near_scale = tl.load(q_scale_ptr + query, mask=valid, other=0.0) * softmax
    far, far_scale = near, near_scale
    low = tl.maximum(base + first // group - window + 1, sinks)
    high = base + tl.minimum(first + QUERIES - 1, last) // group
    begins = low
    if sinks > 0:
        plane = tl.full((QUERIES,), n_rows, tl.int64) * H
        far = tl.load(q_ptr + (plane[None, :] * d + q_at), mask=q_mask, other=0)
        far_scale = tl.load(q_scale_ptr + plane + query, mask=valid, other=0.0) * softmax
        begins = low - KEYS
    cache = tl.program_id(0).to(tl.int64) * slots
    keys_ptr += cache * d
    values_ptr += cache * d
    key_scale_ptr += cache
    value_scale_ptr += cache
    kept_at = kept_ptr + query[None, :] * kept + j[:, None]

    m = tl.full((QUERIES,), LOWEST, tl.int32)
    for begin in range(begins, high + 1, KEYS):
        slot, exists, seen = _keys(begin, low, high, position, j, window, sinks, slots)
        u = _scores(
            keys_ptr, key_scale_ptr, near, far, near_scale, far_scale,
            begin < low, slot, exists, c, d,
        )  # fmt: skip
        if KEEP:
            tl.store(kept_at + (begin - begins), u, mask=valid[None, :] & exists[:, None])
        m = tl.maximum(m, tl.max(tl.where(seen, u, LOWEST), axis=0))
    if KEEP:
        tl.debug_barrier()  # a thread may read what another has stored

    total = tl.zeros((QUERIES,), tl.int32)
    largest = tl.zeros((QUERIES,), tl.float32)
    for begin in range(begins, high + 1, KEYS):
        slot, exists, seen = _keys(begin, low, high, position, j, window, sinks, slots)
        u = _scores_again(
            kept_at + (begin - begins), valid, keys_ptr, key_scale_ptr, near, far, near_scale,
            far_scale, begin < low, slot, exists, c, d, KEEP,
        )  # fmt: skip
        e = _exponentials(u, m, seen, exp16_ptr)
        total += tl.sum(e, axis=0)
        v_scale = tl.load(value_scale_ptr + slot, mask=exists, other=0.0)
        largest = tl.maximum(largest, tl.max(e.to(tl.float32) * v_scale[:, None], axis=0))
    inverse, r = _inverse(largest, LIMIT, QUERIES)

    o = tl.zeros((HEAD, QUERIES), tl.int32)
    for begin in range(begins, high + 1, KEYS):
        slot, exists, seen = _keys(begin, low, high, position, j, window, sinks, slots)
        u = _scores_again(
            kept_at + (begin - begins), valid, keys_ptr, key_scale_ptr, near, far, near_scale,
            far_scale, begin < low, slot, exists, c, d, KEEP,
        )  # fmt: skip
        e = _exponentials(u, m, seen, exp16_ptr)
        v_scale = tl.load(value_scale_ptr + slot, mask=exists, other=0.0)
        w = rint((e.to(tl.float32) * v_scale[:, None]) * inverse[None, :], 0, LIMIT)
        v_at = values_ptr + slot[:, None] * d + c[None, :]
        v = tl.trans(tl.load(v_at, mask=exists[:, None] & (c < d)[None, :], other=0))
        # Weights are no less than 0, so both halves have 7 bits.
        o += tl.dot(v, (w >> 7).to(tl.int8), out_dtype=tl.int32) << 7
        o += tl.dot(v, (w & 127).to(tl.int8), out_dtype=tl.int32)

    share = tl.div_rn(r, tl.maximum(total, 1).to(tl.float32))
    tl.store(p_ptr + q_at, o.to(tl.float32) * share[None, :], mask=q_mask)


# ── from logits to what coders ask: token_answers.py ──
# A program takes a row.


@triton.jit
def _logits(row_ptr, i, V: tl.constexpr):
    return tl.load(row_ptr + i, mask=i < V, other=LOWEST)


@triton.jit
def _top(row_ptr, V: tl.constexpr, BLOCK: tl.constexpr):
    top = tl.full((BLOCK,), LOWEST, tl.int32)
    for begin in range(0, V, BLOCK):
        top = tl.maximum(top, _logits(row_ptr, begin + tl.arange(0, BLOCK), V))
    return tl.max(top, axis=0)


@triton.jit
def _weights(below, i, exp2_ptr, V: tl.constexpr):
    """docs/coder.md, weights of logits that lie so far below the greatest; int64, 0 beyond V."""
    distance = tl.where(i < V, below, 0)
    entry = tl.load(exp2_ptr + (distance & 1023)) >> tl.minimum(distance >> 10, 31)
    return tl.where(i < V, entry, 0).to(tl.int64)


@triton.jit
def _row_weights(row_ptr, i, top, exp2_ptr, V: tl.constexpr):
    return _weights(top - _logits(row_ptr, i, V), i, exp2_ptr, V)


@triton.jit
def _shift(total):
    """s of docs/coder.md; W < 2^51."""
    shift = (total >> 32 != 0).to(tl.int64)
    for bits in tl.static_range(33, 52):
        shift += (total >> bits != 0).to(tl.int64)
    return shift


@triton.jit
def _cumulative(prefix, i, total, V: tl.constexpr):
    """C_i of docs/coder.md; int64."""
    shift = _shift(total)
    return i + (prefix >> shift) * (FREQ_TOTAL - V) // (total >> shift)


@triton.jit
def _recalled(question_ptr, V: tl.constexpr):
    """Tokens (RECALL_BLOCK), and which there are."""
    j = tl.arange(0, RECALL_BLOCK)
    token = tl.load(question_ptr + RECALL + j, mask=j < RECALLED, other=-1)
    return token, (token >= 0) & (token < V)


@triton.jit
def survey(
    logits_ptr,  # (rows, V) int32
    question_ptr,  # (rows, QUESTION_WORDS) int32
    exp2_ptr,  # (1024) int32: EXP2_TABLE
    answer_ptr,  # (rows, ANSWER_WORDS) int32: all but the interval of the target, which is 0
    V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Three passes over the row, for the greatest logit, the sum of weights, and the tokens of
    W / 512 or more.  Each is found once it is counted which place it has; few blocks hold any."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    question_ptr += row * QUESTION_WORDS
    answer_ptr += row * ANSWER_WORDS
    top = _top(logits_ptr, V, BLOCK)
    sums = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, V, BLOCK):
        sums += _row_weights(logits_ptr, begin + tl.arange(0, BLOCK), top, exp2_ptr, V)
    total = tl.sum(sums, axis=0)

    token, known = _recalled(question_ptr, V)
    distance = tl.where(known, top - tl.load(logits_ptr + token, mask=known, other=0), 0)
    j = tl.arange(0, RECALL_BLOCK)
    tl.store(answer_ptr + BELOW + j, distance, mask=j < RECALLED)

    count = tl.zeros((), tl.int32)
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        below = top - _logits(logits_ptr, i, V)
        likely = (_weights(below, i, exp2_ptr, V) << LIKELY_SHIFT >= total).to(tl.int32)
        here = tl.sum(likely, axis=0)
        if here > 0:
            place = count + tl.cumsum(likely, axis=0) - 1
            to = answer_ptr + LIST + 2 * place
            inside = (likely != 0) & (place < LIKELY)
            tl.store(to, i, mask=inside)
            tl.store(to + 1, below, mask=inside)
        count += here
    tl.store(answer_ptr, total.to(tl.int32))  # modulo 2^32
    tl.store(answer_ptr + 1, (total >> 32).to(tl.int32))
    tl.store(answer_ptr + COUNT, count)
    tl.store(answer_ptr + INTERVAL, 0)
    tl.store(answer_ptr + INTERVAL + 1, 0)
    j = tl.arange(0, LIKELY)
    for half in tl.static_range(2):
        tl.store(answer_ptr + LIST + 2 * j + half, 0, mask=j >= count)


@triton.jit
def _listed(answer_ptr):
    """Tokens (LIKELY), and which there are."""
    j = tl.arange(0, LIKELY)
    exists = j < tl.load(answer_ptr + COUNT)
    return tl.load(answer_ptr + LIST + 2 * j, mask=exists, other=-1), exists


@triton.jit
def _exclude(logits_ptr, question_ptr, answer_ptr, V: tl.constexpr):
    """Leaves the rest in the row: the candidates' logits go to the lowest."""
    token, exists = _recalled(question_ptr, V)
    tl.store(logits_ptr + token, -LOGIT_MAX, mask=exists)
    token, exists = _listed(answer_ptr)
    tl.store(logits_ptr + token, -LOGIT_MAX, mask=exists)
    tl.debug_barrier()  # a thread may read what another has stored


@triton.jit
def targets(
    logits_ptr,  # changed where a target is none of the candidates
    question_ptr, exp2_ptr,
    answer_ptr,  # of survey(): lo and freq of the target come in
    V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    question_ptr += row * QUESTION_WORDS
    answer_ptr += row * ANSWER_WORDS
    target = tl.load(question_ptr + TARGET)
    recalled, _ = _recalled(question_ptr, V)
    listed, _ = _listed(answer_ptr)
    found = tl.sum((recalled == target).to(tl.int32), axis=0)
    found += tl.sum((listed == target).to(tl.int32), axis=0)
    if (target >= 0) & (found == 0):
        _exclude(logits_ptr, question_ptr, answer_ptr, V)
        top = _top(logits_ptr, V, BLOCK)
        sums = tl.zeros((BLOCK,), tl.int64)
        before = tl.zeros((BLOCK,), tl.int64)
        own = tl.zeros((BLOCK,), tl.int64)
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            weight = _row_weights(logits_ptr, i, top, exp2_ptr, V)
            sums += weight
            before += tl.where(i < target, weight, 0)
            own += tl.where(i == target, weight, 0)
        total, prefix = tl.sum(sums, axis=0), tl.sum(before, axis=0)
        lo = _cumulative(prefix, target, total, V)
        hi = _cumulative(prefix + tl.sum(own, axis=0), target + 1, total, V)
        tl.store(answer_ptr + INTERVAL, lo.to(tl.int32))
        tl.store(answer_ptr + INTERVAL + 1, (hi - lo).to(tl.int32))


@triton.jit
def search(
    logits_ptr,  # changed where a slot is looked for
    question_ptr, exp2_ptr, answer_ptr,
    slot_ptr,  # (rows) int32; -1: nothing is looked for, and 0 comes out
    out_ptr,  # (rows, 3) int32: token, lo, freq
    V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token whose interval among the rest holds the slot.

    C_i <= slot  <=>  (P_i >> s) * (2^30 - V) < (slot - i + 1) * (W >> s).  C and P ascend: the
    token is the number of such i, less one; its P is the greatest of theirs, and the next P the
    least of the others'.  Both sides fit in 63 bits and a sign.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    slot = tl.load(slot_ptr + row)
    token = tl.zeros((), tl.int64)
    lo = tl.zeros((), tl.int64)
    freq = tl.zeros((), tl.int64)
    if slot >= 0:
        _exclude(
            logits_ptr, question_ptr + row * QUESTION_WORDS, answer_ptr + row * ANSWER_WORDS, V
        )
        top = _top(logits_ptr, V, BLOCK)
        sums = tl.zeros((BLOCK,), tl.int64)
        for begin in range(0, V, BLOCK):
            sums += _row_weights(logits_ptr, begin + tl.arange(0, BLOCK), top, exp2_ptr, V)
        total = tl.sum(sums, axis=0)
        shift = _shift(total)
        past = tl.zeros((), tl.int64)
        found = tl.zeros((), tl.int64)
        own = tl.zeros((), tl.int64)
        after = total
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            weight = _row_weights(logits_ptr, i, top, exp2_ptr, V)
            prefix = past + tl.cumsum(weight, axis=0) - weight
            past += tl.sum(weight, axis=0)
            room = (slot - i + 1).to(tl.int64) * (total >> shift)
            starts = ((prefix >> shift) * (FREQ_TOTAL - V) < room) & (i < V)
            found += tl.sum(starts.to(tl.int64), axis=0)
            own = tl.maximum(own, tl.max(tl.where(starts, prefix, 0), axis=0))
            after = tl.minimum(after, tl.min(tl.where(starts, total, prefix), axis=0))
        token = found - 1
        lo = _cumulative(own, token, total, V)
        freq = _cumulative(after, found, total, V) - lo
    tl.store(out_ptr + 3 * row, token.to(tl.int32))
    tl.store(out_ptr + 3 * row + 1, lo.to(tl.int32))
    tl.store(out_ptr + 3 * row + 2, freq.to(tl.int32))
