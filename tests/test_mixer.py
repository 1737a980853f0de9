"""The mixer: what goes in comes out, with every kernel the same; damage is found, never fatal."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference_mixer
from lmzip import CorruptError, DistributionError, _core

NETWORK_PROFILES = ["text", "binary", "strong", "sample"]
PROFILES = [*NETWORK_PROFILES, "code"]
EACH = [(p, False) for p in PROFILES] + [(p, True) for p in NETWORK_PROFILES]
MEMORY = 16  # the smallest table: contexts fight for its buckets

SIZES = [
    0, 1, 2,              # nothing, one byte, two
    63, 64, 65,           # one byte a lane more or less, with 64 lanes
    251,                  # prime: the last lane is shorter
    4096, 5000,           # enough for the tables to fill and the period of records to be counted
]  # fmt: skip
LANES = [1, 2, 7, 64]

Weights = NDArray[np.uint32]


def sample(size: int, seed: int = 0) -> bytes:
    """Text, records and noise in turn, so that all models meet something."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        kind = rng.randrange(3)
        if kind == 0:
            words = rng.choices(["the", "lane", "of", "a", "mixer,\n", "Coder"], k=30)
            out += " ".join(words).encode()
        elif kind == 1:
            for i in range(20):
                out += bytes([3, 2, 14, 0, i, 0, 7, rng.randrange(9)])
        else:
            out += rng.randbytes(40)
    return bytes(out[:size])


