"""compress, decompress, LmzCompressor, LmzDecompressor, inspect."""

import io
import os
import random
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip import codec, container, frames
from lmzip.order0 import Order0Codec
from lmzip.reference_coder import RangeDecoder, RangeEncoder, cumulative

FRAME = 1000
MIB = 1 << 20
INTERESTING_SIZES = [
    0, 1, 2,  # nothing, one symbol, two
    FRAME - 1, FRAME, FRAME + 1,  # the seam of frames
    2 * FRAME, 2 * FRAME + 1,
    251,  # prime: no period in common with anything
    5 * FRAME + 17,  # more frames than 2 * threads
]  # fmt: skip


def text(size, seed=0):
    words = [b"the", b"shells", b"are", b"sea", b"she", b"sells", b"\x00\xff"]
    rng = random.Random(seed)
    return b" ".join(rng.choice(words) for _ in range(size))[:size]


def compress(data, **options):
    return lmzip.compress(data, **{"preset": "order0", "frame_size": FRAME, **options})


@pytest.mark.parametrize("size", INTERESTING_SIZES)
@pytest.mark.parametrize("lanes", [None, 1, 3, 64])
def test_round_trip(size, lanes):
    raw = text(size)
    assert lmzip.decompress(compress(raw, lanes=lanes)) == raw


@given(st.binary(max_size=3000), st.integers(1, 4096), st.integers(1, 20))
def test_any_bytes_come_back(raw, frame_size, lanes):
    data = lmzip.compress(raw, preset="order0", frame_size=frame_size, lanes=lanes)
    assert lmzip.decompress(data) == raw


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(kind):
    assert lmzip.decompress(kind(compress(kind(b"abc" * 100)))) == b"abc" * 100


def test_buffer_of_wider_items_is_taken_as_bytes():
    wide = memoryview(bytes(range(80))).cast("I")
    assert lmzip.decompress(compress(wide)) == bytes(range(80))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 3), ()])
def test_array_of_any_shape_is_taken_as_bytes(shape):
    array = np.ones(shape)
    assert lmzip.decompress(compress(array)) == array.tobytes()
    assert lmzip.LmzDecompressor().decompress(np.zeros((0, 3))) == b""
    with lmzip.LmzFile(io.BytesIO(), "w", preset="order0") as file:
        assert file.write(array) == array.nbytes


def test_bytes_do_not_depend_on_threads_or_pieces():
    raw = text(7 * FRAME + 5)
    expected = compress(raw, threads=1)
    assert compress(raw, threads=5) == expected
    for piece in (1, 7, FRAME, 10 * FRAME):
        compressor = lmzip.LmzCompressor(preset="order0", frame_size=FRAME, threads=3)
        out = b"".join(
            compressor.compress(raw[at : at + piece]) for at in range(0, len(raw), piece)
        )
        assert out + compressor.flush() == expected


def test_verify_does_not_change_bytes():
    raw = text(3 * FRAME)
    assert compress(raw, verify=True) == compress(raw)


def test_verify_finds_an_engine_that_cannot_decode(monkeypatch):
    monkeypatch.setattr(Order0Codec, "decode_frame", lambda *_: b"something else")
    with pytest.raises(lmzip.LmzipError, match="does not decode to its input"):
        compress(text(100), verify=True)


def test_concatenated_streams_decode_as_one():
    parts = [text(50, 1), b"", text(FRAME * 2, 2)]
    assert lmzip.decompress(b"".join(map(compress, parts))) == b"".join(parts)


def test_random_bytes_grow_by_less_than_a_thousandth():
    raw = os.urandom(1 << 20)
    assert len(lmzip.compress(raw, preset="order0", frame_size=1 << 18)) < 1.001 * len(raw)


def test_sizes_are_those_of_the_format_document():
    def overhead(raw):
        return len(compress(raw, frame_size=1 << 20)) - len(Order0Codec().encode_frame(raw, 1)[0])

    assert len(compress(b"")) == 17
    assert overhead(b"a" * 127) == 37
    assert overhead(b"a" * 128) == 39
    assert overhead(text(16_383)[:8000]) == 40
    ref = container.ModelRef(bytes(8), "a-model-3m@0.1.0")
    assert len(ref.label) == 16
    assert len(container.StreamHeader(ref).pack()) == 15 + 25
    assert len(compress(b"x")) - 1 == 35  # stored
    assert len(compress(os.urandom(1 << 20), frame_size=1 << 20)) - (1 << 20) == 41


