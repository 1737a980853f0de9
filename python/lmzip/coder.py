"""Entropy coding with your own probabilities: symbols and tensors in, bytes out, and back.

Specified in docs/coder.md, which also has a complete example. The work is done in C++ without the
GIL, or, for tensors on another device, where they live (coder_torch.py); PyTorch is never imported
unless one of its tensors is handed in.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmzip import _core
from lmzip.errors import CorruptError, DistributionError

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor | ArrayLike

MAX_SYMBOLS = 1 << 20
MAX_WEIGHT = (1 << 31) - 1

_FLOAT_KINDS = {"float32", "float16", "float64", "bfloat16"}


def kernels() -> list[str]:
    """The names of the kernels usable on this machine, for LMZIP_KERNEL; the best one last."""
    return _core.kernels()


class _Rows(NamedTuple):
    """A tensor of distributions as the coder sees it."""

    kind: str  # float32, float16, bfloat16, float64, logits or weights
    data: Any  # (steps, lanes, V): NumPy array, or PyTorch tensor on another device
    shape: tuple[int, ...]  # as the caller gave it, without V
    like: Any  # the PyTorch tensor that the caller gave, or None


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")  # a tensor cannot exist without it
    return torch is not None and isinstance(value, torch.Tensor)


def _to_numpy(value: Any) -> NDArray[Any]:
    """Without a copy, where the other side has the buffer protocol or DLPack on the CPU."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def _torch_to_numpy(tensor: Any) -> tuple[NDArray[Any], str]:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type; the bits do
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), "bfloat16"
    array: NDArray[Any] = tensor.numpy()
    return array, array.dtype.name


def _kind(dtype: str, is_logits: bool) -> str:
    if is_logits:
        if dtype != "int32":
            raise DistributionError(f"logits must be int32, in units of 1/1024 bit, not {dtype}")
        return "logits"
    if dtype in _FLOAT_KINDS:
        return dtype
    if dtype.startswith(("int", "uint")):
        return "weights"
    raise DistributionError(
        f"probabilities must be float32, float16, bfloat16, float64 or integers, not {dtype}"
    )


def _weights_to_uint32(array: NDArray[Any]) -> NDArray[Any]:
    """Integers of any width as 32 bits; those out of range as a number that is refused by row."""
    if array.dtype.itemsize == 4:
        return array
    if array.dtype.itemsize < 4:
        return array.astype(np.int32)
    return np.where((array < 0) | (array > MAX_WEIGHT), MAX_WEIGHT + 1, array).astype(np.uint32)


