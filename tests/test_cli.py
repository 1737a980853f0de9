"""The command lmzip: main() in this process; signals, terminals and start-up in real ones."""

import errno
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

import lmzip
from lmzip import cli, commands, output
from lmzip.order0 import Order0Codec

RAW = b"".join(b"entry %d: nothing to report\n" % i for i in range(900))  # 25,990 bytes
COMMAND = [sys.executable, "-m", "lmzip"]
FAST = ["--preset", "order0", "--frame-size", "4K"]


class Result(NamedTuple):
    status: int
    out: bytes
    err: str


class Stream(io.TextIOWrapper):
    """A standard stream over bytes."""

    def __init__(self, data=b""):
        self.start(io.BytesIO(data))

    def start(self, binary):
        super().__init__(binary, encoding="utf-8", write_through=True)

    def bytes(self):
        self.flush()
        return self.buffer.getvalue()


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch):
    monkeypatch.delenv("LMZIP_DEFAULTS", raising=False)
    monkeypatch.delenv("LMZIP_MODEL", raising=False)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*arguments, stdin=b"", program="lmzip") in tmp_path -> Result."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin=b"", program="lmzip"):
        streams = {"stdin": Stream(stdin), "stdout": Stream(), "stderr": Stream()}
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            status = cli.main([str(argument) for argument in arguments], program)
        return Result(status, streams["stdout"].bytes(), streams["stderr"].bytes().decode())

    return call


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(RAW)
    return path


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "a.txt.lmz"
    path.write_bytes(lmzip.compress(RAW, preset="order0", frame_size=4096))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ── The ordinary day ──


def test_compress_and_decompress(run, source, tmp_path):
    assert run(*FAST, "a.txt").status == 0
    assert source.read_bytes() == RAW
    assert lmzip.decompress((tmp_path / "a.txt.lmz").read_bytes()) == RAW
    source.unlink()
    assert run("-d", "a.txt.lmz").status == 0
    assert source.read_bytes() == RAW
    assert names(tmp_path) == ["a.txt", "a.txt.lmz"]


@pytest.mark.parametrize("word", [["compress"], ["-z"], ["--compress"], []])
@pytest.mark.usefixtures("source")
def test_every_word_for_compress(run, word):
    assert run(*word, *FAST, "a.txt", "-o", "out").status == 0
    assert lmzip.decompress(Path("out").read_bytes()) == RAW


@pytest.mark.parametrize("word", [["decompress"], ["-d"], ["--decompress"], ["--uncompress"]])
@pytest.mark.usefixtures("packed")
def test_every_word_for_decompress(run, word):
    assert run(*word, "a.txt.lmz", "-o", "out").status == 0
    assert Path("out").read_bytes() == RAW


@pytest.mark.parametrize("word", [["test"], ["-t"], ["--test"]])
@pytest.mark.usefixtures("packed")
def test_every_word_for_test(run, word, tmp_path):
    result = run(*word, "a.txt.lmz")
    assert (result.status, result.out) == (0, b"")
    assert result.err == f"a.txt.lmz : {len(RAW)} bytes, sound\n"
    assert names(tmp_path) == ["a.txt.lmz"]


@pytest.mark.parametrize("word", [["list"], ["-l"], ["--list"]])
def test_every_word_for_list(run, packed, word):
    result = run(*word, "a.txt.lmz")
    assert result.status == 0
    assert result.out.splitlines()[1].split()[:4] == [
        b"1",
        b"7",
        b"%d" % packed.stat().st_size,
        b"%d" % len(RAW),
    ]


@pytest.mark.usefixtures("source")
def test_result_line_gives_name_ratio_and_sizes(run, tmp_path):
    result = run(*FAST, "a.txt")
    size = (tmp_path / "a.txt.lmz").stat().st_size
    ratio = f"{100 * size / len(RAW):.2f} %"
    assert result.err == f"a.txt : {ratio} ({len(RAW)} => {size} bytes, a.txt.lmz)\n"
    assert run("-df", "a.txt.lmz").err == (
        f"a.txt.lmz : {ratio} ({size} => {len(RAW)} bytes, a.txt)\n"
    )
    assert "bits per byte" in run("-dfv", "a.txt.lmz").err


@pytest.mark.usefixtures("source")
def test_quiet_says_nothing(run):
    assert run("-q", *FAST, "a.txt").err == ""
    assert run("-qt", "a.txt.lmz").err == ""


@pytest.mark.usefixtures("packed")
def test_list_as_json_and_in_detail(run):
    (document,) = json.loads(run("-l", "--json", "a.txt.lmz").out)
    assert document["raw_size"] == len(RAW)
    assert len(document["frames"]) == 7
    assert document["streams"][0]["model"] is None
    detail = run("-lv", "a.txt.lmz").out.decode()
    assert "stream at 0: 7 frames, no model" in detail
    assert detail.count("order0, 1 lanes") == 7


def test_list_of_several_files_has_a_sum(run, packed):
    Path("b.lmz").write_bytes(packed.read_bytes() * 2)
    last = run("-l", "a.txt.lmz", "b.lmz").out.splitlines()[-1].split()
    assert last[:2] == [b"3", b"21"]
    assert last[3] == b"%d" % (3 * len(RAW))
    assert last[-2:] == [b"2", b"files"]


