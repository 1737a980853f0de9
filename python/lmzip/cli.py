"""The command `lmzip`: arguments in, exit status out. What each does: docs/cli.md.

Exit status: 0 all is well, 1 something failed on some file, 2 the command line makes no sense.
This file imports next to nothing, so that `lmzip --version` and errors of usage come at once;
the work is in commands.py.
"""

import argparse
import importlib
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lmzip._version import __version__

SUFFIX = ".lmz"
WORDS = ("compress", "decompress", "test", "list")
TOOLS = {
    "train": ("lmzip.train", "Train a model on files."),
    "eval": ("lmzip.evaluate", "Measure compressors on the same data, decoding everything again."),
    "generate": ("lmzip.generate", "Let a compressor or a model go on with a text."),
}
_DASHES_AS_VALUE = re.compile("--[^=]+=--|-[zdtlckfrNqvV1-9]*[oTM]--")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULTS_VARIABLE = "LMZIP_DEFAULTS"
TRACEBACK_VARIABLE = "LMZIP_TRACEBACK"

DESCRIPTION = """\
Compress, decompress, test or list files.

  lmzip [compress] FILE...       FILE -> FILE.lmz; the source is kept
  lmzip decompress FILE.lmz...   short: lmzip -d, unlmz; lmzcat to standard output
  lmzip test FILE.lmz...         short: lmzip -t
  lmzip list FILE.lmz...         short: lmzip -l
  lmzip train FILES -o MODEL     make a model for your own kind of data
  lmzip models                   the models that are installed; info, verify
  lmzip models import SOURCE     install a pretrained language model
  lmzip eval FILES               rates and speeds of compressors, this one among them
  lmzip generate ...             let a compressor or a model go on with a text

Without FILE, or with -, standard input goes to standard output.
"""


class UsageError(Exception):
    """The command line makes no sense."""


def main(argv: list[str] | None = None, program: str = "lmzip") -> int:
    """Run one command; return its exit status. `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in TOOLS:
            return _tool(arguments[0], arguments[1:])
        if arguments[:1] == ["models"]:
            return _models(arguments[1:])
        return _files(arguments, program)
    except UsageError as error:
        print(f"lmzip: {error}; see lmzip --help", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # without a file it is one of print
        what = "standard output" if error.filename is None else repr(error.filename)
        print(f"lmzip: {what}: {error.strerror or error}", file=sys.stderr)
        return 1
    except SystemExit as stop:  # argparse has said what there was to say
        return stop.code if isinstance(stop.code, int) else 2


def entry() -> NoReturn:
    """The console scripts lmzip, unlmz and lmzcat.

    A signal unwinds the stack, which removes temporary files; then the process dies of it, so
    that the caller sees the truth and no thread is waited for.
    """
    _ready_streams()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        try:
            status = _flush_stdout(main(program=Path(sys.argv[0]).stem))
        finally:
            _ignore_signals()  # what is left is the end of the process
    except _Interrupted as stop:
        _die_of(stop.number)
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(
            f"lmzip: internal error, please report it with what {TRACEBACK_VARIABLE}=1 shows: "
            f"{error!r}",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def _ready_streams() -> None:
    """Standard streams that lose nothing.

    The mode of a descriptor is inherited: one that does not block would look like the end of the
    input. The number of a closed one would go to the next file that is opened, and messages into
    that file; so /dev/null takes it, opened the wrong way round for standard input and output:
    their use is an error. What Python writes to without a buffer may be written in part only.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.set_blocking(number, True)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    encoding = getattr(sys.stdout, "encoding", None)
    sys.stdout = os.fdopen(1, "w", 1, encoding, "backslashreplace", closefd=False)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", 1, closefd=False)


