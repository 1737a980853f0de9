"""x86 code: the native transform and decoder equal the readable ones; any bytes come back."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
import reference_mixer
import reference_x86
from lmzip import UnsupportedError, _core
from lmzip.codec import CODE, CodecRequest, ThreadShare
from lmzip.container import METHOD_MIXER, METHOD_NETWORK_MIXER, FrameHeader
from lmzip.native import NativeCodec

# What the transform looks at, more often than chance would have it.
CODE_BYTES = st.one_of(
    st.sampled_from([0xE8, 0xE9, 0x0F, 0x80, 0x84, 0x48, 0x4C, 0x8B, 0x8D, 0x05, 0, 255, 1]),
    st.integers(0, 255),
)
CODE_LIKE = st.one_of(st.binary(max_size=80), st.lists(CODE_BYTES, max_size=80).map(bytes))


def code(size: int, seed: int = 0) -> bytes:
    """Bytes that look like functions: calls of a few targets, jumps, loads, operands."""
    rng = random.Random(seed)
    out = bytearray()
    targets = [rng.randrange(size) for _ in range(9)]
    while len(out) < size:
        out += rng.choice([b"\x55\x8b\xec", b"\x8b\x45\x08", b"\x83\xc4\x0c", b"\x89\x44\x24\x10"])
        kind = rng.randrange(4)
        opcode = [b"\xe8", b"\x0f\x84", b"\x48\x8d\x05", b"\xe9"][kind]
        end = len(out) + len(opcode) + 4
        out += opcode + ((rng.choice(targets) - end) & 0xFFFFFFFF).to_bytes(4, "little")
        if rng.random() < 0.2:
            out += b"\x5d\xc3" + b"\xcc" * rng.randrange(8)
    return bytes(out[:size])


@given(CODE_LIKE)
def test_any_bytes_come_back_and_equal_the_reference(raw: bytes) -> None:
    absolute = _core.x86_to_absolute(raw)
    assert absolute == reference_x86.to_absolute(raw)
    assert _core.x86_to_relative(absolute) == raw
    assert reference_x86.to_relative(absolute) == raw


@given(CODE_LIKE)
def test_any_bytes_are_absolute_ones(absolute: bytes) -> None:
    relative = _core.x86_to_relative(absolute)
    assert relative == reference_x86.to_relative(absolute)
    assert _core.x86_to_absolute(relative) == absolute


def test_all_cuts_come_back() -> None:
    raw = code(300)
    for begin in range(40):
        for end in range(begin, len(raw), 1 if begin < 3 else 13):
            piece = raw[begin:end]
            assert _core.x86_to_relative(_core.x86_to_absolute(piece)) == piece


@pytest.mark.parametrize("operand", [0, 1, -1, 2**24 - 1, -(2**24), 2**24, -(2**24) - 1, 2**31 - 1])
def test_the_edges_of_the_range(operand: int) -> None:
    for start in (0, 1, 5000):
        raw = bytes(start) + b"\xe8" + (operand & 0xFFFFFFFF).to_bytes(4, "little") + b"\x90\x90"
        absolute = _core.x86_to_absolute(raw)
        assert absolute == reference_x86.to_absolute(raw)
        assert _core.x86_to_relative(absolute) == raw
        if -(2**24) <= operand < 2**24 - start - 5:
            target = int.from_bytes(absolute[start + 1 : start + 5], "big", signed=True)
            assert target == operand + start + 5


def test_calls_of_one_function_become_equal() -> None:
    calls = b"".join(
        b"\xe8" + (0x5000 - at - 5).to_bytes(4, "little") + b"\x90" for at in range(0, 600, 6)
    )
    absolute = _core.x86_to_absolute(calls)
    assert absolute.count(b"\xe8\x00\x00\x50\x00\x90") == 99  # the last has too little behind it


@pytest.mark.parametrize(
    "raw", [code(1500), random.Random(1).randbytes(900)], ids=["code", "noise"]
)
def test_the_mixer_equals_the_reference(raw: bytes) -> None:
    payloads = _core.mixer_encode(raw, 2, "code", 16)
    assert reference_mixer.encode(raw, 2, "code", 16) == payloads


def test_frames_of_code_come_back_and_are_smaller() -> None:
    raw = code(60_000)
    binary, coded = (
        _core.encode_frame(None, raw, 1, METHOD_MIXER, 20, 1, profile)
        for profile in ("binary", "code")
    )
    assert len(coded[0]) < 0.7 * len(binary[0])
    assert _core.decode_frame(None, coded, len(raw), METHOD_MIXER, 20, 1, "code") == raw


def test_files_of_code_say_so() -> None:
    raw = code(60_000)
    blob = lmzip.compress(raw, preset="fast")
    assert lmzip.decompress(blob) == raw
    head = blob[17 - 2 :]  # behind a header of 15 bytes
    frame = FrameHeader.unpack(head[: 2 + head[1] + 4])
    assert (frame.method, frame.profile) == (METHOD_MIXER, CODE)


def test_code_goes_without_a_network() -> None:
    with pytest.raises(ValueError, match="code goes without a network"):
        _core.MixerEncoder(10, 1, "code", 16, True)
    request = CodecRequest(METHOD_NETWORK_MIXER, 16, CODE, None, "cpu", ThreadShare(1))
    with pytest.raises(UnsupportedError, match="x86 code goes without a network"):
        NativeCodec(request)


# The instructions that GCC writes, as objdump cuts them.
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
def test_lengths_of_real_instructions() -> None:
    library = Path(_core.__file__)
    listing = subprocess.run(
        ["objdump", "-d", "-w", "--section=.text", library],
        capture_output=True,
        text=True,
        check=True,
    )
    if "x86-64" not in listing.stdout[:200]:
        pytest.skip("no x86-64 library")
    decoder, right, total = reference_x86.Decoder(), 0, 0
    for line in listing.stdout.splitlines()[:20_000]:
        fields = line.split("\t")
        if len(fields) < 3:
            continue
        total += 1
        right += decoder.place == reference_x86.START
        for byte in bytes.fromhex(fields[1].replace(" ", "")):
            decoder.follow(byte)
    assert right > 0.99 * total