def test_several_files_in_one_call(run):
    for name in "abc":
        Path(name).write_bytes(name.encode() * 1000)
    assert run(*FAST, "a", "b", "c").status == 0
    result = run("-dc", "a.lmz", "b.lmz", "c.lmz")
    assert result.out == b"a" * 1000 + b"b" * 1000 + b"c" * 1000


def test_pipes(run):
    compressed = run(*FAST, stdin=RAW).out
    assert lmzip.decompress(compressed) == RAW
    assert run("-d", stdin=compressed).out == RAW
    assert run("-d", "-", stdin=compressed).out == RAW
    assert run("-t", "-", stdin=compressed).status == 0
    assert run("-d", "-o", "out", stdin=compressed).out == b""
    assert Path("out").read_bytes() == RAW
    assert run("-l", stdin=compressed).out.endswith(b"(stdin)\n")


@pytest.mark.usefixtures("source")
def test_stdout_keeps_everything_else_untouched(run, tmp_path):
    result = run("-c", *FAST, "a.txt")
    assert lmzip.decompress(result.out) == RAW
    assert result.err == ""
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("program", ["unlmz", "lmzcat"])
@pytest.mark.usefixtures("packed")
def test_other_names_of_the_program(run, program):
    result = run("a.txt.lmz", program=program)
    assert result.status == 0
    assert (result.out == RAW) == (program == "lmzcat")
    assert Path("a.txt").exists() == (program == "unlmz")


def test_concatenated_files_and_empty_ones(run):
    Path("empty").write_bytes(b"")
    assert run(*FAST, "empty").err.startswith("empty : - (0 => 17 bytes")
    both = Path("empty.lmz").read_bytes() + run(*FAST, stdin=RAW).out
    assert run("-d", stdin=both).out == RAW


@pytest.mark.usefixtures("source")
def test_options_reach_the_compressor(run):
    run("-f", "--preset", "order0", "--lanes", "3", "--frame-size", "10KiB", "-T2", "a.txt")
    frames = lmzip.inspect("a.txt.lmz").frames
    assert [frame.raw_size for frame in frames] == [10240, 10240, len(RAW) - 20480]
    assert {frame.lanes for frame in frames} == {3}


@pytest.mark.usefixtures("source")
def test_levels_may_be_bundled(run):
    assert run("-9kf", "a.txt").status == 0
    assert run("-dqfk", "a.txt.lmz").status == 0


# ── Sources that go, names and times that stay ──


@pytest.mark.usefixtures("source")
def test_rm_removes_the_source_and_keep_does_not(run, tmp_path):
    assert run(*FAST, "--rm", "a.txt").status == 0
    assert names(tmp_path) == ["a.txt.lmz"]
    assert run("-d", "--rm", "a.txt.lmz").status == 0
    assert names(tmp_path) == ["a.txt"]
    assert run(*FAST, "--rm", "-k", "a.txt").status == 0
    assert names(tmp_path) == ["a.txt", "a.txt.lmz"]


@pytest.mark.usefixtures("source")
def test_rm_verifies_before_it_removes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Order0Codec, "decode_frame", lambda *_: b"wrong")
    result = run(*FAST, "--rm", "a.txt")
    assert result.status == 1
    assert "does not decode to its input" in result.err
    assert names(tmp_path) == ["a.txt"]


def test_rm_of_a_damaged_file_keeps_it(run, packed, tmp_path):
    damage(packed, 200)
    assert run("-d", "--rm", "a.txt.lmz").status == 1
    assert names(tmp_path) == ["a.txt.lmz"]


