"""LmzFile and open(): as files behave, with seeking that decodes one frame only."""

import errno
import io
import os
import random
import threading
from typing import get_args, get_overloads, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip.order0 import Order0Codec

RAW = b"".join(b"line %d of the file\n" % i for i in range(700))  # 14,590 bytes
OPTIONS = {"preset": "order0", "frame_size": 1000}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.lmz"
    with lmzip.open(path, "wb", **OPTIONS) as file:
        assert file.write(RAW) == len(RAW)
    return path


def test_written_file_is_what_compress_makes(path):
    assert path.read_bytes() == lmzip.compress(RAW, **OPTIONS)


def test_read_in_every_way(path):
    with lmzip.open(path) as file:
        assert file.read() == RAW
    with lmzip.open(path) as file:
        assert list(file) == RAW.splitlines(keepends=True)
    with lmzip.open(path) as file:
        assert file.readline() == b"line 0 of the file\n"
        assert file.peek(4)[:4] == b"line"
        assert file.read1(6) == b"line 1"
        assert file.tell() == 25
        buffer = bytearray(3000)
        assert file.readinto(buffer) == 3000
        assert bytes(buffer) == RAW[25:3025]
        assert file.readinto1(bytearray(5)) == 5
        assert next(file)


def test_text_mode(tmp_path):
    path = tmp_path / "text.lmz"
    with lmzip.open(path, "wt", encoding="utf-16-le", newline="\r\n", **OPTIONS) as file:
        file.write("Grüße\nan alle\n")
    with lmzip.open(path, "rt", encoding="utf-16-le") as file:
        assert file.read() == "Grüße\nan alle\n"
    assert lmzip.decompress(path.read_bytes()).decode("utf-16-le") == "Grüße\r\nan alle\r\n"


def test_threads_that_write_wait_for_one_another():
    """What one has compressed is in the file before another one's frames are begun."""
    other = threading.Thread(target=lambda: file.write(RAW[5000:]))

    class Sink(io.BytesIO):
        def write(self, data):
            if data and other.ident is None:
                other.start()
                other.join(0.3)  # it waits for this call
            return super().write(data)

    sink = Sink()
    with lmzip.LmzFile(sink, "wb", threads=1, **OPTIONS) as file:
        file.write(RAW[:5000])
        other.join()
    assert lmzip.decompress(sink.getvalue()) == RAW


EXITS = {
    "collector": "file = open('wb'); file.write(b'important')",
    "atexit": "file = open('wb'); file.write(b'important'); atexit.register(file.close)",
    "text": "file = open('wt'); file.write('important'); atexit.register(file.close)",
    "cycle": """
class Log:
    def __init__(self):
        self.itself, self.file = self, open('wb', preset='order0', frame_size=1000)
        self.file.write(bytes(5500) + b'important')
log = Log()
""",
}


@pytest.mark.parametrize("script", EXITS.values(), ids=EXITS)
def test_file_that_is_closed_when_the_interpreter_ends_is_whole(script, tmp_path, run_python):
    path = tmp_path / "file.lmz"
    begin = f"import atexit, functools, lmzip; open = functools.partial(lmzip.open, {str(path)!r})"
    assert run_python(f"{begin}\n{script}").stderr == ""
    assert lmzip.decompress(path.read_bytes()).endswith(b"important")


