"""The frame codec of method 1 (network) over the exact engine in PyTorch: CUDA, or any device.

Writes and reads the same bytes as the native engine.  Encoding evaluates blocks of positions of all
lanes at once, decoding steps all lanes; only logits leave the device.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from lmzip.codec import CodecRequest
from lmzip.coder import Decoder, Encoder
from lmzip.container import METHOD_NETWORK
from lmzip.errors import UnsupportedError
from lmzip.model_file import load
from lmzip.torch_engine import PREFILL_BLOCK, TorchEngine


class TorchCodec:
    """A FrameCodec (codec.py).  Raises UnsupportedError where the device is missing."""

    method, table_bits, profile = METHOD_NETWORK, 0, 0

    def __init__(self, request: CodecRequest) -> None:
        assert request.model is not None
        if request.device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError(
                "--device cuda: PyTorch sees no CUDA device here; use cpu or auto"
            )
        self.model_id, self.model_name = request.model.id, request.model.name
        self._engine = TorchEngine(load(request.model.path), request.device)

    def sized(self, raw_size: int) -> "TorchCodec":  # noqa: ARG002 (it has no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """Counted from shapes: the caches, and keys and values of one step widened to binary64."""
        a = self._engine.arch
        cache = 2 * sum(a.windows) * a.n_kv_heads * a.head_dim
        widened = (max(a.windows) + 1) * a.n_heads * (4 * 8 * a.head_dim + 64)
        return raw_size + lanes * (2 * cache + widened + 16 * (a.d_ff + 8 * a.d_model))

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        raw = np.frombuffer(data, np.uint8)
        lengths = _lane_lengths(len(raw), lanes)
        text = np.zeros((lanes, lengths[0] + 1), np.uint8)  # before each lane, its first input: 0
        for lane, piece in enumerate(np.split(raw, np.cumsum(lengths)[:-1])):
            text[lane, 1 : 1 + len(piece)] = piece
        state, encoder = self._engine.start(lanes), Encoder(lanes)
        for begin, end in _blocks(lengths):
            logits = self._engine.prefill(state, torch.from_numpy(text[:, begin:end]))
            active = np.flatnonzero(lengths > begin).tolist()
            encoder.encode(
                text[active, begin + 1 : end + 1].T,
                logits=logits[active].transpose(0, 1),
                lanes=active,
            )
        payloads = encoder.finish()
        return [payloads] if lanes == 1 else payloads

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        lanes = len(payloads)
        lengths = _lane_lengths(raw_size, lanes)
        state = self._engine.start(lanes)
        decoder = Decoder(payloads[0] if lanes == 1 else list(payloads))
        text = np.zeros((lanes, lengths[0] + 1), np.uint8)
        for t in range(int(lengths[0])):
            active = np.flatnonzero(lengths > t).tolist()
            logits = self._engine.step(state, torch.from_numpy(text[:, t]))
            symbols = decoder.decode(logits=logits[active][None], lanes=active)
            text[active, t + 1] = np.asarray(symbols)[0]
        decoder.finish()
        return b"".join(
            row[1 : 1 + length].tobytes() for row, length in zip(text, lengths, strict=True)
        )


def _lane_lengths(raw_size: int, lanes: int) -> npt.NDArray[np.int64]:
    """docs/format.md section 4: ceil(n / L) bytes each, the last ones shorter or empty."""
    stride = -(-raw_size // lanes)
    return np.clip(raw_size - stride * np.arange(lanes), 0, stride)


def _blocks(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut the positions into blocks during which no lane ends."""
    end = int(lengths[0])
    cuts = sorted({*range(0, end, PREFILL_BLOCK), *map(int, lengths), end} - {0})
    begin = 0
    for cut in cuts:
        yield begin, cut
        begin = cut
