"""Float predictors: bytes come back where they were written, and the rest is refused by name."""

import contextlib
import csv
import io
import itertools
import json
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is missing")

import lmzip  # noqa: E402
from lmzip import baselines, cli, codec, float_codec, generate, predictors  # noqa: E402
from lmzip.codec import CodecRequest, Codecs, ThreadShare  # noqa: E402
from lmzip.container import METHOD_FLOAT, FrameHeader, PredictorRef, StreamHeader, pack_varint  # noqa: E402
from lmzip.errors import CorruptError, LmzipError, ModelMismatchError  # noqa: E402
from lmzip.float_codec import FloatCodec  # noqa: E402
from lmzip.predictors import ByteModule, Predictor  # noqa: E402
from lmzip.salvage import salvage  # noqa: E402
from test_import_model import folder_of  # noqa: E402

TEXT = b"the tea at ten, then the neat tan ant ate at a tee " * 6


class Bigrams(torch.nn.Module):
    """A small float model of bytes that has learned TEXT a little."""

    context = 16

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(256, 256, generator=generator)
        for a, b in itertools.pairwise(TEXT):
            weights[a, b] = 4
        self.weights = torch.nn.Parameter(weights)

    def forward(self, tokens: Any) -> Any:
        return torch.cumsum(self.weights[tokens], 1) / 16 + self.weights[tokens]


class Pieces(Predictor):
    """Symbols of several bytes, some bytes missing: 0 is the escape, 1 must not be used."""

    def __init__(self) -> None:
        self.tokens = [b"", b"", *(bytes([b]) for b in range(256) if b % 7), b"the ", b"at"]
        self.escape = 0
        self.steps: list[tuple[int, ...]] = []

    @property
    def fingerprint(self) -> str:
        return "1"

    def start(self, lanes: int) -> Any:
        self.steps = [(lanes,)]
        self._sum = torch.zeros(lanes)
        return self._predict()

    def step(self, symbols: Any) -> Any:
        self.steps.append(tuple(symbols.tolist()))
        self._sum = self._sum * 0.7 + symbols
        return self._predict()

    def _predict(self) -> Any:
        logits = torch.sin(self._sum[:, None] * torch.arange(len(self.tokens)))
        logits[:, -2:] += 3
        logits[:, 5] = -torch.inf
        return logits

    def encode(self, data: bytes) -> list[int]:
        out, at = [], 0
        while at < len(data):
            found = next((t for t in (b"the ", b"at") if data.startswith(t, at)), data[at : at + 1])
            known = found in self.tokens
            out.append(self.tokens.index(found) if known else len(self.tokens) + found[0])
            at += len(found)
        return out


class Restless(Bigrams):
    """Never the same twice."""

    def forward(self, tokens: Any) -> Any:
        return super().forward(tokens) + torch.rand(1)


def make_bigrams(seed: str = "1") -> Any:
    return Bigrams(int(seed))


def make_named(argument: str) -> Any:
    """SEED,NAME=VALUE, the form of the transformers factory."""
    seed, value = argument.split(",scale=")
    assert value == "2"
    return Bigrams(int(seed))


