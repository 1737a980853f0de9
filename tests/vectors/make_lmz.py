"""Write the good-, bad- and unsupported- .lmz files, and their lines of README.md.

python tests/vectors/make_lmz.py

CASES is the one place that says what each file tests and how it must be answered. Hostile files
are built field by field: every checksum that a case does not mean to break is right.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lmzip
from lmzip import (
    CorruptError,
    LmzipError,
    ModelMismatchError,
    NotLmzError,
    TruncatedError,
    UnsupportedError,
    _core,
)
from lmzip.container import (
    MAGIC,
    METHOD_MIXER,
    FrameHeader,
    Index,
    ModelRef,
    StreamHeader,
    pack_trailer,
    pack_varint,
)
from lmzip.order0 import Order0Codec

HERE = Path(__file__).parent
BEGIN, END = "<!-- lmz files: made by make_lmz.py -->", "<!-- end of lmz files -->"
TEXT = b"She sells sea shells by the sea shore; the shells she sells are sea shells for sure. " * 3
# Calls and jumps to one place, forwards and backwards, and a load relative to RIP.
CODE = b"".join(
    opcode + (3000 - at).to_bytes(4, "little", signed=True) + b"\x89\xc3\x83\xc4\x0c"
    for at in range(0, 6000, 200)
    for opcode in (b"\xe8", b"\x0f\x84", b"\x48\x8d\x05")
)


@dataclass(frozen=True)
class Case:
    """A file: its bytes, what it tests, and either its raw bytes or its error and message."""

    data: bytes
    sentence: str
    raw: bytes = b""
    error: type[LmzipError] | None = None
    message: str = ""


def with_crc(record: bytes) -> bytes:
    return record + struct.pack("<I", zlib.crc32(record))


def header(body: bytes) -> bytes:
    return with_crc(MAGIC + pack_varint(len(body)) + body)


def head(body: bytes) -> bytes:
    return with_crc(b"F" + pack_varint(len(body)) + body)


def frame_body(
    method: int, numbers: list[int], raw_crc: int, payload_crc: int, rest: bytes = b""
) -> bytes:
    packed = b"".join(map(pack_varint, numbers))
    return bytes([method]) + packed + struct.pack("<II", raw_crc, payload_crc) + rest


def stored(raw: bytes, position: int = 0) -> bytes:
    crc = zlib.crc32(raw)
    return FrameHeader(0, position, len(raw), len(raw), crc, crc).pack() + raw


def coded(raw: bytes, lanes: int = 1, raw_crc: int | None = None, tail: bytes = b"") -> bytes:
    """A frame of method 4, if wanted with a wrong CRC-32 or bytes behind the last payload."""
    payloads = Order0Codec().encode_frame(raw, lanes)
    payloads[-1] += tail
    payload = b"".join(payloads)
    crc = zlib.crc32(raw) if raw_crc is None else raw_crc
    sizes = tuple(map(len, payloads))
    frame = FrameHeader(4, 0, len(raw), len(payload), crc, zlib.crc32(payload), lane_sizes=sizes)
    return frame.pack() + payload


HEAD = StreamHeader().pack()
PLAIN = HEAD + stored(b"plain") + b"E\x05"
INDEXED = lmzip.compress(TEXT, preset="order0", frame_size=100)
NOTHING = zlib.crc32(b"")
UNKNOWN = StreamHeader(ModelRef(bytes(range(8)), "shells@9.9")).pack()


def code_frame() -> bytes:
    """CODE with the mixer's profile 4, in one lane."""
    (payload,) = _core.encode_frame(None, CODE, 1, METHOD_MIXER, 16, 1, "code")
    crcs = zlib.crc32(CODE), zlib.crc32(payload)
    numbers = 0, len(CODE), len(payload)
    return FrameHeader(METHOD_MIXER, *numbers, *crcs, 16, 4, (len(payload),)).pack() + payload


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def one_frame(record: bytes, raw_size: int) -> bytes:
    return HEAD + record + b"E" + pack_varint(raw_size)


def lanes_of(rest: bytes, payload: bytes = b"x", method: int = 4) -> bytes:
    """A stream with a frame of 9 raw bytes whose fields of mixer and lanes are `rest`."""
    body = frame_body(method, [0, 9, len(payload)], NOTHING, zlib.crc32(payload), rest)
    return one_frame(head(body) + payload, 9)


