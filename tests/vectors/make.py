"""Write range_coder.json and distribution.json from the readable reference.

python tests/vectors/make.py [FOLDER]
"""

import json
import random
import struct
import sys
from pathlib import Path

from lmzip import reference_coder as ref

HERE = Path(__file__).parent


def encode(intervals: list[list[int]]) -> str:
    encoder = ref.RangeEncoder()
    for lo, freq, bits in intervals:
        encoder.encode(lo, freq, bits)
    return encoder.finish().hex()


def random_intervals(seed: int, count: int, widest: int) -> list[list[int]]:
    rng = random.Random(seed)
    intervals = []
    for _ in range(count):
        bits = rng.randint(1, 32)
        freq = max(1, min(1 << bits, rng.getrandbits(rng.randint(1, widest))))
        intervals.append([rng.randint(0, (1 << bits) - freq), freq, bits])
    return intervals


def carry_chain(steps: int) -> list[list[int]]:
    """Stay astride of the number 1/2 while `steps` intervals are coded, so that the words
    0x7fffffff, 0xffffffff, ... are written; then choose what lies above, and carry through all.

    The intervals are found by decoding the number just below 1/2, and taking in its neighbor.
    """
    guide, intervals = ref.RangeDecoder(b"\x7f" + b"\xff" * 4 * steps), []
    for _ in range(steps):
        slot = guide.peek(16)
        guide.consume(slot, min(2, 65536 - slot), 16)
        intervals.append([slot, min(2, 65536 - slot), 16])
    above = guide.peek(16) + 1
    return [*intervals, [above, 65536 - above, 16]]


def range_coder_vectors() -> dict[str, object]:
    bits = [[0, 40000, 16] if i % 3 else [40000, 25536, 16] for i in range(50)]
    cases = {
        "no symbols: no bytes": [],
        "one symbol that is certain: no bytes": [[0, 1 << 30, 30]],
        "the first half: zero is the shortest number, no bytes": [[0, 1, 1]],
        "the second half": [[1, 1, 1]],
        "the narrowest interval at the bottom": [[0, 1, 32]],
        "the narrowest interval at the top": [[(1 << 32) - 1, 1, 32]],
        "the narrowest at the top, ten times": [[(1 << 32) - 1, 1, 32]] * 10,
        "the narrowest at the bottom, ten times: the zero words stay": [[0, 1, 32]] * 10,
        "binary decisions with p1 = 40000/65536, a 1 being the lower interval": bits,
        "a carry through one word": carry_chain(3),
        "a carry through many words": carry_chain(40),
        "all kinds of intervals": random_intervals(1, 200, 32),
        "narrow intervals": random_intervals(2, 60, 2),
    }
    return {
        "_comment": [
            "Range coder vectors; docs/coder.md, section 'The range coder'. Made by make.py.",
            "Each case: intervals [lo, freq, bits] in coding order, [lo, lo + freq) of 2^bits,",
            "and the message in hexadecimal.",
        ],
        "cases": [
            {"name": name, "intervals": intervals, "bytes": encode(intervals)}
            for name, intervals in cases.items()
        ],
    }


def float32(bits: int) -> float:
    return struct.unpack(">f", bits.to_bytes(4))[0]


def float_case(name: str, patterns: list[int]) -> dict[str, object]:
    values = [float32(bits) for bits in patterns]
    weights = ref.float_weights(values)
    return {
        "name": name,
        "kind": "float32",
        "row": [f"{bits:08x}" for bits in patterns],
        "cumulative": ref.cumulative(weights),
    }


def integer_case(name: str, kind: str, row: list[int]) -> dict[str, object]:
    weights = ref.logit_weights(row) if kind == "logits" else row
    return {"name": name, "kind": kind, "row": row, "cumulative": ref.cumulative(weights)}


def bits_of(*values: float) -> list[int]:
    return [int.from_bytes(struct.pack(">f", value)) for value in values]


def distribution_vectors() -> dict[str, object]:
    rng = random.Random(3)
    uniform = [rng.random() for _ in range(100)]
    wide = [rng.random() * 2.0 ** -rng.randint(0, 60) for _ in range(70)]
    cases = [
        float_case("one symbol", bits_of(0.25)),
        float_case("need not sum to one", bits_of(3.0, 1.0)),
        float_case("zeros still get a frequency of 1", bits_of(0.0, 1.0, 0.0)),
        float_case("a negative zero is a zero", [0x80000000, 0x3F800000]),
        float_case("thirds", bits_of(1 / 3, 1 / 3, 1 / 3)),
        float_case("2^-30 of the greatest weighs 0, 2^-29 weighs 1", bits_of(1, 2**-30, 2**-29)),
        float_case("greatest and least finite numbers", [0x7F7FFFFF, 0x00000001, 0x00800000]),
        float_case("all subnormal", [0x00000001, 0x00000002, 0x007FFFFF]),
        float_case("subnormal beside small normal numbers", [0x00400000, 0x00800000, 0x01000000]),
        float_case("100 symbols", bits_of(*uniform)),
        float_case("70 symbols over 60 binary orders", bits_of(*wide)),
        integer_case("weights", "weights", [1, 2, 3]),
        integer_case("weights whose sum passes 2^32", "weights", [ref.MAX_WEIGHT] * 5 + [1, 0]),
        integer_case("one weight", "weights", [0, 0, 1, 0]),
        integer_case("equal logits", "logits", [-7] * 6),
        integer_case("logits one unit, one bit, 30 and 31 bits apart", "logits",
                     [0, -1, -1024, -30 * 1024, -31 * 1024]),
        integer_case("the farthest logits", "logits", [2**31 - 1, -(2**31), 0]),
        integer_case("64 logits", "logits", [rng.randint(-20000, 5000) for _ in range(64)]),
    ]  # fmt: skip
    errors = [
        {"name": "NaN", "kind": "float32", "row": ["3f800000", "7fc00000"], "message": "NaN"},
        {"name": "infinity", "kind": "float32", "row": ["7f800000"], "message": "infinite"},
        {"name": "negative", "kind": "float32", "row": ["bf800000"], "message": "negative"},
        {"name": "the least negative", "kind": "float32", "row": ["3f800000", "80000001"],
         "message": "negative"},
        {"name": "all zero", "kind": "float32", "row": ["00000000", "80000000"],
         "message": "all numbers of the row are zero"},
        {"name": "zero weights", "kind": "weights", "row": [0, 0],
         "message": "all numbers of the row are zero"},
        {"name": "a weight of 2^31", "kind": "weights", "row": [1, 2**31], "message": "2^31"},
    ]  # fmt: skip
    return {
        "_comment": [
            "Distribution vectors; docs/coder.md, section 'Distributions'. Made by make.py.",
            "kind float32: row holds the bits of each number in hexadecimal; weights and logits:",
            "integers. cumulative: C_0 to C_n. Rows under 'errors' must be refused, with a message",
            "that contains the given words.",
        ],
        "cases": cases,
        "errors": errors,
    }


def render(vectors: dict[str, object]) -> str:
    """One case a line, so that a difference is a line."""
    parts = []
    for key, value in vectors.items():
        items = ",\n  ".join(json.dumps(item) for item in value)
        parts.append(f"{json.dumps(key)}: [\n  {items}\n ]")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


FILES = {"range_coder.json": range_coder_vectors, "distribution.json": distribution_vectors}


def main(folder: Path) -> None:
    for name, make in FILES.items():
        (folder / name).write_text(render(make()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
