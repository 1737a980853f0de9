"""The .lmz container: records, the parser, and that docs/format.md tells the truth about both."""

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip import container
from lmzip.container import (
    FrameHeader,
    Index,
    ModelRef,
    Parser,
    PredictorRef,
    StreamHeader,
    Trailer,
    pack_trailer,
    pack_varint,
    read_varint,
)

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=15)


@given(st.integers(0, (1 << 63) - 1))
def test_varint_comes_back(value):
    packed = pack_varint(value)
    assert len(packed) == max(1, -(-value.bit_length() // 7))
    assert read_varint(b"\xff" + packed + b"\xff", 1) == (value, 1 + len(packed))
    with pytest.raises(lmzip.TruncatedError):
        read_varint(packed[:-1], 0)


@given(
    st.builds(
        StreamHeader,
        st.none() | st.builds(ModelRef, st.binary(min_size=8, max_size=8), TEXT),
        st.none() | TEXT.filter(container.is_safe_name),
        st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        st.none() | st.builds(PredictorRef, TEXT, TEXT),
    )
)
def test_stream_header_comes_back(header):
    assert StreamHeader.unpack(header.pack()) == header


@st.composite
def frame_headers(draw):
    raw_size = draw(st.integers(1, container.MAX_FRAME_SIZE))
    lanes = draw(st.integers(1, min(raw_size, 40)))
    stride = -(-raw_size // lanes)
    full = -(-raw_size // stride)  # lanes that hold a byte
    sizes = [draw(st.integers(0, raw_size // lanes)) for _ in range(full)] + [0] * (lanes - full)
    method = draw(st.sampled_from([1, 2, 3, 4]))
    mixed = method in container.TABLE_METHODS
    return FrameHeader(
        method=method,
        position=draw(st.integers(0, container.MAX_TOTAL - raw_size)),
        raw_size=raw_size,
        payload_size=sum(sizes),
        raw_crc=draw(st.integers(0, (1 << 32) - 1)),
        payload_crc=draw(st.integers(0, (1 << 32) - 1)),
        table_bits=draw(st.integers(16, 30)) if mixed else 0,
        profile=draw(st.integers(0, container.MAX_PROFILE)) if mixed else 0,
        lane_sizes=tuple(sizes),
    )


@given(frame_headers())
def test_frame_header_comes_back(header):
    packed = header.pack()
    found = FrameHeader.unpack(packed)
    assert found.head_size == len(packed)
    assert replace(found, head_size=0) == header


@given(st.lists(st.tuples(st.integers(18, 1 << 26), st.integers(1, 1 << 26)), max_size=20))
def test_index_comes_back(entries):
    index = Index(15, tuple(entries))
    assert Index.unpack(index.pack(), most_frames=20) == index


@pytest.mark.parametrize("entry", [(17, 5), (18, 0), (18, container.MAX_FRAME_SIZE + 1)])
def test_index_lists_only_frames_that_can_be(entry):
    packed = Index(15, ((18, 1), entry)).pack()
    with pytest.raises(lmzip.CorruptError, match="the index lists a frame of"):
        Index.unpack(packed, most_frames=20)


@pytest.mark.parametrize("piece", [1, 2, 7, 100, 10_000])
def test_parser_gives_the_same_records_for_every_piece_size(piece):
    stream = lmzip.compress(bytes(range(200)), preset="order0", frame_size=64)
    data = stream + lmzip.compress(b"", preset="order0") + stream

    def records(size):
        parser, found = Parser(), []
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])
            while (record := parser.next_record()) is not None:
                found.append(record)
        parser.end()
        assert parser.consumed == len(data)
        return found

    assert records(piece) == records(len(data))
    assert sum(isinstance(record, Trailer) for record in records(piece)) == 3


def test_parser_stops_after_one_stream_if_told():
    data = lmzip.compress(b"first", preset="order0")
    parser = Parser(one_stream=True)
    parser.feed(data + b"rest")
    while parser.next_record() is not None:
        pass
    assert parser.done
    assert parser.rest() == b"rest"


def test_stream_without_room_for_its_index_has_none(monkeypatch):
    entries = [(100, 1)] * 50
    assert pack_trailer(15, entries)[:1] == b"I"
    monkeypatch.setattr(container, "MAX_INDEX_BODY", 60)
    assert pack_trailer(15, entries) == b"E" + pack_varint(50)


@pytest.mark.parametrize("label", ["", "x" * 65, "tab\t", "\ud800"])
def test_label_that_cannot_be_read_back_is_not_written(label):
    with pytest.raises(ValueError, match=r"model label|surrogates"):
        StreamHeader(ModelRef(bytes(8), label)).pack()


def test_worked_example_of_the_format_document_parses():
    block = re.search(r"```hex\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    assert block is not None
    data = bytes.fromhex("".join(re.sub(r"#.*", "", line) for line in block[1].splitlines()))
    raw = b"banana " * 9 + b"split\n"
    assert lmzip.decompress(data) == raw
    compressor = lmzip.LmzCompressor(preset="order0", name="b.txt", frame_size=63, lanes=2)
    assert compressor.compress(raw) + compressor.flush() == data


def test_constants_of_the_format_document_are_those_of_the_code():
    pattern = re.compile(r"^\| `(MAX_\w+|MIN_\w+)` \| ([\d,]+)", re.MULTILINE)
    table = dict(pattern.findall(FORMAT.read_text()))
    assert len(table) >= 8
    for name, value in table.items():
        assert getattr(container, name) == int(value.replace(",", "")), name


def test_checksums_are_where_the_document_says():
    record = StreamHeader(None, "a", 0).pack()
    assert struct.unpack("<I", record[-4:])[0] == zlib.crc32(record[:-4])
    data = lmzip.compress(b"some bytes" * 9, preset="order0", frame_size=50)
    table = lmzip.inspect(data)
    index_at = table.frames[-1].offset + table.frames[-1].compressed_size
    assert struct.unpack("<I", data[-12:-8])[0] == zlib.crc32(data[index_at:-12])
