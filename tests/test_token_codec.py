"""Frames of pretrained models: round trips through the container, equal bytes everywhere,
hostile payloads and model files."""

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
import reference_tokens
from lmzip import _core, cli, codec, llama_model, models
from lmzip.container import METHOD_TOKENS, FrameHeader, read_varint
from lmzip.errors import CorruptError, LimitError, LmzipError, ModelMismatchError, UnsupportedError
from lmzip.llama_model import LlamaArchitecture, LlamaModel
from random_llama import random_llama, small_llama
from test_llama_engine import ARCHITECTURES

KERNELS = _core.kernels()
MODEL = random_llama(small_llama(), 7)
TEXT = b"the tea at ten, then the neat tan ant ate at a tee " * 8
needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the tokenizers library is missing"
)


@pytest.fixture(autouse=True)
def _restore_kernel() -> Iterator[None]:
    yield
    _core.set_active_kernel("")


def native(kernel: str = "") -> _core.LlamaModel:
    _core.set_active_kernel(kernel)
    return _core.LlamaModel(MODEL.tensors, MODEL.architecture.to_native())


NATIVE = native()


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(llama_model.serialize(MODEL.architecture, MODEL.tensors, {"name": "tiny"}))
    return path


@pytest.fixture
def only_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model would lose every comparison with the mixer."""
    monkeypatch.setattr(codec, "TOKEN_CODINGS", codec.TOKEN_CODINGS[:1])


def some_symbols(size: int, seed: int) -> list[int]:
    """Tokens that have bytes, and now and then a raw byte."""
    v = MODEL.architecture.vocabulary
    usable = [i for i, t in enumerate(MODEL.tokens) if t]
    rng = np.random.default_rng(seed)
    return [
        int(v + rng.integers(256) if rng.random() < 0.1 else rng.choice(usable))
        for _ in range(size)
    ]


def raw_of(symbols: list[int]) -> bytes:
    from lmzip.tokenization import spell

    return spell(symbols, MODEL.tokens)


def test_payloads_are_those_of_the_reference() -> None:
    """docs/format.md method 5, step by step: reference network, candidates, coder."""
    phrase = some_symbols(9, 1)  # which recurs, in other lanes too, and sometimes goes on otherwise
    other = phrase[:7] + some_symbols(3, 4) + 4 * phrase
    symbols = some_symbols(5, 2) + 3 * phrase + other + phrase
    for lanes in (4, 7):
        expected = reference_tokens.encode(MODEL, symbols, lanes)
        assert sum(map(len, expected)) < len(raw_of(symbols))
        for threads in (1, 3):
            assert _core.encode_tokens(NATIVE, symbols, lanes, threads) == expected
        assert _core.decode_tokens(NATIVE, expected, len(raw_of(symbols)), 2) == raw_of(symbols)


def test_lanes_are_of_equal_numbers_of_symbols() -> None:
    """Of as many as there are, and empty beyond."""
    symbols = some_symbols(5, 2)
    payloads = _core.encode_tokens(NATIVE, symbols, 7, 1)
    assert payloads == reference_tokens.encode(MODEL, symbols, 7)
    assert payloads[0][0] == 5
    assert [bool(p) for p in payloads] == [True] * 5 + [False] * 2
    assert [len(lane) for lane in reference_tokens.cut(symbols * 4, 7)] == [3] * 6 + [2]


def test_payloads_are_those_of_the_reference_where_anything_may_follow() -> None:
    """Two tokens and a byte in any order: every count grows, is halved, is taken over."""
    few = [*some_symbols(2, 8), MODEL.architecture.vocabulary + 4]
    rng = np.random.default_rng(9)
    symbols = [few[i] for i in rng.choice(3, 271, p=[0.75, 0.2, 0.05])]
    expected = reference_tokens.encode(MODEL, symbols, 2)
    assert _core.encode_tokens(NATIVE, symbols, 2, 2) == expected
    alone = _core.encode_tokens(NATIVE, symbols[:136], 1, 1)
    assert alone[0][2:] != expected[0][2:]  # lanes learn from each other


def test_candidates_coded_as_none_decode() -> None:
    """Which no encoder does; the decoder learns what came true."""
    lane = 3 * some_symbols(9, 1)
    raw, payloads = raw_of(lane), reference_tokens.encode(MODEL, lane, 1, detour=True)
    assert len(payloads[0]) > 2 * len(_core.encode_tokens(NATIVE, lane, 1, 1)[0])
    assert _core.decode_tokens(NATIVE, payloads, len(raw), 2) == raw


def test_weights_start_as_the_document_lists_them() -> None:
    text = (Path(__file__).parent.parent / "csrc" / "choice_start.h").read_text()
    rows = re.findall(r"^    ([-\d, ]+),$", text, re.MULTILINE)
    listed = [int(number) for row in rows for number in row.split(", ")]
    assert len(listed) == 103 * 3 + 32
    assert listed == reference_tokens.listed_start()


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_lanes_threads_and_kernels_give_the_same(kernel: str) -> None:
    model = native(kernel)
    for size, lanes in ((390, 3), (384, 6), (10, 11), (200, 1)):  # bands have 64 symbols
        symbols = some_symbols(size, size)
        expected = _core.encode_tokens(NATIVE, symbols, lanes, 1)
        for threads in (1, 2, 5):
            assert _core.encode_tokens(model, symbols, lanes, threads) == expected


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_team_of_threads_decodes_what_one_thread_does(
    architecture: LlamaArchitecture, kernel: str
) -> None:
    """Every thread makes a part of each product: rows, outputs and heads divide otherwise."""
    made = random_llama(architecture, 3)
    _core.set_active_kernel(kernel)
    model = _core.LlamaModel(made.tensors, architecture.to_native())
    usable = [i for i, t in enumerate(made.tokens) if t]
    symbols = np.random.default_rng(6).choice(usable, 100).tolist()
    raw = b"".join(made.tokens[s] for s in symbols)
    for lanes, threads, team_size in (
        (1, 2, 2),
        (3, 2, 2),
        (5, 2, 2),
        (2, 4, 4),
        (5, 2, 0),
        (5, 4, 2),
        (7, 9, 3),
        (70, 2, 2),  # more rows than are taken at once
    ):
        payloads = _core.encode_tokens(model, symbols, lanes, 1)
        assert _core.decode_tokens(model, payloads, len(raw), 1) == raw
        assert _core.decode_tokens(model, payloads, len(raw), threads, None, team_size) == raw


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_lanes_do_not_depend_on_the_number_of_threads(kernel: str) -> None:
    """One thread takes 256 positions at once and makes 64 logits of them at a time, others less."""
    symbols = some_symbols(1100, 5)
    raw, model = raw_of(symbols), native(kernel)
    for lanes in (1, 3):
        payloads = _core.encode_tokens(model, symbols, lanes, 1)
        assert _core.decode_tokens(model, payloads, len(raw), 2) == raw
        for threads in (2, 3):
            assert _core.encode_tokens(model, symbols, lanes, threads) == payloads


def test_teams_without_lanes_are_refused() -> None:
    symbols = some_symbols(9, 3)
    payloads = _core.encode_tokens(NATIVE, symbols, 2, 1)
    for threads, team_size in ((3, 1), (5, 5), (1, 2)):
        with pytest.raises(ValueError, match="each team has"):
            _core.decode_tokens(NATIVE, payloads, len(raw_of(symbols)), threads, None, team_size)


@given(st.binary(max_size=400), st.integers(1, 9), st.sampled_from(KERNELS), st.integers(1, 4))
def test_any_bytes_come_back(raw: bytes, lanes: int, kernel: str, threads: int) -> None:
    """Every byte as an escape or as its own token: what a tokenizer does at its worst."""
    v = MODEL.architecture.vocabulary
    symbols = [
        v + b if b % 3 or bytes([b]) not in MODEL.tokens else MODEL.tokens.index(bytes([b]))
        for b in raw
    ]
    payloads = _core.encode_tokens(NATIVE, symbols, lanes, threads)
    assert _core.decode_tokens(native(kernel), payloads, len(raw), threads) == raw


def test_symbol_without_bytes_is_refused() -> None:
    for symbol in (0, MODEL.architecture.vocabulary + 256):
        with pytest.raises(ValueError, match="stands for no bytes"):
            _core.encode_tokens(NATIVE, [symbol], 1, 1)


def test_truncated_at_every_byte_is_refused_or_another_text() -> None:
    """A shorter payload may be some other text's; the frame's checksums tell."""
    symbols = some_symbols(60, 3)
    raw, payload = raw_of(symbols), _core.encode_tokens(NATIVE, symbols, 1, 1)[0]
    assert _core.decode_tokens(NATIVE, [payload], len(raw), 1) == raw
    for size in range(len(payload)):
        with contextlib.suppress(CorruptError):
            assert _core.decode_tokens(NATIVE, [payload[:size]], len(raw), 1) != raw


@given(st.data())
def test_flipped_bit_is_refused_or_another_text(data: st.DataObject) -> None:
    symbols = some_symbols(60, 3)
    raw, payload = raw_of(symbols), bytearray(_core.encode_tokens(NATIVE, symbols, 1, 1)[0])
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(CorruptError):
        assert _core.decode_tokens(NATIVE, [bytes(payload)], len(raw), 1) != raw


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5), st.integers(0, 300))
def test_garbage_is_refused_or_decodes(payloads: list[bytes], raw_size: int) -> None:
    with contextlib.suppress(CorruptError):
        assert len(_core.decode_tokens(NATIVE, payloads, raw_size, 2)) == raw_size


def test_symbols_must_spell_as_many_bytes_as_the_frame_says() -> None:
    pair = next(i for i, t in enumerate(MODEL.tokens) if len(t) == 2)
    payloads = _core.encode_tokens(NATIVE, [pair] * 5, 2, 1)
    assert len(_core.decode_tokens(NATIVE, payloads, 10, 1)) == 10
    for size in (9, 11):
        with pytest.raises(CorruptError, match=f"hold 10 bytes or more, not {size}"):
            _core.decode_tokens(NATIVE, payloads, size, 2)


@pytest.mark.parametrize("start", [b"", b"\x0b", b"\x85\x00", b"\x80", b"\xff" * 12, b"\x00"])
def test_number_of_symbols_must_be_possible(start: bytes) -> None:
    """None, more than bytes, not the shortest form, cut off, too long, too few."""
    payloads = _core.encode_tokens(NATIVE, [MODEL.tokens.index(b"te")] * 5, 1, 1)
    with pytest.raises(CorruptError, match="how many symbols 10 bytes are"):
        _core.decode_tokens(NATIVE, [start + payloads[0][1:] if start else b""], 10, 1)


@needs_tokenizers
@pytest.mark.usefixtures("only_tokens")
def test_file_comes_back_and_names_its_model(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = lmzip.compress(TEXT, model=model_path, lanes=3)
    assert lmzip.decompress(blob, model=model_path) == TEXT
    info = lmzip.inspect(blob)
    assert info.frames[0].method == "tokens"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelMismatchError, match="needs the model 'tiny'"):
        lmzip.decompress(blob)
    monkeypatch.setenv("LMZIP_MODEL_PATH", str(tmp_path))
    assert lmzip.decompress(blob) == TEXT


@needs_tokenizers
@pytest.mark.usefixtures("only_tokens")
def test_memory_limit_is_kept_before_anything_is_allocated(model_path: Path) -> None:
    blob = lmzip.compress(TEXT, model=model_path, lanes=3)
    with pytest.raises(LimitError, match="raise it with -M"):
        lmzip.decompress(blob, model=model_path, memory_limit=1 << 16)


@needs_tokenizers
def test_binary_data_goes_to_the_mixer(model_path: Path) -> None:
    raw = bytes(range(0, 256, 5)) * 90
    blob = lmzip.compress(raw, model=model_path)
    assert lmzip.inspect(blob).frames[0].method == "mixer"
    assert lmzip.decompress(blob, model=model_path) == raw


def test_decoding_needs_no_tokenizer(
    model_path: Path, run_python: Callable[..., object], tmp_path: Path
) -> None:
    payload = _core.encode_tokens(NATIVE, [MODEL.tokens.index(b"te")] * 3, 1, 1)[0]
    (tmp_path / "payload").write_bytes(payload)
    run_python(
        f"""
