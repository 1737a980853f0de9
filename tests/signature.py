"""Eight hexadecimal digits that change when any compressed byte changes.

CRC-32 over the files that the presets make of fixed inputs with the bundled model, one after the
other, and over payloads of tokens of a small pretrained model.  Every commit that changes it says
so in its last line; `make signature` prints it.  The expected value is vectors/signature.txt;
test_signature.py computes it with every kernel.
"""

import zlib
from pathlib import Path

import lmzip
from lmzip import _core, llama_model
from lmzip.codec import PRESETS
from lmzip.tokenization import spell

HERE = Path(__file__).parent
TINY = HERE / "vectors" / "tiny-llama.safetensors"
TEXT = (HERE / "data" / "alice29.txt").read_bytes()
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
    for lanes in (1, 3):
        for payload in token_payloads(lanes):
            crc = zlib.crc32(payload, crc)
    return f"{crc:08x}"


def token_payloads(lanes: int) -> list[bytes]:
    model = llama_model.parse(TINY.read_bytes())
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    tokens = [token for token, spelled in enumerate(model.tokens) if spelled]
    # One in eleven is a byte that is spelled out.
    symbols = [
        tokens[b] if b % 11 else model.architecture.vocabulary + b for b in TEXT[:600] if b < 128
    ]
    payloads = _core.encode_tokens(native, symbols, lanes, 1)
    raw = spell(symbols, model.tokens)
    if _core.decode_tokens(native, payloads, len(raw), 1) != raw:
        raise AssertionError("tokens: the decoded bytes differ")
    if _core.encode_tokens(native, symbols, lanes, 2) != payloads:
        raise AssertionError("tokens: two threads make other payloads than one")
    return payloads


if __name__ == "__main__":
    print(signature())
