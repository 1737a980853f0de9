"""What a model file says of itself, and whether it is sound (`lmzip models info`, `verify`).

A model is what its bytes are: nobody vouches for a file but the SHA-256 that its user knows, and
the hash of the tensors that whoever made the file wrote into it.  So a check has three parts: both
hashes, every tensor and the tokenizer against their specification, and the engine: on a few fixed
inputs each kernel must give what the portable one gives, position by position and all at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmzip import _core, llama_model, model_file
from lmzip.errors import CorruptError, LmzipError, ModelMismatchError
from lmzip.model_file import Array, tensors_digest
from lmzip.models import TOKEN_FORMAT, ModelInfo, document
from lmzip.tokenization import read_plain

POSITIONS = 8  # of the self-test
LANES = 2


@dataclass(frozen=True, slots=True)
class Report:
    """A model file that passed. `recorded`: it holds a hash of its tensors, and that is right."""

    sha256: str
    recorded: bool
    kernels: tuple[str, ...]


def describe(model: ModelInfo) -> dict[str, Any]:
    """All that is known of a model, for people and for JSON; hashes the file."""
    about = document(model.path)
    return {
        "name": model.name,
        "sha256": model.id.hex(),
        "path": str(model.path),
        "bytes": model.size,
        "parameters": model.parameters,
        "licence": model.licence or None,
        "release": model.release or None,
        "format": about.get("format"),
        "architecture": about.get("architecture"),
        "source": about.get("source"),
        "training": about.get("training"),
        "tensors_sha256": about.get("tensors_sha256"),
    }


def verify(path: Path, expected: str = "") -> Report:
    """Check a model file as the top of this file says; `expected`: first digits of its SHA-256.

    Raises ModelMismatchError for another file, NotLmzError, UnsupportedError, CorruptError,
    OSError.
    """
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(expected.lower()):
        raise ModelMismatchError(
            f"the SHA-256 is {digest}, expected {expected.lower()}: this is another file"
        )
    about = model_file.read_document(data)
    model, logits = _open(data, about)
    recorded = about.get("tensors_sha256")
    if recorded is not None and recorded != tensors_digest(model.tensors):
        raise CorruptError(
            f"the weights are not those that were written: their SHA-256 is "
            f"{tensors_digest(model.tensors)}, the file says {recorded}; get it again"
        )
    _check_kernels(logits)
    return Report(digest, recorded is not None, tuple(_core.kernels()))


Logits = Callable[[bool], Array]  # by step or all at once, with the kernel that is active


def _open(
    data: bytes, about: dict[str, Any]
) -> tuple[model_file.ExactModel | llama_model.LlamaModel, Logits]:
    if about.get("format") == TOKEN_FORMAT:
        llama = llama_model.parse(data)
        read_plain(llama.tokenizer)
        return llama, lambda by_step: _token_logits(llama, by_step)
    exact = model_file.parse(data)
    return exact, lambda by_step: _byte_logits(exact, by_step)


def _token_logits(model: llama_model.LlamaModel, by_step: bool) -> Array:
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    tokens = _inputs(model.architecture.vocabulary).astype(np.uint32)
    return _core.LlamaEngine(native, LANES, POSITIONS).feed(tokens, by_step=by_step)


def _byte_logits(model: model_file.ExactModel, by_step: bool) -> Array:
    native = _core.ExactModel(model.tensors, model.architecture.to_json())
    engine, inputs = _core.Engine(native, LANES), _inputs(256).astype(np.uint8)
    if not by_step:
        return engine.prefill(inputs)
    return np.stack([engine.step(np.ascontiguousarray(column)) for column in inputs.T], axis=1)


def _inputs(symbols: int) -> Array:
    """(LANES, POSITIONS), from all over the vocabulary."""
    return np.arange(LANES * POSITIONS).reshape(LANES, POSITIONS) * 7919 % symbols


def _check_kernels(logits: Logits) -> None:
    before = _core.active_kernel()
    try:
        _core.set_active_kernel("portable")
        expected = logits(True)
        for kernel in _core.kernels():
            _core.set_active_kernel(kernel)
            for by_step in (False, True):
                if not np.array_equal(logits(by_step), expected):
                    raise LmzipError(
                        f"the kernel {kernel!r} does not give what the portable one gives: this is "
                        "a bug in lmzip, or this machine is broken; LMZIP_KERNEL=portable avoids it"
                    )
    finally:
        _core.set_active_kernel(before)
