"""Bytes -> symbols of a language model -> the same bytes, for any bytes.

A symbol below the vocabulary's size is a token, and stands for that token's bytes; one above it,
vocabulary + b, is the raw byte b (an escape, docs/format.md method 5).  The way from bytes to
symbols is free: every row of symbols that spells the bytes decodes.  So the tokenizers library is
asked for good tokens, checked, and helped where it drops or changes anything.  The way back is a
table in the model file; special tokens have no bytes there, and are never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from lmzip.errors import CorruptError, LmzipError, UnsupportedError

# Invalid UTF-8, as the error handler "surrogateescape" shows it.
_BROKEN = re.compile("([\udc80-\udcff]+)")
# The steps before BPE that write nothing.
_CUTTING = ("Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
_PIECE = 1 << 16  # characters that are tokenized at once: bounds the work of a retry


class Tokenizer:
    """Bytes to symbols.  tokens: the bytes of each token, empty for those that must not be used.
    document: of a plain_document(), and from a stranger.

    Raises LmzipError where the tokenizers library is missing, CorruptError, UnsupportedError.
    """

    def __init__(self, tokens: list[bytes], document: str) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise LmzipError(
                f"{error.name or error} is missing; compressing with this model needs it: "
                "pip install 'lmzip-codec[llm]' (decompressing does not)"
            ) from None
        self._tokens = tokens
        plain = json.dumps(read_plain(document))  # not as found: parsers differ in what they take
        try:
            self._library = Library.from_str(plain)
        except Exception as error:  # noqa: BLE001 (the library has no class of its own)
            raise _unusable(error) from None
        self._single = {token[0]: i for i, token in enumerate(tokens) if len(token) == 1}

    def encode(self, data: bytes) -> list[int]:
        """Symbols that spell `data`."""
        symbols: list[int] = []
        for text in _pieces(data.decode("utf-8", "surrogateescape")):
            if _BROKEN.match(text):
                symbols += self._spell(text.encode("utf-8", "surrogateescape"))
            else:
                self._encode_text(text, symbols)
        return symbols

    def _encode_text(self, text: str, symbols: list[int]) -> None:
        """Ask the library; where its tokens do not spell the text, ask for the halves."""
        wanted = text.encode()
        try:
            found = self._library.encode(text, add_special_tokens=False).ids
        except Exception as error:  # noqa: BLE001 (as above)
            raise _unusable(error) from None
        if self._spells(found, wanted):
            symbols += found
        elif len(text) == 1:
            symbols += self._spell(wanted)
        else:
            middle = len(text) // 2
            self._encode_text(text[:middle], symbols)
            self._encode_text(text[middle:], symbols)

    def _spells(self, found: list[int], wanted: bytes) -> bool:
        if any(i >= len(self._tokens) or not self._tokens[i] for i in found):
            return False
        return b"".join([self._tokens[i] for i in found]) == wanted

    def _spell(self, data: bytes) -> list[int]:
        return [self._single.get(b, len(self._tokens) + b) for b in data]


def spell(symbols: list[int], tokens: list[bytes]) -> bytes:
    """The bytes that symbols stand for."""
    n = len(tokens)
    return b"".join([tokens[s] if s < n else bytes([s - n]) for s in symbols])


def _unusable(error: Exception) -> CorruptError:
    return CorruptError(f"the tokenizers library cannot use the model's tokenizer: {error}")


def _pieces(text: str) -> Iterator[str]:
    for part in _BROKEN.split(text):
        for begin in range(0, len(part), _PIECE):
            yield part[begin : begin + _PIECE]


# ---- import: a tokenizer.json -> one that changes nothing, and the bytes of its tokens ---------


def plain_document(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what would change or interpret text: special tokens (whose names may
    occur in a text), templates, truncation, Unicode normalization, a prefixed space.

    With the result, no text grows beyond a few times its size; UnsupportedError if that cannot be.
    """
    _check_model(document["model"])
    out = dict(document)
    out["added_tokens"] = [t for t in document.get("added_tokens") or [] if not t["special"]]
    for name in ("post_processor", "decoder", "truncation", "padding"):
        out[name] = None
    out["normalizer"] = _only_replacements(document.get("normalizer"))
    out["pre_tokenizer"] = _without_prefix(document.get("pre_tokenizer"))
    writing = re.findall('"ByteLevel"|"Metaspace"', json.dumps(out["pre_tokenizer"]))
    if len(writing) > 1:  # each may write a character as several
        raise UnsupportedError(f"tokenizer: pre_tokenizer has {' and '.join(writing)}; at most one")
    return out