def test_permissions_and_times_are_carried_over(run, source, tmp_path):
    source.chmod(0o640)
    os.utime(source, ns=(10**18, 10**18 + 5))
    run(*FAST, "--rm", "a.txt")
    for path in (tmp_path / "a.txt.lmz", source):
        if path == source:
            run("-d", "a.txt.lmz")
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert found.st_mtime_ns == 10**18 + 5


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize(("mode", "narrowed"), [(0o664, 0o644), (0o670, 0o600), (0o753, 0o713)])
def test_group_that_cannot_be_given_gets_what_others_have(
    run, source, tmp_path, monkeypatch, number, mode, narrowed
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    source.chmod(mode)
    monkeypatch.setattr(output.os, "fchown", refuse)
    assert run(*FAST, "--rm", "a.txt").status == 0
    assert stat.S_IMODE((tmp_path / "a.txt.lmz").stat().st_mode) == narrowed


@pytest.mark.parametrize("stdin", [True, False])
def test_permissions_and_times_that_cannot_be_given_are_done_without(
    run, source, monkeypatch, stdin
):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("fchown", "fchmod", "utime"):
        monkeypatch.setattr(output.os, name, refuse)
    arguments = ["-"] if stdin else ["a.txt"]
    assert run(*FAST, "-o", "out", *arguments, stdin=source.read_bytes()).status == 0
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o600


def test_output_from_a_pipe_has_ordinary_permissions(run):
    before = os.umask(0o027)
    try:
        run(*FAST, "-o", "out.lmz", stdin=RAW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("out.lmz").stat().st_mode) == 0o640


def test_name_and_time_are_stored_and_restored_if_wanted(run, source, tmp_path):
    os.utime(source, ns=(10**18, 10**18 + 7))
    run(*FAST, "-N", "a.txt")
    Path("a.txt.lmz").rename("renamed.lmz")
    os.utime("renamed.lmz", ns=(5, 5))
    source.unlink()
    assert run("-dN", "renamed.lmz").status == 0
    assert names(tmp_path) == ["a.txt", "renamed.lmz"]
    assert source.stat().st_mtime_ns == 10**18 + 7


def test_source_that_changes_meanwhile_is_not_trusted(run, source, tmp_path, monkeypatch):
    original = lmzip.LmzCompressor.flush_pieces

    def flush_pieces(self):
        with source.open("ab") as file:
            file.write(b"more")
        return original(self)

    monkeypatch.setattr(lmzip.LmzCompressor, "flush_pieces", flush_pieces)
    result = run(*FAST, "--rm", "a.txt")
    assert result.status == 1
    assert "changed while it was compressed" in result.err
    assert names(tmp_path) == ["a.txt"]


def test_source_rewritten_in_its_old_length_is_not_trusted(run, source, tmp_path, monkeypatch):
    def flush_pieces(self):
        source.write_bytes(RAW[::-1])
        os.utime(source, ns=(5, 5))
        return original(self)

    original = lmzip.LmzCompressor.flush_pieces
    monkeypatch.setattr(lmzip.LmzCompressor, "flush_pieces", flush_pieces)
    result = run(*FAST, "--rm", "a.txt")
    assert result.status == 1
    assert "changed while it was compressed" in result.err
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda path: path.with_name("other").rename(path), "was replaced meanwhile"),
        (lambda path: os.utime(path, ns=(5, 5)), "has changed meanwhile"),
        (lambda path: os.truncate(path, 5), "has changed meanwhile"),
    ],
)
def test_source_is_not_removed_if_it_is_another_by_then(
    run, source, tmp_path, monkeypatch, event, message
):
    def fsync(handle):  # of the folder comes last, when the output has its name
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            event(source)

    (tmp_path / "other").write_bytes(RAW)
    os.utime(tmp_path / "other", ns=(source.stat().st_mtime_ns,) * 2)
    monkeypatch.setattr(output.os, "fsync", fsync)
    result = run(*FAST, "--rm", "a.txt")
    assert result.status == 1
    assert f"{message}: the output is written, the source is kept" in result.err
    assert source.exists()
    assert lmzip.decompress((tmp_path / "a.txt.lmz").read_bytes()) == RAW


@pytest.mark.parametrize("target", ["/dev/null", "/dev/fd/2", "link"])
def test_rm_needs_an_output_that_stays(run, source, target):
    Path("link").symlink_to("/dev/stdout")
    result = run(*FAST, "--rm", "-f", "-o", target, "a.txt")
    assert result.status == 1
    assert f"--rm needs an output file, and {target} is none" in result.err
    assert source.read_bytes() == RAW


def test_stored_name_never_replaces_the_source(run, tmp_path):
    packed = lmzip.LmzCompressor(preset="order0", name="s.lmz")
    data = packed.compress(RAW) + packed.flush()
    Path("s.lmz").write_bytes(data)
    result = run("-dNf", "s.lmz")
    assert result.status == 1
    assert "would replace the input" in result.err
    assert Path("s.lmz").read_bytes() == data
    assert names(tmp_path) == ["s.lmz"]


# ── Refusals ──


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.usefixtures("source")
def test_existing_output_is_kept_unless_forced(run):
    Path("a.txt.lmz").write_bytes(b"precious")
    result = run(*FAST, "a.txt")
    assert result.status == 1
    assert result.err == "lmzip: a.txt: a.txt.lmz exists already; -f overwrites it\n"
    assert Path("a.txt.lmz").read_bytes() == b"precious"
    assert run("-f", *FAST, "a.txt").status == 0


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        write_after(target, lambda: target.write_bytes(b"precious"))
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == ["out"]


def write_after(target, event):
    with output.AtomicFile(target, overwrite=False) as file:
        file.write(b"new")
        event()


