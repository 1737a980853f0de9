"""Distributions on whatever device a PyTorch tensor lives on, by integer operations only.

The same integers as csrc/distribution.cpp for the same bits; tests compare them. For encoding only
two numbers a symbol cross the bus, for decoding the weights. Imported only when a tensor on another
device than the CPU is handed to the coder.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmzip import _core
from lmzip.errors import DistributionError

FREQ_BITS = 30
FREQ_TOTAL = 1 << FREQ_BITS
MAX_WEIGHT = (1 << 31) - 1
CHUNK = 1 << 26  # numbers that are worked on at a time; bounds the temporary memory

_INFINITY = 0x7F800000


@cache
def _exp2_table(device: torch.device) -> Tensor:
    return torch.from_numpy(_core.exp2_table().astype(np.int32)).to(device)


def _float64_bits_as_float32(values: Tensor) -> Tensor:
    """The bits of the nearest float32, ties to even: from_float64() of csrc/row_kernels.cpp."""
    bits = values.view(torch.int64)
    exponent = bits >> 52 & 0x7FF
    fraction = bits & (1 << 52) - 1
    significand = torch.where(exponent == 0, fraction, fraction | 1 << 52)
    float_exponent = exponent - 1023 + 127
    drop = 29 + (1 - float_exponent).clamp(0, 26)
    half = torch.ones_like(drop) << drop - 1
    rounded = significand + half - 1 + (significand >> drop & 1) >> drop
    finite = ((float_exponent - 1).clamp(min=0) << 23) + rounded
    special = _INFINITY | torch.where(fraction != 0, 1 << 22, 0)
    magnitude = torch.where(exponent == 0x7FF, special, finite.clamp(max=_INFINITY))
    # In 32 bits the sign makes the number the least negative ones plus the magnitude.
    return (magnitude - torch.where(bits < 0, 1 << 31, 0)).to(torch.int32)


def _float_bits(kind: str, values: Tensor) -> Tensor:
    """int32: the bits of the values as float32."""
    if kind == "float64":
        return _float64_bits_as_float32(values)
    if kind == "bfloat16":
        return values.view(torch.int16).to(torch.int32) << 16
    return values.to(torch.float32).view(torch.int32)


def _float_weights(kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
    bits = _float_bits(kind, values)
    magnitude = bits & 0x7FFFFFFF
    valid = (magnitude < _INFINITY) & ((bits >= 0) | (magnitude == 0))
    exponent = magnitude >> 23
    significand = (magnitude & 0x7FFFFF) | torch.where(exponent != 0, 1 << 23, 0)
    exponent = exponent.clamp(min=1)
    shift = (exponent.amax(-1, keepdim=True) - exponent).clamp(max=31)
    return significand.to(torch.int32) << 6 >> shift, valid.all()


def _logit_weights(values: Tensor) -> tuple[Tensor, Tensor]:
    distance = values.amax(-1, keepdim=True).to(torch.int64) - values
    entry = _exp2_table(values.device)[distance & 1023]
    shift = (distance >> 10).clamp(max=31).to(torch.int32)
    return entry >> shift, torch.ones((), dtype=torch.bool, device=values.device)


def _given_weights(values: Tensor) -> tuple[Tensor, Tensor]:
    wide = values.to(torch.int64)
    valid = (wide >= 0) & (wide <= MAX_WEIGHT)
    return torch.where(valid, wide, 0).to(torch.int32), valid.all()


def weights(kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """int32 weights of rows (..., V), and whether every number is valid (a scalar)."""
    if kind == "logits":
        return _logit_weights(values)
    if kind == "weights":
        return _given_weights(values)
    return _float_weights(kind, values)


def _cumulative(prefix: Tensor, index: Tensor, total: Tensor, n: int) -> Tensor:
    """C_index, given P_index and W; all int64, of shapes that fit together."""
    steps = torch.arange(32, 52, device=total.device)  # W < 2^51
    shift = (total.unsqueeze(-1) >> steps != 0).sum(-1)
    return index + (prefix >> shift) * (FREQ_TOTAL - n) // (total >> shift).clamp(min=1)


def row_intervals(kind: str, values: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, 2) int64: lo and freq of one symbol (rows) of each row; and whether all rows and
    symbols are valid."""
    n = values.shape[-1]
    row_weights, valid = weights(kind, values)
    in_range = (symbols >= 0) & (symbols < n)
    index = torch.where(in_range, symbols, 0)
    total = row_weights.sum(-1, dtype=torch.int64)
    before = torch.arange(n, device=values.device) < index.unsqueeze(-1)
    prefix = torch.where(before, row_weights, 0).sum(-1, dtype=torch.int64)
    own = row_weights.gather(-1, index.unsqueeze(-1)).squeeze(-1).to(torch.int64)
    lo = _cumulative(prefix, index, total, n)
    hi = _cumulative(prefix + own, index + 1, total, n)
    return torch.stack((lo, hi - lo), -1), valid & in_range.all() & (total > 0).all()


