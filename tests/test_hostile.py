"""Files from strangers: each is refused with a named error, quickly and in little memory.

Single hostile shapes are in tests/vectors (test_vectors_lmz.py); here is what goes over all
bytes, over random input, and over resources.
"""

import contextlib
import io
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip import container
from lmzip.container import FrameHeader, Index, Parser, StreamHeader, pack_varint
from lmzip.salvage import salvage

RAW = b"How much wood would a woodchuck chuck if a woodchuck could chuck wood? " * 4
BLOB = lmzip.compress(RAW, preset="order0", frame_size=120, lanes=2)  # three frames, an index
SINGLE = lmzip.compress(RAW, preset="order0")
REFUSALS = (lmzip.NotLmzError, lmzip.TruncatedError, lmzip.CorruptError, lmzip.UnsupportedError)


def read_by_seeking(blob):
    with lmzip.LmzFile(io.BytesIO(blob), threads=1) as file:
        file.seek(0, io.SEEK_END)
        file.seek(0)
        return file.read()


def read_in_one_piece(blob):
    """Without threads, as the loops below come here thousands of times."""
    decompressor = lmzip.LmzDecompressor()
    raw = decompressor.decompress(blob)
    if not decompressor.eof:
        raise lmzip.TruncatedError("more input is needed")
    return raw


@pytest.mark.parametrize("blob", [BLOB, SINGLE, BLOB + SINGLE], ids=["index", "single", "two"])
def test_truncated_at_every_byte_is_refused(blob):
    for size in range(len(blob)):
        if size == len(BLOB):
            continue  # the first of two streams is whole
        with pytest.raises(lmzip.TruncatedError):
            lmzip.decompress(blob[:size])
        with pytest.raises(lmzip.TruncatedError):
            read_by_seeking(blob[:size])


@pytest.mark.parametrize("blob", [BLOB, SINGLE], ids=["index", "single"])
def test_every_flipped_bit_is_refused(blob):
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(REFUSALS):
            read_in_one_piece(bytes(damaged))
        if bit % 37 == 0:
            with pytest.raises(REFUSALS):
                lmzip.decompress(bytes(damaged))


def test_every_flipped_bit_is_refused_or_harmless_when_seeking():
    for bit in range(0, 8 * len(BLOB), 3):
        damaged = bytearray(BLOB)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(REFUSALS):
            assert read_by_seeking(bytes(damaged)) == RAW


@given(st.data())
def test_spliced_bytes_are_refused_or_harmless(data):
    blob = BLOB + SINGLE
    begin = data.draw(st.integers(0, len(blob)))
    end = data.draw(st.integers(begin, min(len(blob), begin + 40)))
    spliced = blob[:begin] + data.draw(st.binary(max_size=40)) + blob[end:]
    with contextlib.suppress(REFUSALS):
        assert lmzip.decompress(spliced) in (RAW, RAW + RAW)


@given(st.binary(max_size=300))
def test_random_bytes_behind_the_magic_are_refused(garbage):
    for blob in (garbage, container.MAGIC + garbage, StreamHeader().pack() + garbage):
        with contextlib.suppress(REFUSALS):
            lmzip.decompress(blob)
        with contextlib.suppress(REFUSALS):
            lmzip.inspect(blob)


@given(st.binary(min_size=1, max_size=120), st.integers(1, 5000), st.integers(1, 40))
def test_payload_with_the_right_checksum_but_of_garbage_is_refused(payload, raw_size, lanes):
    raw_size = max(raw_size, len(payload))
    sizes = (len(payload),) + (0,) * (lanes - 1)
    head = FrameHeader(4, 0, raw_size, len(payload), 12345, zlib.crc32(payload), lane_sizes=sizes)
    blob = StreamHeader().pack() + head.pack() + payload + b"E" + pack_varint(raw_size)
    with pytest.raises(lmzip.CorruptError):
        lmzip.decompress(blob)


# ── Resources ──


@pytest.mark.parametrize("lanes", [1, 3])
def test_rest_of_a_mixed_frame_is_not_decoded_when_its_payload_has_ended(lanes):
    """A few bytes may announce 64 MiB, which take a minute."""
    sizes = (3,) * lanes
    payload = b"\x12\x34\x56" * lanes
    head = FrameHeader(2, 0, 1 << 20, 3 * lanes, 0, zlib.crc32(payload), 16, 0, sizes)
    with pytest.raises(
        lmzip.CorruptError, match=r"the payload of lane \d ends before its bytes do"
    ):
        lmzip.decompress(StreamHeader().pack() + head.pack() + payload)