import sys
sys.modules["tokenizers"] = None
from pathlib import Path
from lmzip import models
from lmzip.codec import CodecRequest, ThreadShare
from lmzip.errors import LmzipError
from lmzip.token_codec import TokenCodec
info = models.read(Path({str(model_path)!r}))
codec = TokenCodec(CodecRequest(5, 0, 2, info, "cpu", ThreadShare(1)))
assert codec.decode_frame([Path({str(tmp_path / "payload")!r}).read_bytes()], 6) == b"tetete"
try:
    codec.encode_frame(b"tetete", 1)
except LmzipError as error:
    assert "lmzip-codec[llm]" in str(error)
else:
    raise AssertionError
assert "torch" not in sys.modules
"""
    )


# ---- model files -------------------------------------------------------------------------------


def changed(**tensors: object) -> LlamaModel:
    out = dict(MODEL.tensors)
    for name, value in tensors.items():
        out[name.replace("__", ".")] = np.asarray(value)
    return LlamaModel(MODEL.architecture, out)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (changed(tokens__size=np.full(300, 2, np.uint16)), "tokens.size does not add up"),
        (changed(softmax=np.float32([np.nan])), "softmax has values outside"),
        (changed(head__norm=np.full(64, np.inf, np.float32)), "head.norm has values outside"),
        (changed(extra=np.zeros(1, np.uint8)), "missing or unexpected: extra"),
        (changed(sigmoid=np.zeros(8191, np.uint16)), "sigmoid is uint16"),
        (changed(tokenizer=np.zeros((1, 2), np.uint8)), "tokenizer must be a row"),
    ],
)
def test_bad_model_file_is_refused(model: LlamaModel, match: str) -> None:
    with pytest.raises(CorruptError, match=match):
        llama_model.check(model.architecture, model.tensors)
    if "tokenizer" not in match and "extra" not in match:  # the core checks for itself
        with pytest.raises(CorruptError):
            _core.LlamaModel(model.tensors, model.architecture.to_native())


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 33},
        {"head_dim": 48},
        {"windows": (5,)},
        {"windows": (5, 4097)},
        {"sinks": (2, 17)},
        {"n_kv_heads": 3},
        {"escape": 300},
        {"epsilon": 2.0},
        {"wide": ("all",)},
        {"wide": 1},
        {"tied": "yes"},
        {"more": 1},
        {"vocabulary": 1},
    ],
    ids=str,
)
def test_impossible_architecture_is_refused(change: dict[str, object]) -> None:
    document = MODEL.architecture.to_json() | change
    with pytest.raises(UnsupportedError, match="architecture"):
        llama_model.LlamaArchitecture.from_json(document)


def test_model_of_another_kind_is_refused(model_path: Path) -> None:
    """A frame says the method, the header the model: they may not fit together."""
    info = models.read(model_path)
    assert info.is_token_model
    request = codec.CodecRequest(1, 0, 0, info, "cpu", codec.ThreadShare(1))
    with pytest.raises(LmzipError, match="lmzip-llama-1"):
        codec._FACTORIES[1](request)
    bundled = models.default()
    assert bundled is not None
    request = codec.CodecRequest(METHOD_TOKENS, 0, 2, bundled, "cpu", codec.ThreadShare(1))
    with pytest.raises(UnsupportedError, match="lmzip-exact-1"):
        codec._FACTORIES[METHOD_TOKENS](request)


@needs_tokenizers
@pytest.mark.usefixtures("only_tokens")
@pytest.mark.parametrize(
    ("mixer", "error", "reason"),
    [
        (1 << 5, UnsupportedError, "profile 1, which only development versions"),
        (3 << 5, UnsupportedError, "profile 3; this lmzip knows 2: update"),
        (2 << 5 | 16, CorruptError, "mixer byte 0x50"),
    ],
)
def test_frames_of_other_profiles_are_refused_by_name(
    model_path: Path, mixer: int, error: type[LmzipError], reason: str
) -> None:
    packed = lmzip.compress(TEXT, model=model_path)
    info = lmzip.inspect(packed)
    assert [(f.method, f.profile, f.table_bits) for f in info.frames] == [("tokens", 2, 0)]
    begin = info.frames[0].offset
    size, at = read_varint(packed, begin + 1)
    old = FrameHeader.unpack(packed[begin : at + size + 4])
    new = replace(old, profile=mixer >> 5, table_bits=mixer & 31).pack()
    assert len(new) == old.head_size
    changed = packed[:begin] + new + packed[begin + len(new) :]
    with pytest.raises(error, match=reason):
        lmzip.decompress(changed, model=model_path)
    if error is UnsupportedError:  # it can be listed
        assert lmzip.inspect(changed).frames[0].profile == mixer >> 5


@needs_tokenizers
@pytest.mark.usefixtures("only_tokens")
def test_command(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(TEXT)
    assert cli.main(["--model", str(model_path), str(source)]) == 0
    source.unlink()
    assert cli.main(["-d", "--model", str(model_path), str(source) + ".lmz"]) == 0
    assert source.read_bytes() == TEXT
    capsys.readouterr()


def test_what_the_interrupt_raises_ends_the_work() -> None:
    def interrupt() -> None:
        raise CancelledError

    symbols = some_symbols(200, 1)
    with pytest.raises(CancelledError):
        _core.encode_tokens(NATIVE, symbols, 4, 2, interrupt)
    payloads = _core.encode_tokens(NATIVE, symbols, 4, 2)
    with pytest.raises(CancelledError):
        _core.decode_tokens(NATIVE, payloads, 200, 2, interrupt)
