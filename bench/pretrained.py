"""Size and speed of pretrained language models on files of the open set; decoded and compared.

    lmzip models import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2
    python bench/pretrained.py smollm2 --data DATA --lanes 8 --results bench/results/pretrained.csv

CPU time of the whole process, so that other work on the machine counts little. Rows are added to
the results as they come.
"""

import argparse
import csv
import lzma
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from conftest import commit, device
from lmzip import models
from lmzip.codec import CodecRequest, ThreadShare
from lmzip.container import METHOD_TOKENS
from lmzip.token_codec import TokenCodec

# file of the open set, first byte, bytes
TEXTS = {
    "alice29.txt": ("canterbury/alice29.txt", 0, None),
    "enwik8_95M_200K": ("enwik8", 95_000_000, 200_000),
    "fields.c": ("canterbury/fields.c", 0, None),
    "htop_50K": ("code/htop.cat", 0, 50_000),
    "flask_50K": ("code/flask.cat", 0, 50_000),
    "alice29_20K": ("canterbury/alice29.txt", 0, 20_000),
    "enwik8_95M_100K": ("enwik8", 95_000_000, 100_000),
}


def read(data: Path, name: str) -> bytes:
    path, begin, size = TEXTS[name]
    with lzma.open(data / f"{path}.xz") as file:
        file.seek(begin)
        return file.read(size if size is not None else -1)


def measure(model: models.ModelInfo, raw: bytes, lanes: int, threads: int) -> dict[str, object]:
    codec = TokenCodec(CodecRequest(METHOD_TOKENS, 0, 0, model, "cpu", ThreadShare(threads)))
    codec.encode_frame(b"warm", 1)
    cpu, wall = [time.process_time()], [time.monotonic()]

    def lap() -> None:
        cpu.append(time.process_time())
        wall.append(time.monotonic())

    payloads = codec.encode_frame(raw, lanes)
    lap()
    decoded = codec.decode_frame(payloads, len(raw))
    lap()
    if decoded != raw:
        raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
    size = sum(map(len, payloads))
    kb = len(raw) / 1000
    return {
        "raw": len(raw),
        "lanes": lanes,
        "bytes": size,
        "bpb": f"{8 * size / len(raw):.4f}",
        "encode_kb_per_cpu_s": f"{kb / (cpu[1] - cpu[0]):.2f}",
        "decode_kb_per_cpu_s": f"{kb / (cpu[2] - cpu[1]):.2f}",
        "encode_kb_s": f"{kb / (wall[1] - wall[0]):.2f}",
        "decode_kb_s": f"{kb / (wall[2] - wall[1]):.2f}",
        "memory_mib": f"{codec.memory_needed(len(raw), lanes) / 2**20:.0f}",
        "threads": threads,
        "model": f"{model.name} {model.id.hex()[:16]}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="the folder open/ of the data")
    parser.add_argument("--lanes", type=int, nargs="+", default=[8])
    parser.add_argument("--only", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    provenance = {
        "device": device(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python bench/pretrained.py",
    }
    model = models.find(args.model)
    for name in args.only:
        raw = read(args.data, name)
        for lanes in args.lanes:
            row = {"text": name} | measure(model, raw, lanes, args.threads) | provenance
            print(row, file=sys.stderr)
            new = not args.results.exists()
            with args.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