def good() -> dict[str, Case]:
    two = stored(b"first ") + stored(b"second", 6)
    sizes = [(len(stored(b"first ")), 6), (len(stored(b"second", 6)), 6)]
    named = StreamHeader(None, "shells.txt", 1_700_000_000_000_000_000).pack()
    one_indexed = Index(len(HEAD), ((len(stored(b"plain")), 5),)).pack()
    return {
        "empty": Case(HEAD + b"E\0", "no frame at all"),
        "stored": Case(PLAIN, "one stored frame", b"plain"),
        "order0": Case(lmzip.compress(TEXT, preset="order0"), "one coded frame, one lane", TEXT),
        "order0-lanes": Case(
            lmzip.compress(TEXT, preset="order0", lanes=7),
            "seven lanes, the last one shorter",
            TEXT,
        ),
        "empty-lanes": Case(
            one_frame(coded(b"a" * 41, 16), 41),
            "16 lanes for 41 bytes: two lanes of no byte, one of two, the others of three",
            b"a" * 41,
        ),
        "code": Case(one_frame(code_frame(), len(CODE)), "x86 code, mixer profile 4", CODE),
        "index": Case(INDEXED, "three frames and an index", TEXT),
        "no-index": Case(HEAD + two + b"E\x0c", "two frames without an index", b"first second"),
        "index-of-two": Case(
            HEAD + two + pack_trailer(len(HEAD), sizes), "two frames with an index", b"first second"
        ),
        "index-of-one": Case(
            HEAD + stored(b"plain") + one_indexed, "one frame with an index, which may be", b"plain"
        ),
        "concatenated": Case(
            PLAIN + HEAD + b"E\0" + INDEXED, "three streams, the second one empty", b"plain" + TEXT
        ),
        "name-and-time": Case(
            named + stored(b"plain") + b"E\x05", "a header with a file name and a time", b"plain"
        ),
        "model-not-needed": Case(
            UNKNOWN + stored(b"plain") + b"E\x05",
            "names a model that nobody has, but has stored frames only: it must be decoded",
            b"plain",
        ),
        "predictor-not-needed": Case(
            header(b"\x01\x08\x05os:rm\x04here") + stored(b"plain") + b"E\x05",
            "names a float predictor, but has stored frames only",
            b"plain",
        ),
    }


def foreign_and_truncated() -> dict[str, Case]:
    mangled = PLAIN.replace(b"\r\n", b"\n")
    return {
        "no-lmz": Case(b"PK\x03\x04 something else", "a foreign file", b"", NotLmzError, "not an"),
        "text-mode": Case(mangled, "line ends were converted", b"", NotLmzError, "binary mode"),
        "no-bytes": Case(b"", "a file without bytes", b"", TruncatedError, "the input is empty"),
        "cut-magic": Case(HEAD[:5], "ends inside the magic", b"", TruncatedError, "ends inside"),
        "cut-header": Case(HEAD[:-1], "ends inside the header", b"", TruncatedError, "ends inside"),
        "cut-head": Case(
            PLAIN[: len(HEAD) + 7], "ends inside a frame head", b"", TruncatedError, "ends inside"
        ),
        "cut-payload": Case(PLAIN[:-3], "ends inside a payload", b"", TruncatedError, "a payload"),
        "cut-end": Case(PLAIN[:-2], "has no end mark", b"", TruncatedError, "after 5 raw bytes"),
        "cut-index": Case(INDEXED[:-1], "ends in the footer", b"", TruncatedError, "ends inside"),
    }


def damaged_headers() -> dict[str, Case]:
    def bad(data: bytes, sentence: str, message: str) -> Case:
        return Case(data, sentence, b"", CorruptError, message)

    tail = stored(b"plain") + b"E\x05"
    return {
        "header-crc": bad(flip(HEAD, 9) + tail, "one bit of the header flipped", "header is dam"),
        "header-long": bad(
            MAGIC + pack_varint(1024) + bytes(2000), "announces a header of 1024 bytes", "limit is"
        ),
        "header-short": bad(header(b"\x01\x01" + bytes(5)) + tail, "too short a model id", "short"),
        "header-surplus": bad(header(b"\x01\x00\x00") + tail, "a byte behind the fields", "many"),
        "size-not-shortest": bad(
            with_crc(MAGIC + b"\x82\x00" + b"\x01\x00") + tail, "its size takes two bytes", "short"
        ),
        "name-with-folder": bad(
            header(b"\x01\x02\x07../evil") + tail, "a file name that climbs", "unsafe file name"
        ),
        "name-with-escape": bad(
            header(b"\x01\x02\x05\x1b[2Jx") + tail, "a file name for the terminal", "plain text"
        ),
        "name-not-utf8": bad(
            header(b"\x01\x02\x02\xff\xfe") + tail, "a file name that is no UTF-8", "not UTF-8"
        ),
        "predictor-with-escape": bad(
            header(b"\x01\x08\x02\x1bc\x01x") + tail, "a predictor for the terminal", "plain text"
        ),
        "predictor-short": bad(
            header(b"\x01\x08\x01x") + tail, "a predictor without its environment", "too short"
        ),
        "predictor-long": bad(
            header(b"\x01\x08\xc9" + b"x" * 201 + b"\x01x") + tail,
            "a predictor described in 201 bytes",
            "too long",
        ),
    }


