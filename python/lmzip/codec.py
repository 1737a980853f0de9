"""The seam between the container and the engines: methods, presets, and what codes a frame.

An engine is a FrameCodec; a factory in _FACTORIES makes it for a method. Nothing else in the
package asks which engines exist. Engines are imported when they are first needed.
"""

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lmzip import devices, models
from lmzip.container import (
    METHOD_FLOAT,
    METHOD_MIXER,
    METHOD_NAMES,
    METHOD_NETWORK,
    METHOD_NETWORK_MIXER,
    METHOD_ORDER0,
    METHOD_STORED,
    METHOD_TOKENS,
    MODEL_METHODS,
    PROFILE_METHODS,
    TABLE_METHODS,
    FrameHeader,
    PredictorRef,
    StreamHeader,
)
from lmzip.errors import LimitError, ModelMismatchError, UnsupportedError
from lmzip.models import ModelInfo

if TYPE_CHECKING:
    from lmzip.predictors import Predictor

DEFAULT_MEMORY_LIMIT = 1 << 30


class FrameCodec(Protocol):
    """Codes whole frames with one method, model and device. Safe to call from several threads.

    There is one payload for each lane, empty for an empty one.  A frame of n bytes and L lanes is
    cut into pieces of ceil(n / L) bytes, the last ones shorter or empty (lane_ranges()); one of
    tokens into pieces of equal numbers of symbols (csrc/token_frame.h).
    """

    @property
    def method(self) -> int: ...
    @property
    def table_bits(self) -> int: ...  # of the mixer, as written in the frame; 0 without one
    @property
    def profile(self) -> int: ...  # of the mixer or of tokens, 0..7
    @property
    def model_id(self) -> bytes: ...  # SHA-256 of the model file; 32 zero bytes for no model
    @property
    def model_name(self) -> str: ...
    def sized(self, raw_size: int) -> "FrameCodec":
        """The same codec, with tables no larger than a frame of this size can fill."""

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """Bytes that decoding such a frame takes beyond its raw bytes and payload, at most."""

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]: ...
    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        """Return exactly raw_size bytes. CorruptError if the payloads cannot be right."""


TRIAL_SIZE = 1 << 14  # bytes that frames.py tries codecs on at once, at most
COST_OF_SHARING = 0.03  # of a frame's work for each thread more, measured for the second


