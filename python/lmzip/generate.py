"""Compressors as generators: Delétang et al. 2023, section 3.4.

A compressor that needs fewer bits for some continuation than for another holds it for more likely:
p(next | context) is proportional to 2^-(l(context + next) - l(context)), l being lengths in bits.
A model gives its probabilities directly.  The same seed gives the same bytes.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from lmzip import baselines
from lmzip.errors import LmzipError
from lmzip.output import AtomicFile

if TYPE_CHECKING:
    import torch

CONTEXT = 2048  # bytes that a compressor looks back: the paper's chunk
LOGIT_UNIT = 1024  # docs/numerics.md: logits are base-2 logarithms in units of 2^-10

Probabilities = npt.NDArray[np.float64]


class GenerationError(LmzipError):
    """Nothing can be generated; the message says why."""


class Source(Protocol):
    """Probabilities of the next symbol, after all that was fed; a symbol stands for some bytes."""

    def feed(self, data: bytes) -> None: ...
    def probabilities(self) -> Probabilities: ...
    def take(self, symbol: int) -> bytes:
        """Feed a symbol; the bytes that it stands for."""
        ...


class CompressorSource:
    """Any compressor: 256 compressions for a byte, of the last CONTEXT bytes each."""

    def __init__(self, compressor: baselines.Compressor) -> None:
        self._compressor, self._past = compressor, b""

    def feed(self, data: bytes) -> None:
        self._past = (self._past + data)[-CONTEXT:]

    def probabilities(self) -> Probabilities:
        past = self._past[-CONTEXT + 1 :]
        lengths = np.array(
            [len(b) for b in self._compressor.chunks([past + bytes([i]) for i in range(256)])]
        )
        weights = np.exp2(-8.0 * (lengths - lengths.min()))
        return np.asarray(weights / weights.sum())

    def take(self, symbol: int) -> bytes:
        self.feed(bytes([symbol]))
        return bytes([symbol])


class ModelSource:
    """A model of bytes, fed byte by byte; its window is the only limit."""

    def __init__(self, path: Path) -> None:
        from lmzip import _core
        from lmzip.model_file import load

        model = load(path)
        self._engine = _core.Engine(
            _core.ExactModel(model.tensors, model.architecture.to_json()), 1
        )
        self._logits = self._engine.step(np.zeros(1, np.uint8))[0]  # a lane starts with a zero

    def feed(self, data: bytes) -> None:
        if data:
            inputs = np.frombuffer(data, np.uint8)[None].copy()
            self._logits = self._engine.prefill(inputs)[0, -1]

    def probabilities(self) -> Probabilities:
        return _softmax(self._logits)

    def take(self, symbol: int) -> bytes:
        self.feed(bytes([symbol]))
        return bytes([symbol])


class TokenSource:
    """A pretrained model of tokens.  Those without bytes (special ones) are never drawn."""

    MAX_POSITIONS = 1 << 16
    PIECE = 256  # tokens fed at once: the engine gives the logits of each

    def __init__(self, path: Path) -> None:
        from lmzip import _core, llama_model
        from lmzip.tokenization import Tokenizer

        model = llama_model.parse(path.read_bytes())
        native = _core.LlamaModel(model.tensors, model.architecture.to_native())
        self._engine = _core.LlamaEngine(native, 1, self.MAX_POSITIONS)
        self._tokens, self._tokenizer = model.tokens, Tokenizer(model.tokens, model.tokenizer)
        self._escape = model.architecture.escape
        self._mute = np.array([not token for token in model.tokens])
        self._positions = 0
        self._feed([model.architecture.start])

    def _feed(self, tokens: list[int]) -> None:
        self._positions += len(tokens)
        if self._positions > self.MAX_POSITIONS:
            raise GenerationError(
                f"prompt and continuation take more than {self.MAX_POSITIONS:,} tokens, the most "
                "that a pretrained model takes here: shorten them"
            )
        for i in range(0, len(tokens), self.PIECE):
            piece = np.array([tokens[i : i + self.PIECE]], np.uint32)
            self._logits = self._engine.feed(piece)[0, -1]

    def feed(self, data: bytes) -> None:
        """Bytes that no token spells become the escape, as the codec writes them."""
        count = len(self._tokens)
        tokens = [s if s < count else self._escape for s in self._tokenizer.encode(data)]
        if tokens:
            self._feed(tokens)

    def probabilities(self) -> Probabilities:
        return _softmax(np.where(self._mute, self._logits.min() - (1 << 20), self._logits))

    def take(self, symbol: int) -> bytes:
        self._feed([symbol])
        return self._tokens[symbol]


class FloatSource:
    """A float predictor (predictors.py).  Symbols without bytes are never drawn."""

    def __init__(self, name: str) -> None:
        from lmzip import predictors  # says what to install where PyTorch is missing

        self._predictor = predictors.load(name)
        self._mute = np.array([not token for token in self._predictor.tokens])
        import torch

        with torch.inference_mode():
            self._logits = _row(self._predictor.start(1))

    def _step(self, symbol: int) -> None:
        import torch

        with torch.inference_mode():
            symbols = torch.tensor([symbol], device=self._predictor.device)
            self._logits = _row(self._predictor.step(symbols))

    def feed(self, data: bytes) -> None:
        """Bytes that no symbol spells become the escape, as the codec writes them."""
        escape, count = self._predictor.escape, len(self._predictor.tokens)
        for symbol in self._predictor.encode(data):
            if symbol >= count:
                assert escape is not None  # Predictor.encode
                symbol = escape
            self._step(symbol)

    def probabilities(self) -> Probabilities:
        logits = np.where(self._mute, -np.inf, self._logits)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    def take(self, symbol: int) -> bytes:
        self._step(symbol)
        return self._predictor.tokens[symbol]


def _row(logits: "torch.Tensor") -> npt.NDArray[np.float64]:
    """Of the only lane, in natural units."""
    return np.asarray(logits[0].double().cpu().numpy())


def _softmax(logits: npt.NDArray[np.int32]) -> Probabilities:
    """Of the exact engines' logits."""
    weights = np.exp2((logits.astype(np.float64) - logits.max()) / LOGIT_UNIT)
    return np.asarray(weights / weights.sum())


