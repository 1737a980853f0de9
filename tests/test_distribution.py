"""Rows to intervals: every kernel equals the reference, and little is lost against the entropy."""

import importlib.util
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip import _core
from lmzip import reference_coder as ref

VECTORS = json.loads((Path(__file__).parent / "vectors" / "distribution.json").read_text())
ROOT = Path(__file__).parents[1]

# One, two, around a register (8), around a block (32), a prime, several blocks with and without
# a rest.
INTERESTING_SIZES = [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 97, 251, 256, 257, 300]

FLOAT_DTYPES = ["float32", "float16", "bfloat16", "float64"]


def cumulative(kind: str, row: np.ndarray) -> list[int]:
    return _core.cumulative(kind, row.reshape(1, 1, -1))[0, 0].tolist()


def vector_row(case) -> np.ndarray:
    if case["kind"] == "float32":
        return np.array([int(bits, 16) for bits in case["row"]], np.uint32).view(np.float32)
    return np.array(case["row"], np.int32 if case["kind"] == "logits" else np.uint32)


def reference_cumulative(kind: str, row) -> list[int]:
    if kind == "logits":
        return ref.cumulative(ref.logit_weights(row))
    if kind == "weights":
        return ref.cumulative(row)
    return ref.cumulative(ref.float_weights(row))


def float32_row(patterns: list[int]) -> np.ndarray:
    return np.array(patterns, np.uint32).view(np.float32)


# Bits of non-negative finite float32: anything, subnormal, or near each other.
float_patterns = st.one_of(
    st.integers(0, 0x7F7FFFFF),
    st.integers(0, 0x00FFFFFF),
    st.integers(0x3A000000, 0x3F800000),
    st.just(0x80000000),
)
float_rows = st.lists(float_patterns, min_size=1, max_size=100).filter(
    lambda row: any(bits & 0x7FFFFFFF for bits in row)
)
logit_rows = st.one_of(
    st.lists(st.integers(-40_000, 0), min_size=1, max_size=100),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=100),
)
weight_rows = st.lists(
    st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 3)), min_size=1, max_size=100
).filter(any)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case, kernel):
    row = vector_row(case)
    assert cumulative(case["kind"], row) == case["cumulative"], kernel
    assert reference_cumulative(case["kind"], row.tolist()) == case["cumulative"]


@pytest.mark.parametrize("case", VECTORS["errors"], ids=lambda case: case["name"])
@pytest.mark.usefixtures("kernel")
def test_bad_row_is_refused_by_name(case):
    with pytest.raises(lmzip.DistributionError, match=case["message"].replace("^", r"\^")):
        cumulative(case["kind"], vector_row(case))


def test_committed_exp2_table_is_what_the_generator_makes():
    spec = importlib.util.spec_from_file_location(
        "make_exp2_table", ROOT / "tools" / "make_exp2_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "csrc" / "exp2_table.h").read_text() == module.header()
    assert _core.exp2_table().tolist() == ref.exp2_table()


def test_exp2_table_is_the_nearest_integer():
    """Against the definition, in exact integers: 2t - 1 < 2 * 2^30 * 2^(-f/1024) < 2t + 1."""
    for f in (0, 1, 2, 511, 512, 513, 1022, 1023):
        t = ref.exp2_table()[f]
        assert (2 * t - 1) ** 1024 < 1 << (31 * 1024 - f) < (2 * t + 1) ** 1024


def each_kernel(kind: str, row: np.ndarray) -> None:
    """Compare all kernels with the reference, inside a hypothesis test, where fixtures cannot."""
    expected = reference_cumulative(kind, row.tolist())
    for name in _core.kernels():
        _core.set_active_kernel(name)
        try:
            assert cumulative(kind, row) == expected, name
        finally:
            _core.set_active_kernel("")


@given(float_rows)
def test_floats_equal_reference_property(patterns):
    each_kernel("float32", float32_row(patterns))


@given(logit_rows)
def test_logits_equal_reference_property(row):
    each_kernel("logits", np.array(row, np.int32))


@given(weight_rows)
def test_weights_equal_reference_property(row):
    each_kernel("weights", np.array(row, np.uint32))


@pytest.mark.parametrize("n", INTERESTING_SIZES)
@pytest.mark.parametrize("kind", ["float32", "logits", "weights"])
@pytest.mark.usefixtures("kernel")
def test_every_size_equals_reference(n, kind):
    rng = np.random.default_rng(n)
    rows = {
        "float32": rng.random(n, np.float32) ** 8,
        "logits": rng.integers(-30_000, 2000, n, np.int32),
        "weights": rng.integers(0, 2**31, n, np.uint32),
    }
    assert cumulative(kind, rows[kind]) == reference_cumulative(kind, rows[kind].tolist())


@pytest.mark.parametrize("n", [32, 64, 67])
@pytest.mark.usefixtures("kernel")
def test_equal_numbers_have_the_greatest_sums(n):
    """Where sums of a few weights in 32 bits would overflow first."""
    just_below_two = np.uint32(0x3FFFFFFF).view(np.float32)
    rows = {
        "float32": np.full(n, just_below_two, np.float32),
        "logits": np.full(n, -5, np.int32),
        "weights": np.full(n, 2**31 - 1, np.uint32),
    }
    for kind, row in rows.items():
        assert cumulative(kind, row) == reference_cumulative(kind, row.tolist()), kind


@pytest.mark.parametrize("greatest_at", range(0, 67, 3))
@pytest.mark.usefixtures("kernel")
def test_the_greatest_number_is_found_wherever_it_is(greatest_at):
    row = np.full(67, 1.0, np.float32)
    row[greatest_at] = 1e6
    assert cumulative("float32", row) == reference_cumulative("float32", row.tolist())
    logits = np.zeros(67, np.int32)
    logits[greatest_at] = 9000
    assert cumulative("logits", logits) == reference_cumulative("logits", logits.tolist())


@pytest.mark.parametrize("bad_at", range(0, 67, 3))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-45])
@pytest.mark.usefixtures("kernel")
def test_the_bad_number_is_named_wherever_it_is(bad_at, bad):
    row = np.full(67, 0.5, np.float32)
    row[bad_at] = bad
    with pytest.raises(lmzip.DistributionError, match=f"symbol {bad_at} is "):
        cumulative("float32", row)
    weights = np.ones(67, np.int32)
    weights[bad_at] = -1
    with pytest.raises(lmzip.DistributionError, match=f"symbol {bad_at} is negative"):
        cumulative("weights", weights)