def sample_weights(raw: bytes, seed: int = 0) -> Weights:
    """Rows that favor the true byte at most places, and rows with zeros and extremes."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 1 << 20, size=(len(raw), 256), dtype=np.uint32)
    rows[rng.random(rows.shape) < 0.3] = 0
    at = np.arange(len(raw))
    rows[at, np.frombuffer(raw, np.uint8)] += np.where(
        rng.random(len(raw)) < 0.8, 1 << 28, 1
    ).astype(np.uint32)
    if len(raw) > 3:
        rows[1] = 0
        rows[1, 7] = (1 << 31) - 1  # certain of one byte, and wrong
        rows[2] = (1 << 31) - 1  # uniform, the greatest sum
        rows[3] = 0
        rows[3, 128:] = (1 << 31) - 1  # the greatest ratio of sums
    return rows


@pytest.fixture
def each_kernel() -> Iterator[list[str]]:
    yield _core.kernels()
    _core.set_active_kernel("")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("lanes", LANES)
def test_round_trip_of_interesting_sizes(profile: str, lanes: int) -> None:
    for size in SIZES:
        raw = sample(size, seed=size)
        payloads = _core.mixer_encode(raw, lanes, profile, MEMORY)
        assert len(payloads) == lanes
        assert _core.mixer_decode(payloads, size, profile, MEMORY) == raw


@pytest.mark.parametrize("profile", NETWORK_PROFILES)
def test_round_trip_with_weights(profile: str) -> None:
    raw = sample(3000)
    weights = sample_weights(raw)
    payloads = _core.mixer_encode(raw, 5, profile, MEMORY, weights)
    assert _core.mixer_decode(payloads, len(raw), profile, MEMORY, weights) == raw


def test_weights_help_where_they_are_right() -> None:
    raw = random.Random(1).randbytes(3000)
    rows = np.ones((len(raw), 256), np.uint32)
    rows[np.arange(len(raw)), np.frombuffer(raw, np.uint8)] = 1 << 20
    with_weights = _core.mixer_encode(raw, 1, "text", MEMORY, rows)
    assert len(with_weights[0]) < len(raw) / 20


@pytest.mark.parametrize(("profile", "network"), EACH)
def test_every_kernel_gives_the_same_bytes_and_state(
    profile: str, network: bool, each_kernel: list[str]
) -> None:
    raw = sample(4000)
    weights = sample_weights(raw)
    seen = set()
    for kernel in each_kernel:
        _core.set_active_kernel(kernel)
        encoder = _core.MixerEncoder(len(raw), 3, profile, MEMORY, network)
        stride = -(-len(raw) // 3)
        for t in range(stride):
            at = [lane * stride + t for lane in range(encoder.active())]
            encoder.encode(bytes(raw[i] for i in at), weights[at] if network else None)
        assert encoder.active() == 0
        seen.add((tuple(encoder.finish()), encoder.state_hash()))
    assert len(seen) == 1


@pytest.mark.parametrize(("profile", "network"), EACH)
def test_equals_the_reference_of_the_specification(profile: str, network: bool) -> None:
    # Repeated, so that matches begin, fail and go on; for records long enough to find a period.
    part = sample(1100 if profile == "binary" and not network else 300, seed=5)
    raw = (part + part[:-50]) * 2 if len(part) < 1000 else part * 2
    weights = sample_weights(raw) if network else None
    payloads = _core.mixer_encode(raw, 3, profile, MEMORY, weights)
    assert reference_mixer.encode(raw, 3, profile, MEMORY, weights) == payloads


@pytest.mark.parametrize("network", [False, True])
def test_cells_learn_to_their_limits_as_the_reference_does(network: bool) -> None:
    raw = bytes(random.Random(8).choices(b"ab", k=700))  # the same few cells again and again
    weights = np.zeros((len(raw), 256), np.uint32)
    weights[:, [ord("a"), ord("b")]] = 1 << 28  # sure but for the last two bits
    rows = weights if network else None
    payloads = _core.mixer_encode(raw, 1, "strong", MEMORY, rows)
    assert reference_mixer.encode(raw, 1, "strong", MEMORY, rows) == payloads


def recording(channels: int, size: int) -> bytes:
    """A header of 44 bytes, then 16-bit samples: a tone and noise."""
    rng = np.random.default_rng(3)
    t = np.arange(size // 2 // channels)
    tones = [8000 * np.sin(t / (9 + 4 * c)) + rng.normal(0, 60, t.size) for c in range(channels)]
    return bytes(44) + np.stack(tones, 1).astype("<i2").tobytes()


def picture(pixel: int, row: int, size: int) -> bytes:
    """Rows of pixels: a slope and noise."""
    at = np.arange(size)
    noise = np.random.default_rng(4).integers(0, 5, size)
    return (
        (at % row // pixel + at // row * 3 + 40 * (at % pixel) + noise).astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize(
    "raw",
    [recording(1, 2800), recording(2, 2800), picture(3, 150, 2800)],
    ids=["mono", "stereo", "rgb"],
)
def test_samples_equal_the_reference(raw: bytes) -> None:
    payloads = _core.mixer_encode(raw, 1, "sample", MEMORY)
    assert reference_mixer.encode(raw, 1, "sample", MEMORY) == payloads


def test_the_reference_decodes() -> None:
    raw = sample(500)
    weights = sample_weights(raw)
    payloads = _core.mixer_encode(raw, 2, "text", MEMORY, weights)
    assert reference_mixer.decode(payloads, len(raw), "text", MEMORY, weights) == raw


def test_steps_equal_whole_frames() -> None:
    raw = sample(1001)
    weights = sample_weights(raw)
    payloads = _core.mixer_encode(raw, 4, "strong", MEMORY, weights)
    decoder = _core.MixerDecoder(payloads, len(raw), "strong", MEMORY, True)
    stride = -(-len(raw) // 4)
    out = bytearray(len(raw))
    for t in range(stride):
        at = [lane * stride + t for lane in range(decoder.active())]
        for i, byte in zip(at, decoder.decode(weights[at]), strict=True):
            out[i] = byte
    assert bytes(out) == raw
    assert decoder.exact()


@given(st.binary(max_size=400), st.integers(1, 9), st.sampled_from(PROFILES))
def test_any_bytes_round_trip(raw: bytes, lanes: int, profile: str) -> None:
    payloads = _core.mixer_encode(raw, lanes, profile, MEMORY)
    assert _core.mixer_decode(payloads, len(raw), profile, MEMORY) == raw


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.sampled_from(PROFILES))
def test_garbage_is_refused_or_harmless(payloads: list[bytes], profile: str) -> None:
    try:
        raw = _core.mixer_decode(payloads, 300, profile, MEMORY)
    except CorruptError:
        return
    assert _core.mixer_encode(raw, len(payloads), profile, MEMORY) == payloads


def test_truncated_at_every_byte_is_refused_or_is_another_message() -> None:
    # Zeros past the end decode to well-predicted bytes, so a cut payload can be the exact encoding
    # of other bytes. It never passes for the original; the container's checksum tells the rest.
    raw = sample(600)
    (payload,) = _core.mixer_encode(raw, 1, "text", MEMORY)
    refused = 0
    for cut in range(len(payload)):
        try:
            other = _core.mixer_decode([payload[:cut]], len(raw), "text", MEMORY)
        except CorruptError:
            refused += 1
        else:
            assert other != raw
            assert _core.mixer_encode(other, 1, "text", MEMORY) == [payload[:cut]]
    assert refused > len(payload) / 2


def test_repetition_costs_next_to_nothing() -> None:
    raw = b"0123456789abcdef" * 4096
    assert sum(map(len, _core.mixer_encode(raw, 1, "text", MEMORY))) < 100


def test_lanes_learn_from_each_other() -> None:
    raw = sample(60_000)
    one = sum(map(len, _core.mixer_encode(raw, 1, "text", 20)))
    many = sum(map(len, _core.mixer_encode(raw, 16, "text", 20)))
    apart = sum(
        len(_core.mixer_encode(raw[i : i + 3750], 1, "text", 20)[0]) for i in range(0, 60_000, 3750)
    )
    assert one < many < (one + apart) / 2


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="expected text, binary, strong, sample or code"):
        _core.mixer_encode(b"a", 1, "texts", MEMORY)
    with pytest.raises(ValueError, match="expected 2\\^16 to 2\\^30"):
        _core.mixer_encode(b"a", 1, "text", 15)
    with pytest.raises(ValueError, match="at least one lane"):
        _core.mixer_encode(b"a", 0, "text", MEMORY)
    with pytest.raises(DistributionError, match="shape \\(1, 256\\)"):
        _core.mixer_encode(b"a", 1, "text", MEMORY, np.ones((2, 256), np.uint32))
