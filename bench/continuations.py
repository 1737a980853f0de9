"""Compressors as generators, Delétang et al. 2023, section 3.4: continuations, kept and drawn.

What was drawn is kept as hexadecimal digits in a results file and found again by prompt and model,
so the pictures can be made anew without drawing again.
"""

import csv
import hashlib
import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conftest import provenance
from lmzip import baselines, generate
from lmzip.output import AtomicFile
from lmzip.progress import Progress

PICTURES = ("kodim23", "kodim15", "kodim19")
SPEECH = ("2033-164914-0000", "1688-142285-0004")
WIDTH, SHRINK = 64, 4  # pixels of a row; a photograph's pixels that become one
CONTEXT = 2048  # bytes: 32 rows, or 0.13 s of speech

Plot = Any  # matplotlib has types of its own


@dataclass(frozen=True)
class Continuation:
    """What a compressor, or the original, makes of a prompt."""

    by: str
    data: bytes


class Continuations:
    KEY = ("compressor", "model", "prompt_sha256", "bytes", "temperature", "seed")
    COLUMNS = (*KEY, "continuation", "device", "commit", "date", "command")

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def get(
        self, name: str, prompt: bytes, count: int, temperature: float = 1.0, seed: int = 0
    ) -> Continuation:
        compressor = baselines.named(name)
        digest = hashlib.sha256(prompt).hexdigest()
        values = (compressor.name, compressor.model_id, digest, count, temperature, seed)
        key = dict(zip(self.KEY, map(str, values), strict=True))
        found = next((r for r in self.rows if {k: r[k] for k in self.KEY} == key), None)
        if found is None:
            drawn = _draw(name, prompt, count, temperature, seed)
            found = key | {"continuation": drawn.hex()}
            found |= {name: str(value) for name, value in provenance().items()}
            self.rows.append(found)
            self._write()
        return Continuation(compressor.name, bytes.fromhex(found["continuation"]))

    def beside(
        self, original: bytes, names: Sequence[str], prompt: bytes, count: int
    ) -> list[Continuation]:
        """How it went on, and how each of the names goes on."""
        drawn = [self.get(name, prompt, count) for name in names]
        return [Continuation("original", original), *drawn]

    def _write(self) -> None:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with AtomicFile(self.path, overwrite=True) as file:
            file.write(out.getvalue().encode())


def _draw(name: str, prompt: bytes, count: int, temperature: float, seed: int) -> bytes:
    out = bytearray()
    of = generate.source(name)
    with Progress(f"{Path(name).stem} goes on", count, wanted=True) as line:
        for byte in generate.generate(of, prompt, count, seed=seed, temperature=temperature):
            out.append(byte)
            line.update(len(out), 0, 0)
    return bytes(out)


def pictures(
    plt: Plot,
    kept: Continuations,
    read: Callable[[str], bytes],
    names: Sequence[str],
    count: int,
) -> Plot:
    """Rows of photographs: what was given, and under it what was drawn."""
    figure, axes = plt.subplots(
        len(PICTURES), len(names) + 1, figsize=(1.9 * (len(names) + 1), 4), layout="constrained"
    )
    for i, (line, picture) in enumerate(zip(axes, PICTURES, strict=True)):
        pixels = patch(read(f"images/{picture}.ppm"))
        prompt = pixels[:CONTEXT]
        shown = kept.beside(pixels[CONTEXT : CONTEXT + count], names, prompt, count)
        for axis, part in zip(line, shown, strict=True):
            both = (prompt + part.data).ljust(CONTEXT + -(-count // WIDTH) * WIDTH, b"\xff")
            rows = np.frombuffer(both, np.uint8).reshape(-1, WIDTH)
            axis.imshow(rows, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.axhline(CONTEXT // WIDTH - 0.5, color="C3", linewidth=0.8)
            axis.set(xticks=[], yticks=[])
            if i == 0:
                axis.set_title(part.by, fontsize=10)
        line[0].set_ylabel(picture)
    return figure


def patch(ppm: bytes) -> bytes:
    """The middle 64 columns and 64 rows of a photograph, gray, brought to a quarter of its size."""
    from PIL import Image

    gray = Image.open(io.BytesIO(ppm)).convert("L")
    gray = gray.resize((gray.width // SHRINK, gray.height // SHRINK))
    left, top = (gray.width - WIDTH) // 2, (gray.height - WIDTH) // 2
    data: bytes = gray.crop((left, top, left + WIDTH, top + WIDTH)).tobytes()
    return data


def speech(
    plt: Plot,
    kept: Continuations,
    read: Callable[[str], bytes],
    names: Sequence[str],
    count: int,
) -> Plot:
    """Samples of speech: the end of what was given, and what was drawn."""
    figure, axes = plt.subplots(
        len(names) + 1, len(SPEECH), figsize=(10, 1.1 * (len(names) + 1)), sharex=True,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for column, recording in zip(axes.T, SPEECH, strict=True):
        samples = eight_bits(read(f"speech/{recording}.wav"))
        start = _loudest(samples, CONTEXT + count)
        prompt = samples[start : start + CONTEXT]
        original = samples[start + CONTEXT : start + CONTEXT + count]
        shown = kept.beside(original, names, prompt, count)
        for axis, part in zip(column, shown, strict=True):
            before = np.frombuffer(prompt[-count:], np.uint8).astype(int) - 128
            after = np.frombuffer(part.data, np.uint8).astype(int) - 128
            axis.plot(np.arange(-len(before), 0) / 16, before, color="gray", linewidth=0.7)
            axis.plot(np.arange(len(after)) / 16, after, color="C3", linewidth=0.7)
            axis.grid(alpha=0.3)
            axis.set_title(part.by, fontsize=8, loc="left", pad=2)
        column[-1].set_xlabel("ms from the end of what was given")
        column[0].set_title(f"original: LibriSpeech {recording}", fontsize=8, loc="left", pad=2)
    figure.supylabel("sample, 8 bits", fontsize=10)
    return figure


def eight_bits(wav: bytes) -> bytes:
    """16-bit samples -> the upper byte, around 128."""
    with wave.open(io.BytesIO(wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return ((samples.astype(np.int32) >> 8) + 128).astype(np.uint8).tobytes()


def _loudest(samples: bytes, size: int) -> int:
    """Where to cut, so that something is to be heard."""
    level = np.abs(np.frombuffer(samples, np.uint8).astype(int) - 128)
    starts = range(0, max(1, len(level) - size), CONTEXT)
    return max(starts, key=lambda i: int(level[i : i + size].sum()))
