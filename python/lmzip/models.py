"""Model files: which there are, what they are called, and which one a stream asks for.

Reads only the JSON header of a .safetensors file; the weights are the engine's business. A model
is identified by the SHA-256 of its whole file. Models are looked for in the package, then in the
folders of LMZIP_MODEL_PATH, then in the user's data folder. A stream can only name a model: no
path in a file is ever followed.
"""

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lmzip._version import __version__
from lmzip.container import MAX_LABEL_SIZE, MODEL_ID_SIZE, ModelRef, is_plain, printable
from lmzip.errors import LmzipError, ModelMismatchError, UnsupportedError

SUFFIX = ".safetensors"
TOKEN_FORMAT = "lmzip-llama-1"  # llama_model.py, which needs NumPy
MAX_JSON_SIZE = 1 << 24
MAX_NESTING = 64  # of the document: any code may print it without overflowing the stack
MAX_DIMENSIONS, MAX_DIMENSION = 8, 1 << 32
BUNDLED = Path(__file__).parent / "models"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model file. `release` is the one that bundles it, or empty."""

    path: Path
    name: str
    release: str
    parameters: int
    licence: str
    size: int
    mtime_ns: int
    is_token_model: bool = False  # one of llama_model.py: its frames have a method of their own

    @property
    def id(self) -> bytes:
        """The SHA-256 (32 bytes) of the whole file; computed when first asked for."""
        return _digest(self.path, self.mtime_ns, self.size)

    @property
    def bundled(self) -> bool:
        return bool(self.release)

    @property
    def ref(self) -> ModelRef:
        """What a stream says of this model: a release only if a release has it."""
        release = f"@{self.release}" if self.release else ""
        room = MAX_LABEL_SIZE - len(release.encode())
        name = self.name.replace("@", "-").encode()[:room].decode("utf-8", "ignore")
        return ModelRef(self.id[:MODEL_ID_SIZE], name + release)

    def matches(self, ref: ModelRef) -> bool:
        return self.id.startswith(ref.id)


def folders() -> list[Path]:
    """The folders that are searched, in this order."""
    listed = os.environ.get("LMZIP_MODEL_PATH", "").split(os.pathsep)
    found = [BUNDLED, *(Path(name) for name in listed if name)]
    with contextlib.suppress(UnsupportedError):
        found.append(store())
    return found


def store() -> Path:
    """The folder of the user's own models. UnsupportedError if there is no home for it."""
    try:
        data_home = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    except RuntimeError:
        raise UnsupportedError("no home folder is known: set HOME or XDG_DATA_HOME") from None
    return Path(data_home) / "lmzip" / "models"


def files() -> Iterator[Path]:
    """Yield each model file of `folders()`, readable or not."""
    for folder in folders():
        yield from sorted(folder.glob(f"*{SUFFIX}"))


def available() -> Iterator[ModelInfo]:
    """Yield each readable model of `folders()`. Files that are no models are passed over."""
    for path in files():
        with contextlib.suppress(OSError, LmzipError):
            yield read(path)


def default() -> ModelInfo | None:
    """The model used when none is named: LMZIP_MODEL, else the first that is bundled."""
    chosen = os.environ.get("LMZIP_MODEL")
    if chosen:
        return find(chosen)
    return next((model for model in available() if model.bundled), None)


def find(name: str | os.PathLike[str]) -> ModelInfo:
    """Find a model by path, name or the first digits of its id. ModelMismatchError if none."""
    text = os.fspath(name)
    if os.sep in text or text.endswith(SUFFIX):
        return read(Path(text))
    known = list(available())
    found = [model for model in known if text == model.name]
    if not found and len(text) >= 4:
        found = [model for model in known if model.id.hex().startswith(text.lower())]
    if not found:
        names = ", ".join(sorted({printable(model.name) for model in known})) or "none"
        raise ModelMismatchError(
            f"no model is called {text!r}; there are: {names}; "
            f"give a path that ends in {SUFFIX}, or add its folder to LMZIP_MODEL_PATH"
        )
    return found[0]


