"""Bytes to symbols and back, for any bytes and whatever the tokenizers library does."""

import json
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="the tokenizers library is missing")

from hypothesis import given
from hypothesis import strategies as st

from lmzip import checkpoint
from lmzip.errors import CorruptError, UnsupportedError
from lmzip.tokenization import Tokenizer, byte_symbols, plain_document, spell, token_bytes
from random_llama import (
    gemma_pieces,
    gemma_tokenizer,
    random_llama,
    small_llama,
    token_table,
    tokenizer,
)

TOKENS = token_table(small_llama())
MISSING = bytes(b for b in range(256) if bytes([b]) not in TOKENS)
SPECIAL = "<|endoftext|>"


def with_special_token() -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = tokenizer(TOKENS)
    document["added_tokens"] = [{"id": 0, "content": SPECIAL, "special": True, **flags}]
    document["model"]["vocab"][SPECIAL] = 0
    return document


def library(document: dict[str, Any]) -> Tokenizer:
    return Tokenizer(TOKENS, json.dumps(plain_document(document)))


PLAIN = library(with_special_token())


@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_any_bytes_come_back(data: bytes) -> None:
    symbols = PLAIN.encode(data)
    assert spell(symbols, TOKENS) == data
    assert all(s >= len(TOKENS) or TOKENS[s] for s in symbols)
    escaped = sum(s >= len(TOKENS) for s in symbols)
    assert escaped == sum(data.count(b) for b in MISSING)


def test_merges_are_used() -> None:
    assert len(PLAIN.encode(b"tea")) == 2


@pytest.mark.parametrize("cut", range(len(SPECIAL) + 1))
def test_special_token_strings_are_plain_text(cut: int) -> None:
    """Also where a lane ends inside of one."""
    data = f"a{SPECIAL}b".encode()
    symbols = PLAIN.encode(data[:cut]) + PLAIN.encode(data[cut:])
    assert 0 not in symbols
    assert spell(symbols, TOKENS) == data


def test_special_tokens_do_match_without_the_care() -> None:
    """What the test above guards against exists."""
    from tokenizers import Tokenizer as Library

    ids = Library.from_str(json.dumps(with_special_token())).encode(SPECIAL).ids
    assert ids == [0]


@pytest.mark.parametrize(
    "step",
    [
        {"type": "NFC"},
        {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    ],
    ids=lambda step: step["type"],
)
def test_normalizers_are_dropped(step: dict[str, Any]) -> None:
    data = "A\u0301 E".encode()  # NFC would compose it
    assert spell(library(with_special_token() | {"normalizer": step}).encode(data), TOKENS) == data


def test_tokenizer_that_changes_text_is_not_believed() -> None:
    """Whatever the library answers: here it lowers a letter."""
    lower = {"type": "Replace", "pattern": {"String": "E"}, "content": "e"}
    document = plain_document(with_special_token() | {"normalizer": lower})
    assert document["normalizer"]
    assert spell(Tokenizer(TOKENS, json.dumps(document)).encode(b"tEa "), TOKENS) == b"tEa "


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


BYTE_LEVEL = tokenizer(TOKENS)["pre_tokenizer"]
HOSTILE: dict[str, dict[str, Any]] = {
    "bomb": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [replace({"String": "a"}, "b" * 200_000)],
        }
    },
    "chain of small bombs": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [replace({"String": "a"}, "aa")] * 40,
        }
    },
    "bomb between any two letters": {
        "normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": ""}, "b")]}
    },
    "prefix": {"normalizer": {"type": "Prepend", "prepend": "b" * 200_000}},
    "chain of bytes as letters": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 40}
    },
    "step that aborts": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "step of no type": {"pre_tokenizer": {}, "normalizer": {"a": 1}},
    "padding": {
        "padding": {
            "strategy": {"Fixed": 1 << 40},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    },
    "special tokens": {"added_tokens": [{"id": 0, "content": "a", "special": True}]},
    "tokens of no content": {"added_tokens": [{"id": 0, "special": False}]},
    "tokens that are numbers": {"added_tokens": 5},
    "prefixes inside of words": {
        "model": {**tokenizer(TOKENS)["model"], "continuing_subword_prefix": "b" * 200_000}  # type: ignore[dict-item]
    },
    "Unigram": {"model": {"unk_id": 0, "vocab": [["a", 0.0]]}},
    "merges without vocabulary": {
        "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]},
    },
    "a number for a model": {"model": 5},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tokenizer_is_refused(change: dict[str, Any]) -> None:
    document = json.dumps(plain_document(with_special_token()) | change)
    with pytest.raises((CorruptError, UnsupportedError), match="tokenizer"):
        Tokenizer(TOKENS, document)


@pytest.mark.parametrize(
    "document",
    ["", "x", "[]", "5", "null", "{}", "[" * 100_000, '{"a": 1e'],
    ids=["empty", "garbage", "list", "number", "null", "object", "deep", "cut"],
)
def test_other_text_is_no_tokenizer(document: str) -> None:
    with pytest.raises(CorruptError, match=r"no tokenizer\.json"):
        Tokenizer(TOKENS, document)


def test_import_leaves_out_what_would_grow() -> None:
    grows = [replace({"String": "a"}, "ab"), replace({"Regex": "a"}, "b")]
    kept = replace({"String": " "}, "\u2581")
    for step in (*grows, kept):
        document = plain_document(with_special_token() | {"normalizer": step})
        assert bool(document["normalizer"]) == (step is kept)


def test_sentencepiece_pieces_are_bytes() -> None:
    document = {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {"<unk>": 0, "<0x0A>": 1, "\u2581the": 2, "\u00e9": 3},
        },
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
    }
    assert token_bytes(document, 6) == [b"", b"\n", b" the", b"\xc3\xa9", b"", b""]


