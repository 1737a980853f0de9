"""lmzip: lossless compression with a language model that decodes on every machine.

This file only re-exports. Names are imported when they are first used, so that
`import lmzip` and `lmzip --version` cost next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmzip._version import __version__
from lmzip.errors import (
    CorruptError,
    DistributionError,
    LimitError,
    LmzipError,
    ModelMismatchError,
    NotLmzError,
    TruncatedError,
    UnsupportedError,
)


def _refuse_subinterpreters() -> None:
    """There the extension module would wait for ever for a lock that its own thread holds."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13; before
        try:
            interpreters: Any = import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError("lmzip works in the main interpreter only: use threads or processes")


_refuse_subinterpreters()

if TYPE_CHECKING:
    from lmzip.api import FileInfo as FileInfo
    from lmzip.api import FrameInfo as FrameInfo
    from lmzip.api import LmzCompressor as LmzCompressor
    from lmzip.api import LmzDecompressor as LmzDecompressor
    from lmzip.api import StreamInfo as StreamInfo
    from lmzip.api import compress as compress
    from lmzip.api import decompress as decompress
    from lmzip.api import inspect as inspect
    from lmzip.coder import Decoder as Decoder
    from lmzip.coder import Encoder as Encoder
    from lmzip.coder import kernels as kernels
    from lmzip.file import LmzFile as LmzFile
    from lmzip.file import open as open

# name -> the module that defines it; add a line here and one above for each public name
_LAZY = {
    "Decoder": "lmzip.coder",
    "Encoder": "lmzip.coder",
    "FileInfo": "lmzip.api",
    "FrameInfo": "lmzip.api",
    "LmzCompressor": "lmzip.api",
    "LmzDecompressor": "lmzip.api",
    "LmzFile": "lmzip.file",
    "StreamInfo": "lmzip.api",
    "compress": "lmzip.api",
    "decompress": "lmzip.api",
    "inspect": "lmzip.api",
    "kernels": "lmzip.coder",
    "open": "lmzip.file",
}

__all__ = [
    "CorruptError",
    "DistributionError",
    "LimitError",
    "LmzipError",
    "ModelMismatchError",
    "NotLmzError",
    "TruncatedError",
    "UnsupportedError",
    "__version__",
]
__all__ += list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
