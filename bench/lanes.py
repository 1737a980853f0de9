"""Size and speed of one text against the number of lanes; decoded and compared.

    python bench/lanes.py --results bench/results/lanes.csv

tests/data/alice29.txt as one frame, one thread, CPU time; presets default (network and
mixer), network (alone) and fast (mixer alone).
"""

import argparse
import csv
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from conftest import commit, device
from lmzip import models
from lmzip.codec import Codecs, preset_named

TEXT = (Path(__file__).resolve().parents[1] / "tests" / "data" / "alice29.txt").read_bytes()


def measure(preset: str, lanes: int, repeats: int) -> dict[str, object]:
    codec = Codecs(model=models.default()).for_preset(preset_named(preset))[0]
    best = [float("inf")] * 2
    for _ in range(repeats):
        times = [time.process_time()]
        payloads = codec.encode_frame(TEXT, lanes)
        times.append(time.process_time())
        decoded = codec.decode_frame(payloads, len(TEXT))
        times.append(time.process_time())
        if decoded != TEXT:
            raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
        best = [min(b, t1 - t0) for b, t0, t1 in zip(best, times, times[1:], strict=False)]
    return {
        "preset": preset,
        "lanes": lanes,
        "bytes": sum(map(len, payloads)),
        "encode_kb_s": f"{len(TEXT) / best[0] / 1000:.1f}",
        "decode_kb_s": f"{len(TEXT) / best[1] / 1000:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    rows = []
    for preset in ("default", "network", "fast"):
        for lanes in (1, 4, 16, 64):
            rows.append(measure(preset, lanes, args.repeats))
            print(rows[-1], file=sys.stderr)
    provenance = {
        "raw": len(TEXT),
        "device": device(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *provenance])
        writer.writeheader()
        writer.writerows(row | provenance for row in rows)


if __name__ == "__main__":
    main()
