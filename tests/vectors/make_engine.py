"""Write engine.txt: what the readable reference says about random models.

python tests/vectors/make_engine.py > tests/vectors/engine.txt
"""

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lmzip import reference_coder as coder
from lmzip.model_file import Architecture, Array, NgramTable
from lmzip.reference import ReferenceEngine
from random_model import place_hashes, random_model, small_architecture

HEADER = """\
# Vectors of the exact engine (docs/numerics.md); made by make_engine.py from lmzip.reference.
# One model a line, made from the seed by tests/random_model.py and by native/random_model.h:
# d_model n_layers n_heads n_kv_heads head_dim d_ff windows ngrams seed lanes positions
#   logits state payloads
# windows: w,w,...   ngrams: order:log2_slots:offset:width,... or -
# A frame of lanes * positions - 1 bytes, byte i being 97 + h mod 8 with h the hash of seed, tensor
# 1000 and place i, is coded with method 1 (network).
# logits: CRC-32 of the logits that its bytes are coded with, in little-endian int32, lane by lane
# state: CRC-32 of the keys and values left by the full lanes, layer by layer, keys first, each as
#   (lanes, positions, heads, channels)
# payloads: CRC-32 of all payloads, one after the other
"""


@dataclass(frozen=True)
class Case:
    architecture: Architecture
    seed: int
    lanes: int
    positions: int

    def raw(self) -> bytes:
        hashes = place_hashes(self.seed, 1000, self.lanes * self.positions - 1)
        return bytes((97 + hashes % np.uint64(8)).astype(np.uint8))

    def fields(self) -> str:
        a = self.architecture
        ngrams = ",".join(f"{t.order}:{t.log2_slots}:{t.offset}:{t.width}" for t in a.ngrams)
        sizes = (a.d_model, a.n_layers, a.n_heads, a.n_kv_heads, a.head_dim, a.d_ff)
        windows = ",".join(map(str, a.windows))
        run = (self.seed, self.lanes, self.positions)
        return " ".join(map(str, (*sizes, windows, ngrams or "-", *run)))


CASES = (
    Case(small_architecture(), 1, 2, 40),
    Case(
        small_architecture(n_heads=3, n_kv_heads=3, head_dim=6, windows=(1, 7), ngrams=()),
        2, 5, 9,
    ),
    Case(small_architecture(d_model=160, d_ff=416, head_dim=32, windows=(16, 24)), 3, 1, 70),
    Case(
        small_architecture(
            n_heads=4, head_dim=64, windows=(3, 300), ngrams=(NgramTable(4, 1, 3, 29),)
        ),
        4, 33, 6,
    ),
)  # fmt: skip


def crc(*arrays: Array) -> str:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return f"{value:08x}"


def expected(case: Case) -> str:
    """The three sums.  The last lane is one byte shorter: its last position is not looked at."""
    raw = case.raw()
    lanes = np.frombuffer(raw + b"\0", np.uint8).reshape(case.lanes, case.positions)
    inputs = np.concatenate([np.zeros((case.lanes, 1), np.uint8), lanes[:, :-1]], axis=1)
    engine = ReferenceEngine(random_model(case.architecture, case.seed))
    state = engine.start(case.lanes)
    logits = np.stack([engine.step(state, inputs[:, t]) for t in range(case.positions)], axis=1)
    coded = logits.reshape(-1, 256)[: len(raw)]
    encoders = [coder.RangeEncoder() for _ in range(case.lanes)]
    for i, row in enumerate(coded):
        ends = coder.cumulative(coder.logit_weights(row.tolist()))
        lo, hi = ends[raw[i]], ends[raw[i] + 1]
        encoders[i // case.positions].encode(lo, hi - lo, 30)
    payloads = b"".join(encoder.finish() for encoder in encoders)
    full = case.lanes - 1 or case.lanes
    caches = [part[:full] for pair in zip(state.keys, state.values, strict=True) for part in pair]
    sums = (crc(coded.astype("<i4")), crc(*caches), f"{zlib.crc32(payloads):08x}")
    return " ".join(sums)


def render() -> str:
    return HEADER + "".join(f"{case.fields()} {expected(case)}\n" for case in CASES)


if __name__ == "__main__":
    sys.stdout.write(render())
