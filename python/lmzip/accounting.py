"""How compression rates are counted: pure arithmetic on sizes, after Delétang et al. 2023.

All rates are compressed / raw, as a fraction; the paper prints them in percent (Table 1).  The
paper's rules: section 3.1 and Appendix; the header rule as in its published code.
"""

import math
from collections.abc import Sequence

PAPER_BYTES_PER_PARAMETER = 2  # "each parameter 2 bytes": bfloat16


def total_size(sizes: Sequence[int], header: int) -> int:
    """Bytes of a set that was compressed chunk by chunk, its header counted once.

    `header` bytes stand at the head of each of `sizes`: a classical format spends some twenty
    bytes on saying what it is, which is no property of the method that is compared.

    >>> total_size([120, 130, 125], header=20)
    335
    """
    if any(size < header for size in sizes):
        raise ValueError(f"a chunk of {min(sizes)} bytes cannot hold a header of {header}")
    return sum(sizes) - header * max(len(sizes) - 1, 0)


def rate(coded: int, raw: int) -> float:
    """Compressed over raw; ValueError for no raw bytes."""
    if raw <= 0:
        raise ValueError("a rate needs at least one raw byte")
    return coded / raw


def adjusted_rate(coded: int, raw: int, model_bytes: float) -> float:
    """The same with the model counted as part of the output (the paper's "adjusted" rate).

    >>> adjusted_rate(250, 1000, 100)
    0.35
    """
    return rate(coded, raw) + model_bytes / raw


def paper_model_bytes(parameters: int) -> int:
    """A model's size as the paper counts it."""
    return PAPER_BYTES_PER_PARAMETER * parameters


def bits_per_byte(coded: int, raw: int) -> float:
    return 8 * rate(coded, raw)


def expected_bits(probabilities: Sequence[float]) -> float:
    """The ideal code length of symbols with these probabilities: an estimate, never a size."""
    return -sum(math.log2(p) for p in probabilities)


def ascii_chunk(chunk: bytes) -> tuple[bytes, bytes]:
    """The paper's trick for models of 7-bit text, made decodable (its section 3.2).

    Each byte loses its top bit; the lost bits follow apart, eight a byte, the first one highest.
    -> (bytes below 128, packed top bits); both have to be coded and counted.

    >>> ascii_chunk(bytes([65, 193]))
    (b'AA', b'@')
    """
    bits = 0
    for byte in chunk:
        bits = bits << 1 | byte >> 7
    bits <<= -len(chunk) % 8
    return bytes(b & 127 for b in chunk), bits.to_bytes((len(chunk) + 7) // 8, "big")


def from_ascii_chunk(low: bytes, top: bytes) -> bytes:
    """The inverse of ascii_chunk.

    >>> from_ascii_chunk(b"AA", b"@") == bytes([65, 193])
    True
    """
    return bytes(b | (top[i // 8] >> (7 - i % 8) & 1) << 7 for i, b in enumerate(low))