def test_file_is_read_when_the_interpreter_ends(path, run_python):
    done = run_python(
        f"""
import atexit, lmzip
file = lmzip.open({str(path)!r}, threads=1)
file.read(1)
atexit.register(lambda: print(len(file.read())))
"""
    )
    assert done.stdout.strip() == str(len(RAW) - 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_goes_on_without_the_threads_of_its_parent(path, run_python):
    """Both come to the whole of it; where nobody does the work, the alarm ends the child."""
    done = run_python(
        f"""
import io, os, signal, lmzip
raw = lmzip.open({str(path)!r}).read()
reader = lmzip.LmzFile(io.BytesIO(lmzip.compress(raw, preset="order0", frame_size=1000)), threads=1)
first = reader.read(1)
sink = io.BytesIO()
writer = lmzip.LmzFile(sink, "w", preset="order0", frame_size=1000, threads=1, raw_size=len(raw))
writer.write(raw[:6500])
child = os.fork()
if not child:
    signal.alarm(60)
writer.write(raw[6500:])
writer.close()
assert first + reader.read() == raw == lmzip.decompress(sink.getvalue())
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert done.stderr == ""


def test_append_adds_a_stream(path):
    with lmzip.open(path, "ab", **OPTIONS) as file:
        file.write(b"more")
    with lmzip.open(path) as file:
        assert file.read() == RAW + b"more"
        file.seek(-6, io.SEEK_END)
        assert file.read() == RAW[-2:] + b"more"
    assert len(lmzip.inspect(path).streams) == 2


def test_exclusive_mode_refuses_a_file_that_is_there(path):
    with pytest.raises(FileExistsError):
        lmzip.open(path, "xb")


@pytest.mark.parametrize("mode", ["", "rw", "bb", "r+", "rbt", "U"])
def test_impossible_modes_are_refused(path, mode):
    with pytest.raises(ValueError, match="mode"):
        lmzip.open(path, mode)


def test_text_arguments_belong_to_text_modes(path):
    with pytest.raises(ValueError, match="text modes"):
        lmzip.open(path, "rb", encoding="utf-8")


def test_file_that_was_not_opened_is_collected_without_a_word(run_python):
    done = run_python(
        """
import contextlib, lmzip, sys
sys.unraisablehook = lambda failure: print(failure.exc_value)
for mode, options in (("z", {}), ("w", {"lanes": 0}), ("w", {}), ("r", {})):
    with contextlib.suppress(ValueError, FileNotFoundError):
        lmzip.LmzFile("no such folder/file", mode, **options)
""",
        PYTHONDEVMODE="1",
    )
    assert done.stdout + done.stderr == ""


def test_wrong_option_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="preset"):
        lmzip.open(tmp_path / "new.lmz", "wb", preset="nothing")
    assert not list(tmp_path.iterdir())


@given(st.data())
def test_seeking_is_as_in_any_file(data):
    blob = lmzip.compress(RAW[:5000], **OPTIONS) + lmzip.compress(RAW[5000:], **OPTIONS)
    if data.draw(st.booleans()):  # one frame, no index: the table comes from a walk
        blob = lmzip.compress(RAW, preset="order0", frame_size=1 << 20)
    plain = io.BytesIO(RAW)
    with lmzip.LmzFile(io.BytesIO(blob), threads=2) as file:
        for _ in range(data.draw(st.integers(1, 8))):
            whence = data.draw(st.sampled_from([0, 1, 2]))
            offset = data.draw(st.integers(0, len(RAW) + 10))
            if whence == 1:
                offset -= plain.tell()
            elif whence == 2:
                offset -= len(RAW)
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            size = data.draw(st.sampled_from([0, 1, 10, 1000, 3000, -1]))
            assert file.read(size) == plain.read(size)
            assert file.tell() == plain.tell()


def test_seek_before_the_beginning_is_refused(path):
    with lmzip.open(path) as file, pytest.raises(ValueError, match="before the beginning"):
        file.seek(-1)


def test_seek_decodes_one_frame(path, monkeypatch):
    decoded = []
    original = Order0Codec.decode_frame

    def counting(self, payloads, raw_size):
        decoded.append(raw_size)
        return original(self, payloads, raw_size)

    monkeypatch.setattr(Order0Codec, "decode_frame", counting)
    with lmzip.open(path) as file:
        file.seek(7500)
        assert file.read(100) == RAW[7500:7600]
        file.seek(7100)
        assert file.read(100) == RAW[7100:7200]
    assert len(decoded) == 1


class Pipe(io.RawIOBase):
    """A source that cannot seek and gives little at a time."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(memoryview(buffer)[:100])


def test_pipe_can_be_read_but_not_sought(path):
    with lmzip.LmzFile(Pipe(path.read_bytes())) as file:
        assert not file.seekable()
        assert file.read(10) == RAW[:10]
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)
        assert file.read() == RAW[10:]


def test_file_object_is_left_open_and_may_begin_in_the_middle(path):
    source = io.BytesIO(b"prefix" + path.read_bytes())
    source.seek(6)
    with lmzip.LmzFile(source) as file:
        assert not file.seekable()
        assert file.read() == RAW
    assert not source.closed


class Raw(io.RawIOBase):
    """A sink that takes a part of what it is given, in the end nothing."""

    def __init__(self, room):
        self.taken, self._room = b"", room

    def writable(self):
        return True

    def write(self, data):
        part = bytes(data[: min(100, self._room - len(self.taken))])
        self.taken += part
        return len(part) or None


def test_raw_file_object_gets_what_it_did_not_take_at_once():
    sink = Raw(1 << 20)
    with lmzip.LmzFile(sink, "w", **OPTIONS) as file:
        file.write(RAW)
    assert sink.taken == lmzip.compress(RAW, **OPTIONS)
    refusal = pytest.raises(BlockingIOError, match=r"takes no more, \d+ bytes are not written")
    with refusal, lmzip.LmzFile(Raw(1000), "w", **OPTIONS) as file:
        file.write(RAW)


def test_types_of_open_follow_from_the_mode():
    """For type checkers, which take each mode for one of these."""
    binary, text, _ = get_overloads(lmzip.open)
    for overload, kind in ((binary, lmzip.LmzFile), (text, io.TextIOWrapper)):
        hints = get_type_hints(overload)
        assert hints["return"] is kind
        for mode in get_args(hints["mode"]):
            assert type(lmzip.open(io.BytesIO(), mode)) is kind


def test_what_a_mode_does_not_allow_is_refused(path, tmp_path):
    with lmzip.open(path) as file:
        assert file.readable()
        assert not file.writable()
        assert file.seekable()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"")
    with lmzip.open(tmp_path / "out.lmz", "wb") as out:
        assert out.writable()
        assert not out.readable()
        assert not out.seekable()
        for call in (out.read, out.peek, out.readline, lambda: out.seek(0)):
            with pytest.raises(io.UnsupportedOperation):
                call()
        out.write(b"12345")
        assert out.tell() == 5
    with pytest.raises(ValueError, match="closed"):
        out.write(b"")
    out.close()  # twice does no harm


