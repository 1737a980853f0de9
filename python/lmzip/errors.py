"""The errors of lmzip: one class per fate, all of them LmzipError.

A message says what was found, what was expected, and what to do.
"""


class LmzipError(Exception):
    """Base of every error that lmzip raises about data, models and limits."""


class NotLmzError(LmzipError):
    """The input is something other than an .lmz file."""


class TruncatedError(LmzipError):
    """The input ends before the data that it announces."""


class CorruptError(LmzipError):
    """The input is damaged: a checksum, a size or a structure does not hold."""


class UnsupportedError(LmzipError):
    """The input is sound but needs a newer version, or a feature that is not built in."""


class ModelMismatchError(LmzipError):
    """The input was written with a model that is not available here."""


class DistributionError(LmzipError, ValueError):
    """Probabilities, symbols or their shapes cannot be coded: NaN, negative, all zero, ..."""


class LimitError(LmzipError):
    """The operation would pass a limit that the caller has set, such as memory, or that the system
    has set: it gives no more threads."""
