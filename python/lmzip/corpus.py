"""Training text: files -> named groups of bytes -> random rows of history and targets.

A group is a set of documents with a sampling weight.  One document in fifty (or the last fiftieth
of the text, where these would be far from a fiftieth of it) is held out for validation and never
trained on.  Plain files, .xz files, and .tar or .tar.xz archives are read; a folder stands for the
files in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
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
PADDING = -100  # the target where a text is shorter than a row: what cross_entropy leaves out
HELD_OUT_EVERY, HELD_OUT_FIRST = 50, 7  # documents 7, 57, 107, ... of a group are held out,
HELD_OUT_SHARE = (0.002, 0.1)  # if they are so much of its text: of the bundled model's, 0.5 to 7 %

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
        if not self.groups:
            raise CorpusError("no training text: the recipe has no groups")
        for g in self.groups:
            if not len(g.train):
                raise CorpusError(
                    f"no training text in the group {g.name!r}: its files, or the range of them, "
                    "hold no bytes"
                )
            if not 0 < g.weight < math.inf:
                raise CorpusError(f"the group {g.name!r} has the weight {g.weight}; expected > 0")
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
        targets = np.full((count, length), PADDING, np.int64)
        for row, i in enumerate(random.choice(len(self.groups), count, p=self._share)):
            piece = _piece(self.groups[i], random, length)
            text[row, HISTORY + 1 : HISTORY + 1 + len(piece)] = piece
            targets[row, : len(piece)] = piece
        return text[:, :-1], targets

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
    are held out and so not trained on.
    """
    try:
        recipe = json.loads(path.read_text("utf-8"))
        return Corpus([_group_of(entry, path.parent) for entry in recipe["groups"]])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: not a recipe of training groups: {error!r}") from None


def _group_of(entry: dict[str, Any], folder: Path) -> Group:
    paths = [folder / os.path.expandvars(p) for p in entry["paths"]]
    kept, held_out = [], []
    for document in _documents(paths):
        start, end = _bounds(entry.get("range", (None, None)), document)
        out, back = _bounds(entry.get("held_out_range", (0, 0)), document)
        kept += [document[start : min(out, end)], document[max(start, back) : end]]
        held_out.append(document[out:back])
    given = b"".join(held_out) if "held_out_range" in entry else None
    return _group(entry["name"], float(entry["weight"]), kept, given)


def _bounds(given: Sequence[int | None], document: bytes) -> tuple[int, int]:
    """[start, end] as of a slice, inside the document."""
    first, last = given
    start, end, _ = slice(first, last).indices(len(document))
    return start, max(start, end)


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
    total = sum(map(len, texts))
    chosen = range(HELD_OUT_FIRST, len(texts), HELD_OUT_EVERY)
    held_out = b"".join(texts[i] for i in chosen)
    least, most = (share * total for share in HELD_OUT_SHARE)
    if least <= len(held_out) < most:
        return [t for i, t in enumerate(texts) if i not in chosen], held_out
    end = total - total // HELD_OUT_EVERY
    left, kept = end, []
    for text in texts:
        kept.append(text[:left])
        left -= len(kept[-1])
    return [t for t in kept if t], b"".join(texts)[end:]