def test_large_incompressible_frame_is_stored_after_a_look_at_a_piece(monkeypatch):
    encode_frame, asked = Order0Codec.encode_frame, []

    def counted(self, data, lanes):
        asked.append(len(data))
        return encode_frame(self, data, lanes)

    monkeypatch.setattr(Order0Codec, "encode_frame", counted)
    raw = os.urandom(200_000)
    assert lmzip.inspect(compress(raw, frame_size=1 << 20)).frames[0].method == "stored"
    assert asked == [frames.PROBE_SIZE]


def test_short_texts_go_to_the_network():
    for raw in (b"Hello, world.\n", "Grüße aus Zürich".encode(), bytes([1, 0, 2, 0, 3, 0, 4, 9])):
        model, alone = Order0Codec(), Order0Codec()
        model.method = container.METHOD_NETWORK
        chosen = frames.choose_codecs(raw, [model, alone])
        assert model in chosen


def test_text_that_the_network_finds_strange_is_no_larger_than_without_it():
    rng = random.Random(8)
    words: list[str] = []
    for _ in range(30):  # words of no language, that change: lanes see each other's too late
        known = ["".join(rng.choices("qxzvjkwfbg", k=rng.randrange(3, 9))) for _ in range(40)]
        words += rng.choices(known, k=400)
    raw = " ".join(words).encode()
    alone, both = (lmzip.compress(raw, preset=preset) for preset in ("fast", "default"))
    assert lmzip.decompress(both) == raw
    assert len(both) <= len(alone) + 60  # the model's name


def test_both_code_text_that_repeats_and_the_smaller_one_is_taken():
    lines = (Path(__file__).parent / "data" / "alice29.txt").read_text().splitlines()[:60]
    raw = "\n".join(random.Random(3).choices(lines, k=3000)).encode()
    codecs = codec.Codecs().for_preset(codec.preset_named("default"))
    methods = [each.method for each in frames.choose_codecs(raw, codecs)]
    assert methods == [container.METHOD_NETWORK_MIXER, container.METHOD_MIXER]
    assert len(frames.choose_codecs("\n".join(lines).encode() * 2, codecs)) == 1  # short


def test_records_that_are_no_text_are_coded_with_a_mixer_alone():
    """Whole frames are coded with both only where the trial leaves it open."""
    rng = random.Random(5)
    raw = b"".join(struct.pack("<IHBf", 7 * i, rng.randrange(500), 3, i / 2) for i in range(4000))
    codecs = codec.Codecs().for_preset(codec.preset_named("default"))
    assert [each.method for each in frames.choose_codecs(raw, codecs)] == [container.METHOD_MIXER]


def test_long_dense_runs_become_frames_of_their_own():
    noise, words = os.urandom(700_000), text(700_000)
    blob = compress(words + noise + words, frame_size=4 << 20)
    assert lmzip.decompress(blob) == words + noise + words
    found = lmzip.inspect(blob).frames
    assert [frame.method for frame in found] == ["order0", "stored", "order0"]
    assert abs(found[0].raw_size - 700_000) <= frames.BLOCK_SIZE
    assert abs(found[1].raw_size - 700_000) <= frames.BLOCK_SIZE
    assert len(blob) < 1.05 * (len(compress(words, frame_size=4 << 20)) * 2 + 700_000)


def test_what_only_the_mixer_gains_on_is_coded():
    rng = random.Random(3)
    value, samples = 0, bytearray()
    for _ in range(100_000):  # loud, so that zlib sees noise; smooth, so that the mixer does not
        value = max(-30_000, min(30_000, value + rng.randrange(-900, 901)))
        samples += value.to_bytes(2, "little", signed=True)
    raw = bytes(samples)
    assert len(zlib.compress(raw, 1)) > 0.94 * len(raw)
    blob = lmzip.compress(raw, preset="fast")
    assert lmzip.decompress(blob) == raw
    assert len(blob) < 0.8 * len(raw)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400_000)), max_size=5))