@pytest.mark.usefixtures("kernel")
def test_every_float16_is_widened_exactly():
    patterns = np.arange(1 << 16, dtype=np.uint16)
    halves = patterns.view(np.float16)
    usable = halves[np.isfinite(halves) & (halves >= 0)]
    for part in np.array_split(usable[1:], 64):  # without 0.0, so that no row is all zero
        assert cumulative("float16", part) == cumulative("float32", part.astype(np.float32))


@pytest.mark.parametrize("pattern", [0x7C00, 0x7C01, 0xFC00, 0x8001, 0xBC00])
@pytest.mark.usefixtures("kernel")
def test_bad_float16_is_refused(pattern):
    row = np.full(12, 0x3C00, np.uint16)
    for place in (0, 11):
        bad = row.copy()
        bad[place] = pattern
        with pytest.raises(lmzip.DistributionError, match=f"symbol {place} is"):
            cumulative("float16", bad.view(np.float16))


@pytest.mark.usefixtures("kernel")
def test_every_bfloat16_is_widened_exactly():
    patterns = np.arange(1, 0x7F80, dtype=np.uint16)
    for part in np.array_split(patterns, 64):
        wide = (part.astype(np.uint32) << 16).view(np.float32)
        assert cumulative("bfloat16", part) == cumulative("float32", wide)


# Doubles in, above, below and between float32's numbers: ties, the subnormal range, its end, and
# the greatest number.
TRICKY_DOUBLES = [
    0.0, 1.0, 0.1, 1 + 2**-24, 1 + 3 * 2**-24, 1 + 2**-24 + 2**-50, 2.0**-126, 2.0**-127, 2.0**-149,
    2.0**-150, 2.0**-150 * (1 + 2**-30), 2.0**-151, 1.5 * 2.0**-149, 2.5 * 2.0**-149,
    2.0**-126 * (1 - 2**-25), 2.0**-126 * (1 - 2**-24), 5e-324, 2.2e-308, 3.4028234e38,
    3.402823669e38, 2.0 - 2**-25, 2.0 - 2**-24, -0.0,
]  # fmt: skip


def as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**-140])
@pytest.mark.usefixtures("kernel")
def test_float64_is_rounded_to_nearest_even(scale):
    row = np.array([v * scale for v in TRICKY_DOUBLES if v * scale < 3.4028235e38])
    expected = reference_cumulative("float32", [as_float32(v) for v in row.tolist()])
    assert cumulative("float64", row) == expected
    each = [v for v in row.tolist() if as_float32(v) > 0]
    for value in each:  # beside 2^-149 its last digit matters
        pair = np.array([value, 2.0**-149, value * 0.75])
        narrow = [as_float32(v) for v in pair.tolist()]
        assert cumulative("float64", pair) == reference_cumulative("float32", narrow)


@given(st.lists(st.floats(0, 3e38, width=64), min_size=1, max_size=20))
def test_float64_property(row):
    narrow = [as_float32(v) for v in row]
    if any(narrow):
        expected = reference_cumulative("float32", narrow)
        for name in _core.kernels():
            _core.set_active_kernel(name)
            try:
                assert cumulative("float64", np.array(row)) == expected, name
            finally:
                _core.set_active_kernel("")


@pytest.mark.parametrize("value", [1e39, math.inf, -1.0, math.nan, -1e-40])
@pytest.mark.usefixtures("kernel")
def test_bad_float64_is_refused(value):
    with pytest.raises(lmzip.DistributionError, match="symbol 1 is"):
        cumulative("float64", np.array([1.0, value, 1.0, 1.0, 1.0]))


