"""The stages of the exact engine between its products, as Triton kernels: docs/numerics.md.

Each kernel takes rows (one position of one lane; row = lane * count + t) through one or more stages
without leaving the chip.  Names and order are those of reference.py.  Why the integers are those of
the document, on every device:

- Sums and maxima are of integers that cannot overflow (the document bounds them), so the shape of a
  reduction does not matter.
- No float is ever added or subtracted, so nothing can be contracted into a fused multiply-add;
  tests read the PTX and find neither.
- Division and square root are div_rn and sqrt_rn, which round correctly; Triton's `/` and sqrt on
  float32 do not.  Conversions from integers round to nearest even (cvt.rn).
- round_half_even() is one conversion instruction (cvt.rni) on a device, and integer arithmetic on
  the bits in the interpreter; both are exact by definition.
- No intermediate is subnormal (section 8), so no flushing mode matters.

Set TRITON_INTERPRET=1 before this module is imported to run the kernels on the CPU, in NumPy.
"""

# mypy: ignore-errors
# Kernels have no annotations: Triton would read them as code of the kernel.

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = triton.knobs.runtime.interpret

RESIDUAL_MAX = tl.constexpr((1 << 23) - 1)
LOGIT_MAX = tl.constexpr(1 << 20)
HASH_MULTIPLIER = tl.constexpr(0x9E3779B1)
MAX_GAP = tl.constexpr((1 << 19) - 1)
MAX_DISTANCE = tl.constexpr(65535)  # of logits; from 31 * 1024 on the weight is 0
FREQ_SPAN = tl.constexpr((1 << 30) - 256)
LOWEST = tl.constexpr(-(1 << 31))

# What head() makes of logits.
LOGITS = tl.constexpr(0)
DISTANCES = tl.constexpr(1)
INTERVALS = tl.constexpr(2)
SEARCH = tl.constexpr(3)


@triton.jit
def _round_bits(x):
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    behind = 150 - (magnitude >> 23)  # bits behind the point; with 31 of them nothing is left
    drop = tl.minimum(tl.maximum(behind, 1), 31)
    significand = (magnitude & 0x7FFFFF) | 0x800000
    below_half = (1 << (drop - 1)) - 1
    rounded = (significand + below_half + ((significand >> drop) & 1)) >> drop
    whole = significand << tl.minimum(tl.maximum(-behind, 0), 7)  # abs(x) < 2^31
    rounded = tl.where(behind > 0, rounded, whole)
    return tl.where(bits < 0, -rounded, rounded)


@triton.jit
def _round_instruction(x):
    return libdevice.float2int_rn(x)


# The interpreter has no libdevice.
round_half_even = _round_bits if INTERPRETED else _round_instruction


@triton.jit
def rint(a, low: tl.constexpr, high: tl.constexpr):
    """Section 1: clamp, then round ties to even; int32."""
    return round_half_even(tl.minimum(tl.maximum(a, low * 1.0), high * 1.0))


@triton.jit
def quantize(x, limit: tl.constexpr, low: tl.constexpr, ROWS: tl.constexpr):
    """Rows (ROWS, n) int32, zeros where a row has ended, to [low, limit], and their largest
    magnitude m (ROWS)."""
    m = tl.max(tl.abs(x), axis=1)
    numerator = tl.full((ROWS,), limit, tl.float32)
    inverse = tl.div_rn(numerator, tl.maximum(m, 1).to(tl.float32))
    return rint(x.to(tl.float32) * inverse[:, None], low, limit), m


@triton.jit
def inverse_root_mean_square(total, size, ROWS: tl.constexpr):
    """sqrt(f(size) / f(total)), 0 where total = 0 (which is where m = 0)."""
    numerator = tl.full((ROWS,), 1, tl.int32) * size
    quotient = tl.div_rn(numerator.to(tl.float32), tl.maximum(total, 1).to(tl.float32))
    return tl.where(total == 0, 0.0, tl.sqrt_rn(quotient))