def test_output_is_not_there_before_it_is_whole(tmp_path):
    target = tmp_path / "out"
    seen = []
    write_after(target, lambda: seen.append(target.exists()))
    assert seen == [False]
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_one_bad_file_does_not_stop_the_others(run, source, packed, tmp_path):
    source.unlink()
    damage(packed, 3000)
    Path("foreign.lmz").write_bytes(b"PK\x03\x04")
    Path("good.lmz").write_bytes(lmzip.compress(b"good", preset="order0"))
    result = run("-d", "a.txt.lmz", "missing.lmz", "foreign.lmz", "good.lmz")
    assert result.status == 1
    assert names(tmp_path) == ["a.txt.lmz", "foreign.lmz", "good", "good.lmz"]
    lines = result.err.splitlines()
    assert lines[0].startswith("lmzip: a.txt.lmz: the frame of bytes 4096..8191 is damaged")
    assert lines[1] == "lmzip: missing.lmz: No such file or directory"
    assert lines[2].startswith("lmzip: foreign.lmz: not an .lmz file: it starts with b'PK")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such file or directory"),
        (["."], "is a folder; -r goes into folders"),
        (["-d", "a.txt"], "does not end in .lmz"),
        (["x.lmz"], "has the suffix .lmz already"),
        (["-f", "a.txt", "-o", "a.txt"], "would replace the input"),
        (["--model", "nobody", "a.txt"], "no model is called 'nobody'"),
        (["--rm", "link"], "is a symbolic link"),
        (["-o", "no/folder/out", "a.txt"], "No such file or directory"),
    ],
)
@pytest.mark.usefixtures("source")
def test_what_cannot_be_done_is_one_line_and_status_1(run, arguments, message, tmp_path):
    Path("x.lmz").write_bytes(b"")
    Path("link").symlink_to("a.txt")
    before = names(tmp_path)
    result = run(*arguments)
    assert result.status == 1
    assert message in result.err
    assert result.err.count("\n") == 1
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option"], "unrecognized arguments"),
        (["-T", "many"], "'many' is not a number"),
        (["-M", "5X"], "is not a size"),
        (["--frame-size", "K"], "is not a size"),
        (["--preset", "fastest", "a"], "no preset is called 'fastest'"),
        (["--lanes", "0", "a"], "lanes must be"),
        (["--frame-size", "65M", "a"], "frame size must be"),
        (["--device", "abacus"], "invalid choice"),
        (["-o", "x", "a", "b"], "-o takes one input file"),
        (["-o", "x", "-r", "a"], "-o takes one input file"),
        (["-c", "-o", "x", "a"], "exclude each other"),
        (["-c", "--rm", "a"], "--rm needs an output file"),
        (["--salvage", "a"], "belongs to decompress"),
        (["-d", "--salvage", "--rm", "a"], "never removes"),
        (["-d", "--fill-gaps", "a"], "belongs to --salvage"),
        (["--json", "a"], "belongs to list"),
        (["models", "more"], "invalid choice: 'more'"),
        (["models", "info"], "required: MODEL"),
        (["models", "verify", "--sha256", "xyz", "m"], "not 8 to 64 hexadecimal digits"),
        (["models", "verify", "--sha256", "12345678"], "--sha256 takes one model"),
    ],
)
def test_command_line_that_makes_no_sense_is_status_2(run, arguments, message, tmp_path):
    result = run(*arguments)
    assert result.status == 2
    assert message in result.err
    assert names(tmp_path) == []


@pytest.mark.usefixtures("packed")
def test_memory_limit_refuses_and_zero_lifts_it(run):
    result = run("-t", "-M", "5K", "a.txt.lmz")
    assert result.status == 1
    assert "raise it with -M" in result.err
    assert run("-t", "-M", "0", "a.txt.lmz").status == 0


@pytest.mark.usefixtures("packed")
def test_device_is_written_to_without_ceremony(run):
    assert run("-d", "-o", "/dev/null", "a.txt.lmz").status == 0
    assert not stat.S_ISREG(Path("/dev/null").stat().st_mode)


@pytest.mark.usefixtures("source")
def test_forced_output_replaces_a_link_and_not_what_it_points_to(run):
    Path("elsewhere").write_bytes(b"precious")
    Path("a.txt.lmz").symlink_to("elsewhere")
    assert run(*FAST, "a.txt").status == 1
    assert run("-f", *FAST, "a.txt").status == 0
    assert Path("elsewhere").read_bytes() == b"precious"


def test_name_with_control_characters_is_shown_escaped(run):
    Path("evil\x1b[2J.lmz").write_bytes(b"x")
    assert run("-d", "evil\x1b[2J.lmz").err.startswith("lmzip: evil\\u001b[2J.lmz: not an")


@pytest.mark.usefixtures("source")
def test_messages_are_one_line_whatever_is_in_them(run):
    name = "a\x1b[2J\nb"
    Path(name).write_bytes(RAW)
    Path(f"{name}.lmz").write_bytes(b"precious")
    shown = "a\\u001b[2J\\u000ab"
    assert run(*FAST, name).err == (
        f"lmzip: {shown}: {shown}.lmz exists already; -f overwrites it\n"
    )
    Path(f"{name}.safetensors").write_bytes(b"no model")
    for arguments in (["--model", f"{name}.safetensors", "a.txt"], ["models", "info", f"./{name}"]):
        err = run(*arguments).err
        assert shown in err
        assert err.count("\n") == 1
        assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no\n.safetensors", "a.txt"], "a.txt: no\\u000a.safetensors: No such file"),
        (["-o", "no/folder/out", "a.txt"], "a.txt: no/folder/out: No such file"),
        (["-fo", "folder", "a.txt"], "a.txt: folder: Is a directory"),
        (["./none"], "./none: No such file"),
        (["eval", "none", "--compressors", "gzip"], "eval: none: No such file"),
    ],
)
@pytest.mark.usefixtures("source")
def test_the_file_that_is_missing_is_named(run, arguments, message, tmp_path):
    (tmp_path / "folder").mkdir()
    assert run(*arguments).err.startswith(f"lmzip: {message}")


