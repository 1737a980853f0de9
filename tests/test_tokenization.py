"""Bytes to symbols and back, for any bytes and whatever the tokenizers library does."""

import importlib.util
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmzip.errors import UnsupportedError
from lmzip.tokenization import Tokenizer, byte_symbols, plain_document, spell, token_bytes
from random_llama import random_llama, small_llama, token_table, tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the tokenizers library is missing"
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
    """Whatever the library answers: here it lowers all letters."""
    document = plain_document(with_special_token()) | {"normalizer": {"type": "Lowercase"}}
    assert spell(Tokenizer(TOKENS, json.dumps(document)).encode(b"tEa "), TOKENS) == b"tEa "


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
