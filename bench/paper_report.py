"""The tables of docs/paper.md as Markdown, from the rows of bench/paper.py: no figure typed twice.

python bench/paper_report.py
"""

import csv
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
TEXTS = {"enwik8[90M:]": "", "enwik8[95M:]": "†"}
SETS = ("ImageNet patches", "LibriSpeech", "random")
SAMPLE = ", sample"
NAMES = {
    "gzip": "gzip",
    "lzma": "LZMA2",
    "png": "PNG",
    "png-paper": "PNG, the paper's shape",
    "png-paper-plain": "PNG, the paper's shape, without Average",
    "flac": "FLAC",
    "paper-200k": "Transformer 200K",
    "paper-800k": "Transformer 800K",
    "paper-3200k": "Transformer 3.2M",
    "lmzip-default": "lmzip-default, the network alone",
    "smollm2": "SmolLM2-135M-Instruct",
    "fast": "lmzip, preset fast",
    "default": "lmzip, preset default",
}  # in the order of the rows
# Delétang et al. 2023, Table 1: raw rates in percent; (chunk, our name for the compressor)
PAPER = {
    ("2048", "gzip"): (48.1, 68.6, 38.5, 100.1),
    ("2048", "lzma"): (50.0, 62.4, 38.2, 100.0),
    ("2048", "png"): (80.6, 61.7, 37.6, 103.2),
    ("2048", "png-paper"): (80.6, 61.7, 37.6, 103.2),
    ("2048", "png-paper-plain"): (80.6, 61.7, 37.6, 103.2),
    ("2048", "flac"): (88.9, 60.9, 30.3, 107.2),
    ("2048", "paper-200k"): (30.9, 194.0, 146.6, 195.5),
    ("2048", "paper-800k"): (21.7, 185.1, 131.1, 200.1),
    ("2048", "paper-3200k"): (17.0, 215.8, 228.2, 224.0),
    ("2048", "Llama 2 7B"): (8.9, 53.4, 23.1, 103.2),
    ("2048", "Chinchilla 1B"): (11.3, 62.2, 24.9, 108.8),
    ("2048", "Chinchilla 7B"): (10.2, 54.7, 23.6, 101.6),
    ("2048", "Chinchilla 70B"): (8.3, 48.0, 21.0, 100.8),
    ("0", "gzip"): (32.3, 70.7, 36.4, 100.0),
    ("0", "lzma"): (23.0, 57.9, 29.9, 100.0),
    ("0", "png"): (42.9, 58.5, 32.2, 100.0),
    ("0", "png-paper"): (42.9, 58.5, 32.2, 100.0),
    ("0", "png-paper-plain"): (42.9, 58.5, 32.2, 100.0),
    ("0", "flac"): (89.5, 61.9, 30.9, 107.8),
}

Row = dict[str, str]


def read(name: str) -> list[Row]:
    path = RESULTS / f"paper_{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table1() -> None:
    found = {(r["chunk"], r["compressor"], r["data"]): r for r in read("table1")}
    keys = list(dict.fromkeys((chunk, name) for chunk, name, _ in found)) + list(PAPER)
    order = {name: i for i, name in enumerate(NAMES)}
    keys = sorted(
        dict.fromkeys(keys), key=lambda key: (key[0] == "0", order.get(key[1], len(order)))
    )
    print("| chunk | compressor | text | ImageNet patches | LibriSpeech | random | model, MB |")
    print("|---|---|---|---|---|---|---|")
    for chunk, name in keys:
        rows = [_text(found, chunk, name), *(_other(found, chunk, name, s) for s in SETS)]
        theirs = PAPER.get((chunk, name), (None,) * 4)
        cells = [_cell(r, mark, t) for (r, mark), t in zip(rows, theirs, strict=True)]
        size = next((int(r["model_bytes"]) for r, _ in rows if r), 0)
        print(
            f"| {chunk if chunk != '0' else 'none'} | {NAMES.get(name, name)} | "
            f"{' | '.join(cells)} | {f'{size / 1e6:.2f}' if size else ''} |"
        )


def _text(found: dict[tuple[str, ...], Row], chunk: str, name: str) -> tuple[Row | None, str]:
    for text, mark in TEXTS.items():
        for suffix, sample in (("", ""), (SAMPLE, "‡")):
            if (chunk, name, text + suffix) in found:
                return found[chunk, name, text + suffix], mark + sample
    return None, ""


def _other(
    found: dict[tuple[str, ...], Row], chunk: str, name: str, data: str
) -> tuple[Row | None, str]:
    for suffix, mark in (("", ""), (SAMPLE, "‡")):
        if (chunk, name, data + suffix) in found:
            return found[chunk, name, data + suffix], mark
    return None, ""


def _cell(row: Row | None, mark: str, theirs: float | None) -> str:
    ours = f"{float(row['rate_percent']):.1f}{mark}" if row else "-"
    return ours + (f" ({theirs:.1f})" if theirs is not None else "")


def table2() -> None:
    print("\n| model | vocabulary | bytes a token | weights in layers | rate, % | bits per byte |")
    print("|---|---|---|---|---|---|")
    for r in read("table2"):
        size, vocabulary, _ = r["compressor"].split(", ")
        print(
            f"| {size} | {vocabulary} | {r['bytes_per_token']} | "
            f"{int(r['layer_parameters']) / 1e6:.2f} M | {r['rate_percent']} | "
            f"{float(r['bits_per_byte']):.2f} |"
        )


def models() -> None:
    print("\n| model | parameters | file, bytes | rate on text, % | with the model, % | KB/s |")
    print("|---|---|---|---|---|---|")
    for r in read("table1"):
        if r["data"] in TEXTS and r["chunk"] == "2048" and r["parameters"] != "0":
            print(
                f"| {r['compressor']}, {r['data']} | {int(r['parameters']):,} | "
                f"{int(r['model_bytes']):,} | {r['rate_percent']} | {r['adjusted_percent']} | "
                f"{float(r['encode_kb_s']):.0f} / {float(r['decode_kb_s']):.0f} |"
            )


if __name__ == "__main__":
    table1()
    table2()
    models()