def test_folder_that_cannot_be_asked_for_is_named(run, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a\nb")

    monkeypatch.setattr(commands, "run", refuse)
    assert run("a") == Result(1, b"", "lmzip: 'a\\nb': Permission denied\n")


def test_default_model_that_is_missing_is_named(run, monkeypatch, source):
    monkeypatch.setenv("LMZIP_MODEL", "none.safetensors")
    assert run(source.name).err == "lmzip: a.txt: none.safetensors: No such file or directory\n"


def test_time_that_cannot_be_stored_is_refused(run, source, tmp_path):
    os.utime(source, (1e10, 1e10))  # the year 2286
    result = run("-N", *FAST, "a.txt")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "-N cannot store this modification time" in result.err
    assert names(tmp_path) == ["a.txt"]


def test_file_called_like_a_command_is_reached_by_a_path(run):
    Path("list").write_bytes(RAW)
    assert run(*FAST, "./list").status == 0
    assert run(*FAST, "-f", "--", "list").status == 0


def test_nothing_behind_two_dashes_is_an_option(run, tmp_path):
    behind = ["--rm", "-k", "-x", "list", "--", "--predictor=torch:os:system:touch pwned"]
    for name in behind:
        Path(name).write_bytes(RAW)
    assert run(*FAST, "-q", "--", *behind) == Result(0, b"", "")
    assert names(tmp_path) == sorted([*behind, *(f"{name}.lmz" for name in behind)])
    for name in behind:
        Path(name).unlink()
    assert run("-dq", "--rm", "./--.lmz", "--", *(f"{name}.lmz" for name in behind if name != "--"))
    assert names(tmp_path) == sorted(behind)


@pytest.mark.usefixtures("source")
def test_two_dashes_are_no_value_of_an_option(run, tmp_path):
    result = run(*FAST, "-o", "--", "a.txt")
    assert result.status == 2
    assert "-o/--output: expected one argument" in result.err
    for joined in ("--output=--", "-o--", "-ko--"):
        assert run(*FAST, joined, "a.txt").status == 2
    assert run("a=--").err == "lmzip: a=--: No such file or directory\n"
    assert names(tmp_path) == ["a.txt"]
    assert run(*FAST, "-o", "./--", "a.txt").status == 0
    assert names(tmp_path) == ["--", "a.txt"]


@pytest.mark.parametrize("word", ["eval", "train"])
def test_nothing_behind_two_dashes_is_an_option_of_a_tool(run, tmp_path, word):
    pytest.importorskip("torch")
    arguments = ["-o", "out"] if word == "train" else ["--compressors", "gzip"]
    result = run(word, *arguments, "--", "--results=pwned", "--name")
    assert result.status == 1
    assert "--results=pwned: No such file or directory" in result.err
    assert names(tmp_path) == []


def test_nothing_behind_two_dashes_is_an_option_of_models(run):
    result = run("models", "verify", "--", "--sha256=12345678")
    assert "lmzip: --sha256=12345678: no model is called" in result.err


def test_longest_name_that_a_file_can_have(run):
    name = "ü" * 125 + ".lmz"  # 254 bytes
    assert run(*FAST, "-o", name, stdin=RAW).status == 0
    assert lmzip.decompress(Path(name).read_bytes()) == RAW


def test_full_disk_leaves_nothing_behind(run, source, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output.os, "fsync", full)
    result = run(*FAST, "--rm", "a.txt")
    assert (result.status, result.err) == (1, "lmzip: a.txt: No space left on device\n")
    assert names(tmp_path) == ["a.txt"]
    assert source.read_bytes() == RAW


# ── Folders ──


def test_recursion_takes_what_the_mode_can_use(run, tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("d/one", "d/e/two", "d/done.lmz"):
        Path(name).write_bytes(RAW if not name.endswith(".lmz") else b"")
    Path("d/link").symlink_to("one")
    assert run("-r", *FAST, "d").status == 0
    assert names(tmp_path / "d") == ["done.lmz", "e", "link", "one", "one.lmz"]
    assert names(tmp_path / "d" / "e") == ["two", "two.lmz"]
    Path("d/done.lmz").unlink()
    assert run("-tr", "d").err.count("sound") == 2
    assert run("-drf", "--rm", "d").status == 0
    assert names(tmp_path / "d" / "e") == ["two"]


def test_pipes_and_devices_are_not_read_unasked(run, tmp_path):
    (tmp_path / "d").mkdir()
    os.mkfifo("d/pipe")
    os.mkfifo("d/pipe.lmz")
    Path("null").symlink_to("/dev/null")
    for arguments in (["-r", "d"], ["-dr", "d"], ["-tr", "d"], ["-lr", "d"]):
        assert run(*arguments) == Result(0, b"", "")
    for arguments in (["d/pipe"], ["-d", "d/pipe.lmz"], ["-l", "d/pipe"], ["null"]):
        result = run(*arguments)
        assert result.status == 1
        assert result.err.startswith(f"lmzip: {arguments[-1]}: is no regular file")
    assert names(tmp_path / "d") == ["pipe", "pipe.lmz"]


@pytest.mark.parametrize("how", [["-c"], ["-o", "out"], ["-f"]])
def test_pipe_is_read_if_asked_for(run, tmp_path, how):
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(RAW,))
    writer.start()
    result = run(*FAST, *how, "pipe")
    writer.join()
    written = {"-o": "out", "-f": "pipe.lmz"}.get(how[0])
    assert lmzip.decompress(Path(written).read_bytes() if written else result.out) == RAW
    assert (tmp_path / "pipe").is_fifo()


# ── Defaults from the environment ──


@pytest.mark.usefixtures("source")
def test_defaults_come_before_the_command_line(run, monkeypatch):
    monkeypatch.setenv("LMZIP_DEFAULTS", "--preset order0 -q --frame-size 1K")
    result = run("a.txt", "--frame-size", "20K")
    assert result == Result(0, b"", "")
    assert len(lmzip.inspect("a.txt.lmz").frames) == 2
    assert run("-d", "-c", "a.txt.lmz").out == RAW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.txt", "options only"),
        ("-- --rm", "options only, not '--rm'"),
        ("'", "No closing"),
    ],
)
@pytest.mark.usefixtures("source")
def test_defaults_that_make_no_sense_are_refused(run, monkeypatch, text, message):
    monkeypatch.setenv("LMZIP_DEFAULTS", text)
    result = run("a.txt")
    assert result.status == 2
    assert message in result.err