def test_file_has_name_and_descriptor(path):
    with lmzip.open(path) as file:
        assert os.fspath(file.name) == str(path)
        assert file.fileno() >= 0
        assert file.mode == "rb"


def test_truncated_file_gives_what_there_is_and_then_its_error(path):
    path.write_bytes(path.read_bytes()[:-1])
    with lmzip.open(path) as file:
        assert file.read(13_000) == RAW[:13_000]
        with pytest.raises(lmzip.TruncatedError):
            file.read()
    with lmzip.open(path) as file, pytest.raises(lmzip.TruncatedError):
        file.seek(5000)


def test_file_that_has_become_shorter_is_truncated_and_not_damaged(path):
    """Behind the seek table, which was read from it when it was whole."""
    frame = lmzip.inspect(path).frames[5]
    source = io.BytesIO(path.read_bytes())
    with lmzip.LmzFile(source, threads=1) as file:
        assert file.seek(0, io.SEEK_END) == len(RAW)
        source.truncate(frame.offset + frame.compressed_size - 1)
        file.seek(frame.raw_offset)
        with pytest.raises(lmzip.TruncatedError, match="inside frame 5"):
            file.read(1)


def test_damaged_frame_does_not_spoil_the_others(path):
    info = lmzip.inspect(path)
    data = bytearray(path.read_bytes())
    data[info.frames[3].offset + 50] ^= 1
    path.write_bytes(data)
    rng = random.Random(1)
    with lmzip.open(path) as file:
        for offset in rng.sample([*range(0, 2900, 7), *range(4000, len(RAW), 7)], 20):
            file.seek(offset)
            assert file.read(50) == RAW[offset : offset + 50]
        file.seek(3500)
        for _ in range(3):  # an end of the file would be a lie
            with pytest.raises(lmzip.CorruptError, match=r"bytes 3000\.\.3999"):
                file.read(1)
            with pytest.raises(lmzip.CorruptError, match=r"bytes 3000\.\.3999"):
                file.read()
        file.seek(4000)
        assert file.read() == RAW[4000:]
    with lmzip.LmzFile(Pipe(bytes(data))) as file:
        assert file.read(3000) == RAW[:3000]
        for _ in range(3):
            with pytest.raises(lmzip.CorruptError, match=r"bytes 3000\.\.3999"):
                file.read()


def test_a_handler_that_calls_into_a_write_is_refused(tmp_path, monkeypatch):
    """It would wait for the thread that it stands in the way of."""
    file = lmzip.open(tmp_path / "x.lmz", "wb", preset="fast")
    compress = lmzip.LmzCompressor.compress

    def interrupted(self, data):
        with pytest.raises(RuntimeError, match="reentrant"):
            file.close()
        return compress(self, data)

    monkeypatch.setattr(lmzip.LmzCompressor, "compress", interrupted)
    file.write(RAW)
    monkeypatch.undo()
    file.close()
    assert lmzip.open(tmp_path / "x.lmz").read() == RAW


def test_nothing_follows_bytes_that_were_lost():
    """A disk that is full for a moment: what is written later must not look whole."""

    class Disk(io.BytesIO):
        full = False

        def write(self, data):
            if self.full:
                raise OSError(errno.ENOSPC, "no space")
            return super().write(data)

    disk = Disk()
    file = lmzip.open(disk, "wb", preset="fast", frame_size=1000, threads=1)
    disk.full = True
    with pytest.raises(OSError, match="no space"):
        file.write(RAW)
    disk.full = False
    with pytest.raises(OSError, match="no space"):
        file.write(RAW)
    with pytest.raises(OSError, match="no space"):
        file.close()
    assert file.closed


def test_an_interrupted_read_is_no_second_interrupt(tmp_path, monkeypatch):
    """And a seek goes on, also one within the frame that was read last."""
    path = tmp_path / "x.lmz"
    path.write_bytes(lmzip.compress(RAW, preset="fast", frame_size=1000))
    file = lmzip.LmzFile(path, threads=1)
    assert file.read1(10) == RAW[:10]
    reader = file._reader.raw

    def interrupted():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(reader, "_frames", interrupted())
    with pytest.raises(KeyboardInterrupt):
        file.read()
    with pytest.raises(OSError, match="reading was interrupted"):
        file.read()
    file.seek(500)
    assert file.read() == RAW[500:]
