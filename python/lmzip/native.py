"""The frame codecs of the C++ core: network, mixer, or both, on the CPU and without PyTorch."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmzip import _core
from lmzip.codec import CODE, CodecRequest
from lmzip.container import METHOD_MIXER, MIN_TABLE_BITS
from lmzip.errors import UnsupportedError
from lmzip.model_file import load
from lmzip.pool import check_abandoned

if TYPE_CHECKING:
    from lmzip._core import MixerProfile

PROFILES: tuple["MixerProfile", ...] = (
    "text",
    "binary",
    "strong",
    "sample",
    "code",
)  # docs/mixer.md


@lru_cache(maxsize=4)
def _open_model(path: Path, model_id: bytes) -> _core.ExactModel:
    """The weights, packed for this machine's kernel; kept, since packing costs more than a page."""
    model = load(path)
    if model.model_id != model_id:
        raise UnsupportedError(f"{path} has changed since its header was read; run again")
    return _core.ExactModel(model.tensors, model.architecture.to_json())


class NativeCodec:
    """A FrameCodec (codec.py) over _core.  Raises UnsupportedError for an unknown profile."""

    def __init__(self, request: CodecRequest) -> None:
        if request.profile >= len(PROFILES):
            raise UnsupportedError(
                f"mixer profile {request.profile} is unknown; this lmzip knows "
                f"0 to {len(PROFILES) - 1}: update lmzip-codec"
            )
        if request.profile == CODE and request.method != METHOD_MIXER:
            raise UnsupportedError("the mixer profile for x86 code goes without a network")
        self.method, self.table_bits, self.profile = (
            request.method,
            request.table_bits,
            request.profile,
        )
        self._threads = request.threads
        info = request.model
        self.model_id = info.id if info else bytes(32)
        self.model_name = info.name if info else ""
        self._model = _open_model(info.path, info.id) if info else None

    def sized(self, raw_size: int) -> "NativeCodec":
        # A byte takes two buckets of 16 bytes in each of a dozen contexts, most of them shared.
        bits = min(self.table_bits, max(MIN_TABLE_BITS, raw_size.bit_length() + 6))
        if bits == self.table_bits:
            return self
        smaller = copy.copy(self)
        smaller.table_bits = bits
        return smaller

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        return _core.frame_memory(self._model, raw_size, lanes, self.method, self.table_bits)

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        most = _core.most_encoding_threads(self.method)
        with self._threads.take(len(data), most) as threads:
            return _core.encode_frame(
                self._model,
                data,
                lanes,
                self.method,
                self.table_bits,
                threads,
                PROFILES[self.profile],
                check_abandoned,
            )

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        most = _core.most_decoding_threads(self._model, self.method, len(payloads))
        with self._threads.take(sum(map(len, payloads)), most) as threads:
            return _core.decode_frame(
                self._model,
                payloads,
                raw_size,
                self.method,
                self.table_bits,
                threads,
                PROFILES[self.profile],
                check_abandoned,
            )
