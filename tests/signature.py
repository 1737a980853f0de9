"""Eight hexadecimal digits that change when any compressed byte changes.

CRC-32 over the files that the presets make of fixed inputs with the bundled model, one after the
other.  Every commit that changes it says so in its last line; `make signature` prints it.  The
expected value is vectors/signature.txt; test_signature.py computes it with every kernel.
"""

import zlib
from pathlib import Path

import lmzip
from lmzip.codec import PRESETS

TEXT = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()
RECORDS = b"".join(i.to_bytes(4, "little") + (i * i).to_bytes(8, "big") for i in range(300))
NOISE = b"".join(zlib.crc32(i.to_bytes(4, "little")).to_bytes(4, "little") for i in range(500))
INPUTS = (b"", b"a", TEXT[:3000], RECORDS, NOISE, TEXT[9000:10000] + RECORDS[:500])
LANES = (None, 3)


def signature() -> str:
    crc = 0
    for preset in sorted(PRESETS):
        for lanes in LANES:
            for raw in INPUTS:
                blob = lmzip.compress(raw, preset=preset, lanes=lanes, frame_size=4096)
                if lmzip.decompress(blob) != raw:
                    raise AssertionError(f"preset {preset}: the decoded bytes differ")
                crc = zlib.crc32(blob, crc)
    return f"{crc:08x}"


if __name__ == "__main__":
    print(signature())