def _refuse(kind: str, values: Tensor, symbols: NDArray[np.int64]) -> None:
    """Let the native code find the first fault, so that the message is the same everywhere."""
    rows = _on_cpu(kind, values)
    lane_map = list(range(rows.shape[1]))
    _core.LaneEncoder(len(lane_map)).encode_rows(kind, rows, symbols, lane_map, 1)
    raise DistributionError(f"{values.device} and the CPU disagree about these rows")


def _on_cpu(kind: str, values: Tensor) -> NDArray[Any]:
    values = values.cpu().contiguous()
    if kind == "bfloat16":
        return values.view(torch.int16).numpy().view(np.uint16)
    if kind == "weights":
        wide = values.to(torch.int64)
        wide = torch.where((wide < 0) | (wide > MAX_WEIGHT), MAX_WEIGHT + 1, wide)
        return wide.numpy().astype(np.uint32)
    array: NDArray[Any] = values.numpy()
    return array


def intervals(kind: str, rows: Tensor, symbols: NDArray[np.int64]) -> NDArray[np.uint32]:
    """lo and freq, (steps, lanes, 2), of the symbols (steps, lanes) in rows (steps, lanes, V).

    Raises:
        DistributionError: as the native code, with the same message.
    """
    steps, lanes, n = rows.shape
    flat = rows.reshape(steps * lanes, n).contiguous()
    targets = torch.from_numpy(symbols.reshape(-1)).to(rows.device)
    found, valid = [], []
    step = max(1, CHUNK // n)
    for begin in range(0, steps * lanes, step):
        part = slice(begin, begin + step)
        chunk, chunk_valid = row_intervals(kind, flat[part], targets[part])
        found.append(chunk)
        valid.append(chunk_valid)
    if not found:
        return np.empty((steps, lanes, 2), np.uint32)
    if not bool(torch.stack(valid).all()):
        _refuse(kind, rows, symbols)
    return torch.cat(found).cpu().numpy().astype(np.uint32).reshape(steps, lanes, 2)


def find_symbols(logits: Tensor, slots: Tensor) -> Tensor:
    """The symbols whose intervals hold the slots (...), in rows (..., V).

    C_i ascends with i, so the symbol is the number of i with C_i <= slot, less one.
    """
    n = logits.shape[-1]
    row_weights, _ = weights("logits", logits)
    prefix = row_weights.to(torch.int64).cumsum(-1)
    total = prefix[..., -1:]
    ends = _cumulative(prefix, torch.arange(1, n + 1, device=logits.device), total, n)
    return (ends <= slots.unsqueeze(-1)).sum(-1)


def decoder_rows(kind: str, rows: Tensor) -> tuple[str, NDArray[Any]]:
    """What the native decoder needs of rows (steps, lanes, V): their kind and data on the CPU.

    Logits and floats of 32 and 16 bits are no larger than their weights, so they are handed over as
    they are; what is wider is reduced first.
    """
    if kind not in ("float64", "weights"):
        return kind, _on_cpu(kind, rows)
    row_weights, valid = weights(kind, rows.contiguous())
    if not bool(valid):  # the native code names the fault
        return kind, _on_cpu(kind, rows)
    return "weights", row_weights.cpu().numpy()
