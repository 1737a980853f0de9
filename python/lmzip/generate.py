"""Compressors as generators: Delétang et al. 2023, section 3.4.

A compressor that needs fewer bits for some continuation than for another holds it for more likely:
p(next | context) is proportional to 2^-(l(context + next) - l(context)), l being lengths in bits.
A model gives its probabilities directly.  The same seed gives the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lmzip import baselines
from lmzip.errors import LmzipError
from lmzip.output import AtomicFile

CONTEXT = 2048  # bytes that a compressor looks back: the paper's chunk
LOGIT_UNIT = 1024  # docs/numerics.md: logits are base-2 logarithms in units of 2^-10

Probabilities = npt.NDArray[np.float64]


class GenerationError(LmzipError):
    """Nothing can be generated; the message says why."""


class Source(Protocol):
    """Probabilities of the next byte, (256), after all that was fed."""

    def feed(self, data: bytes) -> None: ...
    def probabilities(self) -> Probabilities: ...


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


class ModelSource:
    """A model of lmzip, fed byte by byte; its window is the only limit."""

    def __init__(self, name: str) -> None:
        from lmzip import _core, models
        from lmzip.model_file import load

        model = load(models.find(name).path)
        self._engine = _core.Engine(
            _core.ExactModel(model.tensors, model.architecture.to_json()), 1
        )
        self._logits = self._engine.step(np.zeros(1, np.uint8))[0]  # a lane starts with a zero

    def feed(self, data: bytes) -> None:
        if data:
            inputs = np.frombuffer(data, np.uint8)[None].copy()
            self._logits = self._engine.prefill(inputs)[0, -1]

    def probabilities(self) -> Probabilities:
        weights = np.exp2((self._logits - self._logits.max()) / LOGIT_UNIT)
        return np.asarray(weights / weights.sum())


def source(name: str) -> Source:
    """gzip, lzma, png, flac, or a model by name or path."""
    if name in baselines.names():
        return CompressorSource(baselines.named(name))
    return ModelSource(name)


def generate(
    of: Source, prompt: bytes, count: int, *, seed: int = 0, temperature: float = 1.0
) -> Iterator[int]:
    """Feed the prompt, then sample `count` bytes, each fed back.  Temperature 0: the likeliest."""
    if temperature < 0:
        raise GenerationError(f"temperature {temperature} is below 0")
    random = np.random.default_rng(seed)
    of.feed(prompt)
    for _ in range(count):
        p = of.probabilities()
        if temperature == 0:
            byte = int(p.argmax())
        else:
            p = p ** (1 / temperature)
            byte = int(random.choice(256, p=p / p.sum()))
        yield byte
        of.feed(bytes([byte]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lmzip generate`."""
    parser.add_argument(
        "--compressor",
        required=True,
        metavar="NAME",
        help=f"{', '.join(baselines.names())}, or a model by name or path",
    )
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="- is stdin")
    parser.add_argument("-n", type=int, default=100, metavar="N", help="bytes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    parser.add_argument("-o", "--output", type=Path, help="prompt and continuation, as a file")


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
        with AtomicFile(options.output, overwrite=True) as file:
            file.write(prompt + bytes(drawn))
        return 0
    for byte in drawn:
        sys.stdout.buffer.write(bytes([byte]))
        sys.stdout.buffer.flush()
    return 0