def damaged_frames() -> dict[str, Case]:
    def bad(data: bytes, sentence: str, message: str) -> Case:
        return Case(data, sentence, b"", CorruptError, message)

    def sizes(numbers: list[int], method: int = 0) -> bytes:
        return one_frame(head(frame_body(method, numbers, 0, 0)) + b"12345", 5)

    raw = TEXT[:80]
    payload_at = len(HEAD) + len(coded(raw)) - 1
    wrong_raw = coded(raw, raw_crc=1)
    twice = HEAD + stored(b"plain") * 2 + b"E\x0a"
    return {
        "frame-crc": bad(
            flip(PLAIN, len(HEAD) + 4), "one bit of a frame head flipped", "frame head"
        ),
        "frame-long": bad(
            HEAD + b"F" + pack_varint(40000) + bytes(9), "announces a head of 40000 bytes", "limit"
        ),
        "raw-size-zero": bad(sizes([0, 0, 0]), "a frame of no bytes", "0 raw bytes"),
        "raw-size-huge": bad(
            sizes([0, (64 << 20) + 1, 5], 4), "a frame of 64 MiB and a byte", "67108865 raw bytes"
        ),
        "payload-huge": bad(
            sizes([0, 5, (1 << 62)], 4), "a payload of 2^62 bytes for 5 raw ones", "payload of"
        ),
        "payload-longer": bad(
            lanes_of(b"\0\x01", b"10 letters"),
            "10 bytes of payload for 9 raw ones",
            "payload of 10",
        ),
        "frame-surplus": bad(
            one_frame(head(frame_body(0, [0, 5, 5], 0, 0, b"?")) + b"12345", 5),
            "a byte behind the fields of a head",
            "1 bytes too many",
        ),
        "stored-sizes": bad(sizes([0, 5, 4]), "a stored frame with two sizes", "payload of 4"),
        "position-huge": bad(
            sizes([(1 << 63) - 1, 5, 5]), "a position at the end of numbers", "behind any possible"
        ),
        "position-gap": bad(
            HEAD + stored(b"plain", 7) + b"E\x0c", "the first frame is missing", "out of order"
        ),
        "frame-twice": bad(twice, "the same frame twice", "out of order"),
        "number-too-long": bad(
            one_frame(head(b"\x00" + b"\xff" * 10 + bytes(12)), 5), "a number of 70 bits", "63 bits"
        ),
        "lanes-zero": bad(lanes_of(b"\0\0"), "a frame without lanes", "0 lanes"),
        "lanes-many": bad(lanes_of(b"\0" + pack_varint(4097)), "4097 lanes", "4097 lanes"),
        "lanes-overflow": bad(lanes_of(b"\0\x03\x01\x01"), "lanes larger than all", "need 2 bytes"),
        "lane-empty": bad(
            lanes_of(b"\0\x08\x00\x00\x00\x00\x00\x01\x00"),
            "payload for a lane of no byte",
            "lane 5",
        ),
        "tables-huge": bad(lanes_of(b"\x1f\x01", method=2), "tables of 2 GiB", r"2\^31 bytes"),
        "tables-none": bad(lanes_of(b"\x00\x01", method=2), "a mixer without tables", r"2\^0 "),
        "tables-surplus": bad(lanes_of(b"\x16\x01"), "tables without a mixer", "mixer byte 0x16"),
        "payload-crc": bad(
            flip(one_frame(coded(raw), 80), payload_at),
            "one bit of a payload flipped",
            "payload is",
        ),
        "raw-crc": bad(one_frame(wrong_raw, 80), "decodes to other bytes", "model or the engine"),
        "lane-surplus": bad(
            one_frame(coded(raw, tail=b"\1"), 80),
            "a payload goes on behind its last symbol",
            "not the encoding",
        ),
    }