@pytest.fixture(autouse=True)
def _only_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poor predictor would lose what is no text to the mixer."""
    monkeypatch.setattr(codec, "FLOAT_CODINGS", ((METHOD_FLOAT, 0),))
    predictors.load.cache_clear()


def float_codec_of(predictor: Any) -> FloatCodec:
    made = predictors.as_predictor(predictor)
    return FloatCodec(CodecRequest(METHOD_FLOAT, 0, 0, None, "cpu", ThreadShare(1), made))


BIGRAMS, PIECES = float_codec_of(Bigrams()), float_codec_of(Pieces())


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 3, 7])
def test_text_comes_back_and_is_smaller(lanes: int) -> None:
    blob = lmzip.compress(TEXT, predictor=Bigrams(), lanes=lanes, frame_size=200)
    info = lmzip.inspect(blob)
    assert {frame.method for frame in info.frames} == {"float"}
    assert len(info.frames) == 2
    assert info.frames[0].compressed_size < 190
    assert lmzip.decompress(blob, predictor=Bigrams()) == TEXT


@given(st.binary(max_size=60), st.integers(1, 6))
def test_any_bytes_come_back(raw: bytes, lanes: int) -> None:
    for coder in (BIGRAMS, PIECES):
        payloads = coder.encode_frame(raw, lanes)
        assert len(payloads) == lanes
        assert coder.decode_frame(payloads, len(raw)) == raw


def test_both_sides_make_the_same_calls() -> None:
    """Float results depend on shapes; and lanes that are done stay in the batch."""
    predictor = Pieces()
    coder = float_codec_of(predictor)
    raw = b"the at the end\x07\x00" + b"the " * 9
    payloads = coder.encode_frame(raw, 3)
    steps = predictor.steps
    assert coder.decode_frame(payloads, len(raw)) == raw
    assert predictor.steps == steps
    assert steps[0] == (3,)
    assert {len(step) for step in steps[1:]} == {3}
    tokens = [len(predictor.encode(raw[at : at + 18])) for at in (0, 18, 36)]
    assert len(steps) == max(tokens)  # nobody asks for what follows the end


def test_payload_is_what_the_library_makes_of_the_integers() -> None:
    """Method 6 in terms of the public coder: integer logits, and a raw byte behind an escape."""
    predictor = Pieces()
    raw = b"the\x07at"
    symbols = predictor.encode(raw)
    encoder = lmzip.Encoder()
    logits = predictor.start(1)
    for symbol in symbols:
        token = min(symbol, len(predictor.tokens)) % len(predictor.tokens)
        row = np.maximum(
            np.rint((logits - logits.max()).numpy() * np.float32(1024 / np.log(2))), -(2**20)
        ).astype(np.int32)
        row[0, 1] = -(2**20)
        encoder.encode(np.array([token]), logits=row)
        if symbol >= len(predictor.tokens):
            encoder.encode(np.array([symbol - len(predictor.tokens)]), np.ones((1, 256), np.uint32))
        logits = predictor.step(torch.tensor([token]))
    assert float_codec_of(predictor).encode_frame(raw, 1) == [encoder.finish()]


def test_context_is_dropped_by_halves() -> None:
    shapes = []

    class Watched(Bigrams):
        def forward(self, tokens: Any) -> Any:
            shapes.append(tuple(tokens.shape))
            return super().forward(tokens)

    predictor = ByteModule(Watched(), context=4)
    predictor.start(2)
    for _ in range(6):
        predictor.step(torch.tensor([1, 2]))
    assert shapes == [(2, n) for n in (1, 2, 3, 4, 3, 4, 3)]
    with pytest.raises(ValueError, match="2 or more"):
        ByteModule(Bigrams(), context=1)
    with pytest.raises(ValueError, match="2 or more"):
        ByteModule(Bigrams(), context=0)


def test_what_does_not_compress_is_stored_and_names_no_predictor() -> None:
    noise = np.random.default_rng(1).bytes(300)
    blob = lmzip.compress(noise, predictor=Bigrams())
    assert lmzip.inspect(blob).frames[0].method == "stored"
    assert lmzip.inspect(blob).streams[0].predictor is None
    assert lmzip.decompress(blob) == noise


def test_mixer_takes_what_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    raw = bytes(range(0, 256, 5)) * 40
    blob = lmzip.compress(raw, predictor=Bigrams())
    assert lmzip.inspect(blob).frames[0].method == "mixer"
    assert lmzip.decompress(blob) == raw


def test_files_and_pieces_take_a_predictor(tmp_path: Path) -> None:
    path = tmp_path / "a.lmz"
    with lmzip.open(path, "wb", predictor=Bigrams(), frame_size=100) as file:
        file.write(TEXT)
    with lmzip.open(path, predictor=Bigrams()) as file:
        file.seek(150)
        assert file.read() == TEXT[150:]
    decompressor = lmzip.LmzDecompressor(predictor=Bigrams())
    assert decompressor.decompress(path.read_bytes()) == TEXT


# ---- what a file is bound to --------------------------------------------------------------------


def test_file_without_its_predictor_is_refused() -> None:
    blob = lmzip.compress(TEXT, predictor=Bigrams())
    ref = lmzip.inspect(blob).streams[0].predictor
    assert ref == predictors.reference(predictors.as_predictor(Bigrams()))
    with pytest.raises(ModelMismatchError, match=r"Bigrams .* with --predictor torch:"):
        lmzip.decompress(blob)


def test_other_weights_are_refused_and_force_tries() -> None:
    blob = lmzip.compress(TEXT, predictor=Bigrams())
    with pytest.raises(ModelMismatchError, match=r"written with .*Bigrams.*; here it is .*Bigrams"):
        lmzip.decompress(blob, predictor=Bigrams(2))
    with pytest.raises(CorruptError, match="another predictor has written it"):
        lmzip.decompress(blob, predictor=Bigrams(2), force=True)


def test_another_environment_is_refused_and_force_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = lmzip.compress(TEXT, predictor=Bigrams())
    monkeypatch.setattr(predictors, "_cpu_name", lambda: "Abacus 9")
    with pytest.raises(ModelMismatchError, match=r"environment .* here it is .*Abacus 9.*--force"):
        lmzip.decompress(blob, predictor=Bigrams())
    assert lmzip.decompress(blob, predictor=Bigrams(), force=True) == TEXT


def test_only_what_differs_is_shown() -> None:
    a = PredictorRef("one", "here")
    assert a.differences(PredictorRef("two", "here")) == "'one'; here it is 'two'"
    assert a.differences(PredictorRef("one", "x\x1b")) == (
        "in the environment 'here'; here it is 'x\\\\u001b'"
    )
    both = a.differences(PredictorRef("two", "there"))
    assert all(word in both for word in ("'one'", "'two'", "'here'", "'there'"))


def test_environment_names_what_changes_bits() -> None:
    text = predictors.environment(torch.device("cpu"))
    assert torch.__version__ in text
    assert f"{torch.get_num_threads()} threads" in text
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert predictors.environment(torch.device("cpu")) != text
    finally:
        torch.set_num_threads(before)


def test_long_descriptions_are_cut_and_stay_different() -> None:
    a, b = (predictors._cut("ü" * 200 + end, 200) for end in "ab")
    assert max(len(a.encode()), len(b.encode())) <= 200
    assert a != b
    assert predictors._cut("a\x1b[1m", 200) == "a\\u001b[1m"


def test_predictor_that_does_not_repeat_itself_writes_nothing() -> None:
    with pytest.raises(LmzipError, match="does not give the same numbers twice"):
        lmzip.compress(TEXT, predictor=Restless())


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (lambda x: x[:, :-1], r"shape \(2, 260\).*expected \(2, 261\)|shape"),
        (lambda x: torch.where(x > 1, torch.nan, x), "NaN"),
        (lambda x: torch.full_like(x, -torch.inf), "infinite"),
        (lambda x: torch.where(x > 1, torch.inf, x), "infinite"),
    ],
)
def test_logits_that_cannot_be_coded_are_refused(fault: Callable[[Any], Any], match: str) -> None:
    class Faulty(Pieces):
        def _predict(self) -> Any:
            return fault(super()._predict())

    with pytest.raises(LmzipError, match=match):
        float_codec_of(Faulty()).encode_frame(b"at the end", 2)


def test_module_of_another_shape_is_refused() -> None:
    class Last(Bigrams):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens)[:, -1]

    with pytest.raises(LmzipError, match=r"expected \(1, 1, 256\)"):
        lmzip.compress(TEXT, predictor=Last())


@pytest.mark.parametrize("symbols", [[5], [1, 9], [300, 9]])
def test_symbols_that_spell_other_bytes_are_refused(symbols: list[int]) -> None:
    class Wrong(Pieces):
        def encode(self, data: bytes) -> list[int]:  # noqa: ARG002
            return symbols

    predictor = Wrong()
    raw = predictor.tokens[9] if len(symbols) > 1 else b"x"
    if symbols[0] == 300:
        raw, predictor.escape = bytes([300 - len(predictor.tokens)]) + raw, None
    with pytest.raises(LmzipError, match="do not spell"):
        float_codec_of(predictor).encode_frame(raw, 1)


def test_neither_module_nor_predictor_is_refused() -> None:
    with pytest.raises(LmzipError, match="got int"):
        predictors.as_predictor(5)
    with pytest.raises(ValueError, match="either a model or a float predictor"):
        lmzip.compress(b"a", predictor=Bigrams(), model="lmzip-default")


# ---- strangers' files ---------------------------------------------------------------------------


def stream(payload: bytes, raw: bytes, ref: PredictorRef | None, lanes: int = 1) -> bytes:
    sizes = (len(payload), *(0,) * (lanes - 1))
    head = FrameHeader(
        METHOD_FLOAT, 0, len(raw), len(payload), zlib.crc32(raw), zlib.crc32(payload),
        lane_sizes=sizes,
    )  # fmt: skip
    header = StreamHeader(predictor=ref).pack()
    return header + head.pack() + payload + b"E" + pack_varint(len(raw))


@given(st.binary(min_size=1, max_size=40), st.integers(40, 300), st.integers(1, 5))
def test_garbage_is_refused(payload: bytes, raw_size: int, lanes: int) -> None:
    for coder in (BIGRAMS, PIECES):
        with pytest.raises(CorruptError, match="another predictor has written it"):
            coder.decode_frame([payload, *[b""] * (lanes - 1)], raw_size)


@given(st.data())
def test_flipped_bit_of_a_payload_is_refused(data: st.DataObject) -> None:
    coder = PIECES
    payload = bytearray(coder.encode_frame(TEXT[:60], 1)[0])
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(CorruptError):
        assert coder.decode_frame([bytes(payload)], 60) != TEXT[:60]


def test_token_that_passes_the_end_of_its_lane_is_refused() -> None:
    coder = float_codec_of(Pieces())
    payloads = coder.encode_frame(b"the ", 1)
    with pytest.raises(CorruptError, match="cannot be there"):
        coder.decode_frame(payloads, 3)


def test_token_without_bytes_is_refused() -> None:
    predictor = Pieces()
    encoder = lmzip.Encoder()
    rows = float_codec._Lockstep(predictor, 1).logits([0])
    encoder.encode(np.array([1]), logits=rows)
    with pytest.raises(CorruptError, match="cannot be there"):
        float_codec_of(predictor).decode_frame([encoder.finish()], 1)


def test_stream_that_names_no_predictor_is_refused_unless_forced() -> None:
    coder = float_codec_of(Bigrams())
    blob = stream(coder.encode_frame(TEXT, 1)[0], TEXT, None)
    with pytest.raises(ModelMismatchError, match="that it does not name"):
        lmzip.decompress(blob, predictor=Bigrams())
    assert lmzip.decompress(blob, predictor=Bigrams(), force=True) == TEXT


def test_file_cannot_have_code_imported(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """The description of a predictor is a text that is shown, escaped, and nothing more."""
    (tmp_path / "trap.py").write_text("raise SystemExit('code was run')")
    label = "torch:trap:make"
    path = tmp_path / "evil.lmz"
    path.write_bytes(stream(b"abcd", bytes(50), PredictorRef(label, "torch:trap:make")))
    script = f"""