class ThreadShare:
    """Threads that frames coded at the same time divide among themselves.

    Where the size of the input is known (raw bytes to encode, compressed ones to decode), each
    frame gets as many: the only one of a small file all that it can use, of the many of a large
    file each a single one, which need not wait for others, and in between the number with which the
    whole file takes least time, its last frames included.  Elsewhere a frame takes those that are
    free, at least one.
    """

    def __init__(self, threads: int, input_size: int | None = None) -> None:
        self._total = self._free = threads
        self._input_size = input_size
        self.most_frames = threads  # for which there is memory
        self._largest = 1  # frame so far
        self._asked = self._served = 0  # frames: first come, first served
        self._changed = threading.Condition()
        _shares.add(self)

    def forget(self) -> None:
        """Nobody holds or waits for threads: those who did are not in a forked child."""
        self._free = self._total
        self._asked = self._served = 0
        self._changed = threading.Condition()

    def split(self, parts: int) -> list["ThreadShare"]:
        """Equal parts, at least a thread each, for those who must not wait for one another."""
        return [ThreadShare(max(1, self._total // parts)) for _ in range(parts)]

    @contextlib.contextmanager
    def take(self, size: int, most: int | None = None) -> Iterator[int]:
        """Hold threads for a frame of so many bytes of the input, the calling one included: at most
        `most`, all that it can use.  May wait until they are free, but not for what is no larger
        than a trial."""
        most = min(most or self._total, self._total)
        with self._changed:
            if self._input_size is None or size <= TRIAL_SIZE:
                taken = max(1, min(most, self._free))
            else:
                taken = self._planned(self._input_size, size, most)
                number, self._asked = self._asked, self._asked + 1
                self._changed.wait_for(lambda: self._served == number and self._free >= taken)
                self._served += 1
                self._changed.notify_all()
            self._free -= taken
        try:
            yield taken
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()

    def _planned(self, input_size: int, size: int, most: int) -> int:
        """How many for each frame: as if all were like the largest so far, but for a last one."""
        self._largest = max(self._largest, size)
        frames = max(1.0, input_size / self._largest)

        def time(threads: int) -> float:
            """Of the file, in that of a frame with one thread."""
            at_once = min(self._total // threads, self.most_frames)
            rounds = frames // at_once + min(1.0, frames % at_once)
            return rounds * (1 + COST_OF_SHARING * (threads - 1)) / threads

        return min(range(1, most + 1), key=time)


_shares: weakref.WeakSet[ThreadShare] = weakref.WeakSet()


def _forget_threads() -> None:
    for share in _shares:
        share.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@dataclass(frozen=True, slots=True)
class CodecRequest:
    """What a factory gets. `model` and `predictor` are set for the methods that need one.

    An engine with threads of its own takes them from `threads` for each frame.
    """

    method: int
    table_bits: int
    profile: int
    model: ModelInfo | None
    device: str
    threads: ThreadShare
    predictor: "Predictor | None" = None


def _order0(request: CodecRequest) -> FrameCodec:  # noqa: ARG001
    from lmzip.order0 import Order0Codec

    return Order0Codec()


def _network(request: CodecRequest) -> FrameCodec:
    """Where the network runs; devices.py has chosen, and "auto" is left for the CPU."""
    if request.device != "cuda":
        return _native(request)
    from lmzip.torch_codec import TorchCodec

    return TorchCodec(request)


def _native(request: CodecRequest) -> FrameCodec:
    from lmzip.native import NativeCodec

    return NativeCodec(request)


def _tokens(request: CodecRequest) -> FrameCodec:
    if request.device == "cuda":
        from lmzip.torch_token_codec import TorchTokenCodec

        return TorchTokenCodec(request)
    from lmzip.token_codec import TokenCodec

    return TokenCodec(request)


def _float(request: CodecRequest) -> FrameCodec:
    from lmzip.float_codec import FloatCodec

    return FloatCodec(request)


_FACTORIES: dict[int, Callable[[CodecRequest], FrameCodec]] = {
    METHOD_NETWORK: _network,
    METHOD_MIXER: _native,
    METHOD_NETWORK_MIXER: _network,
    METHOD_ORDER0: _order0,
    METHOD_TOKENS: _tokens,
    METHOD_FLOAT: _float,
}


@dataclass(frozen=True, slots=True)
class Preset:
    """How to encode. Of `codings` (method, profile), the first is for text.

    What is no text is tried with all of those that can be had (frames.py).
    """

    name: str
    codings: tuple[tuple[int, int], ...]
    table_bits: int
    frame_size: int
    lanes: int


TEXT, BINARY, STRONG, SAMPLE, CODE = range(5)  # mixer profiles: docs/mixer.md
_MIXERS = tuple((METHOD_MIXER, profile) for profile in (TEXT, BINARY, SAMPLE, CODE))
_STRONG = ((METHOD_NETWORK_MIXER, STRONG), *_MIXERS)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fast", _MIXERS, 26, 8 << 20, 1),
        Preset("default", _STRONG, 26, 8 << 20, 16),
        Preset("best", _STRONG, 27, 16 << 20, 2),
        Preset("network", ((METHOD_NETWORK, 0),), 0, 4 << 20, 16),  # for measuring
        Preset("order0", ((METHOD_ORDER0, 0),), 0, 1 << 20, 1),  # for tests
    )
}
TOKEN_PROFILE = 2  # docs/format.md, method 5; those below were of development versions
# With a pretrained model, whatever the preset: the mixer takes what is no text.
TOKEN_CODINGS = ((METHOD_TOKENS, TOKEN_PROFILE), *_MIXERS)
FLOAT_CODINGS = ((METHOD_FLOAT, 0), *_MIXERS)  # so with a float predictor
LEVELS = {
    level: "fast" if level < 4 else "default" if level < 7 else "best" for level in range(1, 10)
}
# Lanes are decoded together and cost ratio, for half of what stands before a byte is decoded after
# it: two cost 0.8 %, four 1.4 %, eight 1.8 %, sixteen 2.2 %.  One lane is decoded as fast as
# weights come from the outer caches, two nearly twice as fast; two threads want eight rows each
# (docs/performance.md).  So a small frame, which is decoded soon anyway, gets few.
LANES = ((16, 1 << 20), (8, 1 << 18), (4, 1 << 16), (2, 1 << 13))  # lanes, least bytes of a frame


def method_names() -> list[str]:
    """The methods that this installation can decode."""
    return [METHOD_NAMES[method] for method in sorted({METHOD_STORED, *_FACTORIES})]


def preset_named(preset: str | int | None) -> Preset:
    """Return the preset for a name or a level 1..9. ValueError if there is none."""
    name = LEVELS.get(preset) if isinstance(preset, int) else preset or "default"
    if name not in PRESETS:
        raise ValueError(
            f"no preset is called {preset!r}: there are {', '.join(PRESETS)} and levels 1 to 9"
        )
    return PRESETS[name]


def lanes_for(raw_size: int, wanted: int, method: int) -> int:
    """How many lanes a frame gets when the user has not said: one where they gain nothing."""
    if method == METHOD_MIXER:
        return 1
    return min(wanted, next((lanes for lanes, least in LANES if raw_size >= least), 1))


def lane_ranges(raw_size: int, lanes: int) -> list[tuple[int, int]]:
    """Begin and end of each lane's piece of a frame."""
    stride = -(-raw_size // lanes)
    return [
        (min(lane * stride, raw_size), min((lane + 1) * stride, raw_size)) for lane in range(lanes)
    ]


def usable_threads(threads: int) -> int:
    """0 stands for all the cores that this process may use."""
    if threads < 0:
        raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
    if threads:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class Codecs:
    """Opens the codecs that frames need, once each. Not for several threads at once."""

    model: ModelInfo | None = None  # the one the user has named
    device: str = "auto"
    threads: int = 1
    memory_limit: int | None = DEFAULT_MEMORY_LIMIT
    input_size: int | None = None  # bytes to encode or decode, where that is known
    predictor: "Predictor | None" = None  # the float one that the user has named
    any_environment: bool = False  # decode with it although the stream names another
    decoding: bool = False
    _share: ThreadShare = field(init=False)
    _open: dict[tuple[int, int, int, bytes], FrameCodec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        devices.check(self.device)
        self._share = ThreadShare(self.threads, self.input_size)

    @functools.cached_property
    def network_device(self) -> str:
        """ "cpu" or "cuda". UnsupportedError if it is asked for and cannot be had."""
        raw_size = self.input_size
        if raw_size is not None and self.decoding:
            raw_size *= devices.RAW_PER_COMPRESSED
        return devices.choose(self.device, raw_size)

    @property
    def frames_at_once(self) -> int:
        """How many frames to work on at a time: one a thread, or enough for the GPUs."""
        if self.network_device == "cpu":
            return self.threads
        return max(self.threads, devices.frames_in_flight())

    @property
    def memory_at_once(self) -> int | None:
        """Bytes for all frames that are worked on at a time; None: any.  A GPU wants so many that
        the default limit, meant for a few, would leave it idle."""
        if self.memory_limit != DEFAULT_MEMORY_LIMIT or self.network_device == "cpu":
            return self.memory_limit
        return devices.memory_for_frames(DEFAULT_MEMORY_LIMIT)

    def for_preset(self, preset: Preset) -> list[FrameCodec]:
        """The codecs to choose from when encoding; order 0 where no better one is built in."""
        model = self.model or models.default()
        codings = preset.codings
        if self.predictor is not None:
            codings = FLOAT_CODINGS
        elif model is not None and model.is_token_model:
            codings = TOKEN_CODINGS
        wanted = [
            (method, profile)
            for method, profile in codings
            if method in _FACTORIES and (model or method not in MODEL_METHODS)
        ]
        if not wanted:
            return [self._codec(METHOD_ORDER0, 0, 0, None)]
        return [
            self._codec(method, preset.table_bits, profile, model) for method, profile in wanted
        ]

    def for_frame(self, stream: StreamHeader, frame: FrameHeader) -> FrameCodec:
        """The codec of a coded frame, checked against the memory limit before it is opened.

        Raises UnsupportedError, ModelMismatchError, LimitError.
        """
        model = self._model_of(stream) if frame.method in MODEL_METHODS else None
        if frame.method == METHOD_FLOAT:
            self._check_predictor(stream.predictor)
        if frame.method not in _FACTORIES:
            raise UnsupportedError(
                f"a frame is coded with {frame.method_name!r}, which this lmzip cannot decode: "
                "update lmzip-codec"
            )
        self._check_memory(frame, frame.raw_size + frame.payload_size + _table_size(frame))
        codec = self._codec(frame.method, frame.table_bits, frame.profile, model)
        needed = frame_memory(frame, codec)
        self._check_memory(frame, needed)
        if (memory := self.memory_at_once) is not None:
            self._share.most_frames = memory // needed
        return codec

    def check_stored(self, frame: FrameHeader) -> None:
        self._check_memory(frame, frame_memory(frame, None))

    def _model_of(self, stream: StreamHeader) -> ModelInfo:
        if stream.model is not None:
            return models.for_ref(stream.model, self.model)
        found = self.model or models.default()
        if found is None:
            raise UnsupportedError("a frame needs a model, but its stream names none")
        return found

    @functools.cached_property
    def predictor_ref(self) -> PredictorRef | None:
        """What the predictor is, and the environment here: for streams that are written."""
        if self.predictor is None:
            return None
        from lmzip.predictors import reference

        return reference(self.predictor)

    def _check_predictor(self, wanted: PredictorRef | None) -> None:
        here = self.predictor_ref
        if here is None:
            shown = f"{wanted}" if wanted else "that it does not name"
            raise ModelMismatchError(
                f"the file was written with the float predictor {shown}; it decodes only there and "
                "with it: name it, if you trust its code, with --predictor torch:MODULE:FACTORY"
            )
        if wanted == here or self.any_environment:
            return
        shown = wanted.differences(here) if wanted else f"that it does not name; here it is {here}"
        raise ModelMismatchError(
            f"the file was written with the float predictor {shown}: floating-point results differ "
            "between predictors and environments; --force tries nevertheless, and the checksums of "
            "frames tell whether it worked"
        )

    def _check_memory(self, frame: FrameHeader, needed: int) -> None:
        if self.memory_limit is not None and needed > self.memory_limit:
            raise LimitError(
                f"decoding a frame of {frame.raw_size} bytes ({frame.method_name}, "
                f"{frame.lanes} lanes) needs {mebibytes(needed)}; the limit is "
                f"{mebibytes(self.memory_limit)}: raise it with -M"
            )

    def _codec(
        self, method: int, table_bits: int, profile: int, model: ModelInfo | None
    ) -> FrameCodec:
        if method not in MODEL_METHODS:
            model = None
        if method not in TABLE_METHODS:
            table_bits = 0
        if method not in PROFILE_METHODS:
            profile = 0
        key = method, table_bits, profile, model.id if model else b""
        if key not in self._open:
            device = self.network_device if model else "cpu"
            request = CodecRequest(
                method, table_bits, profile, model, device, self._share, self.predictor
            )
            self._open[key] = _FACTORIES[method](request)
        return self._open[key]


def frame_memory(frame: FrameHeader, codec: FrameCodec | None) -> int:
    """Bytes of memory that decoding a frame takes at most; `codec` is None for a stored frame."""
    needed = frame.raw_size + frame.payload_size
    return needed + (codec.memory_needed(frame.raw_size, frame.lanes) if codec else 0)


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _table_size(frame: FrameHeader) -> int:
    return 1 << frame.table_bits if frame.table_bits else 0
