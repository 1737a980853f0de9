"""The frame codec of float predictors: docs/format.md method 6.

Encoding goes through the same steps as decoding, in the same shapes, since float results depend on
both.  The floats end here: logits become the integers of docs/coder.md before they reach the coder.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmzip.codec import CodecRequest, lane_ranges
from lmzip.coder import MAX_SYMBOLS, Decoder, Encoder
from lmzip.container import METHOD_FLOAT
from lmzip.errors import CorruptError, LmzipError, TruncatedError
from lmzip.pool import check_abandoned
from lmzip.predictors import Predictor

UNITS = 1024 / math.log(2)  # of integer logits, in a natural one
LOWEST = -(1 << 20)  # no symbol has less; -1024 bits

_lock = threading.Lock()  # predictors have a state, and may share a module


class FloatCodec:
    """A FrameCodec (codec.py) over a Predictor.  Frames are coded one after the other."""

    method, table_bits, profile = METHOD_FLOAT, 0, 0
    model_id, model_name = bytes(32), ""

    def __init__(self, request: CodecRequest) -> None:
        assert request.predictor is not None
        self._predictor = request.predictor
        symbols = len(self._predictor.tokens)
        if not 1 <= symbols <= MAX_SYMBOLS:
            raise LmzipError(f"a predictor has 1 to {MAX_SYMBOLS} symbols, not {symbols}")

    def sized(self, raw_size: int) -> FloatCodec:  # noqa: ARG002 (no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """Without the predictor: the user has chosen it."""
        return 8 * raw_size + 24 * lanes * len(self._predictor.tokens)

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        pieces = [bytes(data[begin:end]) for begin, end in lane_ranges(len(data), lanes)]
        rows = [_Symbols(self._predictor, piece) for piece in pieces]
        encoder = Encoder(lanes)
        with _lock, torch.inference_mode():
            lockstep = _Lockstep(self._predictor, lanes)
            steps = max(len(row.tokens) for row in rows)
            for t in range(steps):
                check_abandoned()
                active = [lane for lane, row in enumerate(rows) if t < len(row.tokens)]
                tokens = np.array([rows[lane].tokens[t] for lane in active])
                encoder.encode(tokens, logits=lockstep.logits(active), lanes=active)
                raw = [lane for lane in active if t in rows[lane].raw]
                if raw:
                    values = [rows[lane].raw[t] for lane in raw]
                    encoder.encode(values, _any_byte(len(raw)), lanes=raw)
                if t + 1 < steps:
                    lockstep.step(active, tokens)
        payloads = encoder.finish()
        return payloads if lanes > 1 else [payloads]

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        lanes = len(payloads)
        sizes = [end - begin for begin, end in lane_ranges(raw_size, lanes)]
        pieces = [bytearray() for _ in sizes]
        decoder = Decoder(list(payloads))
        try:
            with _lock, torch.inference_mode():
                self._decode(decoder, sizes, pieces)
            decoder.finish()
        except (TruncatedError, CorruptError) as error:
            raise CorruptError(
                f"the payload is damaged, or another predictor has written it ({error})"
            ) from None
        return b"".join(pieces)

    def _decode(self, decoder: Decoder, sizes: list[int], pieces: list[bytearray]) -> None:
        predictor = self._predictor
        lockstep = _Lockstep(predictor, len(sizes))
        active = [lane for lane, size in enumerate(sizes) if size]
        while active:
            check_abandoned()
            tokens = decoder.decode(logits=lockstep.logits(active), lanes=active)
            tokens = np.asarray(tokens).reshape(-1)
            escaped = [i for i, token in enumerate(tokens) if token == predictor.escape]
            raw: dict[int, int] = {}
            if escaped:
                found = decoder.decode(_any_byte(len(escaped)), lanes=[active[i] for i in escaped])
                raw = dict(zip(escaped, np.asarray(found).reshape(-1).tolist(), strict=True))
            for i, lane in enumerate(active):
                spelled = bytes([raw[i]]) if i in raw else predictor.tokens[int(tokens[i])]
                if not spelled or len(pieces[lane]) + len(spelled) > sizes[lane]:
                    raise CorruptError(f"lane {lane} has a token that cannot be there")
                pieces[lane] += spelled
            going = [lane for lane in active if len(pieces[lane]) < sizes[lane]]
            if going:
                lockstep.step(active, tokens)
            active = going


class _Symbols:
    """A lane's row of tokens, and the raw bytes behind those that are escapes, by position.

    LmzipError unless they spell the piece.
    """

    def __init__(self, predictor: Predictor, piece: bytes) -> None:
        n, escape = len(predictor.tokens), predictor.escape
        symbols = predictor.encode(piece)
        self.raw = {t: symbol - n for t, symbol in enumerate(symbols) if symbol >= n}
        self.tokens = symbols if escape is None else [escape if s >= n else s for s in symbols]
        parts = [
            bytes([self.raw[t]]) if t in self.raw else predictor.tokens[token]
            for t, token in enumerate(self.tokens)
        ]
        spelled = all(parts) and b"".join(parts) == piece
        if not spelled or (self.raw and escape is None):
            raise LmzipError(
                f"the symbols of the predictor {predictor.name} do not spell the bytes that they "
                "were made of: this is a fault of its encode()"
            )


class _Lockstep:
    """A predictor and the last symbols of its lanes; those that are done keep theirs."""

    def __init__(self, predictor: Predictor, lanes: int) -> None:
        self._predictor = predictor
        self._last = np.zeros(lanes, np.int64)
        unused = [
            i for i, token in enumerate(predictor.tokens) if not token and i != predictor.escape
        ]
        self._unused = np.array(unused, np.int64)
        self._logits = predictor.start(lanes)

    def logits(self, active: list[int]) -> NDArray[np.int32]:
        """(lanes of `active`, symbols)"""
        rows = to_integers(self._logits, (len(self._last), len(self._predictor.tokens)))
        rows[:, self._unused] = LOWEST
        return rows[active]

    def step(self, active: list[int], tokens: NDArray[np.int64]) -> None:
        self._last[active] = tokens
        symbols = torch.from_numpy(self._last.copy()).to(self._predictor.device)
        self._logits = self._predictor.step(symbols)


def to_integers(logits: Tensor, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Natural logits -> int32 in units of 1/1024 bit below the greatest of the row.

    Raises LmzipError for another shape and for NaN, infinite or no logits.
    """
    if tuple(logits.shape) != shape:
        raise LmzipError(
            f"the predictor gives logits of the shape {tuple(logits.shape)}; expected {shape}, "
            "(lanes, symbols)"
        )
    natural = logits.detach().to(torch.float32)
    top = natural.amax(-1, keepdim=True)
    # A NaN is the greatest of its row; without any, top is infinite for what cannot be coded.
    if not bool(top.isfinite().all()):
        raise LmzipError("the predictor gives NaN, or a row of infinite logits")
    rows = ((natural - top) * UNITS).round_().clamp_(min=LOWEST).to(torch.int32)
    return np.ascontiguousarray(rows.cpu().numpy())


def _any_byte(count: int) -> NDArray[np.uint32]:
    return np.ones((count, 256), np.uint32)
