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

if TYPE_CHECKING:
    from lmzip.coder import Decoder as Decoder
    from lmzip.coder import Encoder as Encoder
    from lmzip.coder import kernels as kernels

# name -> the module that defines it; add a line here and one above for each public name
_LAZY = {
    "Decoder": "lmzip.coder",
    "Encoder": "lmzip.coder",
    "kernels": "lmzip.coder",
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
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
