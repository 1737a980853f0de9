"""The native range coder: equal to the reference, exact at its end, harmless on any input."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmzip import _core
from lmzip import reference_coder as ref

VECTORS = Path(__file__).parent / "vectors"
CASES = json.loads((VECTORS / "range_coder.json").read_text())["cases"]


def encode(intervals, encoder=None) -> bytes:
    encoder = encoder or _core.RangeEncoder()
    for interval in intervals:
        encoder.encode(*interval)
    return encoder.finish()


def follow(data: bytes, bits_list) -> list[tuple[int, int]]:
    """Decode with intervals of freq 1, so that the interval is the slot itself."""
    decoder, slots = _core.RangeDecoder(data), []
    for bits in bits_list:
        slot = decoder.peek(bits)
        decoder.consume(slot, 1, bits)
        slots.append(slot)
    return slots


@st.composite
def intervals(draw):
    bits = draw(st.integers(1, 32))
    freq = draw(st.integers(1, 1 << draw(st.integers(0, bits))))
    lo = draw(st.integers(0, (1 << bits) - freq))
    return lo, min(freq, (1 << 32) - 1), bits


messages = st.lists(intervals(), max_size=200)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case):
    data = bytes.fromhex(case["bytes"])
    assert encode(case["intervals"]) == data
    assert encode(case["intervals"], ref.RangeEncoder()) == data
    for decoder in (_core.RangeDecoder(data), ref.RangeDecoder(data)):
        for lo, freq, bits in case["intervals"]:
            assert lo <= decoder.peek(bits) < lo + freq
            decoder.consume(lo, freq, bits)
    assert decoder.at_end()


def test_committed_vectors_are_what_the_generator_makes(vectors_module):
    for name, make in vectors_module.FILES.items():
        assert (VECTORS / name).read_text() == vectors_module.render(make()), name


def test_the_carry_vector_carries_through_many_words():
    """Otherwise the case would test nothing: before its last interval all words are ones."""
    case = next(case for case in CASES if case["name"] == "a carry through many words")
    encoder = ref.RangeEncoder()
    for interval in case["intervals"][:-1]:
        encoder.encode(*interval)
    assert encoder.low >> 64 == (1 << (32 * encoder.shifts - 1)) - 1
    assert encoder.shifts >= 10
    encoder.encode(*case["intervals"][-1])
    assert encoder.low >> 64 >> 32 * encoder.shifts == 0
    assert bytes.fromhex(case["bytes"])[0] == 0x80


@given(messages)
def test_native_equals_reference_property(message):
    assert encode(message) == encode(message, ref.RangeEncoder())


@given(messages)
def test_round_trip_property(message):
    decoder = _core.RangeDecoder(encode(message))
    for lo, freq, bits in message:
        assert lo <= decoder.peek(bits) < lo + freq
        decoder.consume(lo, freq, bits)
    assert decoder.end() == "exact"
    assert not decoder.truncated()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 65535)), max_size=300))
def test_bits_equal_intervals_property(decisions):
    as_bits, as_intervals = _core.RangeEncoder(), _core.RangeEncoder()
    for bit, p1 in decisions:
        as_bits.encode_bit(bit, p1, 16)
        lo, freq = (0, p1) if bit else (p1, 65536 - p1)
        as_intervals.encode(lo, freq, 16)
    data = as_bits.finish()
    assert data == as_intervals.finish()
    decoder = _core.RangeDecoder(data)
    assert [decoder.decode_bit(p1, 16) for _, p1 in decisions] == [bit for bit, _ in decisions]
    assert decoder.end() == "exact"


@given(messages)
def test_length_is_the_entropy_and_at_most_33_bits_property(message):
    """An interval loses less than 2 * 2^bits / range of itself; the end costs at most a word."""
    entropy = sum(bits - math.log2(freq) for _, freq, bits in message)
    assert 8 * len(encode(message)) <= entropy + 33 + 0.01 * len(message)


def test_length_of_a_long_message_is_the_entropy():
    rng = random.Random(5)
    message = [(rng.randrange(1 << 16) & ~1, 1 + rng.getrandbits(1), 16) for _ in range(20_000)]
    entropy = sum(bits - math.log2(freq) for _, freq, bits in message)
    assert 8 * len(encode(message)) <= entropy * 1.00001 + 33


@given(st.binary(max_size=64), st.lists(st.integers(1, 32), max_size=100))
def test_any_bytes_decode_without_harm_property(data, bits_list):
    slots = follow(data, bits_list)
    assert all(slot < 1 << bits for slot, bits in zip(slots, bits_list, strict=True))


@given(st.binary(max_size=64), st.lists(st.integers(1, 32), max_size=100))
def test_what_is_accepted_is_the_only_encoding_property(data, bits_list):
    """Whatever the bytes: if the decoder calls them exact, encoding gives the same bytes."""
    decoder, reference = _core.RangeDecoder(data), ref.RangeDecoder(data)
    encoder = _core.RangeEncoder()
    for bits in bits_list:
        slot = decoder.peek(bits)
        assert slot == reference.peek(bits)
        decoder.consume(slot, 1, bits)
        reference.consume(slot, 1, bits)
        encoder.encode(slot, 1, bits)
    again = encoder.finish()
    assert (decoder.end() == "exact") == (again == data) == reference.at_end()


@pytest.mark.parametrize("seed", range(10))
def test_truncated_at_every_byte_is_noticed_or_another_message(seed):
    rng = random.Random(seed)
    message = [(rng.randrange(1 << 20), 1, 20) for _ in range(20)]
    data = encode(message)
    for size in range(len(data)):
        decoder, encoder = _core.RangeDecoder(data[:size]), _core.RangeEncoder()
        for _ in message:
            slot = decoder.peek(20)
            decoder.consume(slot, 1, 20)
            encoder.encode(slot, 1, 20)
        if size < len(data) - 4:
            assert decoder.end() == "short"
        # Of the last 4 bytes, a shorter message may be the encoding of other symbols.
        if decoder.end() == "exact":
            assert encoder.finish() == data[:size]


def test_bytes_left_over_are_noticed():
    data = encode([(5, 1, 16)] * 10)
    for tail in (b"\0", b"\1", b"\0" * 9):
        decoder = _core.RangeDecoder(data + tail)
        for _ in range(10):
            decoder.consume(5, 1, 16)
        assert decoder.end() == "long"


def test_reading_far_past_the_end_is_flagged():
    decoder = _core.RangeDecoder(b"")
    reads = 0
    while not decoder.truncated():
        decoder.consume(0, 1, 32)
        reads += 1
    assert reads == 1  # the first word after the two that the start reads


def test_the_one_number_no_message_has_is_refused():
    decoder = _core.RangeDecoder(b"\xff" * 8)
    assert decoder.peek(32) == (1 << 32) - 1
    for _ in range(3):
        decoder.consume(decoder.peek(32), 1, 32)
    assert decoder.end() != "exact"


@pytest.mark.parametrize(
    ("lo", "freq", "bits"),
    [(0, 0, 8), (256, 1, 8), (255, 2, 8), (0, 1, 0), (0, 1, 33), (2**32 - 1, 2, 32)],
)
def test_impossible_intervals_are_refused(lo, freq, bits):
    with pytest.raises(ValueError, match=r"interval|bits"):
        _core.RangeEncoder().encode(lo, freq, bits)
    with pytest.raises(ValueError, match=r"interval|bits"):
        _core.RangeDecoder(b"abc").consume(lo, freq, bits)


def test_an_interval_that_misses_the_slot_is_refused():
    decoder = _core.RangeDecoder(b"\x80")
    with pytest.raises(ValueError, match="contain peek"):
        decoder.consume(0, 1, 1)


@pytest.mark.parametrize("p1", [0, 65536])
def test_certain_bits_are_refused(p1):
    with pytest.raises(ValueError, match="0 < p1"):
        _core.RangeEncoder().encode_bit(True, p1, 16)
    with pytest.raises(ValueError, match="0 < p1"):
        _core.RangeDecoder(b"abc").decode_bit(p1, 16)


def test_finish_leaves_an_encoder_as_new():
    encoder = _core.RangeEncoder()
    first = encode([(1, 1, 8)], encoder)
    assert encode([(1, 1, 8)], encoder) == first
