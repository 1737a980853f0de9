"""Model files: safetensors with one JSON document in its metadata.  Layout: docs/model_file.md.

In: bytes of a stranger's or our own file.  Out: an ExactModel whose every tensor has the type,
the shape and the value range that docs/numerics.md section 2 promises, so that engines need no
checks of their own. Nothing is executed and nothing is allocated beyond the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from lmzip.errors import CorruptError, LimitError, NotLmzError, UnsupportedError
from lmzip.models import check_name, parse_document

FORMAT = "lmzip-exact-1"  # docs/numerics.md version 1
MAX_FILE_SIZE = 1 << 32
MAX_HEADER_SIZE = 1 << 24
MIN_SCALE, MAX_SCALE = 2.0**-60, 2.0**20

Array = npt.NDArray[Any]
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)


@dataclass(frozen=True)
class NgramTable:
    """Hashed embeddings of the last `order` bytes, added to channels offset .. offset + width."""

    order: int
    log2_slots: int
    offset: int
    width: int

    def __post_init__(self) -> None:
        check_integers(self, "order", "log2_slots", "offset", "width")


@dataclass(frozen=True)
class Architecture:
    """The shape of the network; names as in docs/numerics.md section 2."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    windows: tuple[int, ...]
    ngrams: tuple[NgramTable, ...] = ()
    rotary_base: float = 1000.0  # training only; the file carries integer frequencies

    def __post_init__(self) -> None:
        check_integers(self, "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
        limits = {
            "d_model": (32, 2048, self.d_model % 32 == 0),
            "n_layers": (1, 256, len(self.windows) == self.n_layers),
            "n_heads": (1, 128, self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads == 0),
            "head_dim": (2, 128, self.head_dim % 2 == 0),
            "d_ff": (32, 65536, self.d_ff % 32 == 0),
        }
        for name, (low, high, fits) in limits.items():
            value = getattr(self, name)
            if not (low <= value <= high and fits):
                raise UnsupportedError(f"architecture: {name} = {value!r} is not possible ({self})")
        if not all(type(w) is int and 1 <= w <= 4096 for w in self.windows):
            raise UnsupportedError(f"architecture: windows {self.windows} are not within 1..4096")
        for t in self.ngrams:
            inside = t.offset >= 0 and t.width >= 1 and t.offset + t.width <= self.d_model
            if not (2 <= t.order <= 4 and 1 <= t.log2_slots <= 24 and inside):
                raise UnsupportedError(f"architecture: n-gram table {t} is not possible")
        if len(self.ngrams) > 3:
            raise UnsupportedError(f"architecture: {len(self.ngrams)} n-gram tables; at most 3")
        if type(self.rotary_base) not in (int, float) or not 1 <= self.rotary_base < math.inf:
            raise UnsupportedError(f"architecture: rotary_base = {self.rotary_base!r}; at least 1")

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Architecture:
        fields = dict(document)
        try:
            fields["windows"] = tuple(fields["windows"])
            fields["ngrams"] = tuple(NgramTable(**t) for t in fields.get("ngrams", ()))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UnsupportedError(f"architecture of the model file: {error}") from None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def tensors(self) -> Shapes:
        """Every tensor of the file."""
        d, heads = self.d_model, self.n_heads * self.head_dim
        qkv = heads + 2 * self.n_kv_heads * self.head_dim
        out: Shapes = {"embedding.byte": ("int8", (256, d))}
        for i, t in enumerate(self.ngrams):
            out[f"embedding.ngram.{i}"] = ("int8", (1 << t.log2_slots, t.width))
        out["embedding.shift"] = ("int32", (1 + len(self.ngrams),))
        products = {"head": (256, d)}
        for i in range(self.n_layers):
            products[f"layers.{i}.qkv"] = (qkv, d)
            products[f"layers.{i}.out"] = (d, heads)
            products[f"layers.{i}.up"] = (self.d_ff, d)
            products[f"layers.{i}.down"] = (d, self.d_ff)
            out[f"layers.{i}.softmax"] = ("int32", (self.n_heads,))
        for name, shape in products.items():
            out[f"{name}.weight"] = ("int8", shape)
            out[f"{name}.scale"] = ("float32", shape[:1])
        out["rotary.frequency"] = ("uint32", (self.head_dim // 2,))
        out["rotary.cosine"] = ("int16", (4096,))
        return out

    def parameters(self) -> int:
        """Number of weights (int8 entries), embeddings included."""
        shapes = (shape for dtype, shape in self.tensors().values() if dtype == "int8")
        return sum(int(np.prod(shape)) for shape in shapes)

    def product_parameters(self) -> int:
        """Number of weights that take part in products: the arithmetic of a byte is twice this."""
        return sum(
            int(np.prod(shape))
            for name, (_, shape) in self.tensors().items()
            if name.endswith(".weight")
        )


def check_integers(part: object, *names: str) -> None:
    """Fields of a stranger's JSON: 2.0 and true would pass every comparison with integers."""
    for name in names:
        value = getattr(part, name)
        if type(value) is not int:
            raise UnsupportedError(f"architecture: {name} = {value!r} is no integer")


@dataclass(frozen=True)
class ExactModel:
    """A checked model: architecture, tensors by name, and what its file says about itself."""

    architecture: Architecture
    tensors: dict[str, Array]
    about: dict[str, Any] = field(default_factory=dict)  # name, licence, training, ...
    model_id: bytes = b""  # SHA-256 of the file, 32 bytes

    @property
    def name(self) -> str:
        return str(self.about.get("name", "unnamed"))


@dataclass(frozen=True)
class ModelParts:
    """The parts of a model file of either format."""

    architecture: dict[str, Any]  # JSON
    tensors: dict[str, Array]
    about: dict[str, Any]
    model_id: bytes = b""


def check(architecture: Architecture, tensors: dict[str, Array]) -> None:
    """Hold every tensor against docs/numerics.md section 2.  Raises CorruptError."""
    check_tensors(architecture.tensors(), tensors, _in_range)


def check_tensors(
    expected: Shapes,
    tensors: dict[str, Array],
    in_range: Callable[[str, Array], bool],
    free: frozenset[str] = frozenset(),
) -> None:
    """Names, types, shapes, ranges.  `free`: names of more tensors, which may have any shape."""
    if tensors.keys() != expected.keys() | free:
        wrong = sorted(tensors.keys() ^ (expected.keys() | free))
        raise CorruptError(f"model file: tensors missing or unexpected: {', '.join(wrong[:5])}")
    for name, (dtype, shape) in expected.items():
        t = tensors[name]
        if t.dtype != np.dtype(dtype) or t.shape != shape:
            raise CorruptError(
                f"model file: {name} is {t.dtype} {t.shape}, expected {dtype} {shape}"
            )
        if not in_range(name, t):
            raise CorruptError(f"model file: {name} has values outside the range that is allowed")


def _in_range(name: str, t: Array) -> bool:
    if t.dtype == np.int8:
        return bool(t.min() >= -127)
    if name.endswith(".scale"):
        return bool(np.all(np.isfinite(t)) and t.min() >= MIN_SCALE and t.max() <= MAX_SCALE)
    if name.endswith(".softmax"):
        return bool(t.min() >= 1 and t.max() <= 4095)
    if name == "embedding.shift":
        return bool(t.min() >= 0 and t.max() <= 15)
    if name == "rotary.cosine":
        return bool(t.min() >= -(1 << 14) and t.max() <= 1 << 14)
    return True


def parse(data: bytes) -> ExactModel:
    """Read a model file.

    Raises NotLmzError (no safetensors file, or none of ours), UnsupportedError (a newer format or
    an impossible architecture), CorruptError (tensors that are not what the architecture says),
    LimitError.
    """
    parts = unpack(data, FORMAT)
    architecture = Architecture.from_json(parts.architecture)
    check(architecture, parts.tensors)
    return ExactModel(architecture, parts.tensors, parts.about, parts.model_id)


def unpack(data: bytes, expected_format: str) -> ModelParts:
    """What a model file of this format holds, its tensors not yet checked; raises as parse()."""
    document = read_document(data)
    found = document.pop("format", None)
    if found != expected_format:
        raise UnsupportedError(f"model file: format {found!r}; expected {expected_format!r}")
    architecture = document.pop("architecture", {})
    if not isinstance(architecture, dict):
        raise UnsupportedError(f"model file: its architecture is {architecture!r}, no JSON object")
    check_name(document.get("name") or "")
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # noqa: BLE001 (the library has no common base class)
        raise CorruptError(f"model file: {error}") from None
    return ModelParts(architecture, tensors, document, hashlib.sha256(data).digest())


def read_document(data: bytes) -> dict[str, Any]:
    """The JSON document in the safetensors metadata."""
    if len(data) > MAX_FILE_SIZE:
        raise LimitError(f"model file: {len(data)} bytes; at most {MAX_FILE_SIZE}")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER_SIZE, len(data) - 8) or data[8:9] != b"{":
        raise NotLmzError("not a model file: no safetensors header")
    try:
        document = parse_document(json.loads(data[8 : 8 + size]))
    except (ValueError, RecursionError):
        document = None
    if document is None:
        raise NotLmzError("not an lmzip model: a safetensors file without lmzip's metadata")
    return document


def load(path: str | Path) -> ExactModel:
    """Read a model file from disk.  Raises OSError and what parse() raises."""
    return parse(Path(path).read_bytes())


def serialize(
    architecture: Architecture, tensors: dict[str, Array], about: dict[str, Any]
) -> bytes:
    """The bytes of a model file; the same arguments give the same bytes."""
    check(architecture, tensors)
    return pack(FORMAT, ModelParts(architecture.to_json(), tensors, about))


def pack(model_format: str, parts: ModelParts) -> bytes:
    """The bytes of a model file of this format; the tensors have been checked."""
    check_name(parts.about.get("name") or "")
    document = {"format": model_format, "architecture": parts.architecture, **parts.about}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    contiguous = {name: np.ascontiguousarray(t) for name, t in parts.tensors.items()}
    return safetensors.numpy.save(contiguous, metadata={"lmzip": text})


def tensors_digest(tensors: dict[str, Array]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names, as hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {t.dtype.name} {t.shape}\n".encode())
        digest.update(t.astype(t.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()