def code(kind: str, row: np.ndarray, symbols: np.ndarray) -> bytes:
    """Encode symbols with one row for all, decode them again, and return the bytes."""
    rows = np.broadcast_to(row, (len(symbols), 1, row.size))
    encoder = _core.LaneEncoder(1)
    encoder.encode_rows(kind, rows, symbols.reshape(-1, 1), [0], 1)
    (data,) = encoder.finish()
    decoder = _core.LaneDecoder([data])
    assert (decoder.decode_rows(kind, rows, [0], 1)[:, 0] == symbols).all()
    assert decoder.ends() == ["exact"]
    return data


@pytest.mark.parametrize("n", INTERESTING_SIZES)
@pytest.mark.parametrize("kind", ["float32", "logits", "weights"])
@pytest.mark.usefixtures("kernel")
def test_every_symbol_is_found_again(n, kind):
    rng = np.random.default_rng(n)
    rows = {
        "float32": rng.random(n, np.float32) ** 20,
        "logits": rng.integers(-50_000, 2000, n, np.int32),
        "weights": rng.integers(0, 2, n, np.uint32) * 12345,
    }
    rows["weights"][n // 2] = 1
    code(kind, rows[kind], np.arange(n))


def exact_bits(row: np.ndarray) -> np.ndarray:
    exact = row.astype(np.float64)
    return -np.log2(exact / exact.sum())


def zipf(n: int, exponent: float, rng) -> np.ndarray:
    """The shape of token frequencies: a power law, in random order."""
    row = 1.0 / np.arange(1, n + 1) ** exponent
    rng.shuffle(row)
    return (row / row.sum()).astype(np.float32)


def expected_cost(row: np.ndarray) -> tuple[float, float]:
    """Expected bits a symbol under the coder's frequencies, and the entropy."""
    exact = row.astype(np.float64)
    exact /= exact.sum()
    freq = np.diff(_core.cumulative("float32", row.reshape(1, 1, -1))[0, 0].astype(np.int64))
    some = exact > 0
    cost = -(exact[some] * np.log2(freq[some] / 2.0**30)).sum()
    return cost, -(exact[some] * np.log2(exact[some])).sum()


@pytest.mark.parametrize("n", [50_000, 262_144])
@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.2])
def test_large_alphabets_cost_at_most_a_5000th_more_than_the_entropy(n, exponent):
    cost, entropy = expected_cost(zipf(n, exponent, np.random.default_rng(1)))
    assert entropy <= cost <= entropy * 1.0002


@pytest.mark.parametrize("n", [50_000, 262_144])
def test_coded_bytes_of_a_large_alphabet(n):
    """The same with real bytes: symbols drawn from the row, coded, decoded, counted."""
    rng = np.random.default_rng(2)
    row = zipf(n, 1.0, rng)
    exact = row.astype(np.float64)
    symbols = rng.choice(n, 200, p=exact / exact.sum())
    bits = exact_bits(row)[symbols].sum()
    assert abs(8 * len(code("float32", row, symbols)) - bits) <= 0.0002 * bits + 32


@pytest.mark.parametrize("spread", [1, 4, 12, 20])
def test_256_symbols_cost_at_most_a_millionth_more_than_the_entropy(spread):
    rng = np.random.default_rng(spread)
    row = np.exp2(rng.normal(size=256) * spread).astype(np.float32)
    row /= row.sum()
    cost, entropy = expected_cost(row)
    assert entropy <= cost <= entropy * 1.000001 + 1e-6


def test_logits_cost_as_little_as_floats():
    """2^30 for the greatest weight: with 2^24, this row of 50,000 would cost 0.07 % more."""
    rng = np.random.default_rng(4)
    logits = np.full(50_000, -22 * 1024, np.int32) + rng.integers(-500, 500, 50_000, np.int32)
    logits[77] = 0
    exact = np.exp2(logits / 1024.0)
    exact /= exact.sum()
    freq = np.diff(_core.cumulative("logits", logits.reshape(1, 1, -1))[0, 0].astype(np.int64))
    entropy = -(exact * np.log2(exact)).sum()
    assert entropy <= -(exact * np.log2(freq / 2.0**30)).sum() <= entropy * 1.0002


def test_unknown_kernel_is_an_error():
    with pytest.raises(lmzip.UnsupportedError, match=r'"sse9" \(LMZIP_KERNEL\) is unknown'):
        _core.set_active_kernel("sse9")


def test_the_environment_variable_is_obeyed(run_python):
    script = "from lmzip import _core; print(_core.active_kernel())"
    for name in _core.kernels():
        assert run_python(script, LMZIP_KERNEL=name).stdout.strip() == name
    wrong = run_python(script, LMZIP_KERNEL="sse9", check=False)
    assert wrong.returncode != 0
    assert 'kernel "sse9" (LMZIP_KERNEL) is unknown or cannot run here' in wrong.stderr
