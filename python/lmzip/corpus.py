"""Training text: files -> named groups of bytes -> random rows of history and targets.

A group is a set of documents with a sampling weight.  One document in fifty (or the last fiftieth
of the last one, where there are few) is held out for validation and never trained on.  Plain
files, .xz files, and .tar or .tar.xz archives are read; a folder stands for the files in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmzip.errors import LmzipError

HISTORY = 3  # bytes before a row's first input; network.MAX_ORDER - 1
FROM_START = 0.1  # share of rows that begin where a document begins, as a lane of a small file does
HELD_OUT_EVERY, HELD_OUT_FIRST = 50, 7  # documents 7, 57, 107, ... of a group are held out

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


class CorpusError(LmzipError):
    """The training files cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Group:
    name: str
    weight: float
    train: Bytes
    starts: npt.NDArray[np.int64]  # where documents begin in `train`
    held_out: Bytes
    sha256: str  # of all its documents, in order


@dataclass
class Corpus:
    groups: list[Group]

    def __post_init__(self) -> None:
        if not self.groups or not any(len(g.train) for g in self.groups):
            raise CorpusError("no training text: the files given hold no bytes")
        weights = np.array([g.weight for g in self.groups])
        self._share = weights / weights.sum()

    @property
    def size(self) -> int:
        return sum(len(g.train) for g in self.groups)

    def rows(self, random: np.random.Generator, count: int, length: int) -> tuple[Rows, Rows]:
        """Inputs with history (count, HISTORY + length) and targets (count, length).

        A row is predicted as a lane is coded: before its first byte there are only zeros.
        """
        text = np.zeros((count, HISTORY + 1 + length), np.int64)
        for row, i in enumerate(random.choice(len(self.groups), count, p=self._share)):
            piece = _piece(self.groups[i], random, length)
            text[row, HISTORY + 1 : HISTORY + 1 + len(piece)] = piece
        return text[:, :-1], text[:, HISTORY + 1 :]

    def held_out_rows(self, length: int, count: int) -> Iterator[tuple[Group, Rows, Rows]]:
        """At most `count` evenly spaced rows of each group's held-out text."""
        for group in self.groups:
            n = min(count, len(group.held_out) // length)
            if n == 0:
                continue
            text = np.zeros((n, HISTORY + 1 + length), np.int64)
            for row, at in enumerate(np.linspace(0, len(group.held_out) - length, n).astype(int)):
                text[row, HISTORY + 1 :] = group.held_out[at : at + length]
            yield group, text[:, :-1], text[:, HISTORY + 1 :]


def _piece(group: Group, random: np.random.Generator, length: int) -> Bytes:
    if random.random() < FROM_START:
        at = int(group.starts[random.integers(len(group.starts))])
    else:
        at = int(random.integers(max(1, len(group.train) - length + 1)))
    at = min(at, max(0, len(group.train) - length))
    return group.train[at : at + length]


def read_files(paths: Sequence[Path]) -> Corpus:
    """One group of all the files.  Raises CorpusError, OSError."""
    return Corpus([_group("files", 1.0, list(_documents(paths)))])


def read_mix(path: Path) -> Corpus:
    """A JSON recipe: {"groups": [{"name", "weight", "paths": [...], "range"?, "held_out_range"?},
    ...]}.

    Paths are relative to the recipe's folder and may name environment variables ($LMZIP_DATA).
    The ranges [start, end] cut each document to the bytes that are trained on, and to those that
    are held out.
    """
    try:
        recipe = json.loads(path.read_text("utf-8"))
        return Corpus([_group_of(entry, path.parent) for entry in recipe["groups"]])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: not a recipe of training groups: {error!r}") from None


def _group_of(entry: dict[str, Any], folder: Path) -> Group:
    paths = [folder / os.path.expandvars(p) for p in entry["paths"]]
    documents = list(_documents(paths))
    held_out = None
    if "held_out_range" in entry:
        start, end = entry["held_out_range"]
        held_out = b"".join(d[start:end] for d in documents)
    if "range" in entry:
        start, end = entry["range"]
        documents = [d[start:end] for d in documents]
    return _group(entry["name"], float(entry["weight"]), documents, held_out)


def _documents(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        if path.is_dir():
            yield from _documents(sorted(p for p in path.rglob("*") if p.is_file()))
            continue
        data = path.read_bytes()
        name = path.name
        if name.endswith(".xz"):
            try:
                data, name = lzma.decompress(data), name.removesuffix(".xz")
            except lzma.LZMAError as error:
                raise CorpusError(f"{path}: not a sound .xz file: {error}") from None
        if name.endswith(".tar"):
            yield from _members(path, data)
        else:
            yield data


def _members(path: Path, data: bytes) -> Iterator[bytes]:
    """The regular files of an archive; nothing is written to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield file.read()
    except tarfile.TarError as error:
        raise CorpusError(f"{path}: not a sound archive: {error}") from None


def _group(
    name: str, weight: float, documents: Sequence[bytes], held_out: bytes | None = None
) -> Group:
    texts = [d for d in documents if d]
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text)
    if held_out is None:
        texts, held_out = _hold_out(texts)
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    return Group(
        name,
        weight,
        np.frombuffer(b"".join(texts), np.uint8),
        starts if len(starts) else np.zeros(1, np.int64),
        np.frombuffer(held_out, np.uint8),
        digest.hexdigest(),
    )


def _hold_out(texts: list[bytes]) -> tuple[list[bytes], bytes]:
    """Split documents into those to train on and the held-out bytes."""
    chosen = range(HELD_OUT_FIRST, len(texts), HELD_OUT_EVERY)
    if chosen:
        kept = [t for i, t in enumerate(texts) if i not in chosen]
        return kept, b"".join(texts[i] for i in chosen)
    if not texts:
        return texts, b""
    cut = len(texts[-1]) // HELD_OUT_EVERY
    end = len(texts[-1]) - cut
    return [*texts[:-1], texts[-1][:end]], texts[-1][end:]
