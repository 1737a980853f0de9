"""Float predictors: any causal language model behind one interface, for files of method 6.

Floating-point results differ between machines, versions and batch sizes.  So a file that was
written with such a predictor is bound to its environment: it decodes where the same code with the
same weights runs in the same environment, in the same steps with the same shapes.  reference()
describes both; the file carries the descriptions, and they are compared before anything runs.

A predictor is code, and a file can only describe it: which one to run is said by the user alone,
as an object, or as "torch:MODULE:FACTORY[:ARGUMENT]" on the command line.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmzip.container import MAX_ENVIRONMENT_SIZE, MAX_PREDICTOR_SIZE, PredictorRef, printable
from lmzip.errors import LmzipError

try:
    import torch
except ImportError as _error:
    raise LmzipError(
        f"{_error.name or _error} is missing; float predictors need PyTorch: "
        "pip install 'lmzip-codec[torch]'"
    ) from None

if TYPE_CHECKING:
    from torch import Tensor

    from lmzip.tokenization import Tokenizer

BYTES: Sequence[bytes] = tuple(bytes([b]) for b in range(256))
DEFAULT_CONTEXT = 1024


class Predictor(ABC):
    """Distributions of the next symbol of many lanes at once, given their symbols so far.

    Lanes advance together: start(), then step() until all lanes are done, with the same number of
    lanes throughout; those that are done go on with their last symbol.  The same calls must give
    the same bits: dropout off, no sampling.  One frame is worked on at a time.
    """

    tokens: Sequence[bytes] = BYTES
    """What each symbol spells; empty for one that is never coded."""

    escape: int | None = None
    """The symbol behind which a raw byte follows; needed where `tokens` lacks bytes."""

    weights: tuple[int, int] = (0, 0)
    """Parameters and their bytes, for rates that count the model; zeros where it is not known."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that differs for predictors that predict otherwise: weights, versions."""

    @property
    def name(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def device(self) -> torch.device:
        """Where it runs: part of the environment."""
        return torch.device("cpu")

    @abstractmethod
    def start(self, lanes: int) -> Tensor:
        """Forget everything; return logits of the first symbol, (lanes, symbols), natural units."""

    @abstractmethod
    def step(self, symbols: Tensor) -> Tensor:
        """Take the last symbol of each lane, (lanes) int64; return logits of the next one."""

    def encode(self, data: bytes) -> list[int]:
        """Symbols that spell `data`; len(tokens) + b for a raw byte b behind the escape."""
        return list(data)


class ByteModule(Predictor):
    """A torch.nn.Module over bytes: (lanes, n) int64 -> logits of each next byte, (lanes, n, 256).

    Every step evaluates all bytes in sight again, at most `context` (of the module, if it has an
    attribute of this name), half of which are dropped when it is full; a byte 0 stands before
    the first.  Modules with a state of their own are better served by a Predictor of their own.
    """

    def __init__(self, module: torch.nn.Module, context: int | None = None) -> None:
        self._module = module.eval()
        stated: Any = getattr(module, "context", DEFAULT_CONTEXT)
        self._context = _checked(int(stated if context is None else context))
        self._seen = torch.zeros((1, 1), dtype=torch.int64)
        self.weights = _weights(module)

    @property
    def name(self) -> str:
        return f"{type(self._module).__module__}.{type(self._module).__qualname__}"

    @functools.cached_property
    def fingerprint(self) -> str:
        return f"{weights_digest(self._module)[:16]} context {self._context}"

    @property
    def device(self) -> torch.device:
        return _device_of(self._module)

    def start(self, lanes: int) -> Tensor:
        self._seen = torch.zeros((lanes, 1), dtype=torch.int64, device=self.device)
        return self._predict()

    def step(self, symbols: Tensor) -> Tensor:
        if self._seen.shape[1] == self._context:
            self._seen = self._seen[:, -(self._context // 2) :]
        self._seen = torch.cat([self._seen, symbols[:, None]], dim=1)
        return self._predict()

    def _predict(self) -> Tensor:
        logits: Tensor = self._module(self._seen)
        if logits.shape != (*self._seen.shape, 256):
            raise LmzipError(
                f"the predictor {self.name} gives logits of the shape {tuple(logits.shape)} for "
                f"bytes of the shape {tuple(self._seen.shape)}; expected {(*self._seen.shape, 256)}"
            )
        return logits[:, -1]


class CausalLM(Predictor):
    """A causal language model of transformers with its tokenizer, decoded with its cache.

    `document`: its tokenizer.json.  When `context` tokens are in sight the last half of them is
    fed anew.  Raises UnsupportedError for tokenizers that are no byte-level or byte-fallback BPE.
    """

    def __init__(self, model: Any, document: dict[str, Any], context: int | None = None) -> None:
        from lmzip.tokenization import plain_document, start_token, token_bytes

        self._model = model.eval()
        self.weights = _weights(model)
        config = model.config
        limit = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
        self._context = _checked(min(DEFAULT_CONTEXT if context is None else context, limit))
        self._start = start_token(document, config.vocab_size, config.bos_token_id)
        tokens = token_bytes(document, config.vocab_size)
        tokens[self._start] = b""
        self.tokens, self.escape = tokens, self._start
        self._document = json.dumps(plain_document(document), ensure_ascii=False)
        self._tokenizer: Tokenizer | None = None
        self._cache: Any = None
        self._seen: list[Tensor] = []

    @property
    def name(self) -> str:
        return f"transformers {type(self._model).__name__}"

    @functools.cached_property
    def fingerprint(self) -> str:
        import transformers as library

        digest = hashlib.sha256(weights_digest(self._model).encode())
        digest.update(self._model.config.to_json_string().encode())
        digest.update(json.dumps([token.hex() for token in self.tokens]).encode())
        return (
            f"{digest.hexdigest()[:16]} {str(self._model.dtype).removeprefix('torch.')} "
            f"context {self._context} transformers {library.__version__}"
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self._model.device)

    def encode(self, data: bytes) -> list[int]:
        if self._tokenizer is None:
            from lmzip.tokenization import Tokenizer

            self._tokenizer = Tokenizer(list(self.tokens), self._document)
        return self._tokenizer.encode(data)

    def _new_cache(self) -> Any:
        import transformers as library

        return library.DynamicCache(config=self._model.config)

    def start(self, lanes: int) -> Tensor:
        first = torch.full((lanes,), self._start, dtype=torch.int64, device=self.device)
        self._cache, self._seen = self._new_cache(), [first]
        return self._feed(first[:, None])

    def step(self, symbols: Tensor) -> Tensor:
        self._seen.append(symbols)
        if len(self._seen) <= self._context:
            return self._feed(symbols[:, None])
        self._cache, self._seen = self._new_cache(), self._seen[-(self._context // 2) :]
        return self._feed(torch.stack(self._seen, dim=1))

    def _feed(self, tokens: Tensor) -> Tensor:
        given = {cache_argument(self._model): self._cache}
        out = self._model(input_ids=tokens, use_cache=True, logits_to_keep=1, **given)
        logits: Tensor = out.logits[:, -1, : len(self.tokens)]
        return logits


def cache_argument(model: Any) -> str:
    """What the argument of a transformers model for its cache is called: newer ones say "cache"."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def transformers(argument: str) -> CausalLM:
    """The factory of `--predictor torch:lmzip.predictors:transformers:FOLDER[,NAME=VALUE]...`.

    FOLDER: config.json, *.safetensors and tokenizer.json; nothing is fetched, no code and no
    pickle of it is run.  Options: device (cpu), dtype (float32), context (tokens, 1024).
    """
    try:
        import transformers as library
    except ImportError as error:
        raise LmzipError(
            f"{error.name or error} is missing; this predictor needs it: pip install transformers"
        ) from None
    folder, *options = argument.split(",")
    given = dict(option.partition("=")[::2] for option in options)
    unknown = sorted(given.keys() - {"device", "dtype", "context"})
    dtype = getattr(torch, given.get("dtype", "float32"), None)
    if unknown or not isinstance(dtype, torch.dtype):
        raise LmzipError(f"predictor option {unknown or given['dtype']!r} is unknown")
    document = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
    model: Any = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    context = int(given["context"]) if "context" in given else None
    return CausalLM(model.to(given.get("device", "cpu")), document, context)


@functools.cache
def load(spec: str) -> Predictor:
    """The predictor "torch:MODULE:FACTORY[:ARGUMENT]": FACTORY([ARGUMENT]) of a Python module.

    FACTORY returns a Predictor, or a torch.nn.Module for ByteModule.  Raises LmzipError; modules
    of Python itself make no predictor, and what they do instead (os:system) is not called.
    """
    kind, _, rest = spec.partition(":")
    module_name, _, rest = rest.partition(":")
    factory_name, given, argument = rest.partition(":")
    if kind != "torch" or not module_name or not factory_name:
        raise LmzipError(
            f"{spec!r} names no predictor; expected torch:MODULE:FACTORY or "
            "torch:MODULE:FACTORY:ARGUMENT"
        )
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise LmzipError(
            f"{spec!r} names no predictor: {module_name!r} is a module of Python itself; "
            "expected one that has a factory of predictors"
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
        made = factory(*([argument] if given else []))
    except LmzipError:
        raise
    except Exception as error:  # of the user's code: anything
        what = f"{type(error).__name__}: {error}"
        raise LmzipError(f"the predictor {spec!r} cannot be loaded: {what}") from error
    return as_predictor(made)


def as_predictor(made: object) -> Predictor:
    """A Predictor as it is, a torch.nn.Module in a ByteModule. LmzipError for anything else."""
    if isinstance(made, torch.nn.Module):
        return ByteModule(made)
    if not isinstance(made, Predictor):
        raise LmzipError(
            f"a predictor must be a lmzip.predictors.Predictor or a torch.nn.Module over bytes, "
            f"got {type(made).__name__}"
        )
    return made


def reference(predictor: Predictor) -> PredictorRef:
    """What a file says of its predictor, and of the environment that it is bound to."""
    label = f"{predictor.name} {predictor.fingerprint}"
    return PredictorRef(
        _cut(label, MAX_PREDICTOR_SIZE), _cut(environment(predictor.device), MAX_ENVIRONMENT_SIZE)
    )


def environment(device: torch.device) -> str:
    """Whatever is known to change the last bits of a product."""
    parts = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts += [
            torch.cuda.get_device_name(device),
            f"CUDA {torch.version.cuda}",
            f"cuDNN {torch.backends.cudnn.version()}",  # type: ignore[no-untyped-call]
        ]
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        parts += [f"{device.type} {_cpu_name()} {capability}", f"{torch.get_num_threads()} threads"]
    parts += [
        f"float32 products {torch.get_float32_matmul_precision()}",
        f"{platform.system()} {platform.machine()}",
    ]
    return ", ".join(parts)


def _checked(context: int) -> int:
    """Half of it stays when it is full: at least one symbol."""
    if context < 2:
        raise ValueError(f"the context must be 2 or more, got {context}")
    return context


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a module's state, as hexadecimal."""
    digest = hashlib.sha256()
    for name, t in sorted(module.state_dict().items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(module: torch.nn.Module) -> tuple[int, int]:
    """Parameters and their bytes, those that are shared counted once."""
    found = list(module.parameters())
    return sum(p.numel() for p in found), sum(p.nbytes for p in found)


def _device_of(module: torch.nn.Module) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor()


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of plain text; where it must be cut, its hash stands for the rest."""
    text = printable(text)
    if len(text.encode()) <= size:
        return text
    mark = f"... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text.encode()[: size - len(mark)].decode("utf-8", "ignore") + mark
