"""The frame codec of pretrained language models: tokens in, docs/format.md method 5."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from lmzip import _core, llama_model
from lmzip.codec import TOKEN_PROFILE, CodecRequest
from lmzip.container import METHOD_TOKENS
from lmzip.errors import UnsupportedError
from lmzip.pool import check_abandoned
from lmzip.tokenization import Tokenizer


class _Opened:
    """A model packed for this machine's kernel, and its tokenizer once something is encoded."""

    def __init__(self, path: Path, model_id: bytes) -> None:
        model = llama_model.parse(path.read_bytes())
        if model.model_id != model_id:
            raise UnsupportedError(f"{path} has changed since its header was read; run again")
        self.native = _core.LlamaModel(model.tensors, model.architecture.to_native())
        self._tokens, self._document = model.tokens, model.tokenizer
        self._tokenizer: Tokenizer | None = None

    def symbols(self, data: bytes) -> list[int]:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._tokens, self._document)
        return self._tokenizer.encode(data)


@lru_cache(maxsize=2)
def _open_model(path: Path, model_id: bytes) -> _Opened:
    return _Opened(path, model_id)


class TokenCodec:
    """A FrameCodec (codec.py).  Encoding needs the tokenizers library, decoding does not.

    Raises UnsupportedError for an unknown profile.
    """

    method, table_bits, profile = METHOD_TOKENS, 0, TOKEN_PROFILE

    def __init__(self, request: CodecRequest) -> None:
        assert request.model is not None
        if request.profile < TOKEN_PROFILE:
            raise UnsupportedError(
                f"a frame of tokens has profile {request.profile}, which only development versions "
                f"of lmzip wrote; this one knows {TOKEN_PROFILE}: decode it with the lmzip that "
                "wrote it"
            )
        if request.profile > TOKEN_PROFILE:
            raise UnsupportedError(
                f"a frame of tokens has profile {request.profile}; this lmzip knows "
                f"{TOKEN_PROFILE}: update lmzip-codec"
            )
        self.model_id, self.model_name = request.model.id, request.model.name
        self._threads = request.threads
        self._model = _open_model(request.model.path, request.model.id)

    def sized(self, raw_size: int) -> TokenCodec:  # noqa: ARG002 (no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        return _core.token_memory(self._model.native, raw_size, lanes)

    @property
    def native(self) -> _core.LlamaModel:
        return self._model.native

    def symbols(self, data: memoryview | bytes) -> list[int]:
        """Tokens of the model, and its number of tokens + b for the byte b."""
        return self._model.symbols(bytes(data))

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        symbols = self.symbols(data)
        with self._threads.take(len(data)) as threads:
            return _core.encode_tokens(self.native, symbols, lanes, threads, check_abandoned)

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        most = _core.most_token_threads(self.native, len(payloads))
        with self._threads.take(sum(map(len, payloads)), most) as threads:
            return _core.decode_tokens(self.native, payloads, raw_size, threads, check_abandoned)
