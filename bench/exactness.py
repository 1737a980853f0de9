"""What integers cost: the entropy of texts under an exact model and under its checkpoint in fp32.

    python bench/exactness.py smollm2 --checkpoint SmolLM2-135M-Instruct.Q4_1.gguf \
        --results bench/results/exactness.csv

The same tokens in the same contexts: the text in rows of 1024 tokens, each by itself, as far as
--rows go; fp32 by transformers on PyTorch.  The network alone: nothing is coded, nothing adapts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from conftest import provenance
from lmzip import _core, llama_model, models
from lmzip.checkpoint import read_checkpoint
from lmzip.tokenization import Tokenizer
from pretrained import TEXTS, add_row, float_model, read

ROW = 1024


def rows_of(symbols: list[int], vocabulary: int, most: int) -> np.ndarray:
    """(rows, ROW) tokens; raw bytes and what does not fill a row are left out."""
    tokens = [symbol for symbol in symbols if symbol < vocabulary]
    rows = min(most, len(tokens) // ROW)
    return np.array(tokens[: rows * ROW], np.int64).reshape(rows, ROW)


def fp32_bits(model: torch.nn.Module, start: int, rows: np.ndarray) -> float:
    total = 0.0
    for row in rows:
        inputs = torch.from_numpy(np.concatenate([[start], row[:-1]]))[None]
        with torch.inference_mode():
            logits = model(inputs).logits[0]
            total -= float(torch.log_softmax(logits, -1)[torch.arange(ROW), row].double().sum())
    return total / np.log(2)


def exact_bits(model: llama_model.LlamaModel, rows: np.ndarray) -> float:
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    total = 0.0
    for row in rows:
        inputs = np.concatenate([[model.architecture.start], row[:-1]]).astype(np.uint32)[None]
        logits = _core.LlamaEngine(native, 1, ROW).feed(inputs)[0].astype(np.float64) / 1024
        top = logits.max(axis=-1, keepdims=True)
        log_sum = top[:, 0] + np.log2(np.exp2(logits - top).sum(axis=-1))
        total += float((log_sum - logits[np.arange(ROW), row]).sum())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE.gguf")
    parser.add_argument("--only", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    parser.add_argument("--rows", type=int, default=12, help="of a text, at most")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    info = models.find(args.model)
    exact = llama_model.parse(info.path.read_bytes())
    floats, vocabulary = float_model(read_checkpoint(args.checkpoint))
    tokenizer = Tokenizer(exact.tokens, exact.tokenizer)
    for name in args.only:
        rows = rows_of(tokenizer.encode(read(name)), vocabulary, args.rows)
        if not len(rows):
            continue
        size = sum(len(exact.tokens[token]) for token in rows.flat)
        theirs = fp32_bits(floats, exact.architecture.start, rows)
        ours = exact_bits(exact, rows)
        row = {
            "text": name,
            "tokens": rows.size,
            "bytes": size,
            "fp32_bpb": f"{theirs / size:.4f}",
            "exact_bpb": f"{ours / size:.4f}",
            "exact_to_fp32": f"{ours / theirs - 1:+.4%}",
            "model": f"{info.name} {info.id.hex()[:16]}",
            **provenance(),
        }
        add_row(args.results, row)


if __name__ == "__main__":
    main()
