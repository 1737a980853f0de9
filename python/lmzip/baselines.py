"""Compressors to compare with, behind one interface: bytes in, bytes out, and back.

gzip and LZMA2 are of the standard library; PNG needs Pillow, FLAC needs soundfile (libsndfile),
both of the extra `eval`.  PNG and FLAC take any bytes, as in Delétang et al. 2023: as the rows of
a grayscale picture about as wide as high, and as signed 8-bit samples at 16 kHz.
"""

import gzip
import hashlib
import io
import itertools
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from lmzip.errors import CorruptError, LmzipError

if TYPE_CHECKING:
    from lmzip.codec import FrameCodec
    from lmzip.models import ModelInfo

PNG_WIDTH = 64  # of the paper's patches, which are pictures of their own; others: multiples of it
FLAC_RATE = 16000
FLOAT_LANES = 16  # chunks that a float predictor codes together


class MissingError(LmzipError):
    """A library that a compressor needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Compressor:
    """`chunks` compresses each chunk on its own; `restore` takes one compressed chunk and its raw
    size."""

    name: str
    chunks: Callable[[Sequence[bytes]], list[bytes]]
    restore: Callable[[Sequence[bytes], Sequence[int]], list[bytes]]
    header: int = 0  # bytes that every chunk starts with, whatever is in it
    model_bytes: int = 0
    parameters: int = 0
    model_id: str = ""  # first digits of the SHA-256 of the model's file
    batch: int = 256  # chunks to pass at once: enough for speed, few enough for a progress line


def _each(compress: Callable[[bytes], bytes]) -> Callable[[Sequence[bytes]], list[bytes]]:
    return lambda chunks: [compress(chunk) for chunk in chunks]


def _restore_each(
    decompress: Callable[[bytes, int], bytes],
) -> Callable[[Sequence[bytes], Sequence[int]], list[bytes]]:
    return lambda blobs, sizes: [
        decompress(blob, size) for blob, size in zip(blobs, sizes, strict=True)
    ]


def classical(
    name: str, compress: Callable[[bytes], bytes], decompress: Callable[[bytes, int], bytes]
) -> Compressor:
    """The header is what one zero byte compresses to, as in the paper's code."""
    return Compressor(name, _each(compress), _restore_each(decompress), len(compress(b"\0")))


def png(name: str, width: Callable[[int], int], *, optimize: bool) -> Compressor:
    """Pillow's PNG of a gray picture in rows of `width(bytes)` pixels, the last one filled up.

    `optimize`: each row gets the best of the five filters and zlib's level 9, else the best of all
    but Average and level 6.  Raises MissingError.
    """
    return classical(name, lambda data: _png(data, width(len(data)), optimize), _from_png)


def png_width(size: int) -> int:
    """About square, in whole rows of PNG_WIDTH."""
    return PNG_WIDTH * max(1, round(math.sqrt(size) / PNG_WIDTH))