# ── Salvage ──


def test_salvage_writes_the_good_frames_and_names_the_lost(run, packed):
    frames = lmzip.inspect(packed).frames
    damage(packed, frames[2].offset + 100)
    result = run("-d", "--salvage", "a.txt.lmz")
    assert result.status == 1
    assert Path("a.txt").read_bytes() == RAW[:8192] + RAW[12288:]
    assert "a.txt.lmz: bytes 8192..12287 are lost: the payload of the frame is" in result.err
    assert f"{len(RAW) - 4096} bytes are saved, 4096 bytes are lost" in result.err


def test_salvage_can_keep_everything_in_its_place(run, packed):
    frames = lmzip.inspect(packed).frames
    damage(packed, frames[0].offset)
    damage(packed, frames[6].offset + 50)
    assert run("-d", "--salvage", "--fill-gaps", "a.txt.lmz").status == 1
    last = frames[6].raw_size
    assert Path("a.txt").read_bytes() == bytes(4096) + RAW[4096:-last] + bytes(last)


def test_salvage_of_a_pipe_and_of_a_sound_file(packed):
    result = subprocess.run(
        [*COMMAND, "-d", "--salvage"], input=packed.read_bytes(), capture_output=True, check=True
    )
    assert result.stdout == RAW


def test_salvage_of_nothing_writes_nothing(run, tmp_path):
    Path("x.lmz").write_bytes(b"nothing of ours" * 100)
    Path("empty.lmz").write_bytes(b"")
    assert run("-d", "--salvage", "x.lmz", "empty.lmz").status == 1
    assert names(tmp_path) == ["empty.lmz", "x.lmz"]


# ── Models, version, help ──


def test_models_lists_what_is_installed(run, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder / "tiny.safetensors", name="tiny", licence="CC0", release="0.3.0")
    (folder / "broken.safetensors").write_bytes(b"no model")
    monkeypatch.setenv("LMZIP_MODEL_PATH", str(folder))
    monkeypatch.setenv("LMZIP_MODEL", "tiny")
    result = run("models")
    assert result.status == 0
    line = next(line for line in result.out.decode().splitlines() if "tiny" in line)
    assert line.startswith("* tiny ")
    assert "12 parameters" in line
    assert "CC0" in line
    assert run("models", "list").out == result.out
    assert run("models", "list", "--json").out == run("models", "--json").out
    row = next(row for row in json.loads(run("models", "--json").out) if row["name"] == "tiny")
    assert row["default"] is True
    assert len(row["id"]) == 64


def write_model(path, **about):
    header = {
        "__metadata__": {"lmzip": json.dumps(about)},
        "w": {"dtype": "I8", "shape": [3, 4], "data_offsets": [0, 12]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))


def test_version_and_help(run):
    assert run("--version").out.decode() == f"lmzip {lmzip.__version__}\n"
    verbose = run("-V", "-v").out.decode()
    assert "kernels: portable" in verbose
    assert "methods: stored" in verbose
    help_text = run("--help")
    assert help_text.status == 0
    assert b"lmzip test FILE.lmz" in help_text.out


# ── Real processes ──


def test_version_imports_neither_numpy_nor_torch(run_python):
    script = """
import sys
import termios
import threading
from lmzip.cli import main
assert main(["--version"]) == 0
print(sorted({"numpy", "torch", "lmzip._core", "lmzip.api"} & set(sys.modules)))
"""
    assert run_python(script).stdout.splitlines()[1] == "[]"


@pytest.mark.parametrize("arguments", [["-c", "a.txt"], ["-V", "-v"]])
def test_unknown_kernel_is_one_line(arguments, source):
    env = os.environ | {"LMZIP_KERNEL": "sse9"}
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=source.parent, env=env, capture_output=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert 'kernel "sse9" (LMZIP_KERNEL) is unknown' in line