def peak_memory(work):
    tracemalloc.start()
    try:
        with pytest.raises(lmzip.LmzipError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUGE_FRAME = (
    StreamHeader().pack()
    + FrameHeader(4, 0, 64 << 20, 64 << 20, 0, 0, lane_sizes=(64 << 20,)).pack()
)
HUGE_INDEX = StreamHeader().pack() + b"I" + pack_varint(4 << 20) + b"\x0f\x80\x80\x80\x01"


@pytest.mark.parametrize("blob", [HUGE_FRAME, HUGE_INDEX], ids=["frame", "index"])
def test_announced_sizes_are_not_allocated(blob):
    assert peak_memory(lambda: lmzip.decompress(blob + bytes(1000))) < 4 << 20
    assert peak_memory(lambda: lmzip.inspect(blob + bytes(1000))) < 4 << 20


def test_index_with_more_frames_than_the_file_has_room_for_is_not_parsed():
    """Read from the end, an index is checked against the size of the file before it is unpacked."""
    many = Index(15, ((20, 1),) * 200_000).pack()
    assert peak_memory(lambda: lmzip.inspect(StreamHeader().pack() + many)) < 4 << 20
    with pytest.raises(lmzip.CorruptError, match="announces 200000 frames"):
        Index.unpack(many, most_frames=1000)


def test_many_empty_streams_decode_without_recursion():
    empty = lmzip.compress(b"", preset="order0")
    blob = empty * 20_000 + SINGLE
    assert lmzip.decompress(blob) == RAW
    assert len(lmzip.inspect(blob).streams) == 20_001


def test_size_that_never_ends_is_refused_at_once():
    for prefix in (container.MAGIC, StreamHeader().pack() + b"F", StreamHeader().pack() + b"I"):
        parser = Parser()
        parser.feed(prefix + b"\xff" * 9)
        with pytest.raises(lmzip.CorruptError, match=r"the size of|announces \d+ bytes"):
            list(iter(parser.next_record, None))


# ── An index that lies, to a reader that trusts it for seeking ──


def with_index(*entries, header_size=None):
    header = StreamHeader().pack()
    frame = b""
    position = 0
    for raw in (b"first ", b"second"):
        crc = zlib.crc32(raw)
        frame += FrameHeader(0, position, 6, 6, crc, crc).pack() + raw
        position += 6
    return header + frame + Index(header_size or len(header), tuple(entries)).pack()


TRUE = 24  # bytes of each frame of with_index


def test_index_that_tells_the_truth_is_read():
    assert read_by_seeking(with_index((TRUE, 6), (TRUE, 6))) == b"first second"


@pytest.mark.parametrize(
    "entries",
    [
        [(TRUE, 7), (TRUE, 5)],  # other raw sizes, the same sum
        [(TRUE, 5), (TRUE, 7)],
        [(TRUE - 1, 6), (TRUE + 1, 6)],  # overlapping
        [(TRUE + 1, 6), (TRUE - 1, 6)],  # a hole
        [(2 * TRUE, 12)],  # one frame that covers two
        [(TRUE, 6), (TRUE, 1 << 26)],
    ],
)
def test_index_that_lies_is_refused(entries):
    with pytest.raises(lmzip.CorruptError):
        read_by_seeking(with_index(*entries))
    with pytest.raises(lmzip.CorruptError):
        lmzip.inspect(with_index(*entries))


@pytest.mark.parametrize(
    "entries",
    [[], [(TRUE, 6)], [(TRUE, 6)] * 3, [(17, 6), (2 * TRUE - 17, 6)], [(TRUE, 6), (TRUE, 0)]],
)
def test_index_that_cannot_be_is_refused(entries):
    with pytest.raises(lmzip.LmzipError):
        read_by_seeking(with_index(*entries))


def test_frame_that_reaches_into_the_next_stream_is_refused():
    """The next stream is found by its index, so the walk must end where it begins."""
    reaching = StreamHeader().pack() + FrameHeader(0, 0, 40, 40, 0, 0).pack() + b"few"
    with pytest.raises(lmzip.TruncatedError, match="inside the frame at raw byte 0"):
        lmzip.inspect(reaching + BLOB)


# ── Salvage ──


def saved(blob, threads=1):
    from lmzip.codec import Codecs

    return list(salvage(blob, Codecs(threads=threads)))


def frames_of(blob):
    return lmzip.inspect(blob).frames


def test_salvage_of_a_sound_file_loses_nothing():
    pieces = saved(BLOB + SINGLE, threads=3)
    assert b"".join(piece.data for piece in pieces) == RAW + RAW
    assert not any(piece.lost for piece in pieces)
    assert [piece.offset for piece in pieces] == [0, 120, 240, len(RAW)]


def test_any_flipped_bit_costs_at_most_its_own_frame():
    frames = frames_of(BLOB)
    for bit in range(0, 8 * len(BLOB), 7):
        damaged = bytearray(BLOB)
        damaged[bit // 8] ^= 1 << bit % 8
        pieces = saved(bytes(damaged))
        kept = {piece.offset: piece.data for piece in pieces if not piece.lost}
        for frame in frames:
            if not frame.offset <= bit // 8 < frame.offset + frame.compressed_size:
                end = frame.raw_offset + frame.raw_size
                assert kept.pop(frame.raw_offset) == RAW[frame.raw_offset : end]
            else:
                lost = [(p.offset, p.size) for p in pieces if p.lost]
                assert (frame.raw_offset, frame.raw_size) in lost
        assert not kept


@pytest.mark.parametrize("gone", [1, 7, 30])
def test_missing_bytes_cost_at_most_the_frames_they_are_missing_from(gone):
    frames = frames_of(BLOB)
    for at in range(0, len(BLOB) - gone, 5):
        kept = {p.offset: p.data for p in saved(BLOB[:at] + BLOB[at + gone :]) if not p.lost}
        for frame in frames:
            end = frame.offset + frame.compressed_size
            if at >= end or at + gone <= frame.offset:
                raw_end = frame.raw_offset + frame.raw_size
                assert kept[frame.raw_offset] == RAW[frame.raw_offset : raw_end]


def test_inserted_bytes_cost_at_most_the_frame_they_are_in():
    frames = frames_of(BLOB)
    middle = frames[1].offset + 30
    pieces = saved(BLOB[:middle] + b"FEI\x89" + BLOB[middle:])
    assert [(p.offset, p.size, bool(p.lost)) for p in pieces] == [
        (0, 120, False),
        (120, 120, True),
        (240, len(RAW) - 240, False),
    ]


def test_salvage_of_a_truncated_file_says_that_the_end_is_missing():
    frames = frames_of(BLOB)
    pieces = saved(BLOB[: frames[2].offset + 10])
    assert [p.offset for p in pieces if not p.lost] == [0, 120]
    assert (pieces[-1].offset, pieces[-1].size) == (240, None)


def test_salvage_finds_streams_whose_header_is_lost():
    last = frames_of(BLOB)[-1]
    pieces = saved(BLOB[: last.offset + last.compressed_size] + BLOB[12:])
    assert b"".join(p.data for p in pieces if not p.lost) == RAW + RAW
    second = len(RAW)
    offsets = [p.offset for p in pieces if not p.lost]
    assert offsets == [0, 120, 240, second, second + 120, second + 240]


def test_salvage_of_something_else_finds_nothing():
    (piece,) = saved(b"not an lmz file, but FEIF and so on" * 10)
    assert piece.size is None
    assert "where a record begins" in piece.lost


def heads_within_payloads(size):
    """Frames whose payloads hold all that follows, each with its own checksum wrong."""
    heads = b""
    for reach in range(size, size // 2, -16):
        heads += FrameHeader(0, 0, reach, reach, 0, 0).pack()
    return heads + bytes(size)


def indexes_within_one_another(size):
    """With true footers, which lie behind all of their beginnings."""
    count, heads, footers = size // 12, b"", b""
    for i in range(count):
        record = 4 * (count - i) + 8 * (i + 1)
        heads += b"I" + pack_varint(record - 16)  # of four bytes
        footers += record.to_bytes(4, "little") + b"LMZI"
    return heads + footers


NESTED = {
    "frame heads": (b"F" + pack_varint(30_000)) * 10_000,
    "frames": heads_within_payloads(30_000),
    "indexes": (b"I" + pack_varint(20_000)) * 10_000,
    "footers": indexes_within_one_another(1 << 16),
}


@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED)
def test_salvage_of_records_within_records_takes_time_for_the_size_of_the_file(nested, monkeypatch):
    """Counted in bytes put through checksums; frames in order before them are had all the same."""
    checked, crc32 = [], zlib.crc32

    def counted(data, *start):
        checked.append(len(data))
        return crc32(data, *start)

    monkeypatch.setattr(zlib, "crc32", counted)
    pieces = saved(BLOB + nested)
    assert sum(checked) < 300 * len(nested)
    assert b"".join(piece.data for piece in pieces) == RAW
    if nested is NESTED["indexes"]:
        assert sum(checked) < len(nested)  # none of them has a footer
    else:
        assert (pieces[-1].size, "searched up to" in pieces[-1].lost) == (None, True)


@given(st.binary(max_size=400))
def test_salvage_never_fails(garbage):
    for blob in (garbage, BLOB[:100] + garbage, garbage + SINGLE):
        assert all(isinstance(piece.offset, int) for piece in saved(blob))
    assert b"".join(p.data for p in saved(garbage + SINGLE)).endswith(RAW)
