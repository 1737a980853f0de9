"""Size and speed of pretrained language models on files of the open set; decoded and compared.

    lmzip models import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2
    python bench/pretrained.py smollm2 --lanes 8 --results bench/results/pretrained.csv

CPU time of the whole process, so that other work on the machine counts little. Rows are added to
the results as they come. --pytorch FILE.gguf adds how fast PyTorch decodes step by step with the
same checkpoint: as many streams at once as there are lanes, and one, as other compressors do.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import corpora
from conftest import provenance
from lmzip import models
from lmzip.checkpoint import Checkpoint, read_checkpoint
from lmzip.codec import TOKEN_PROFILE, CodecRequest, ThreadShare
from lmzip.container import METHOD_TOKENS
from lmzip.token_codec import TokenCodec
from lmzip.tokenization import Tokenizer, plain_document, token_bytes

# file of the open set, first byte, bytes
TEXTS = {
    "alice29.txt": ("canterbury/alice29.txt", 0, None),
    "enwik8_95M_200K": ("enwik8", 95_000_000, 200_000),
    "fields.c": ("canterbury/fields.c", 0, None),
    "htop_50K": ("code/htop.cat", 0, 50_000),
    "flask_50K": ("code/flask.cat", 0, 50_000),
    "cobra_50K": ("code/golang-github-spf13-cobra.cat", 0, 50_000),
    "twir_2024_50K": ("docs/twir_2024.md.cat", 0, 50_000),
    "alice29_20K": ("canterbury/alice29.txt", 0, 20_000),
    "enwik8_95M_100K": ("enwik8", 95_000_000, 100_000),
}


def read(name: str) -> bytes:
    path, begin, size = TEXTS[name]
    return corpora.raw(path, begin, -1 if size is None else size)


def measure(model: models.ModelInfo, raw: bytes, lanes: int, threads: int) -> dict[str, object]:
    codec = TokenCodec(
        CodecRequest(METHOD_TOKENS, 0, TOKEN_PROFILE, model, "cpu", ThreadShare(threads))
    )
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
        "engine": "lmzip",
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


def measure_pytorch(
    checkpoint: Path, raw: bytes, lanes: int, threads: int, steps: int = 12
) -> dict[str, object]:
    """Some steps of decoding in the middle of the lanes; a token counts as its average bytes.

    A step is what a decoder cannot do without: the network with its cache, a cumulative
    distribution, a search in it. Nothing is compressed, so there is no size.
    """
    import torch
    import transformers

    from lmzip.predictors import cache_argument

    torch.set_num_threads(threads)
    found = read_checkpoint(checkpoint)
    model, vocabulary = float_model(found)
    config = model.config
    document = plain_document(found.tokenizer)
    tokenizer = Tokenizer(token_bytes(found.tokenizer, vocabulary), json.dumps(document))
    tokens = torch.tensor([symbol % vocabulary for symbol in tokenizer.encode(raw)])
    middle = min(len(tokens) // lanes // 2, 1024)
    with torch.inference_mode():
        cache = transformers.DynamicCache(config=config)
        given = {cache_argument(model): cache}
        model(tokens[None, :middle], use_cache=True, **given)
        cache.batch_repeat_interleave(lanes)
        wall, cpu = [], []
        for step in range(steps + 1):  # the first one warms up
            wall.append(time.monotonic())
            cpu.append(time.process_time())
            row = tokens[middle + step].expand(lanes, 1)
            logits = model(row, use_cache=True, **given).logits[:, -1]
            sums = torch.softmax(logits, -1).cumsum(-1)
            torch.searchsorted(sums, torch.full((lanes, 1), 0.5))
        wall.append(time.monotonic())
        cpu.append(time.process_time())
    kb = steps * lanes * len(raw) / len(tokens) / 1000
    return {
        "engine": f"PyTorch {torch.__version__} float32, {steps} steps",
        "raw": len(raw),
        "lanes": lanes,
        "bytes": "",
        "bpb": "",
        "encode_kb_per_cpu_s": "",
        "decode_kb_per_cpu_s": f"{kb / (cpu[-1] - cpu[1]):.2f}",
        "encode_kb_s": "",
        "decode_kb_s": f"{kb / (wall[-1] - wall[1]):.2f}",
        "memory_mib": "",
        "threads": threads,
        "model": checkpoint.stem,
    }


def float_model(checkpoint: Checkpoint):
    """transformers' model of a Llama in fp32, and the size of its vocabulary."""
    import torch
    import transformers

    vocabulary = len(checkpoint.tensors["embed_tokens.weight"])
    config = transformers.LlamaConfig(
        **checkpoint.config, vocab_size=vocabulary, tie_word_embeddings=True
    )
    model = transformers.LlamaForCausalLM(config).eval()
    weights = {f"model.{name}": torch.from_numpy(t) for name, t in checkpoint.tensors.items()}
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]), missing
    return model, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lanes", type=int, nargs="+", default=[8])
    parser.add_argument("--only", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pytorch", type=Path, metavar="FILE.gguf", help="measure this, too")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    model = models.find(args.model)
    for name in args.only:
        raw = read(name)
        for lanes in args.lanes:
            rows = [measure(model, raw, lanes, args.threads)]
            if args.pytorch:
                batches = (lanes, 1)
                rows += [measure_pytorch(args.pytorch, raw, n, args.threads) for n in batches]
            for row in rows:
                add_row(args.results, {"text": name} | row | provenance())


def add_row(path: Path, row: dict[str, object]) -> None:
    print(row, file=sys.stderr)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