def test_cut_keeps_all_bytes(parts):
    raw = b"".join(
        bytes(size) if soft else random.Random(size).randbytes(size) for soft, size in parts
    )
    pieces = list(frames.cut(raw))
    assert b"".join(pieces) == raw
    assert all(pieces)


def test_codec_that_does_best_on_samples_is_chosen():
    class Worse(Order0Codec):
        def encode_frame(self, data, lanes):
            return [payload + b"\0" for payload in super().encode_frame(data, lanes)]

    worse, better = Worse(), Order0Codec()
    assert frames.choose_codecs(text(200_000), [worse, better]) == [better]
    assert frames.choose_codecs(text(200), [better, worse]) == [better]
    assert frames.choose_codecs(b"plain words" * 9, [worse, better]) == [worse]


def test_model_is_named_only_if_a_frame_may_need_it():
    writer_ref = container.ModelRef(bytes(8), "m@1")

    def stream(*methods):
        from lmzip.api import _StreamWriter

        writer, out, position = _StreamWriter(container.StreamHeader(writer_ref)), b"", 0
        for method in methods:
            header = container.FrameHeader(
                method,
                position,
                5,
                5,
                0,
                0,
                table_bits=20 if method in container.TABLE_METHODS else 0,
                lane_sizes=(5,) if method else (),
            )
            out += writer.add(frames.EncodedFrame(header.pack() + b"12345", header))
            position += 5
        return lmzip.inspect(out + writer.end()).streams[0].model

    assert stream() is None
    assert stream(0) is None
    assert stream(2) is None
    assert stream(1) == writer_ref
    assert stream(0, 0) == writer_ref  # the header had to go before the second frame was known


def test_flush_of_a_frame_makes_all_bytes_so_far_readable():
    compressor = lmzip.LmzCompressor(preset="order0", frame_size=FRAME)
    first = compressor.compress(b"first ") + compressor.flush(compressor.FLUSH_FRAME)
    decompressor = lmzip.LmzDecompressor()
    assert decompressor.decompress(first) == b"first "
    assert decompressor.needs_input
    second = compressor.compress(b"second") + compressor.flush()
    assert decompressor.decompress(second) == b"second"
    assert decompressor.eof