import sys
from lmzip import cli
status = cli.main(["-d", "-f", {str(path)!r}])
assert "trap" not in sys.modules and "torch" not in sys.modules
cli.main(["-lv", {str(path)!r}])
assert "trap" not in sys.modules and "torch" not in sys.modules
sys.exit(status)
"""
    done = run_python(script, check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "if you trust its code" in done.stderr
    assert "float predictor 'torch:trap:make'" in done.stdout
    for text in ("\x1b[1m", ""):
        with pytest.raises(ValueError, match="plain text"):
            StreamHeader(predictor=PredictorRef(text, "x")).pack()


def test_salvage_uses_the_predictor() -> None:
    blob = lmzip.compress(TEXT, predictor=Bigrams(), frame_size=100)
    damaged = bytearray(blob)
    frame = lmzip.inspect(blob).frames[1]
    damaged[frame.offset + frame.compressed_size - 1] ^= 1
    made = predictors.as_predictor(Bigrams())
    pieces = list(salvage(bytes(damaged), Codecs(predictor=made)))
    kept = b"".join(piece.data for piece in pieces)
    assert kept == TEXT[:100] + TEXT[200:]


# ---- the command --------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(TEXT)
    spec = f"torch:{__name__}:make_bigrams"
    sys.modules.setdefault(__name__, sys.modules[Bigrams.__module__])
    assert cli.main(["--predictor", spec, "--rm", str(source)]) == 0
    packed = str(source) + ".lmz"
    assert cli.main(["-t", packed]) == 1
    assert "with --predictor torch:MODULE:FACTORY" in capsys.readouterr().err
    assert cli.main(["-t", "--predictor", spec + ":2", packed]) == 1
    assert "--force tries" in capsys.readouterr().err
    assert cli.main(["-t", "-f", "--predictor", spec + ":2", packed]) == 1
    assert "--force" not in capsys.readouterr().err
    assert cli.main(["-lv", packed]) == 0
    assert "float predictor" in capsys.readouterr().out
    assert cli.main(["-l", "--json", packed]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert "torch " in row["streams"][0]["predictor"]["environment"]
    assert cli.main(["-d", "--predictor", spec, packed]) == 0
    assert source.read_bytes() == TEXT
    capsys.readouterr()
    assert cli.main(["--predictor", spec, "--model", "x", str(source)]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_rates_and_continuations(tmp_path: Path) -> None:
    """`lmzip eval` and `generate` take a predictor: chunks know nothing of each other."""
    sys.modules.setdefault(__name__, sys.modules[Bigrams.__module__])
    name = f"torch:{__name__}:make_bigrams"
    compressor = baselines.named(name)
    chunks = [TEXT[i : i + 64] for i in range(0, len(TEXT), 64)]
    blobs = compressor.chunks(chunks)
    assert blobs[-1] == compressor.chunks(chunks[-1:])[0]
    assert compressor.restore(blobs, [*map(len, chunks)]) == chunks
    assert (compressor.parameters, compressor.model_bytes) == (256 * 256, 4 * 256 * 256)
    (tmp_path / "text").write_bytes(TEXT)
    command = ["eval", str(tmp_path / "text"), "--chunk", "64", "--results", str(tmp_path / "r")]
    assert cli.main([*command, "--compressors", f"gzip,{name},fast"]) == 0
    row = list(csv.DictReader(io.StringIO((tmp_path / "r").read_text())))[1]
    assert int(row["coded"]) == sum(map(len, blobs))
    one, two = (
        bytes(generate.generate(generate.source(name), b"the tea ", 30, temperature=t))
        for t in (0, 1)
    )
    seen = [0, *b"the tea "]  # with the seven that follow, all that the module sees
    for _ in range(7):
        seen.append(int(Bigrams()(torch.tensor([seen]))[0, -1].argmax()))
    assert one.startswith(bytes(seen[9:]))
    assert one != two
    assert len(two) == 30


def test_a_comma_in_an_argument_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    sys.modules.setdefault(__name__, sys.modules[Bigrams.__module__])
    name = f"torch:{__name__}:make_named:7,scale=2"
    command = ["eval", str(tmp_path / "text"), "--chunk", "0", "--results", str(tmp_path / "r")]
    assert cli.main([*command, "--compressors", f"{name},gzip"]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r").read_text())))
    assert [r["compressor"] for r in rows] == ["Bigrams", "gzip"]


def test_symbols_that_are_never_coded_are_not_drawn() -> None:
    sys.modules.setdefault(__name__, sys.modules[Bigrams.__module__])
    of = generate.source(f"torch:{__name__}:Pieces")
    of.feed(b"the " + bytes([7]) + b"at")  # 7 has no symbol
    p = of.probabilities()
    assert p[:2].max() == 0  # the escape and the unused one
    assert p.sum() == pytest.approx(1)
    assert len(bytes(generate.generate(of, b"", 20))) == 20


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("jax:a:b", "names no predictor"),
        ("torch:a", "names no predictor"),
        ("torch::b", "names no predictor"),
        ("torch:no_such_module:b", "cannot be loaded: ModuleNotFoundError"),
        ("torch:numpy:no_such_factory", "cannot be loaded: AttributeError"),
        ("torch:numpy:prod", "cannot be loaded: TypeError"),
        ("torch:numpy:str_:x", "got str"),
        ("torch:numpy:int64:{", "cannot be loaded: ValueError"),
        ("torch:os:getcwd", "'os' is a module of Python itself"),
        ("torch:os.path:basename:x", "'os.path' is a module of Python itself"),
    ],
)
def test_predictor_that_cannot_be_had_is_named(spec: str, match: str) -> None:
    with pytest.raises(LmzipError, match=match):
        predictors.load(spec)


# ---- models of transformers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    folder_of(folder, "Llama", {"tie_word_embeddings": True})
    return folder


def test_language_model_codes_any_bytes(llama_folder: Path) -> None:
    """Tokens, bytes that its vocabulary lacks, invalid UTF-8, names of special tokens; more of it
    than the context holds."""
    raw = TEXT[:150] + b"<s> \x04\xff\xc0\x00 \xc3\xa9" + TEXT[:40]
    spec = f"torch:lmzip.predictors:transformers:{llama_folder},context=24"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blob = lmzip.compress(raw, predictor=spec, lanes=3)
        assert lmzip.inspect(blob).frames[0].method == "float"
        assert lmzip.decompress(blob, predictor=spec) == raw
        ref = lmzip.inspect(blob).streams[0].predictor
        assert ref is not None
        assert "LlamaForCausalLM" in ref.label
        assert str(llama_folder) not in ref.label  # whose machine it was is nobody's business
        other = spec.replace("=24", "=32")
        with pytest.raises(ModelMismatchError, match="context 32"):
            lmzip.decompress(blob, predictor=other)


def test_language_model_predicts_what_it_should(llama_folder: Path) -> None:
    """Step by step, and behind the end of its context, what one pass over the same tokens gives.
    (Floats: here, and only here, within a tolerance.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = predictors.transformers(f"{llama_folder},context=8")
        tokens = torch.randint(1, 200, (2, 13), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            found = [predictor.start(2)] + [predictor.step(row) for row in tokens.T]
            seen = torch.cat([torch.zeros(2, 1, dtype=torch.int64), tokens], dim=1)
            for t, logits in enumerate(found):
                begin = 0 if t < 8 else 5 if t < 13 else 10  # of 9 in sight, 4 stay
                expected = predictor._model(input_ids=seen[:, begin : t + 1]).logits[:, -1]
                torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_predictor_of_transformers_refuses_unknown_options(llama_folder: Path) -> None:
    for option in ("speed=9", "dtype=float33"):
        with pytest.raises(LmzipError, match="is unknown"):
            predictors.transformers(f"{llama_folder},{option}")
    for context in (1, 0, -3):
        with pytest.raises(LmzipError, match=f"context must be 2 or more, got {context}"):
            predictors.load(f"torch:lmzip.predictors:transformers:{llama_folder},context={context}")