def _flush_stdout(status: int) -> int:
    """The exit status, which is 1 if standard output cannot be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if not status:
            print(f"lmzip: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
        return status or 1
    return status


class _Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    _ignore_signals()  # one is enough: let the cleaning up finish
    raise _Interrupted(number)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _die_of(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _files(arguments: list[str], program: str) -> int:
    parser = build_parser(program)
    options = argparse.Namespace()
    if program in ("unlmz", "lmzcat"):
        options.mode = "decompress"
        options.stdout = program == "lmzcat"
    _read_defaults(parser, options)
    if arguments and arguments[0] in WORDS:
        options.mode = arguments.pop(0)
    _parse(parser, arguments, options)
    if options.version:
        print(f"lmzip {__version__}")
        if options.verbose:
            from lmzip import commands

            with commands.one_line_errors("version") as outcome:
                print(commands.installation())
            return outcome.status
        return 0
    _check(options)
    if not options.files:
        if sys.stdin.isatty():
            raise UsageError("no file is given, and standard input is a terminal")
        options.files = ["-"]
    from lmzip import commands

    return commands.run(options)


def _read_defaults(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    text = os.environ.get(DEFAULTS_VARIABLE, "")
    if not text.strip():
        return
    try:
        _parse(parser, shlex.split(text), options)
    except ValueError as error:
        raise UsageError(f"{DEFAULTS_VARIABLE}={text!r}: {error}") from None
    if options.files:
        raise UsageError(f"{DEFAULTS_VARIABLE} may hold options only, not {options.files[0]!r}")
    del options.files


def _parse(
    parser: argparse.ArgumentParser, arguments: list[str], options: argparse.Namespace
) -> None:
    """Options and files in any order; what stands behind the first "--" is files only.

    argparse sees nothing of that: its second pass would read options there. So "--" is never the
    value of an option: -o -- is refused, -o ./-- is a file; --output=-- argparse would drop.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if any(map(_DASHES_AS_VALUE.fullmatch, arguments[:end])):
        raise UsageError('"--" is never the value of an option; a file of that name is ./--')
    parser.parse_intermixed_args(arguments[:end], options)
    options.files = [*options.files, *arguments[end + 1 :]]


def _check(options: argparse.Namespace) -> None:
    """Refuse combinations that cannot be meant."""
    if options.output and options.stdout:
        raise UsageError("-o and -c exclude each other")
    if options.output and (len(options.files) > 1 or options.recursive):
        raise UsageError("-o takes one input file")
    if options.rm and (options.stdout or options.output == "-"):
        raise UsageError("--rm needs an output file")
    if options.salvage and options.mode != "decompress":
        raise UsageError("--salvage belongs to decompress")
    if options.salvage and options.rm:
        raise UsageError("--salvage never removes the damaged source")
    if options.fill_gaps and not options.salvage:
        raise UsageError("--fill-gaps belongs to --salvage")
    if options.predictor and options.model and options.mode == "compress":
        raise UsageError("--model and --predictor exclude each other")
    if options.json and options.mode != "list":
        raise UsageError("--json belongs to list")