def _png(data: bytes, width: int, optimize: bool) -> bytes:
    height = max(1, -(-len(data) // width))
    padded = data.ljust(height * width, b"\0")
    out = io.BytesIO()
    picture = _library("PIL.Image").frombytes("L", (width, height), padded)
    picture.save(out, "PNG", optimize=optimize)
    return out.getvalue()


def _from_png(blob: bytes, size: int) -> bytes:
    data: bytes = _library("PIL.Image").open(io.BytesIO(blob)).tobytes()
    return data[:size]


def _flac(data: bytes) -> bytes:
    """Samples of 8 bits with a sign, around 128."""
    import numpy as np

    out = io.BytesIO()
    samples = (np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8
    _library("soundfile").write(out, samples, FLAC_RATE, format="FLAC", subtype="PCM_S8")
    return out.getvalue()


def _from_flac(blob: bytes, size: int) -> bytes:
    import numpy as np

    samples, _ = _library("soundfile").read(io.BytesIO(blob), dtype="int16")
    data: bytes = ((samples.astype(np.int32) >> 8) + 128).astype(np.uint8).tobytes()
    if len(data) != size:
        raise CorruptError(f"FLAC gave {len(data)} samples back, expected {size}")
    return data


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise MissingError(
            f"{name.partition('.')[0]} is not installed: pip install 'lmzip-codec[eval]'"
        ) from None


_CLASSICAL: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]] = {
    "gzip": (
        lambda data: gzip.compress(data, 9, mtime=0),
        lambda blob, _: gzip.decompress(blob),
    ),
    "lzma": (lzma.compress, lambda blob, _: lzma.decompress(blob)),
    "png": (lambda data: _png(data, png_width(len(data)), True), _from_png),
    "flac": (_flac, _from_flac),
}


def names() -> list[str]:
    """What `named` knows besides presets and models."""
    return [*_CLASSICAL]


def named(name: str) -> Compressor:
    """gzip, lzma, png, flac; a preset of lmzip; a model (path or name), alone, without mixing; or a
    float predictor, "torch:MODULE:FACTORY[:ARGUMENT]", whose code is run.

    A preset codes each chunk as a file without a name.  A model or predictor codes the chunks as
    lanes, which know nothing of each other: the paper's protocol.  Raises MissingError,
    ModelMismatchError, LmzipError.
    """
    if name in _CLASSICAL:
        return classical(name, *_CLASSICAL[name])
    if is_predictor(name):
        return _predictor(name)
    from lmzip.codec import PRESETS

    return _preset(name) if name in PRESETS else _model(name)


def is_predictor(name: str) -> bool:
    return name.startswith("torch:")


def _preset(name: str) -> Compressor:
    from lmzip import compress, decompress, models
    from lmzip.codec import PRESETS
    from lmzip.container import MODEL_METHODS

    methods = {method for method, _ in PRESETS[name].codings}
    model = models.default() if methods & MODEL_METHODS else None
    return Compressor(
        name,
        _each(lambda data: compress(data, preset=name)),
        _restore_each(lambda blob, _: decompress(blob)),
        len(compress(b"", preset=name)),
        model.size if model else 0,
        model.parameters if model else 0,
        _short_id(model) if model else "",
    )


def _short_id(model: "ModelInfo") -> str:
    return model.id.hex()[:16]


def _model(name: str) -> Compressor:
    from lmzip import models
    from lmzip.codec import Codecs, preset_named
    from lmzip.container import MAX_LANES

    info = models.find(name)
    codec = Codecs(model=info).for_preset(preset_named("network"))[0]
    # The lanes of a frame of tokens share what they have seen (docs/format.md, method 5), so there
    # each chunk is a frame.
    lanes = 1 if info.is_token_model else MAX_LANES
    return Compressor(
        info.name,
        *_lanes(codec, lanes),
        0,
        info.size,
        info.parameters,
        _short_id(info),
        batch=4 if info.is_token_model else 1024,
    )


def _predictor(name: str) -> Compressor:
    from lmzip import predictors
    from lmzip.codec import Codecs, preset_named

    predictor = predictors.load(name)
    codec = Codecs(predictor=predictor).for_preset(preset_named("network"))[0]
    parameters, size = predictor.weights
    digest = hashlib.sha256(predictor.fingerprint.encode()).hexdigest()[:16]
    label = predictor.name.rpartition(".")[2]
    return Compressor(
        label, *_lanes(codec, FLOAT_LANES), 0, size, parameters, digest, batch=FLOAT_LANES
    )


def _lanes(
    codec: "FrameCodec", lanes: int
) -> tuple[
    Callable[[Sequence[bytes]], list[bytes]],
    Callable[[Sequence[bytes], Sequence[int]], list[bytes]],
]:
    """`chunks` and `restore` of a Compressor: chunks as lanes of frames, at most `lanes` each."""

    def runs(sizes: Sequence[int]) -> list[slice]:
        """Chunks of one size go through the model together, as the lanes of a frame."""
        cuts = [i for i, (a, b) in enumerate(itertools.pairwise(sizes), 1) if a != b]
        bounds = sorted({*range(0, len(sizes), lanes), *cuts, len(sizes)})
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]

    def chunks(data: Sequence[bytes]) -> list[bytes]:
        return [
            blob
            for run in runs([*map(len, data)])
            for blob in codec.encode_frame(b"".join(data[run]), len(data[run]))
        ]

    def restore(blobs: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        out: list[bytes] = []
        for run in runs(sizes):
            size = sizes[run.start]
            raw = codec.decode_frame(blobs[run], size * len(blobs[run]))
            out += [raw[i : i + size] for i in range(0, len(raw), size)]
        return out

    return chunks, restore
