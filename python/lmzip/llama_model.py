"""Model files of pretrained language models ("lmzip-llama-1").  Layout: docs/numerics-llama.md.

In: bytes of a stranger's or our own file.  Out: a LlamaModel whose every tensor has the type, the
shape and the value range of docs/numerics-llama.md section 2, so that engines need no checks of
their own.  The vocabulary is plain data in the file: decoding needs no tokenizer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lmzip.errors import CorruptError, UnsupportedError
from lmzip.model_file import (
    Array,
    ModelParts,
    Shapes,
    check_integers,
    check_tensors,
    pack,
    unpack,
)
from lmzip.models import TOKEN_FORMAT as FORMAT  # docs/numerics-llama.md version 1

MIN_SCALE, MAX_SCALE = 2.0**-40, 2.0**10
MAX_GAIN, MAX_POST_GAIN = 2.0**10, 2.0**16
MAX_BIAS = 1 << 24
SIGMOID_SIZE = 8192
MAX_TOKEN_SIZE = 1024  # bytes
WIDE_INPUTS = ("qkv", "out", "gate_up", "down", "head")


@dataclass(frozen=True)
class LlamaArchitecture:
    """The shape of the network; names as in docs/numerics-llama.md section 2."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    windows: tuple[int, ...]
    sinks: tuple[int, ...]
    epsilon: float
    qk_norm: bool = False
    tied: bool = True
    wide: tuple[str, ...] = WIDE_INPUTS
    start: int = 0  # the token before the first
    escape: int = 0  # the token that says: a raw byte follows
    post_norms: bool = False
    local: tuple[bool, ...] = ()  # layers with rotary.local_frequency; none where it is empty

    def __post_init__(self) -> None:
        check_integers(self, "vocabulary", "d_model", "n_layers", "n_heads", "n_kv_heads")
        check_integers(self, "head_dim", "d_ff", "start", "escape")
        layers = self.n_layers
        limits = {
            "vocabulary": (2, 1 << 20, True),
            "d_model": (32, 8192, self.d_model % 32 == 0),
            "n_layers": (
                1,
                256,
                len(self.windows) == len(self.sinks) == layers and len(self.local) in (0, layers),
            ),
            "n_heads": (1, 128, self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads == 0),
            "head_dim": (32, 256, self.head_dim % 32 == 0),
            "d_ff": (32, 65536, self.d_ff % 32 == 0),
            "start": (0, self.vocabulary - 1, True),
            "escape": (0, self.vocabulary - 1, True),
        }
        for name, (low, high, fits) in limits.items():
            value = getattr(self, name)
            if not (low <= value <= high and fits):
                raise UnsupportedError(f"architecture: {name} = {value!r} is not possible ({self})")
        if not all(type(w) is int and 1 <= w <= 4096 for w in self.windows):
            raise UnsupportedError(f"architecture: windows {self.windows} are not within 1..4096")
        if not all(type(s) is int and 0 <= s <= 16 for s in self.sinks):
            raise UnsupportedError(f"architecture: sinks {self.sinks} are not within 0..16")
        if not (isinstance(self.epsilon, float) and 0 <= self.epsilon <= 1):
            raise UnsupportedError(f"architecture: epsilon {self.epsilon!r} is not within 0..1")
        flags = (self.qk_norm, self.tied, self.post_norms, *self.local)
        if not all(isinstance(flag, bool) for flag in flags):
            raise UnsupportedError(
                "architecture: qk_norm, tied, post_norms and local must be true or false"
            )
        if not set(self.wide) <= set(WIDE_INPUTS):
            raise UnsupportedError(f"architecture: wide inputs {self.wide} are unknown")

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LlamaArchitecture:
        fields = dict(document)
        try:
            for name in ("windows", "sinks", "wide"):
                fields[name] = tuple(fields[name])
            fields["local"] = tuple(fields.get("local", ()))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UnsupportedError(f"architecture of the model file: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Without what came later and is not used: files of older families stay as they were."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if v or k not in ("post_norms", "local")}

    @property
    def residual_bits(self) -> int:
        """The residual stream counts in units of 2^-residual_bits."""
        return 9 if self.post_norms else 14

    def epsilon_units(self) -> int:
        """D epsilon in squared units of the residual stream."""
        return round(self.d_model * self.epsilon * (1 << 2 * self.residual_bits))

    def head_epsilon_units(self) -> int:
        """head_dim epsilon in squared units of queries and keys (2^-24)."""
        return round(self.head_dim * self.epsilon * 2**24)

    def to_native(self) -> dict[str, Any]:
        """What _core.LlamaModel takes."""
        units = {
            "epsilon_units": self.epsilon_units(),
            "head_epsilon_units": self.head_epsilon_units(),
            "residual_bits": self.residual_bits,
            "local": [any(self.local[i : i + 1]) for i in range(self.n_layers)],
        }
        return asdict(self) | units

    def tensors(self) -> Shapes:
        """Name -> (dtype, shape) of every tensor of a fixed shape."""
        d, heads = self.d_model, self.n_heads * self.head_dim
        qkv = heads + 2 * self.n_kv_heads * self.head_dim
        out: Shapes = {
            "embedding.weight": ("int8", (self.vocabulary, d)),
            "embedding.scale": ("float32", (self.vocabulary,)),
            "head.norm": ("float32", (d,)),
            "head.scale": ("float32", (self.vocabulary,)),
            "rotary.frequency": ("uint32", (self.head_dim // 2,)),
            "rotary.cosine": ("int16", (4096,)),
            "softmax": ("float32", (1,)),
            "sigmoid": ("uint16", (SIGMOID_SIZE,)),
            "tokens.size": ("uint16", (self.vocabulary,)),
        }
        if any(self.local):
            out["rotary.local_frequency"] = out["rotary.frequency"]
        if not self.tied:
            out["head.weight"] = ("int8", (self.vocabulary, d))
        for i in range(self.n_layers):
            layer = f"layers.{i}."
            for name, shape in {
                "qkv": (qkv, d),
                "out": (d, heads),
                "gate_up": (2 * self.d_ff, d),
                "down": (d, self.d_ff),
            }.items():
                out[f"{layer}{name}.weight"] = ("int8", shape)
                out[f"{layer}{name}.scale"] = ("float32", shape[:1])
            out[layer + "qkv.bias"] = ("int32", (qkv,))
            out[layer + "attention.norm"] = out[layer + "mlp.norm"] = ("float32", (d,))
            if self.post_norms:
                out[layer + "attention.post_norm"] = out[layer + "mlp.post_norm"] = (
                    "float32",
                    (d,),
                )
            if self.qk_norm:
                out[layer + "q.norm"] = out[layer + "k.norm"] = ("float32", (self.head_dim,))
        return out

    def parameters(self) -> int:
        """Number of weights (int8 entries), embeddings included."""
        shapes = (shape for dtype, shape in self.tensors().values() if dtype == "int8")
        return sum(math.prod(shape) for shape in shapes)


FREE_TENSORS = frozenset({"tokens.bytes", "tokenizer"})  # uint8, of any length


@dataclass(frozen=True)
class LlamaModel:
    """A checked model: architecture, tensors by name, and what its file says about itself."""

    architecture: LlamaArchitecture
    tensors: dict[str, Array]
    about: dict[str, Any] = field(default_factory=dict)
    model_id: bytes = b""  # SHA-256 of the file, 32 bytes

    @property
    def name(self) -> str:
        return str(self.about.get("name", "unnamed"))

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every token; empty for one that is never coded."""
        ends = np.cumsum(self.tensors["tokens.size"], dtype=np.int64)
        data = self.tensors["tokens.bytes"].tobytes()
        begins = [0, *ends.tolist()]
        return [data[a:b] for a, b in itertools.pairwise(begins)]

    @property
    def tokenizer(self) -> str:
        """A tokenizer.json of the tokenizers library, which tokenization.py checks."""
        return self.tensors["tokenizer"].tobytes().decode()


def check(architecture: LlamaArchitecture, tensors: dict[str, Array]) -> None:
    """Hold every tensor against docs/numerics-llama.md section 2.  Raises CorruptError."""
    check_tensors(architecture.tensors(), tensors, _in_range, FREE_TENSORS)
    for name in FREE_TENSORS:
        if tensors[name].dtype != np.uint8 or tensors[name].ndim != 1:
            raise CorruptError(f"model file: {name} must be a row of uint8")
    if int(tensors["tokens.size"].sum(dtype=np.int64)) != tensors["tokens.bytes"].size:
        raise CorruptError("model file: tokens.size does not add up to tokens.bytes")
    if tensors["tokens.size"][architecture.escape] != 0:
        raise CorruptError("model file: the escape token has bytes of its own")
    try:
        tensors["tokenizer"].tobytes().decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"model file: its tokenizer is not UTF-8: {error}") from None


def _in_range(name: str, t: Array) -> bool:
    if t.dtype == np.int8:
        return bool(t.min() >= -127)
    if name.endswith((".scale", "softmax")):
        return bool(np.all(np.isfinite(t)) and t.min() >= MIN_SCALE and t.max() <= MAX_SCALE)
    if name.endswith((".norm", ".post_norm")):
        most = MAX_POST_GAIN if name.endswith("post_norm") else MAX_GAIN
        return bool(np.all(np.isfinite(t)) and np.abs(t).max() <= most)
    if name.endswith(".bias"):
        return bool(t.min() >= -MAX_BIAS and t.max() <= MAX_BIAS)
    if name == "rotary.cosine":
        return bool(t.min() >= -(1 << 14) and t.max() <= 1 << 14)
    if name == "tokens.size":
        return bool(t.max() <= MAX_TOKEN_SIZE)
    return True


def parse(data: bytes) -> LlamaModel:
    """Read a model file.

    Raises NotLmzError, UnsupportedError, CorruptError, LimitError as model_file.parse() does.
    """
    parts = unpack(data, FORMAT)
    architecture = LlamaArchitecture.from_json(parts.architecture)
    check(architecture, parts.tensors)
    return LlamaModel(architecture, parts.tensors, parts.about, parts.model_id)


def serialize(
    architecture: LlamaArchitecture, tensors: dict[str, Array], about: dict[str, Any]
) -> bytes:
    """The bytes of a model file; the same arguments give the same bytes."""
    check(architecture, tensors)
    return pack(FORMAT, ModelParts(architecture.to_json(), tensors, about))