def build_parser(program: str = "lmzip") -> argparse.ArgumentParser:
    """All options of the file commands; as in xz, an option that a mode does not need is idle."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [compress | decompress | test | list] [OPTION]... [FILE]...",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help=argparse.SUPPRESS)
    _add_modes(parser)
    _add_handling(parser)
    _add_coding(parser)
    _add_messages(parser)
    return parser


def _add_modes(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_argument_group("what to do")
    for flags, mode, text in (
        (("-z", "--compress"), "compress", "compress (the default)"),
        (("-d", "--decompress", "--uncompress"), "decompress", "decompress"),
        (("-t", "--test"), "test", "decode and check, write nothing"),
        (("-l", "--list"), "list", "show sizes and frames, decode nothing"),
    ):
        modes.add_argument(
            *flags, dest="mode", action="store_const", const=mode, default="compress", help=text
        )
    modes.add_argument(
        "--salvage", action="store_true", help="decompress what can be had of a damaged file"
    )
    modes.add_argument(
        "--fill-gaps", action="store_true", help="with --salvage: zeros where bytes are lost"
    )
    modes.add_argument("--json", action="store_true", help="list as JSON")


def _add_handling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("-o", "--output", metavar="FILE", help="write to FILE (- is stdout)")
    group.add_argument("-c", "--stdout", action="store_true", help="write to standard output")
    group.add_argument(
        "-k",
        "--keep",
        dest="rm",
        action="store_false",
        default=False,
        help="keep sources (default)",
    )
    group.add_argument(
        "--rm", action="store_true", help="remove each source once its output is verified"
    )
    group.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="overwrite; write to a terminal; follow links; decode in another environment",
    )
    group.add_argument("-r", "--recursive", action="store_true", help="go into folders")
    group.add_argument(
        "-N", "--name", action="store_true", help="store the name and time, or restore them"
    )


def _add_coding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("coding")
    for level in range(1, 10):
        group.add_argument(
            f"-{level}",
            dest="preset",
            action="store_const",
            const=level,
            help="levels: 1 fast to 9 small" if level == 1 else argparse.SUPPRESS,
        )
    group.add_argument("--preset", metavar="NAME", help="fast, default, best, ... or a level")
    group.add_argument("--model", metavar="MODEL", help="a model's name, id or file")
    group.add_argument(
        "--predictor",
        metavar="SPEC",
        help="a float predictor instead of a model: torch:MODULE:FACTORY[:ARGUMENT], code that is "
        "run; such a file decodes with it in the same environment only",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument(
        "-T", "--threads", type=_count, default=0, metavar="N", help="0 (default): one per core"
    )
    group.add_argument("--lanes", type=_count, metavar="N", help="lanes of each frame, 1 to 4096")
    group.add_argument(
        "--frame-size", type=_size, metavar="SIZE", help="raw bytes of a frame, as 512K or 4M"
    )
    group.add_argument(
        "-M", "--memory-limit", type=_size, metavar="SIZE", help="refuse to decode with more memory"
    )
    group.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="decode each frame and compare (with --rm: always)",
    )


def _add_messages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="say more")
    group.add_argument("-V", "--version", action="store_true", help="show the version (more: -v)")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _size(text: str) -> int:
    """ "512", "64K", "4M", "1GiB": binary units."""
    number = text.rstrip("KMGTiBkmgtb")
    unit = text[len(number) :].upper().removesuffix("B").removesuffix("I")
    if not number.isdecimal() or unit not in ("", "K", "M", "G", "T"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64K, 4M or 1GiB")
    return int(number) << 10 * " KMGT".index(unit or " ")


def _tool(word: str, arguments: list[str]) -> int:
    """A command that is a module of its own, with add_arguments() and run()."""
    module, description = TOOLS[word]
    parser = argparse.ArgumentParser(prog=f"lmzip {word}", description=description)
    try:
        tool = importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").startswith("lmzip."):
            raise
        print(
            f"lmzip: {word}: {error.name or error} is missing; training needs PyTorch: "
            "pip install 'lmzip-codec[torch]'",
            file=sys.stderr,
        )
        return 1
    tool.add_arguments(parser)
    from lmzip import commands

    with commands.one_line_errors(word) as outcome:
        outcome.status = tool.run(parser.parse_args(arguments)) or 0
    return outcome.status


def _models(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmzip models", description="List, describe, check and import models."
    )
    words = parser.add_subparsers(dest="word", metavar="WORD")
    parser.add_argument("--json", action="store_true", help="list as JSON")
    about = {"list": "the models that are installed (the default)", "info": "what a model is"}
    for word, text in about.items():
        shown = words.add_parser(word, help=text)
        shown.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
        if word == "info":
            shown.add_argument("models", nargs="+", metavar="MODEL", help="name, id or file")

    verify = words.add_parser("verify", help="check model files, and the engine on them")
    verify.add_argument("models", nargs="*", metavar="MODEL", help="all that are installed if none")
    verify.add_argument(
        "--sha256", type=_hexadecimal, metavar="HEX", help="what it must begin with"
    )
    _add_import(words)
    options = parser.parse_args(arguments)
    if options.word == "verify" and options.sha256 and len(options.models) != 1:
        raise UsageError("--sha256 takes one model")
    from lmzip import commands

    work = {
        "list": commands.list_models,
        "info": commands.describe_models,
        "verify": commands.verify_models,
        "import": commands.import_model,
    }
    return work[options.word or "list"](options)


def _add_import(words: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = words.add_parser(
        "import",
        help="make an exact model of a pretrained one",
        description="Make an exact model of a checkpoint: a GGUF file, a Hugging Face folder with "
        "config.json, *.safetensors and tokenizer.json, or the name of one on the hub.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a .gguf file, a folder, or OWNER/NAME[@REVISION]"
    )
    parser.add_argument(
        "-o", "--output", metavar="NAME", help="a name in the model folder, or a .safetensors file"
    )
    parser.add_argument("--window", type=_count, metavar="N", help="tokens of context (1024)")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite")


def _hexadecimal(text: str) -> str:
    if not 8 <= len(text) <= 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 8 to 64 hexadecimal digits")
    return text.lower()