def damaged_trailers() -> dict[str, Case]:
    def bad(data: bytes, sentence: str, message: str) -> Case:
        return Case(data, sentence, b"", CorruptError, message)

    body = HEAD + stored(b"plain")
    size = len(stored(b"plain"))

    def lying(*entries: tuple[int, int], header_size: int = len(HEAD)) -> bytes:
        return body + Index(header_size, entries).pack()

    agree = "does not agree"
    return {
        "end-total": bad(body + b"E\x06", "announces 6 bytes, holds 5", "announces 6 raw bytes"),
        "mark": bad(body + b"X", "an unknown record", "found byte 0x58"),
        "surplus": bad(PLAIN + b"more", "something behind the stream", "begins no other stream"),
        "surplus-zeros": bad(PLAIN + bytes(9), "zeros behind the stream", "begins no other stream"),
        "index-crc": bad(flip(INDEXED, len(INDEXED) - 14), "a bit of the index flipped", agree),
        "index-footer": bad(flip(INDEXED, len(INDEXED) - 6), "a bit of the footer flipped", agree),
        "index-long": bad(
            body + b"I" + pack_varint((4 << 20) + 1), "announces an index of 4 MiB", "limit is"
        ),
        "index-twice": bad(lying((size, 5), (size, 5)), "lists one frame twice", agree),
        "index-sizes": bad(lying((size, 6)), "lists a frame with another raw size", agree),
        "index-overlap": bad(lying((size + 1, 5)), "lists a frame that overlaps the index", agree),
        "index-header": bad(lying((size, 5), header_size=9), "lists a shorter header", agree),
        "index-empty": bad(lying(), "lists no frame", agree),
    }


def unsupported() -> dict[str, Case]:
    def refused(data: bytes, sentence: str, message: str) -> Case:
        return Case(data, sentence, b"", UnsupportedError, message)

    tail = stored(b"plain") + b"E\x05"
    needs_model = head(frame_body(1, [0, 5, 1], 0, zlib.crc32(b"x"), b"\0\x01")) + b"x"
    method9 = one_frame(head(frame_body(9, [0, 5, 1], 0, zlib.crc32(b"x"), b"new")) + b"x", 5)
    return {
        "version": refused(header(b"\x02\x00") + tail, "format version 2", "format version 2"),
        "flag": refused(header(b"\x01\x80") + tail, "a flag of the future", "unknown flags 0x80"),
        "method": refused(method9, "method 9, with fields of its own", "method 9"),
        "profile": refused(
            lanes_of(b"\xf0\x01", method=METHOD_MIXER), "mixer profile 7", "mixer profile 7"
        ),
        "model": Case(
            UNKNOWN + needs_model + b"E\x05",
            "a frame that needs a model that nobody has",
            b"",
            ModelMismatchError,
            r"'shells' \(id 0001020304050607\), shipped with lmzip-codec 9.9",
        ),
        "predictor": Case(
            header(b"\x01\x08\x05os:rm\x04here")
            + head(frame_body(6, [0, 5, 1], 0, zlib.crc32(b"x"), b"\0\x01"))
            + b"xE\x05",
            "a frame of a float predictor, which only a user may name",
            b"",
            ModelMismatchError,
            r"the float predictor 'os:rm' in the environment 'here'.*with --predictor",
        ),
    }


def cases() -> dict[str, Case]:
    """File name -> case."""
    groups: list[tuple[str, Callable[[], dict[str, Case]]]] = [
        ("good", good),
        ("bad", foreign_and_truncated),
        ("bad", damaged_headers),
        ("bad", damaged_frames),
        ("bad", damaged_trailers),
        ("unsupported", unsupported),
    ]
    return {f"{kind}-{name}.lmz": case for kind, make in groups for name, case in make().items()}


def readme_lines() -> str:
    """The part of README.md between the two marks."""
    lines = []
    for name, case in cases().items():
        answer = f": `{case.error.__name__}`" if case.error else ""
        lines.append(f"- `{name}`: {case.sentence}{answer}")
    return "\n".join(lines)


def main() -> None:
    for name, case in cases().items():
        (HERE / name).write_bytes(case.data)
    path = HERE / "README.md"
    text = path.read_text() if path.exists() else f"# Test vectors\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{readme_lines()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