def read_plain(document: str) -> dict[str, Any]:
    """The tokenizer of a model file, which must be one that plain_document() leaves as it is.

    Raises CorruptError, UnsupportedError.
    """
    try:
        found = json.loads(document)
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
        plain = plain_document(found)
        changed = [name for name, part in plain.items() if found.get(name) != part]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"model file: its tokenizer is no tokenizer.json: {error!r}") from None
    if changed:
        raise CorruptError(
            f"model file: its tokenizer has a {changed[0]!r} that lmzip models import never writes"
        )
    return plain


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type") not in ("BPE", None):
        raise UnsupportedError(f"tokenizer: {model.get('type')!r}; only BPE is supported")
    if not isinstance(model["vocab"], dict):  # Unigram's, where "type" is missing
        raise UnsupportedError("tokenizer: its vocabulary is no JSON object; only BPE is supported")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"tokenizer: {name} is {model[name]!r}; expected none")


def _only_replacements(step: Any) -> Any:
    if not step:
        return None
    steps = step["normalizers"] if step["type"] == "Sequence" else [step]
    kept = [s for s in steps if s["type"] == "Replace" and not _grows(s)]
    return {"type": "Sequence", "normalizers": kept} if kept else None


def _grows(step: dict[str, Any]) -> bool:
    """Whether a replacement may have more characters than what it replaces.  (A regular expression
    may match between any two.)"""
    pattern = step["pattern"].get("String")
    return pattern is None or len(step["content"]) > len(pattern)


def _without_prefix(step: Any) -> Any:
    if not step:
        return None
    out = dict(step)
    if out["type"] not in ("Sequence", "ByteLevel", "Metaspace", *_CUTTING):
        raise UnsupportedError(f"tokenizer: pre_tokenizer {out['type']!r} is not supported")
    if out["type"] == "Sequence":
        out["pretokenizers"] = [_without_prefix(s) for s in out["pretokenizers"]]
    if out["type"] == "Metaspace":
        out |= {"prepend_scheme": "never"}
        out.pop("add_prefix_space", None)
    if out["type"] == "ByteLevel":
        out["add_prefix_space"] = False
    return out


def token_bytes(document: dict[str, Any], size: int) -> list[bytes]:
    """The bytes of each of `size` tokens of a tokenizer.json; empty for special ones.

    Raises UnsupportedError for a kind of tokenizer whose tokens are not simply bytes.
    """
    model = document["model"]
    _check_model(model)
    kinds = json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
    if '"ByteLevel"' in kinds:
        to_bytes = _byte_level
    elif model.get("byte_fallback"):
        to_bytes = _sentencepiece
    else:
        raise UnsupportedError("tokenizer: neither byte-level BPE nor BPE with byte fallback")
    tokens = [b""] * size
    special = set()
    for t in document.get("added_tokens") or []:
        if t["special"]:
            special.add(t["content"])
        elif 0 <= t["id"] < size:
            tokens[t["id"]] = _added(t["content"], to_bytes)
    for text, i in model["vocab"].items():
        if 0 <= i < size and text not in special and not tokens[i]:
            tokens[i] = to_bytes(text)
    return tokens


def _added(text: str, to_bytes: Callable[[str], bytes]) -> bytes:
    """SentencePiece writes spaces of such a token as of any other; byte-level BPE writes as is."""
    return to_bytes(text) if to_bytes is _sentencepiece else text.encode()


def start_token(document: dict[str, Any], size: int, first: Any = None) -> int:
    """What stands before a text: the token between documents, else `first` (of a sequence)."""
    special = {t["content"]: t["id"] for t in document.get("added_tokens") or [] if t["special"]}
    named = [special.get(name) for name in ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>")]
    for token in [*named, first, *special.values()]:
        if isinstance(token, int) and 0 <= token < size and token in special.values():
            return token
    raise UnsupportedError("the tokenizer has no special token; one is needed as start and escape")


def byte_symbols() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2): printable ones stand for
    themselves, the others, in order, for U+0100 and so on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_SYMBOLS = byte_symbols()


def _byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTE_SYMBOLS[c] for c in text])
    except KeyError:
        return b""


def _sentencepiece(text: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()