def test_cpu_path_needs_no_torch(run_python, tmp_path):
    script = f"""
import sys
import termios
import threading
sys.modules["torch"] = None  # an import would fail
from lmzip.cli import main
path = {str(tmp_path / "a")!r}
open(path, "wb").write(b"text " * 500)
for arguments in ([path], ["-t", path + ".lmz"], ["-l", path + ".lmz"], ["-df", path + ".lmz"]):
    assert main(arguments) == 0
"""
    run_python(script)


@pytest.mark.parametrize("show", ["", "1"])
def test_mistakes_of_ours_are_one_line_too(run_python, show):
    script = """
import sys
from lmzip import cli, commands
def mistake(_):
    raise KeyError("a\\nb")
commands.run = mistake
sys.argv = ["lmzip", "x"]
cli.entry()
"""
    done = run_python(script, check=False, LMZIP_TRACEBACK=show)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == bool(show)
    if not show:
        assert done.stderr.startswith("lmzip: internal error, please report it with what LMZIP_TR")
        assert done.stderr.endswith("KeyError('a\\nb')\n")


def in_ascii(arguments, cwd):
    """Run where neither file names nor output are UTF-8."""
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    return subprocess.run(
        [*COMMAND, *arguments], check=False, cwd=cwd, capture_output=True, env={**os.environ, **env}
    )


def test_names_that_the_locale_lacks(tmp_path):
    packed = lmzip.LmzCompressor(preset="order0", name="ä.txt")
    (tmp_path / "ü.lmz").write_bytes(packed.compress(RAW) + packed.flush())
    listed = in_ascii(["-lv", "ü.lmz"], tmp_path)
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert b"name '\\xe4.txt'" in listed.stdout
    restored = in_ascii(["-dN", "ü.lmz"], tmp_path)
    assert restored.returncode == 1
    assert restored.stderr.count(b"\n") == 1
    assert b"'\\xe4.txt' is no file name in ascii: use -o" in restored.stderr
    assert names(tmp_path) == ["ü.lmz"]


def test_without_a_home_there_are_the_other_models(run_python):
    script = """
import os, pwd, sys
os.environ.pop("HOME", None)
os.environ.pop("XDG_DATA_HOME", None)
def no_entry(_):
    raise KeyError
pwd.getpwuid = no_entry
from lmzip import cli
sys.argv = ["lmzip", "models"]
cli.entry()
"""
    done = run_python(script)
    assert done.stdout.startswith("* lmzip-default")
    assert done.stderr == ""


def test_real_pipe_round_trip():
    packed = subprocess.run([*COMMAND, *FAST], input=RAW, capture_output=True, check=True)
    raw = subprocess.run([*COMMAND, "-d"], input=packed.stdout, capture_output=True, check=True)
    assert raw.stdout == RAW
    assert raw.stderr == b""


def test_pipe_that_does_not_block_is_waited_for(tmp_path):
    packed = lmzip.compress(RAW, preset="order0", frame_size=4096)
    for arguments, data, expected in ((FAST, RAW, packed), (["-d"], packed, RAW)):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with (
            Path(tmp_path, "out").open("wb") as out,
            subprocess.Popen([*COMMAND, *arguments], stdin=reader, stdout=out) as process,
        ):
            while not os.get_blocking(reader) and process.poll() is None:
                pass  # it has to find the pipe empty
            with os.fdopen(writer, "wb") as file:
                file.write(data)
            os.close(reader)
        assert process.returncode == 0
        assert Path(tmp_path, "out").read_bytes() == expected


class NothingYet(io.BytesIO):
    """Standard input that does not block, when nothing has come yet."""

    def read(self, _=-1):
        return None

    def read1(self, _=-1):
        return b""


@pytest.mark.parametrize("arguments", [["-z"], ["-d"], ["-t"]])
def test_nothing_yet_is_not_the_end(run, monkeypatch, arguments):
    monkeypatch.setattr(Stream, "__init__", lambda self, _=b"": self.start(NothingYet()))
    result = run(*arguments)
    assert (result.status, result.out) == (1, b"")
    assert "nothing is there yet" in result.err


