"""Print csrc/exp2_table.h: EXP2_TABLE[f] = round(2^30 * 2^(-f/1024)), by integer arithmetic alone.

The 1024th root of an integer is its square root taken ten times, and a floor under a square root
may be postponed to the end, so ten times isqrt gives floor(2 * 2^30 * 2^(-f/1024)) exactly. Half
of that, rounded up, is the nearest integer; there are no ties, the numbers being irrational.

    python tools/make_exp2_table.py > csrc/exp2_table.h
"""

from math import isqrt

FRAC_BITS = 10
TOP_BITS = 30


def exp2_entry(f: int) -> int:
    """round(2^30 * 2^(-f/1024))"""
    root = 1 << (((TOP_BITS + 1) << FRAC_BITS) - f)
    for _ in range(FRAC_BITS):
        root = isqrt(root)
    return (root + 1) >> 1


def header() -> str:
    """The text of csrc/exp2_table.h."""
    values = [str(exp2_entry(f)) for f in range(1 << FRAC_BITS)]
    rows = [", ".join(values[i : i + 8]) + "," for i in range(0, len(values), 8)]
    return "\n".join(
        [
            "// exp2_table.h: kExp2Table[f] = round(2^30 * 2^(-f/1024)).",
            "// Written by tools/make_exp2_table.py; a test compares.",
            "#pragma once",
            "#include <cstdint>",
            "",
            "namespace lmzip {",
            "",
            "// clang-format off",
            "inline constexpr uint32_t kExp2Table[1024] = {",
            *(f"    {row}" for row in rows),
            "};",
            "// clang-format on",
            "",
            "}  // namespace lmzip",
            "",
        ]
    )


if __name__ == "__main__":
    print(header(), end="")
