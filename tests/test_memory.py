"""What decoding a frame takes stays within what frame_memory says, which `-M` is held against.

Peak memory is that of a process of its own, from a moment before the frame is decoded.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lmzip
from lmzip import LimitError, _core, models
from lmzip.codec import BINARY, CODE, SAMPLE, STRONG, TEXT
from lmzip.container import (
    METHOD_MIXER,
    METHOD_NETWORK,
    METHOD_NETWORK_MIXER,
    FrameHeader,
    StreamHeader,
)
from lmzip.native import PROFILES, _open_model
from random_llama import random_llama, small_llama, token_table

STATUS = """
import json, pathlib, sys
from lmzip import _core, models

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
"""
DECODE = """
from lmzip.container import METHOD_MIXER, METHOD_NETWORK
from lmzip.native import PROFILES, _open_model

folder, lanes, raw_size, method, table_bits, profile = json.loads(sys.argv[1])
info = models.default()
model = None if method == METHOD_MIXER else _open_model(info.path, info.id)
if model is not None:  # what is allocated once is not the frame's
    letter = _core.encode_frame(model, b"a", 1, METHOD_NETWORK, 0, 1)
    _core.decode_frame(model, letter, 1, METHOD_NETWORK, 0, 1)
payloads = [pathlib.Path(folder, str(lane)).read_bytes() for lane in range(lanes)]
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
raw = _core.decode_frame(model, payloads, raw_size, method, table_bits, 2, PROFILES[profile])
print(status("VmHWM") - before)
"""


linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")


def peak_and_bound(
    method: int, profile: int, table_bits: int, lanes: int, raw_size: int, folder: Path
) -> tuple[int, int]:
    """Bytes that decoding such a frame takes, and what is said of it."""
    text = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()
    raw = (text * (raw_size // len(text) + 1))[: raw_size // 2] + bytes(
        (i * i * 2654435761 >> 16) & 255 for i in range(raw_size - raw_size // 2)
    )
    info = models.default()
    assert info is not None
    model = None if method == METHOD_MIXER else _open_model(info.path, info.id)
    payloads = _core.encode_frame(model, raw, lanes, method, table_bits, 2, PROFILES[profile])
    for lane, payload in enumerate(payloads):
        (folder / str(lane)).write_bytes(payload)
    arguments = json.dumps([str(folder), lanes, raw_size, method, table_bits, profile])
    child = subprocess.run(
        [sys.executable, "-c", STATUS + DECODE, arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = raw_size + sum(map(len, payloads))
    bound = sizes + _core.frame_memory(model, raw_size, lanes, method, table_bits)
    return int(child.stdout), bound


@linux_only
@pytest.mark.parametrize(
    ("method", "profile", "table_bits", "lanes", "raw_size"),
    [
        (METHOD_MIXER, TEXT, 16, 1, 1000),  # the small tables show
        (METHOD_MIXER, BINARY, 24, 1, 600_000),  # the large one
        (METHOD_MIXER, SAMPLE, 22, 1, 300_000),
        (METHOD_MIXER, SAMPLE, 16, 4096, 20_000),  # the lanes
        (METHOD_MIXER, CODE, 22, 64, 300_000),
        (METHOD_NETWORK, 0, 0, 256, 20_000),
        (METHOD_NETWORK_MIXER, STRONG, 20, 1, 2000),
        (METHOD_NETWORK_MIXER, STRONG, 16, 512, 20_000),
    ],
)
def test_peak_memory_is_within_the_bound(
    method: int, profile: int, table_bits: int, lanes: int, raw_size: int, tmp_path: Path
) -> None:
    peak, bound = peak_and_bound(method, profile, table_bits, lanes, raw_size, tmp_path)
    assert bound / 4 < peak <= bound


@linux_only
def test_a_table_that_the_frame_cannot_fill_costs_what_it_touches(tmp_path: Path) -> None:
    """Its size is the choice of the file: many small frames would clear it again and again."""
    peak, bound = peak_and_bound(METHOD_MIXER, TEXT, 28, 1, 100, tmp_path)
    assert bound > 1 << 28
    assert peak < 1 << 25


def test_tables_beyond_the_limit_are_refused_before_the_payload_is_there() -> None:
    for lanes, bits in ((1, 30), (4096, 29)):
        frame = FrameHeader(
            METHOD_MIXER, 0, 4096, 4096, 0, 0, bits, TEXT, (1,) * (lanes - 1) + (4097 - lanes,)
        )
        head = StreamHeader().pack() + frame.pack()
        limit = _core.frame_memory(None, 4096, lanes, METHOD_MIXER, bits) + 8191
        with pytest.raises(LimitError, match="raise it with -M"):
            lmzip.decompress(head, memory_limit=limit)
        with pytest.raises(lmzip.TruncatedError):
            lmzip.decompress(head, memory_limit=limit + 1)


DECODE_TOKENS = """
sys.path.insert(0, sys.argv[1])
from test_memory import large_vocabulary

model = large_vocabulary()
payloads = [bytes.fromhex(text) for text in json.loads(sys.argv[2])]
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
_core.decode_tokens(model, payloads, RAW_SIZE, THREADS, None, TEAM_SIZE)
print(status("VmHWM") - before)
"""


def large_vocabulary() -> _core.LlamaModel:
    """As many tokens as Gemma 3 has: a row of logits is 1 MiB."""
    shape = small_llama(vocabulary=1 << 18, d_model=32, head_dim=256, post_norms=True)
    model = random_llama(shape, 1)
    return _core.LlamaModel(model.tensors, shape.to_native())


@linux_only
@pytest.mark.parametrize(
    ("lanes", "threads", "team_size"), [(1, 2, 0), (9, 2, 0), (40, 2, 0), (40, 2, 2), (9, 8, 4)]
)
def test_rows_of_large_vocabularies_are_counted(lanes: int, threads: int, team_size: int) -> None:
    model = large_vocabulary()
    raw = b"ab" * lanes
    tokens = token_table(small_llama())
    symbols = [tokens.index(b"a"), tokens.index(b"b")] * lanes
    payloads = [p.hex() for p in _core.encode_tokens(model, symbols, lanes, 2)]
    code = STATUS + DECODE_TOKENS
    for name, value in {"RAW_SIZE": len(raw), "THREADS": threads, "TEAM_SIZE": team_size}.items():
        code = code.replace(name, str(value))
    command = [sys.executable, "-c", code, str(Path(__file__).parent), json.dumps(payloads)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    bound = _core.token_memory(model, len(raw), lanes)
    peak = int(child.stdout)
    assert bound / 4 < peak <= bound