def _contiguous_rows(array: NDArray[Any]) -> NDArray[Any]:
    """Only the numbers of one row must lie side by side, aligned; strides between rows are free."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    aligned = array.flags.aligned and all(s % array.itemsize == 0 for s in array.strides)
    if not aligned or (array.shape[-1] > 1 and array.strides[-1] != array.itemsize):
        array = np.array(array, order="C")  # ascontiguousarray() may leave it where it is
    return array


def _block_shape(shape: tuple[int, ...], lanes: int) -> tuple[int, int, int]:
    """(steps, lanes, V) of a tensor of this shape; see Encoder for the rule."""
    block: tuple[int, ...] = ()
    if len(shape) == 1 and lanes == 1:
        block = (1, 1, shape[0])
    elif len(shape) == 2:
        block = (shape[0], 1, shape[1]) if lanes == 1 else (1, *shape)
    elif len(shape) == 3:
        block = shape
    if len(block) != 3 or block[1] != lanes:
        wanted = "(V,), (steps, V)" if lanes == 1 else f"({lanes}, V)"
        raise DistributionError(
            f"the distributions have the shape {shape}; expected {wanted} or (steps, {lanes}, V)"
        )
    steps, _, symbols = block
    if not 1 <= symbols <= MAX_SYMBOLS:
        raise DistributionError(f"an alphabet has 1 to {MAX_SYMBOLS} symbols, not {symbols}")
    return steps, lanes, symbols


def _rows(probs: Any, logits: Any, lanes: int) -> _Rows:
    if (probs is None) == (logits is None):
        raise TypeError("give either probs or logits")
    value = probs if logits is None else logits
    if _is_torch(value):
        shape = tuple(value.shape)
        block = _block_shape(shape, lanes)
        if value.device.type != "cpu":
            kind = _kind(str(value.dtype).removeprefix("torch."), logits is not None)
            return _Rows(kind, value.detach().reshape(block), shape[:-1], value)
        array, dtype = _torch_to_numpy(value)
        like = value
    else:
        array, like = _to_numpy(value), None
        dtype = array.dtype.name
        if dtype == "bfloat16":  # of the package ml_dtypes
            array = array.view(np.uint16)
        shape = array.shape
        block = _block_shape(shape, lanes)
    kind = _kind(dtype, logits is not None)
    if kind == "weights":
        array = _weights_to_uint32(array)
    return _Rows(kind, _contiguous_rows(array.reshape(block)), shape[:-1], like)


def _symbols(symbols: Any, rows: _Rows) -> NDArray[np.int64]:
    array = symbols.detach().cpu().numpy() if _is_torch(symbols) else np.asarray(symbols)
    if array.dtype.kind not in "iu" and array.size > 0:
        raise DistributionError(f"symbols must be integers, not {array.dtype.name}")
    if array.shape != rows.shape:
        raise DistributionError(
            f"the symbols have the shape {array.shape}, the distributions call for {rows.shape}"
        )
    if array.dtype == np.uint64:  # what int64 cannot hold is out of range in any case
        array = np.minimum(array, np.uint64(MAX_SYMBOLS))
    return np.require(array, np.int64, ["C", "A"]).reshape(rows.data.shape[:2])


def _lane_map(lanes: int, chosen: Sequence[int] | None) -> list[int]:
    if chosen is None:
        return list(range(lanes))
    lane_map = [int(lane) for lane in chosen]
    if not all(0 <= lane < lanes for lane in lane_map) or len(set(lane_map)) != len(lane_map):
        raise DistributionError(
            f"lanes must be different numbers from 0 to {lanes - 1}, not {lane_map}"
        )
    return lane_map


def _check_counts(lanes: int, threads: int) -> None:
    if lanes < 1 or threads < 1:
        raise ValueError(f"lanes and threads must be 1 or more, not {lanes} and {threads}")


def _messages(data: Any) -> list[bytes]:
    """One message if the object has the buffer protocol, else one for each item.

    Items wider than a byte are refused: np.array(list(message)) has 64 bits for each.
    """
    try:
        views = [memoryview(data)]
    except TypeError:
        views = [memoryview(payload) for payload in data]
    for view in views:
        if view.ndim != 1 or view.itemsize != 1:
            raise TypeError(
                "a message must be bytes, or another buffer of bytes in one dimension; this one "
                f"has the shape {view.shape}, and {view.itemsize} bytes for each item"
            )
    return [bytes(view) for view in views]


class Encoder:
    """Codes symbols, each with the distribution that you predicted for it.

    One stream (`lanes=1`) or many that advance together, such as the rows of a batch. Every lane
    becomes a message of its own, so a lane's bytes depend on its symbols and distributions alone:
    not on the other lanes, on `threads`, or on how the calls cut it. What was encoded in one block
    may be decoded step by step.

    With V the size of the alphabet (1 to 2^20), the shapes are

        one lane     symbols (n,)           probs (n, V)         n steps
                     symbols () or an int   probs (V,)           one step
        L lanes      symbols (L,)           probs (L, V)         one step
        any          symbols (T, L)         probs (T, L, V)      T steps

    Calls from several threads take turns, in whatever order they come.
    """

    def __init__(self, lanes: int = 1, *, threads: int = 1) -> None:
        """`threads` work on blocks of many rows; the bytes do not depend on it."""
        _check_counts(lanes, threads)
        self._lanes, self._threads = lanes, threads
        self._core = _core.LaneEncoder(lanes)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Encoder cannot be copied or pickled")

    def encode(
        self,
        symbols: "Tensor",
        probs: "Tensor | None" = None,
        *,
        logits: "Tensor | None" = None,
        lanes: Sequence[int] | None = None,
    ) -> None:
        """Append symbols.

        Args:
            symbols: integers, shape as above.
            probs: their distributions, NumPy (or anything with the buffer protocol or DLPack) or
                PyTorch on any device. float32, float16, bfloat16 or float64: probabilities, which
                need not sum to 1. Integers: weights in [0, 2^31), of any sum.
            logits: instead of probs, int32: log2 of the probabilities in units of 1/1024 bit, up
                to a constant for each row.
            lanes: the lanes that take part, in the order of the rows; all of them by default.

        Every symbol keeps a probability of at least 2^-30, also where probs says zero.

        Raises:
            DistributionError: a NaN, infinite, negative or all-zero row, a symbol out of range, or
                a shape or type that does not fit. Nothing is encoded then.

        The arrays must not change before the call returns.
        """
        lane_map = _lane_map(self._lanes, lanes)
        rows = _rows(probs, logits, len(lane_map))
        checked = _symbols(symbols, rows)
        if isinstance(rows.data, np.ndarray):
            self._core.encode_rows(rows.kind, rows.data, checked, lane_map, self._threads)
        else:
            from lmzip import coder_torch

            intervals = coder_torch.intervals(rows.kind, rows.data, checked)
            self._core.encode_intervals(intervals, lane_map)

    def finish(self) -> Any:
        """Close the messages: bytes if there is one lane, else a list of bytes, one for each.

        Raises:
            ValueError: the encoder has been finished; so does encode() from then on.
        """
        payloads = self._core.finish()
        return payloads[0] if self._lanes == 1 else payloads


class Decoder:
    """Takes back what an Encoder wrote, given the same distributions in the same order.

    `data` is what Encoder.finish() returned: bytes, or any other buffer of them, for one lane, a
    list of such for many.
    """

    def __init__(self, data: Any, *, threads: int = 1) -> None:
        """`threads` share the lanes of a block; the symbols do not depend on it."""
        payloads = _messages(data)
        _check_counts(len(payloads), threads)
        self._lanes, self._threads = len(payloads), threads
        self._core = _core.LaneDecoder(payloads)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Decoder cannot be copied or pickled")

    def decode(
        self,
        probs: "Tensor | None" = None,
        *,
        logits: "Tensor | None" = None,
        lanes: Sequence[int] | None = None,
    ) -> Any:
        """Return the next symbols, one for each row.

        Args and shapes are those of Encoder.encode(). A block of several steps can be decoded at
        once if its distributions do not depend on its symbols. The rows must not change before the
        call returns.

        Returns:
            int64 of shape probs.shape[:-1]: a PyTorch tensor on the device of probs if that is
            one, else a NumPy array; an int if probs is one row, (V,).

        Raises:
            DistributionError: as Encoder.encode().
            TruncatedError: the data end before the symbols do.
            The decoder is then as it was before the call.

        Damaged data, or other distributions than the encoder's, decode to other symbols: the
        shortest encoding has nothing to spare by which that would show. See finish().
        """
        lane_map = _lane_map(self._lanes, lanes)
        rows = _rows(probs, logits, len(lane_map))
        kind, data = rows.kind, rows.data
        if not isinstance(data, np.ndarray):
            from lmzip import coder_torch

            kind, data = coder_torch.decoder_rows(kind, data)
        symbols = self._core.decode_rows(kind, data, lane_map, self._threads).reshape(rows.shape)
        if rows.shape == ():
            return int(symbols)
        if rows.like is None:
            return symbols
        import torch

        return torch.from_numpy(symbols).to(rows.like.device)

    def finish(self) -> None:
        """Check that every lane stands exactly at the end of what was encoded.

        An encoder writes one message for given symbols, so data that are accepted here are what it
        would write for the symbols that were decoded. Much damage is noticed so, but not all of
        it: where a wrong symbol must not pass, store a checksum of the symbols beside the data.

        Raises:
            CorruptError: bytes are left over, or the data are no encoder's.
        """
        for lane, end in enumerate(self._core.ends()):
            if end == "long":
                raise CorruptError(
                    f"lane {lane}: data follow the last symbol; decode all symbols before finish()"
                )
            if end != "exact":
                raise CorruptError(
                    f"lane {lane}: the data are damaged, or were decoded with other distributions"
                )