@triton.jit
def store_quantized(
    x, row, channel, inside, xq_ptr, r_ptr, D, n_rows,
    padded, HEAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """quantize_row(x), or for the head quantize_row_14(x) as 128 * hi + lo, the lows `padded` rows
    behind the highs: 128 * acc_hi + acc_lo are the products of 14 bits."""
    at = row[:, None].to(tl.int64) * D + channel[None, :]
    if HEAD:
        xq, _m = quantize(x, 8191, -8191, ROWS)
        wide = xq.to(tl.int64)
        total = tl.sum(wide * wide, axis=1)
        hi = (xq + 64) >> 7  # -64..64, and lo -64..63
        lo = xq - (hi << 7)
        tl.store(xq_ptr + at, hi.to(tl.int8), mask=inside)
        tl.store(xq_ptr + padded.to(tl.int64) * D + at, lo.to(tl.int8), mask=inside)
    else:
        xq, _m = quantize(x, 127, -127, ROWS)
        total = tl.sum(xq * xq, axis=1)
        tl.store(xq_ptr + at, xq.to(tl.int8), mask=inside)
    tl.store(r_ptr + row, inverse_root_mean_square(total, D, ROWS), mask=row < n_rows)


@triton.jit
def embed(
    inputs_ptr,  # (lanes, count) uint8
    history_ptr,  # (lanes) int32: the last four inputs before them, the newest lowest
    tables_ptr,  # int8, all tables one behind the other
    info_ptr,  # (tables, 5) int64: log2_slots, offset, width, start, shift
    x_ptr, xq_ptr, r_ptr,  # (rows, D) int32, int8; (rows) float32
    n_rows, count: tl.constexpr, D: tl.constexpr,
    TABLES: tl.constexpr,  # four bits a table: its order, that of the byte table being 1
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Section 3, then quantize_row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    valid = row < n_rows
    inside = valid[:, None] & (channel < D)[None, :]
    lane, t = row // count, row % count
    history = tl.load(history_ptr + lane, mask=valid, other=0)
    key = tl.zeros((ROWS,), tl.uint32)
    x = tl.zeros((ROWS, BLOCK), tl.int32)
    for order in tl.static_range(1, 5):
        back = order - 1
        recent = tl.load(inputs_ptr + row - back, mask=valid & (t >= back), other=0).to(tl.int32)
        earlier = (history >> (8 * tl.minimum(tl.maximum(back - t - 1, 0), 3))) & 255
        byte = tl.where(t >= back, recent, earlier).to(tl.uint32)
        key = key | (byte << (8 * back))
        for table in tl.static_range(0, 4):
            if (TABLES >> (4 * table)) & 15 == order:
                info = info_ptr + 5 * table
                slot = key.to(tl.int32)  # the byte itself, for the byte table
                if order > 1:
                    hashed = key * HASH_MULTIPLIER  # modulo 2^32
                    slot = (hashed >> (32 - tl.load(info)).to(tl.uint32)).to(tl.int32)
                offset, width = tl.load(info + 1).to(tl.int32), tl.load(info + 2).to(tl.int32)
                start = tl.load(info + 3) + slot.to(tl.int64) * width
                inner = channel - offset
                covered = valid[:, None] & ((inner >= 0) & (inner < width))[None, :]
                at = start[:, None] + inner[None, :]
                entry = tl.load(tables_ptr + at, mask=covered, other=0).to(tl.int32)
                x += entry << tl.load(info + 4).to(tl.int32)
    x = tl.minimum(tl.maximum(x, -RESIDUAL_MAX), RESIDUAL_MAX)
    tl.store(x_ptr + row[:, None].to(tl.int64) * D + channel[None, :], x, mask=inside)
    store_quantized(
        x, row, channel, inside, xq_ptr, r_ptr, D, n_rows, n_rows, False, ROWS
    )  # fmt: skip


@triton.jit
def turn(position, frequency, cosine_ptr):
    """Cosine and sine (N, M) int32 of positions (N) at frequencies (M) uint32."""
    phase = position.to(tl.uint32)[:, None] * frequency[None, :]  # modulo 2^32
    index = ((phase + (1 << 19)) >> 20).to(tl.int32)
    cosine = tl.load(cosine_ptr + index).to(tl.int32)
    return cosine, tl.load(cosine_ptr + ((index + 3072) & 4095)).to(tl.int32)


@triton.jit
def split_heads(
    acc_ptr,  # (rows, stride) int32: qkv products, each head's even channels before its odd ones
    scale_ptr,  # float32, in the same order
    r_ptr,  # (rows) float32
    frequency_ptr,  # (d / 2) int32: the bits of uint32
    cosine_ptr,  # (4096) int16
    position_ptr,  # (1) int32: of t = 0
    q_ptr,  # (rows, H, d) int8, even channels first
    keys_ptr, values_ptr,  # (lanes, G, slots, d) int8; keys: even channels first
    n_rows,
    rotated_blocks,  # programs before the first that takes values
    count: tl.constexpr, stride: tl.constexpr, slots: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, d: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Section 5 up to the cache: queries and keys rotated, normalized and quantized; values
    quantized.  A program takes HEADS heads of any rows, all of one sort."""
    pid = tl.program_id(0)
    base = tl.load(position_ptr)
    half = d // 2
    j = tl.arange(0, HALF)
    if pid < rotated_blocks:
        n = pid * HEADS + tl.arange(0, HEADS)
        row, head = n // (H + G), n % (H + G)
        valid = row < n_rows
        inside = valid[:, None] & (j < half)[None, :]
        channel = head[:, None] * d + j[None, :]
        at = row[:, None].to(tl.int64) * stride + channel
        even = tl.load(acc_ptr + at, mask=inside, other=0).to(tl.float32)
        odd = tl.load(acc_ptr + at + half, mask=inside, other=0).to(tl.float32)
        s_even = tl.load(scale_ptr + channel, mask=inside, other=0.0)
        s_odd = tl.load(scale_ptr + channel + half, mask=inside, other=0.0)
        u_even, u_odd = rint(even * s_even, -4095, 4095), rint(odd * s_odd, -4095, 4095)
        position = base + row % count
        frequency = tl.load(frequency_ptr + j, mask=j < half, other=0).to(tl.uint32, bitcast=True)
        c, z = turn(position, frequency, cosine_ptr)
        v_even, v_odd = u_even * c - u_odd * z, u_even * z + u_odd * c
        total = tl.sum(u_even * u_even + u_odd * u_odd, axis=1)  # <= 128 * 4095^2 < 2^31
        g = inverse_root_mean_square(total, d, HEADS) * 0.001953125  # 2^-9
        even8 = rint(v_even.to(tl.float32) * g[:, None], -127, 127).to(tl.int8)
        odd8 = rint(v_odd.to(tl.float32) * g[:, None], -127, 127).to(tl.int8)
        query = inside & (head < H)[:, None]
        to = (row.to(tl.int64) * H + head)[:, None] * d + j[None, :]
        tl.store(q_ptr + to, even8, mask=query)
        tl.store(q_ptr + to + half, odd8, mask=query)
        key = inside & (head >= H)[:, None]
        slot = (row // count * G + head - H).to(tl.int64) * slots + position % slots
        to = slot[:, None] * d + j[None, :]
        tl.store(keys_ptr + to, even8, mask=key)
        tl.store(keys_ptr + to + half, odd8, mask=key)
    else:
        n = (pid - rotated_blocks) * HEADS + tl.arange(0, HEADS)
        row, head = n // G, n % G
        valid = row < n_rows
        r = tl.load(r_ptr + row, mask=valid, other=0.0)
        slot = (row // count * G + head).to(tl.int64) * slots + (base + row % count) % slots
        for first in tl.static_range(0, 2 * HALF, HALF):
            within = first + j
            inside = valid[:, None] & (within < d)[None, :]
            channel = (H + G + head)[:, None] * d + within[None, :]
            at = row[:, None].to(tl.int64) * stride + channel
            acc = tl.load(acc_ptr + at, mask=inside, other=0).to(tl.float32)
            s = tl.load(scale_ptr + channel, mask=inside, other=0.0)
            v8 = rint((acc * r[:, None]) * s, -127, 127).to(tl.int8)
            tl.store(values_ptr + slot[:, None] * d + within[None, :], v8, mask=inside)


@triton.jit
def attention(
    q_ptr, keys_ptr, values_ptr,  # as split_heads leaves them
    softmax_ptr,  # (H) int32
    exp8_ptr,  # (16) int32
    position_ptr,
    p_ptr,  # (rows, H d) int16
    count: tl.constexpr, window: tl.constexpr, slots: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, d: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Section 5, attention.  A program takes one key/value head of one lane, and QUERIES - 1 of the
    count * H / G queries that read it, in order of position.

    Two passes over the keys: exponentials are rounded relative to the row's maximum, which must
    be known before the first of them; a running maximum would not give the same integers.
    Keys are the rows of the product and queries its columns, since a tensor core pads columns to 8
    and rows to 16 or 64, and a step has but H / G queries.

    The last column is spare.  An unsigned byte has no place beside a signed one in tl.dot, so the
    columns of exponentials hold e - 128, and the spare one 1, which sums the values: what 128 times
    that sum adds to every column.
    """
    group = H // G
    lane, kv = tl.program_id(0) // G, tl.program_id(0) % G
    first = tl.program_id(1) * (QUERIES - 1)
    base = tl.load(position_ptr)
    column = tl.arange(0, QUERIES)
    spare = column == QUERIES - 1
    n = first + column
    last = count * group - 1
    valid = (n <= last) & (column < QUERIES - 1)
    t = tl.minimum(n, last) // group  # padding repeats the last position, without its query
    head = kv * group + n % group
    position = base + t
    c = tl.arange(0, HEAD)
    j = tl.arange(0, KEYS)
    q_at = ((lane * count + t).to(tl.int64) * H + head)[None, :] * d + c[:, None]
    q_mask = valid[None, :] & (c < d)[:, None]
    q = tl.load(q_ptr + q_at, mask=q_mask, other=0)  # (HEAD, QUERIES)
    softmax = tl.load(softmax_ptr + head, mask=valid, other=0)
    low = tl.maximum(base + first // group - window + 1, 0)
    high = base + tl.minimum(first + QUERIES - 2, last) // group
    cache = tl.program_id(0).to(tl.int64) * (slots * d)
    keys_ptr += cache
    values_ptr += cache
    oldest = low % slots  # keys follow it in the ring, which ends once among them at most

    m = tl.full((QUERIES,), LOWEST, tl.int32)
    for begin in range(low, high + 1, KEYS):
        key = begin + j
        slot = oldest + (key - low)
        at = tl.where(slot < slots, slot, slot - slots)[:, None] * d + c[None, :]
        mask = (key <= high)[:, None] & (c < d)[None, :]
        k = tl.load(keys_ptr + at, mask=mask, other=0)
        score = tl.dot(k, q, out_dtype=tl.int32)  # (KEYS, QUERIES)
        age = position[None, :] - key[:, None]
        m = tl.maximum(m, tl.max(tl.where((age >= 0) & (age < window), score, LOWEST), axis=0))

    o = tl.zeros((HEAD, QUERIES), tl.int32)
    normalizer = tl.zeros((QUERIES,), tl.int32)
    for begin in range(low, high + 1, KEYS):
        key = begin + j
        slot = oldest + (key - low)
        at = tl.where(slot < slots, slot, slot - slots)[:, None] * d + c[None, :]
        mask = (key <= high)[:, None] & (c < d)[None, :]
        k = tl.load(keys_ptr + at, mask=mask, other=0)
        v = tl.load(values_ptr + at, mask=mask, other=0)
        score = tl.dot(k, q, out_dtype=tl.int32)
        age = position[None, :] - key[:, None]
        gap = tl.minimum(tl.maximum(m[None, :] - score, 0), MAX_GAP)
        a = (gap * softmax[None, :]) >> 16
        e = tl.load(exp8_ptr + (a & 15)) >> tl.minimum(a >> 4, 8)  # 255 >> 8 = 0
        e = tl.where((age >= 0) & (age < window), e, 0)
        normalizer += tl.sum(e, axis=0)
        shifted = tl.where(spare[None, :], 1, e - 128).to(tl.int8)
        o += tl.dot(tl.trans(v), shifted, out_dtype=tl.int32)
    o += (tl.sum(tl.where(spare[None, :], o, 0), axis=1) << 7)[:, None]

    share = tl.div_rn(tl.full((QUERIES,), 256, tl.float32), normalizer.to(tl.float32))
    p = rint(o.to(tl.float32) * share[None, :], -32767, 32767)
    tl.store(p_ptr + q_at, p.to(tl.int16), mask=q_mask)


@triton.jit
def quantize_average(
    p_ptr,  # (rows, n) int16
    pq_ptr,  # (rows, stride) int8
    m_ptr,  # (rows) float32
    n_rows, n: tl.constexpr, stride: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Section 5, output projection: the concatenated heads to int8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < n_rows)[:, None] & (channel < n)[None, :]
    wide_row = row[:, None].to(tl.int64)
    p = tl.load(p_ptr + wide_row * n + channel[None, :], mask=inside, other=0).to(tl.int32)
    pq, m = quantize(p, 127, -127, ROWS)
    tl.store(pq_ptr + wide_row * stride + channel[None, :], pq.to(tl.int8), mask=inside)
    tl.store(m_ptr + row, m.to(tl.float32), mask=row < n_rows)


@triton.jit
def add_product(
    x_ptr,  # (rows, D) int32, changed
    acc_ptr,  # (rows, D) int32
    offset_ptr,  # (D) int32, added to acc
    scale_ptr,  # (D) float32
    factor_ptr,  # (rows) float32
    xq_ptr, r_ptr,
    n_rows, padded, D: tl.constexpr,
    HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x = clamp(x + rint((f(acc) * factor) * s)); then quantize_row, for HEAD quantize_row_14."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    valid = row < n_rows
    inside = valid[:, None] & (channel < D)[None, :]
    at = row[:, None].to(tl.int64) * D + channel[None, :]
    offset = tl.load(offset_ptr + channel, mask=channel < D, other=0)
    scale = tl.load(scale_ptr + channel, mask=channel < D, other=0.0)
    factor = tl.load(factor_ptr + row, mask=valid, other=0.0)
    acc = tl.load(acc_ptr + at, mask=inside, other=0) + offset[None, :]
    y = rint((acc.to(tl.float32) * factor[:, None]) * scale[None, :], -RESIDUAL_MAX, RESIDUAL_MAX)
    x = tl.load(x_ptr + at, mask=inside, other=0) + y
    x = tl.minimum(tl.maximum(x, -RESIDUAL_MAX), RESIDUAL_MAX)
    tl.store(x_ptr + at, x, mask=inside)
    store_quantized(x, row, channel, inside, xq_ptr, r_ptr, D, n_rows, padded, HEAD, ROWS)


@triton.jit
def _squares(acc_ptr, scale_ptr, row, valid, begin, F: tl.constexpr, BLOCK: tl.constexpr):
    """w = u^2 of channels begin .. begin + BLOCK, 0 where there are none."""
    channel = begin + tl.arange(0, BLOCK)
    inside = valid[:, None] & (channel < F)[None, :]
    at = row[:, None].to(tl.int64) * F + channel[None, :]
    acc = tl.load(acc_ptr + at, mask=inside, other=0)
    scale = tl.load(scale_ptr + channel, mask=channel < F, other=0.0)
    u = rint(acc.to(tl.float32) * scale[None, :], 0, 32767)
    return u * u


@triton.jit
def activate(
    acc_ptr,  # (rows, F) int32
    scale_ptr,  # (F) float32
    r_ptr,  # (rows) float32
    hq_ptr,  # (rows, F) int8: hq - 128, whose missing part add_product() adds as an offset
    factor_ptr,  # (rows) float32: (f(m) * r) * r
    n_rows, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Section 5, squared ReLU.  Two passes, the maximum and the rounding, unless a row fits in a
    block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < n_rows
    m = tl.zeros((ROWS,), tl.int32)
    w = tl.zeros((ROWS, BLOCK), tl.int32)
    for begin in tl.static_range(0, F, BLOCK):
        w = _squares(acc_ptr, scale_ptr, row, valid, begin, F, BLOCK)
        m = tl.maximum(m, tl.max(w, axis=1))
    top = m.to(tl.float32)
    numerator = tl.full((ROWS,), 255, tl.float32)
    inverse = tl.div_rn(numerator, tl.maximum(m, 1).to(tl.float32))
    for begin in tl.static_range(0, F, BLOCK):
        if F > BLOCK:
            w = _squares(acc_ptr, scale_ptr, row, valid, begin, F, BLOCK)
        hq = rint(w.to(tl.float32) * inverse[:, None], 0, 255)
        channel = begin + tl.arange(0, BLOCK)
        inside = valid[:, None] & (channel < F)[None, :]
        at = row[:, None].to(tl.int64) * F + channel[None, :]
        tl.store(hq_ptr + at, (hq - 128).to(tl.int8), mask=inside)
    r = tl.load(r_ptr + row, mask=valid, other=0.0)
    tl.store(factor_ptr + row, (top * r) * r, mask=valid)


@triton.jit
def _cumulative(prefix, symbol, shift, total):
    """C_symbol of docs/coder.md; every operand int64 and not negative."""
    return symbol + (prefix >> shift) * FREQ_SPAN // total


@triton.jit
def head(
    acc_ptr,  # (2 padded, 256) int32: products of the high and of the low halves
    scale_ptr,  # (256) float32
    r_ptr,  # (rows) float32
    exp2_ptr,  # (1024) int32: EXP2_TABLE
    given_ptr,  # (rows) int32: INTERVALS: the byte; SEARCH: the slot
    out_ptr,  # LOGITS: (rows, 256) int32; DISTANCES: (rows, 256) int16; else (rows, 2) int32
    byte_ptr,  # SEARCH: (rows) uint8, the byte found
    n_rows, padded, MODE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Section 6 and docs/coder.md, from the products to what the coder needs.

    DISTANCES: max - logit, at most 65535, as the bits of uint16.  INTERVALS and SEARCH: lo and freq
    of the given byte, or of the byte that holds the given slot.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    symbol = tl.arange(0, 256)
    valid = row < n_rows
    at = row[:, None].to(tl.int64) * 256 + symbol[None, :]
    hi = tl.load(acc_ptr + at, mask=valid[:, None], other=0)
    lo = tl.load(acc_ptr + padded.to(tl.int64) * 256 + at, mask=valid[:, None], other=0)
    acc = (hi << 7) + lo  # < 2^31; modulo 2^32 whatever the halves
    r = tl.load(r_ptr + row, mask=valid, other=0.0)
    scale = tl.load(scale_ptr + symbol)
    logit = rint((acc.to(tl.float32) * r[:, None]) * scale[None, :], -LOGIT_MAX, LOGIT_MAX)
    if MODE == LOGITS:
        tl.store(out_ptr + at, logit, mask=valid[:, None])
    else:
        distance = tl.max(logit, axis=1)[:, None] - logit
        if MODE == DISTANCES:
            clipped = tl.minimum(distance, MAX_DISTANCE)
            tl.store(out_ptr + at, clipped.to(tl.int16), mask=valid[:, None])
        else:
            entry = tl.load(exp2_ptr + (distance & 1023))
            weight = (entry >> tl.minimum(distance >> 10, 31)).to(tl.int64)
            prefix = tl.cumsum(weight, axis=1) - weight
            total = tl.sum(weight, axis=1)  # 2^30 <= W <= 2^38: bit_length(W) - 32 is at most 7
            shift = tl.zeros((ROWS,), tl.int64)
            for bits in tl.static_range(32, 39):
                shift += (total >> bits != 0).to(tl.int64)
            given = tl.load(given_ptr + row, mask=valid, other=0).to(tl.int64)
            scaled_total = total >> shift
            if MODE == SEARCH:
                # C_i <= slot  <=>  (P_i >> s) * span < (slot - i + 1) * (W >> s); C ascends, so the
                # number of such i is the byte's, plus one.  Both sides fit in 63 bits and a sign.
                room = given[:, None] - symbol[None, :] + 1
                left = (prefix >> shift[:, None]) * FREQ_SPAN
                starts = left < room * scaled_total[:, None]
                given = tl.sum(starts.to(tl.int64), axis=1) - 1
                tl.store(byte_ptr + row, given.to(tl.uint8), mask=valid)
            own = symbol[None, :] == given[:, None]
            p = tl.sum(tl.where(own, prefix, 0), axis=1)
            w = tl.sum(tl.where(own, weight, 0), axis=1)
            begin = _cumulative(p, given, shift, scaled_total)
            end = _cumulative(p + w, given + 1, shift, scaled_total)
            tl.store(out_ptr + 2 * row, begin.to(tl.int32), mask=valid)
            tl.store(out_ptr + 2 * row + 1, (end - begin).to(tl.int32), mask=valid)


@triton.jit
def advance(
    inputs_ptr,  # (lanes, count) uint8
    history_ptr, position_ptr,
    lanes, count: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Push the inputs of a block into the histories, and the position past it.  The last kernel of
    a block: all others read what it changes."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = lane < lanes
    history = tl.load(history_ptr + lane, mask=valid, other=0)
    for back in tl.static_range(4, 0, -1):
        t = tl.zeros((BLOCK,), tl.int32) + count - back
        byte = tl.load(inputs_ptr + lane * count + t, mask=valid & (t >= 0), other=0).to(tl.int32)
        history = tl.where(t >= 0, (history << 8) | byte, history)
    tl.store(history_ptr + lane, history, mask=valid)
    if tl.program_id(0) == 0:
        tl.store(position_ptr, tl.load(position_ptr) + count)