def limited(arguments, cwd, size, **env):
    """Run with a limit on the size of files, and standard output to a file: like a full disk."""
    with Path(cwd, "out").open("wb") as out:
        return subprocess.run(
            [*COMMAND, *arguments],
            check=False,
            cwd=cwd,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.usefixtures("source")
def test_output_that_is_written_in_part_is_an_error(tmp_path, unbuffered):
    for arguments in ([*FAST, "-c", "a.txt"], ["-dc", "a.txt.lmz"]):
        done = limited(arguments, tmp_path, 100, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1
        assert done.stderr == f"lmzip: {arguments[-1]}: File too large\n"
        (tmp_path / "a.txt.lmz").write_bytes(lmzip.compress(RAW, preset="order0"))


@pytest.mark.parametrize("target", ["/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.usefixtures("source")
def test_descriptor_as_output_is_written_to_and_not_replaced(tmp_path, target):
    (tmp_path / "link").symlink_to("/dev/stdout")
    out = tmp_path / "out"
    out.write_bytes(b"before ")
    with out.open("ab") as file:
        subprocess.run(
            [*COMMAND, *FAST, "-f", "-o", target, "a.txt"], cwd=tmp_path, stdout=file, check=True
        )
    assert lmzip.decompress(out.read_bytes().removeprefix(b"before ")) == RAW
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize("arguments", [["--version"], ["-l", "a.txt.lmz"], ["models"]])
@pytest.mark.usefixtures("packed")
def test_list_that_cannot_be_written_is_an_error(tmp_path, arguments):
    done = limited(arguments, tmp_path, 0)
    assert done.returncode == 1
    assert done.stderr.endswith(": File too large\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("source", "packed")
@pytest.mark.parametrize(
    ("closed", "arguments", "status", "message"),
    [
        ("<&-", ["a.txt", "-f"], 0, "a.txt.lmz)"),
        ("<&-", [], 1, "lmzip: (stdin): Bad file descriptor"),
        (">&-", ["a.txt", "-f"], 0, "a.txt.lmz)"),
        (">&-", ["-c", "a.txt"], 1, "lmzip: a.txt: Bad file descriptor"),
        (">&-", ["--version"], 1, "lmzip: standard output: Bad file descriptor"),
        ("2>&-", ["a.txt", "-f"], 0, ""),
        ("2>&- >out", ["-qc", "missing", "a.txt", "missing"], 1, ""),
        ("<&- >&- 2>&-", ["a.txt", "-f"], 0, ""),
    ],
)
def test_closed_streams_are_not_mistaken_for_files(tmp_path, closed, arguments, status, message):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}', *COMMAND, *FAST, *arguments],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == bool(message)
    assert message in done.stderr
    packed = Path(tmp_path, "out" if "out" in closed else "a.txt.lmz").read_bytes()
    assert lmzip.decompress(packed) == RAW


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_leaves_nothing_behind(number, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, *FAST, "-o", "out.lmz"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A runner in the background may have been started with the signal ignored, which is
        # inherited, and which the command honors as it should under nohup.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 (one thread)
    )
    assert process.stdin is not None
    process.stdin.write(RAW * 50)  # more than a pipe holds: once it is gone, work has begun
    process.stdin.flush()
    assert len(names(tmp_path)) == 1
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == -number
    assert err == b""
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["removal", "end"])
def test_second_signal_does_not_disturb_the_first(run_python, tmp_path, place):
    script = f"""
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
from lmzip import cli, commands, output
class Path(type(output.Path())):
    def unlink(self, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        super().unlink(**kwargs)
def interrupted(source, before):
    os.kill(os.getpid(), signal.SIGINT)
if {place == "removal"}:
    output.Path, commands._check_unchanged = Path, interrupted
else:
    import atexit
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
sys.argv = ["lmzip", "-q", "--preset", "order0", {str(tmp_path / "a.txt")!r}]
cli.entry()
"""
    (tmp_path / "a.txt").write_bytes(RAW)
    done = run_python(script, check=False)
    assert done.stderr == ""
    if place == "removal":
        assert done.returncode == -signal.SIGINT
        assert names(tmp_path) == ["a.txt"]
    else:
        assert done.returncode == 0
        assert names(tmp_path) == ["a.txt", "a.txt.lmz"]


def test_reader_that_leaves_ends_the_command_quietly(tmp_path):
    path, raw = tmp_path / "big.lmz", os.urandom(3_000_000)
    path.write_bytes(lmzip.compress(raw, preset="order0", frame_size=1 << 18))
    with subprocess.Popen(
        [*COMMAND, "-dc", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == raw[:10]
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def on_terminal(arguments, cwd, stdin=None):
    """Run with standard output and error on a pseudo-terminal; return status and what it shows."""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        stdin=follower if stdin is None else stdin,
        stdout=follower,
        stderr=follower,
        env={name: value for name, value in os.environ.items() if not name.startswith("TQDM_")},
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 4096):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(leader)
    return process.wait(), shown.decode()


@pytest.mark.usefixtures("source")
def test_compressed_data_is_not_written_to_a_terminal(tmp_path):
    status, shown = on_terminal(["-c", "a.txt"], tmp_path)
    assert status == 1
    assert "not written to a terminal" in shown
    status, shown = on_terminal([], tmp_path)
    assert status == 2
    assert "standard input is a terminal" in shown
    status, shown = on_terminal(["-d", "-"], tmp_path)
    assert status == 1
    assert "cannot come from a terminal" in shown


@pytest.mark.usefixtures("source")
def test_progress_is_shown_on_a_terminal_only(tmp_path):
    status, shown = on_terminal([*FAST, "a.txt"], tmp_path)
    assert status == 0
    assert "a.txt:" in shown  # the bar; the result line has "a.txt :"
    assert "%" in shown
    assert "\r" in shown.replace("\r\n", "")
    piped = subprocess.run(
        [*COMMAND, *FAST, "-f", "a.txt"], cwd=tmp_path, capture_output=True, check=True
    )
    assert b"\r" not in piped.stderr