GEMMA_TEXTS = [
    "the than  the\n\n\nthe   the    an",
    "<bos>a<eos><unk>[multimodal]<start_of_image><unused0><start_of_turn><b>the</b>",
    "<0x41>\u2581the \u2581\u2581 th\u00e9 \u4e2d\n <0x",
    " ",
    "",
]
MARKERS = {"<bos>", "<mask>", "[multimodal]", "<start_of_image>", "<unused0>", "<start_of_turn>"}


def gemma_library(document: dict[str, Any]) -> tuple[Tokenizer, list[bytes]]:
    tokens = token_bytes(document, len(gemma_pieces()))
    return Tokenizer(tokens, json.dumps(plain_document(document))), tokens


def gemma_documents() -> list[dict[str, Any]]:
    """From a folder and from a GGUF file."""
    texts, kinds, scores = (list(column) for column in zip(*gemma_pieces(), strict=True))
    fields = {"tokens": texts, "token_type": kinds, "scores": scores, "unknown_token_id": 3}
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    read = (gemma_tokenizer(), checkpoint._sentencepiece_tokenizer(fields))
    return [checkpoint._without_markers(document) for document in read]


@pytest.mark.parametrize("text", GEMMA_TEXTS)
def test_markers_of_gemma_are_plain_text(text: str) -> None:
    for document in gemma_documents():
        plain, tokens = gemma_library(document)
        symbols = plain.encode(text.encode())
        assert spell(symbols, tokens) == text.encode()
        assert max(symbols, default=0) < len(tokens)  # bytes are tokens: no escapes
        texts = [gemma_pieces()[s][0] for s in symbols]
        assert not MARKERS & set(texts)
        assert "<b>" in texts or "<b>" not in text
        assert all(not tokens[i] for i, (t, _, _) in enumerate(gemma_pieces()) if t in MARKERS)


def test_odd_pieces_of_a_gguf_file_are_refused_by_name() -> None:
    def refused(match: str, **changes: list[object]) -> None:
        fields: dict[str, Any] = {"tokens": ["<unk>", "a"], "token_type": [3, 1], "scores": [0, 0]}
        fields = {f"tokenizer.ggml.{k}": v for k, v in (fields | changes).items()}
        with pytest.raises(UnsupportedError, match=match):
            checkpoint._sentencepiece_tokenizer(fields | {"tokenizer.ggml.unknown_token_id": 0})

    refused("differ in number", scores=[0])
    refused("differ in number", token_type=[1, 1, 1])
    refused("a token has 1048576 characters", tokens=["<unk>", "a" * (1 << 20)])


@pytest.mark.parametrize("text", ["than the an\n\nthe", "   the  the", "the\n the"])
def test_folder_and_gguf_of_gemma_cut_alike(text: str) -> None:
    a, b = (gemma_library(document)[0].encode(text.encode()) for document in gemma_documents())
    assert a == b
    assert len(a) < len(text) / 2


@given(st.one_of(st.binary(max_size=100), st.text(alphabet="the an\n<b>\u2581", max_size=60)))
def test_any_bytes_come_back_from_gemma(data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    for plain, tokens in GEMMA:
        symbols = plain.encode(raw)
        assert spell(symbols, tokens) == raw
        assert max(symbols, default=0) < len(tokens)


GEMMA = [gemma_library(document) for document in gemma_documents()]


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'Unigram'"):
        token_bytes({"model": {"type": "Unigram"}}, 3)
    with pytest.raises(UnsupportedError, match="neither byte-level"):
        token_bytes({"model": {"type": "BPE", "vocab": {}}}, 3)


def test_byte_symbols_are_those_of_gpt2() -> None:
    symbols = byte_symbols()
    assert len(symbols) == 256
    assert symbols["\u0120"] == 0x20
    assert symbols["\u010a"] == 0x0A
    assert symbols["a"] == 0x61


def test_model_file_carries_the_table() -> None:
    assert random_llama(small_llama(), 1).tokens == TOKENS