def for_ref(ref: ModelRef, offered: ModelInfo | None = None) -> ModelInfo:
    """Find the model that a stream asks for: `offered`, else an installed one, else LMZIP_MODEL.

    Reads no file behind the one that it finds.  ModelMismatchError says which one is missing.
    """
    if offered is not None:
        if offered.matches(ref):
            return offered
        raise ModelMismatchError(
            f"the file needs the model {ref}; the model given is "
            f"{offered.name!r} (id {offered.id[:MODEL_ID_SIZE].hex()})"
        )
    name = ref.label.partition("@")[0]
    for same_name in (True, False):  # spares hashing
        for model in _known():
            if (model.name == name) == same_name and model.matches(ref):
                return model
    raise ModelMismatchError(f"the file needs the model {ref}; it is not installed: {_cure(ref)}")


def _known() -> Iterator[ModelInfo]:
    """The models of `available()`, then that of LMZIP_MODEL, which may lie elsewhere."""
    yield from available()
    if chosen := os.environ.get("LMZIP_MODEL"):
        with contextlib.suppress(OSError, LmzipError):  # what cannot be had may not be needed
            yield find(chosen)


def _cure(ref: ModelRef) -> str:
    name, _, release = ref.label.rpartition("@")
    if name:
        return "install that release, or name its model file with --model"
    return (
        f"get the model file whose SHA-256 begins with {ref.id.hex()} and put it into "
        f"{folders()[-1]}, or name it with --model; if it is a pretrained one, its checkpoint will "
        f"do: lmzip models import SOURCE -o {printable(release)} (docs/pretrained.md)"
    )


def read(path: Path) -> ModelInfo:
    """Read the header of a model file. UnsupportedError if it is no model file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise UnsupportedError(f"{path} is not a model file: it is no regular file")
    return _read(path, status.st_mtime_ns, status.st_size)


def document(path: Path) -> dict[str, Any]:
    """What a model file says about itself (model_file.md). UnsupportedError if it is none."""
    with path.open("rb") as file:
        return _document(path, _read_header(path, file))


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int, size: int) -> ModelInfo:
    with path.open("rb") as file:
        header = _read_header(path, file)
    about = _document(path, header)
    return ModelInfo(
        path=path,
        name=check_name(about.get("name") or path.stem),
        release=_text(about.get("release")) or __version__ if path.parent == BUNDLED else "",
        parameters=_count_parameters(path, header, size),
        licence=_text(about.get("licence") or about.get("license")),
        size=size,
        mtime_ns=mtime_ns,
        is_token_model=about.get("format") == TOKEN_FORMAT,
    )


@lru_cache(maxsize=64)
def _digest(path: Path, mtime_ns: int, size: int) -> bytes:  # noqa: ARG001 (cache key)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(file.read(8), "little")
    head = file.read(size) if size <= MAX_JSON_SIZE else b""
    try:
        header = json.loads(head)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UnsupportedError(f"{path} is not a model file: it has no safetensors header")
    return header


def _document(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    document = parse_document(header)
    if document is None:
        raise UnsupportedError(f"{path} is a safetensors file, but no model of lmzip")
    return document


def parse_document(header: Any) -> dict[str, Any] | None:
    """What lmzip has written into a header about the model (model_file.py); None if nothing."""
    try:
        document = json.loads(header["__metadata__"]["lmzip"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return document if isinstance(document, dict) and _is_flat(document, MAX_NESTING) else None


def _is_flat(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(part, levels - 1) for part in inner)


def check_name(name: Any) -> str:
    """A model's name as it is.  UnsupportedError for one that no stream can state."""
    if isinstance(name, str) and is_plain(name):
        return name
    raise UnsupportedError(
        f"a model is called '{printable(str(name))[:80]}'; expected text without control "
        "characters: make it again under another name (-o NAME)"
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count_parameters(path: Path, header: dict[str, Any], size: int) -> int:
    """The weights: all entries of 8 bits, of which a file has no more than bytes."""
    entries = [entry for entry in header.values() if isinstance(entry, dict)]
    shapes: list[Any] = [entry.get("shape") for entry in entries if entry.get("dtype") == "I8"]
    if not all(map(_is_shape, shapes)):
        raise UnsupportedError(f"{path} is not a model file: the shape of a tensor is impossible")
    parameters = sum(map(math.prod, shapes))
    if parameters > size:
        raise UnsupportedError(
            f"{path} is cut off, or no model file: it has more weights than bytes ({size})"
        )
    return parameters


def _is_shape(shape: Any) -> bool:
    """Whether the product is worth computing, and has a bound."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n <= MAX_DIMENSION for n in shape)