def source(name: str) -> Source:
    """gzip, lzma, png, flac, a preset of lmzip, a model by name or path, or a float predictor."""
    from lmzip import models
    from lmzip.codec import PRESETS

    if name in baselines.names() or name in PRESETS:
        return CompressorSource(baselines.named(name))
    if baselines.is_predictor(name):
        return FloatSource(name)
    info = models.find(name)
    return TokenSource(info.path) if info.is_token_model else ModelSource(info.path)


def generate(
    of: Source, prompt: bytes, count: int, *, seed: int = 0, temperature: float = 1.0
) -> Iterator[int]:
    """Feed the prompt, then sample `count` bytes, each fed back.  Temperature 0: the likeliest."""
    if not 0 <= temperature < math.inf:
        raise GenerationError(f"the temperature is {temperature}; it needs a number of 0 or more")
    if seed < 0:
        raise GenerationError(f"the seed is {seed}; it needs 0 or more")
    random = np.random.default_rng(seed)
    of.feed(prompt)
    while count > 0:
        p = of.probabilities()
        if temperature == 0:
            symbol = int(p.argmax())
        else:
            p = (p / p.max()) ** (1 / temperature)  # the largest stays 1, however low it is
            symbol = int(random.choice(len(p), p=p / p.sum()))
        drawn = of.take(symbol)[:count]
        count -= len(drawn)
        yield from drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lmzip generate`."""
    parser.add_argument(
        "--compressor",
        required=True,
        metavar="NAME",
        help=f"{', '.join(baselines.names())}, a preset, a model by name or path, or a float "
        "predictor torch:MODULE:FACTORY[:ARGUMENT], whose code is run",
    )
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="- is stdin")
    parser.add_argument("-n", type=int, default=100, metavar="N", help="bytes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    parser.add_argument("-o", "--output", type=Path, help="prompt and continuation, as a file")
    parser.add_argument("-f", "--force", action="store_true", help="replace the output")


def run(options: argparse.Namespace) -> int:
    """Write the continuation to standard output, or prompt and continuation to a file."""
    if options.n < 0:
        raise GenerationError(f"{options.n} bytes cannot be generated")
    stdin = str(options.prompt) == "-"
    prompt = sys.stdin.buffer.read() if stdin else options.prompt.read_bytes()
    drawn = generate(
        source(options.compressor),
        prompt,
        options.n,
        seed=options.seed,
        temperature=options.temperature,
    )
    if options.output is not None:
        with AtomicFile(options.output, overwrite=options.force) as file:
            file.write(prompt + bytes(drawn))
        return 0
    for byte in drawn:
        sys.stdout.buffer.write(bytes([byte]))
        sys.stdout.buffer.flush()
    return 0