def test_compressor_is_of_no_use_after_its_end():
    compressor = lmzip.LmzCompressor(preset="order0")
    compressor.flush()
    with pytest.raises(ValueError, match="has ended"):
        compressor.compress(b"more")
    with pytest.raises(ValueError, match="has ended"):
        compressor.flush()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fastest"}, "no preset is called 'fastest'"),
        ({"preset": 0}, "no preset is called 0"),
        ({"lanes": 0}, "lanes must be"),
        ({"lanes": 4097}, "lanes must be"),
        ({"frame_size": 0}, "frame size must be"),
        ({"frame_size": (64 << 20) + 1}, "frame size must be"),
        ({"threads": -1}, "threads must be"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda, got 'gpu'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compress(b"", **options)


def test_other_impossible_arguments_are_refused():
    for mtime_ns in (1 << 63, -(1 << 63) - 1):
        with pytest.raises(ValueError, match="mtime_ns must be a number of 64 bits"):
            lmzip.LmzCompressor(preset="order0", mtime_ns=mtime_ns)
    lmzip.LmzCompressor(preset="order0", mtime_ns=-(1 << 63)).flush()
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'gpu'"):
        lmzip.decompress(compress(b""), device="gpu")


@pytest.mark.parametrize("level", range(1, 10))
def test_every_level_has_a_preset(level):
    assert codec.preset_named(level) is codec.PRESETS[codec.LEVELS[level]]


def test_unknown_model_is_refused_by_name():
    with pytest.raises(lmzip.ModelMismatchError, match="no model is called 'nobody'"):
        lmzip.compress(b"", model="nobody")


def test_calls_of_several_threads_come_one_after_another(monkeypatch):
    """The second ones are made while the first codes its only frame."""
    raw = text(FRAME)
    blob = compress(raw)
    others, waited = [], []

    def watch(method, call):
        original = getattr(Order0Codec, method)

        def watched(*arguments):
            others.append(threading.Thread(target=call))
            others[-1].start()
            others[-1].join(0.2)
            waited.append(others[-1].is_alive())
            return original(*arguments)

        monkeypatch.setattr(Order0Codec, method, watched)

    compressor = lmzip.LmzCompressor(preset="order0", frame_size=2 * FRAME)
    compressor.compress(raw)
    watch("encode_frame", lambda: compressor.compress(b""))
    compressor.flush(compressor.FLUSH_FRAME)
    encodings = len(waited)
    decompressor = lmzip.LmzDecompressor()
    watch("decode_frame", lambda: decompressor.decompress(b""))
    assert decompressor.decompress(blob[:-1]) == raw
    for other in others:
        other.join()
    assert 0 < encodings < len(waited)
    assert all(waited)


# ── The incremental decompressor ──


@given(st.data())
def test_decompressor_gives_the_same_for_all_pieces_and_limits(data):
    raw = text(data.draw(st.integers(0, 3 * FRAME)))
    blob = compress(raw) + b"tail"
    decompressor, out, at = lmzip.LmzDecompressor(), b"", 0
    while not decompressor.eof:
        piece = b""
        if decompressor.needs_input:
            size = data.draw(st.integers(1, 500))
            piece, at = blob[at : at + size], at + size
        limit = data.draw(st.sampled_from([-1, 0, 1, 100, 5000]))
        got = decompressor.decompress(piece, limit)
        assert limit < 0 or len(got) <= limit
        out += got
    assert out == raw
    assert decompressor.unused_data + blob[at:] == b"tail"


def test_decompressor_refuses_to_go_on_behind_the_end():
    decompressor = lmzip.LmzDecompressor()
    assert decompressor.decompress(compress(b"abc")) == b"abc"
    with pytest.raises(EOFError, match="unused_data"):
        decompressor.decompress(b"")


def test_decompressor_does_not_go_on_behind_damage():
    blob = bytearray(compress(text(3 * FRAME)))
    blob[lmzip.inspect(bytes(blob)).frames[1].offset + 60] ^= 1
    decompressor = lmzip.LmzDecompressor()
    assert len(decompressor.decompress(blob, FRAME)) == FRAME
    for _ in range(3):
        with pytest.raises(lmzip.CorruptError, match=r"bytes 1000\.\.1999"):
            decompressor.decompress(b"")
    assert not decompressor.eof


def test_decompressor_holds_output_back_for_max_length():
    decompressor = lmzip.LmzDecompressor()
    assert decompressor.decompress(compress(b"abcdef"), 2) == b"ab"
    assert not decompressor.needs_input
    assert decompressor.decompress(b"", 2) == b"cd"
    assert decompressor.decompress(b"") == b"ef"
    assert decompressor.eof
    waiting = lmzip.LmzDecompressor()
    assert waiting.decompress(compress(b"abcdef")[:-1], 0) == b""
    assert not waiting.needs_input
    assert waiting.decompress(b"") == b"abcdef"
    assert waiting.needs_input


def test_subinterpreters_are_refused(run_python):
    pytest.importorskip("_xxsubinterpreters")  # Python 3.12 or older
    done = run_python(
        """
import _xxsubinterpreters
import lmzip
_xxsubinterpreters.run_string(_xxsubinterpreters.create(isolated=False), "import lmzip")
""",
        check=False,
    )
    assert "lmzip works in the main interpreter only" in done.stderr


# ── Limits, order, memory ──


def test_memory_limit_is_kept_and_can_be_lifted():
    data = compress(bytes(500_000), frame_size=1 << 20)
    with pytest.raises(lmzip.LimitError, match=r"order0, 1 lanes.*the limit is 0\.1 MiB.*-M"):
        lmzip.decompress(data, memory_limit=100_000)
    with pytest.raises(lmzip.LimitError):
        lmzip.LmzDecompressor(memory_limit=100_000).decompress(data)
    assert len(lmzip.decompress(data, memory_limit=None)) == 500_000


def test_memory_limit_is_checked_before_the_payload_is_there():
    data = compress(bytes(500_000), frame_size=1 << 20)
    head_only = data[: data.index(b"F") + 60]
    with pytest.raises(lmzip.LimitError):
        lmzip.decompress(head_only, memory_limit=100_000)


def test_frames_in_flight_are_bounded_and_in_order():
    running, most, lock = 0, 0, threading.Lock()
    produced = []

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return item

    def items():
        for item in range(50):
            produced.append(item)
            yield item

    for result in frames.ordered_map(work, items(), 3):
        assert len(produced) - result <= 2 * 3 + 1
    assert most <= 3
    assert len(produced) == 50


def test_budget_bounds_the_sum_of_what_is_in_flight():
    produced = []

    def items():
        for item in range(20):
            produced.append(item)
            yield item

    for result in frames.ordered_map(lambda x: x, items(), 8, budget=100, cost=lambda _: 45):
        assert len(produced) - result <= 3  # two in flight, one waiting to be
    everything = frames.ordered_map(lambda x: x, range(5), 8, budget=100, cost=lambda _: 1000)
    assert list(everything) == [0, 1, 2, 3, 4]  # one alone may pass the budget


def test_frames_of_a_stream_without_an_end_take_the_threads_that_are_free():
    share = codec.ThreadShare(4)
    with share.take(MIB) as alone, share.take(MIB) as second:
        assert (alone, second) == (4, 1)
    with share.take(MIB, 3) as again, share.take(MIB) as last:
        assert (again, last) == (3, 1)
    first, second, third = share.take(MIB), share.take(MIB), share.take(MIB)
    taken = [first.__enter__(), second.__enter__()]
    first.__exit__(None, None, None)
    taken.append(third.__enter__())
    assert taken == [4, 1, 3]


@pytest.mark.parametrize(
    ("threads", "frames", "most", "each"),
    [
        (1, 5, 4, 1),
        (2, 1, 16, 2),
        (2, 2, 16, 1),
        (2, 1.25, 16, 2),  # the short frame would leave one idle
        (2, 3, 16, 2),  # so would the third
        (2, 40, 16, 1),
        (8, 1, 4, 4),  # more cannot be used
        (8, 1, 1, 1),
        (8, 2, 16, 4),
        (8, 3, 4, 2),
        (8, 8, 4, 1),
        (8, 0.001, 16, 8),  # the size was wrong
    ],
)
def test_frames_of_a_file_get_the_threads_with_which_it_takes_least_time(
    threads, frames, most, each
):
    with codec.ThreadShare(threads, int(frames * MIB)).take(MIB, most) as taken:
        assert taken == each


def test_frames_of_a_file_get_more_threads_where_memory_is_for_few():
    share = codec.ThreadShare(8, 100 * MIB)
    share.most_frames = 3
    with share.take(MIB, 4) as taken:
        assert taken == 4  # two frames at once; three with two each would leave two threads idle
    raw = text(9 * FRAME)
    codecs = codec.Codecs(threads=8, memory_limit=10 * MIB, input_size=1)
    shares = [codecs._share.most_frames]
    blob = compress(raw)
    for task in frames.read_tasks([blob], codecs):
        shares.append(codecs._share.most_frames)
        assert shares[-1] == 10 * MIB // task.memory
    assert shares[0] == 8


def test_frames_of_a_file_wait_for_their_threads_in_order():
    share = codec.ThreadShare(3, 4 * MIB)  # all three for each
    order, inside = [], 0

    def work(number):
        nonlocal inside
        with share.take(MIB) as taken:
            inside += 1
            order.append((number, taken, inside))
            time.sleep(0.02)
            inside -= 1

    with share.take(0, 1):  # so that they queue up
        runners = []
        for number in range(4):
            runners.append(threading.Thread(target=work, args=(number,)))
            runners[-1].start()
            while share._asked <= number:
                time.sleep(0.001)
        with share.take(100) as small:  # does not wait
            assert small >= 1
    for runner in runners:
        runner.join()
    assert order == [(number, 3, 1) for number in range(4)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_frames_of_a_forked_child_wait_for_no_thread_of_its_parent(run_python):
    run_python(
        """
import os, signal
from lmzip.codec import ThreadShare
share = ThreadShare(2, 1 << 20)
held = share.take(1 << 20)
assert held.__enter__() == 2
child = os.fork()
if not child:
    signal.alarm(60)  # ends the child that waits
    with share.take(1 << 20) as taken:
        os._exit(taken != 2)
assert os.waitpid(child, 0)[1] == 0
"""
    )


def test_threads_are_divided_by_the_size_of_the_input(monkeypatch):
    sizes = []

    class Share(codec.ThreadShare):
        def __init__(self, threads, input_size=None):
            sizes.append(input_size)
            super().__init__(threads, input_size)

    monkeypatch.setattr(codec, "ThreadShare", Share)
    blob = compress(text(3 * FRAME))
    assert lmzip.decompress(blob) == text(3 * FRAME)
    assert sizes == [3 * FRAME, len(blob)]


def test_error_comes_after_the_results_before_it():
    blob = compress(text(5 * FRAME))
    info = lmzip.inspect(blob)
    damaged = bytearray(blob)
    damaged[info.frames[3].offset + info.frames[3].compressed_size - 1] ^= 1
    codecs = codec.Codecs(threads=2)
    chunks = frames.decode_all(frames.read_tasks([bytes(damaged)], codecs), codecs)
    assert b"".join(next(chunks) for _ in range(3)) == text(5 * FRAME)[: 3 * FRAME]
    with pytest.raises(lmzip.CorruptError, match=r"bytes 3000\.\.3999 is damaged"):
        next(chunks)


# ── inspect ──


def test_inspect_tells_what_is_there():
    raw = text(2 * FRAME + 10)
    blob = compress(raw, lanes=2)
    compressor = lmzip.LmzCompressor(preset="order0", name="a.txt", mtime_ns=5)
    named = compressor.compress(b"xyz") + compressor.flush()
    info = lmzip.inspect(blob + named)
    assert (info.raw_size, info.compressed_size) == (len(raw) + 3, len(blob) + len(named))
    assert [stream.offset for stream in info.streams] == [0, len(blob)]
    assert [stream.indexed for stream in info.streams] == [True, False]
    assert (info.streams[1].name, info.streams[1].mtime_ns) == ("a.txt", 5)
    assert [frame.raw_offset for frame in info.frames] == [0, 1000, 2000, 2010]
    assert [frame.lanes for frame in info.frames] == [2, 2, 0, 0]  # the short ones are stored
    assert [frame.method for frame in info.frames][-1] == "stored"
    assert info.ratio == info.compressed_size / info.raw_size


def test_inspect_of_nothing_has_ratio_zero(tmp_path):
    path = tmp_path / "empty.lmz"
    path.write_bytes(compress(b""))
    assert lmzip.inspect(path).ratio == 0.0
    assert lmzip.inspect(path).streams[0].frames == 0


# ── Order 0 ──


@given(st.binary(min_size=1, max_size=400), st.integers(1, 9))
def test_order0_is_what_its_specification_says(raw, lanes):
    """The frame once more, in the words of docs/format.md, with the reference coder."""
    stride = -(-len(raw) // lanes)
    pieces = [raw[lane * stride : (lane + 1) * stride] for lane in range(lanes)]
    encoders = [RangeEncoder() for _ in pieces]
    counts, begin, steps = [1] * 256, 0, 16
    while begin < stride:
        bounds = cumulative(counts)
        for encoder, piece in zip(encoders, pieces, strict=True):
            for byte in piece[begin : begin + steps]:
                encoder.encode(bounds[byte], bounds[byte + 1] - bounds[byte], 30)
                counts[byte] += 16
        begin, steps = begin + steps, min(2 * steps, 4096)
    payloads = [encoder.finish() for encoder in encoders]
    assert Order0Codec().encode_frame(raw, lanes) == payloads
    assert RangeDecoder(payloads[0]).peek(30) >= 0


def test_order0_learns():
    assert len(Order0Codec().encode_frame(b"ab" * 50_000, 1)[0]) < 13_000


def test_an_error_does_not_hold_the_buffer_that_it_came_from():
    damaged = bytearray(compress(text(3000)))
    damaged[-40] ^= 1
    decompressor = lmzip.LmzDecompressor()
    with pytest.raises(lmzip.LmzipError):
        decompressor.decompress(damaged)
    damaged.clear()  # BufferError while anything views it
    with pytest.raises(lmzip.LmzipError):
        decompressor.decompress(b"more")
