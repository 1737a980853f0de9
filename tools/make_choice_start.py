"""Print csrc/choice_start.h: what the weights of docs/format.md, method 5, are at first.

They are learned as a coder learns them, over frames of each kind of text in turn, none of which is
evaluated, and averaged over the second half of the frames, in 1/16 bit. docs/format.md lists the
same numbers; a test compares. They are part of the format, and were written before log
probabilities were rounded to 1/128: run again, this may give some that differ a little.

    python tools/make_choice_start.py --model smollm2 --data DATA > csrc/choice_start.h
"""

import argparse
import lzma
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import reference_tokens
from lmzip import _core, llama_model, models
from lmzip.codec import lane_ranges
from lmzip.tokenization import Tokenizer

DOMAINS = ("wiki_text", "code", "enwik8", "docs", "books")
ROUNDS, FRAME, LANES = 2, 12_000, 2
FRAMES_FROM = 2_000_000  # bytes of a kind
UNIT = 4096  # 1/16 bit, of weights in 1/65536


def frames(data: Path) -> Iterator[bytes]:
    texts = {name: text(data, name) for name in DOMAINS}
    for i in range(ROUNDS):
        for whole in texts.values():
            begin = (len(whole) - FRAME) * i // (ROUNDS - 1)
            yield whole[begin : begin + FRAME]


def text(data: Path, domain: str) -> bytes:
    """From the front of enwik8, or of a domain's files one after another."""
    if domain == "enwik8":
        with lzma.open(data / "open" / "enwik8.xz") as file:
            return file.read(FRAMES_FROM)
    out = b""
    with tarfile.open(data / "train" / f"{domain}.tar.xz", "r|xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            out += file.read(FRAME) if file else b""
            if len(out) > FRAMES_FROM:
                break
    return out


def learn(
    chooser: reference_tokens.Chooser, native: _core.LlamaModel, lanes: list[list[int]], start: int
) -> None:
    """A frame, with the network's logits from the native engine."""
    longest = max(map(len, lanes))
    inputs = np.zeros((len(lanes), longest), np.uint32)
    for row, lane in zip(inputs, lanes, strict=True):
        row[: len(lane)] = [start, *lane[:-1]]
    logits = _core.LlamaEngine(native, len(lanes), longest).feed(inputs)
    recall = reference_tokens.Recall(len(lanes))
    for t in range(longest):
        active = [lane for lane, tokens in enumerate(lanes) if t < len(tokens)]
        choices = [
            reference_tokens.make_choice(recall.look_up(lane), logits[lane, t]) for lane in active
        ]
        intervals = [chooser.intervals(choice) for choice in choices]
        for lane, choice, c in zip(active, choices, intervals, strict=True):
            chooser.learn(choice, c, lanes[lane][t])
        for lane in active:
            recall.remember(lane, lanes[lane][t])


def header(kinds: np.ndarray, rests: np.ndarray) -> str:
    def rows(values: list[int]) -> list[str]:
        groups = [values[i : i + 31] for i in range(0, len(values), 31)]
        return ["    " + ", ".join(map(str, group)) + "," for group in groups]

    return "\n".join(
        [
            "// choice_start.h: what the weights of TokenChoice are at first, in 1/16 bit.",
            "// Written by tools/make_choice_start.py; docs/format.md lists the same numbers.",
            "#pragma once",
            "#include <cstdint>",
            "",
            "namespace lmzip {",
            "",
            "// clang-format off",
            f"inline constexpr int8_t kKindStart[{kinds.size}] = {{  // (kinds, knots)",
            *rows(kinds.ravel().tolist()),
            "};",
            f"inline constexpr int8_t kRestStart[{rests.size}] = {{",
            *rows(rests.tolist()),
            "};",
            "// clang-format on",
            "",
            "}  // namespace lmzip",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    model = llama_model.parse(models.find(args.model).path.read_bytes())
    a = model.architecture
    native = _core.LlamaModel(model.tensors, a.to_native())
    tokenizer = Tokenizer(model.tokens, model.tokenizer)
    chooser = reference_tokens.Chooser()
    kept = []
    for i, frame in enumerate(frames(args.data)):
        pieces = [frame[begin:end] for begin, end in lane_ranges(len(frame), LANES)]
        lanes = [
            [s if s < a.vocabulary else a.escape for s in tokenizer.encode(piece)]
            for piece in pieces
        ]
        learn(chooser, native, lanes, a.start)
        chooser.bias.clear()
        kinds = [[weight.value for weight in row] for row in chooser.kinds]
        kept.append((np.array(kinds), np.array([weight.value for weight in chooser.rests])))
        print(f"frame {i + 1} of {ROUNDS * len(DOMAINS)}", file=sys.stderr)
    half = kept[len(kept) // 2 :]
    kinds, rests = (np.mean([pair[i] for pair in half], axis=0) / UNIT for i in (0, 1))
    print(header(np.rint(kinds).astype(int), np.rint(rests).astype(int)))


if __name__ == "__main__":
    main()
