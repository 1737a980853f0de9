"""Frames of tokens whose network runs in PyTorch are the bytes of the native engine, and each
decodes the other's: for every kind of model, alone and many at once, and as files."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import lmzip  # noqa: E402
from device_frames import (  # noqa: E402
    at_once,
    check_few_lanes_are_left_to_the_cpu,
    check_frames_at_once,
    check_out_of_memory_halves_the_batch,
    outcomes_beside_damage,
    watch_batches,
)
from lmzip import (  # noqa: E402
    _core,
    codec,
    device_codec,
    llama_model,
    models,
    token_answers,
    torch_llama,
    torch_token_codec,
)
from lmzip.codec import TOKEN_PROFILE, CodecRequest, ThreadShare  # noqa: E402
from lmzip.container import METHOD_TOKENS, pack_varint  # noqa: E402
from lmzip.errors import CorruptError, LimitError, LmzipError, UnsupportedError  # noqa: E402
from lmzip.token_codec import TokenCodec  # noqa: E402
from lmzip.torch_llama import TorchLlama  # noqa: E402
from lmzip.torch_token_codec import TorchTokenCodec, agrees_with_native  # noqa: E402
from random_llama import random_llama, small_llama  # noqa: E402
from recorded_graph import RecordedGraph  # noqa: E402
from test_llama_engine import ARCHITECTURES  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tokenizers") is None, reason="the tokenizers library is missing"
    ),
    pytest.mark.usefixtures("one_torch_thread", "own_workers"),
]
TEXT = b"the tea at ten, then the neat tan ant ate at a tee; \xff\x04 " * 12
SMALL = random_llama(small_llama(), 7)
SIZES = [(1, 1), (2, 3), (70, 1), (131, 4), (400, 70), (10, 7)]


def save(folder: Path, model: llama_model.LlamaModel) -> models.ModelInfo:
    path = folder / "tiny.safetensors"
    path.write_bytes(llama_model.serialize(model.architecture, model.tensors, {"name": "tiny"}))
    return models.read(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> models.ModelInfo:
    return save(tmp_path_factory.mktemp("model"), SMALL)


def request(model: models.ModelInfo, device: str = "cpu") -> CodecRequest:
    return CodecRequest(METHOD_TOKENS, 0, TOKEN_PROFILE, model, device, ThreadShare(2))


@pytest.fixture(scope="module")
def native(small: models.ModelInfo) -> TokenCodec:
    return TokenCodec(request(small))


@pytest.fixture(scope="module")
def through_torch(small: models.ModelInfo) -> TorchTokenCodec:
    return TorchTokenCodec(request(small))


def assert_same(theirs: TokenCodec, ours: TorchTokenCodec, raw: bytes, lanes: int) -> None:
    payloads = theirs.encode_frame(raw, lanes)
    assert ours.encode_frame(raw, lanes) == payloads
    assert ours.decode_frame(payloads, len(raw)) == raw
    assert theirs.decode_frame(payloads, len(raw)) == raw


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_kind_of_model(architecture, tmp_path) -> None:
    """Lanes of some 150 tokens: windows wrap several times."""
    model = save(tmp_path, random_llama(architecture, 3))
    assert_same(TokenCodec(request(model)), TorchTokenCodec(request(model)), TEXT[:300], 2)


@pytest.mark.parametrize(("size", "lanes"), SIZES)
def test_the_same_bytes_from_both_and_each_decodes_the_other(
    native, through_torch, size, lanes
) -> None:
    assert_same(native, through_torch, TEXT[:size], lanes)


@pytest.fixture
def triton_codecs(tmp_path, monkeypatch) -> tuple[TokenCodec, TorchTokenCodec]:
    """The native codec, and one through Triton's interpreter; of one layer."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from lmzip.triton_llama import TritonLlama

    def engine(model, _native, device):
        return TritonLlama(model, device)

    monkeypatch.setattr(torch_token_codec, "open_engine", engine)
    one_layer = random_llama(small_llama(n_layers=1, windows=(5,), sinks=(2,)), 3)
    model = save(tmp_path, one_layer)
    return TokenCodec(request(model)), TorchTokenCodec(request(model))


def test_frames_through_the_triton_engine_are_the_native_bytes(triton_codecs) -> None:
    raw = b"tea at tea\xff tea at\x04 ten"
    frames = [(raw, 2), (raw[::-1], 1)]
    check_frames_at_once(*triton_codecs, frames)


def check_recorded_graphs(native: TokenCodec, ours: TorchTokenCodec, size: int) -> None:
    """Twice, so that the lanes of the first batch are used again."""
    for first in (0, 50):
        frames = [(TEXT[first:][:size], 2), (TEXT[first + 20 :][: size // 2], 1)]
        check_frames_at_once(native, ours, frames)


def test_frames_through_recorded_graphs_are_the_native_bytes(
    native, through_torch, monkeypatch
) -> None:
    monkeypatch.setattr(torch_llama, "graphs_of", lambda _: RecordedGraph)
    check_recorded_graphs(native, through_torch, 60)


def test_frames_through_recorded_triton_launches_are_the_native_bytes(
    triton_codecs, monkeypatch
) -> None:
    monkeypatch.setattr(torch_llama, "graphs_of", lambda _: RecordedGraph)
    check_recorded_graphs(*triton_codecs, 8)


def check_damage(native: TokenCodec, ours: TorchTokenCodec, raw: bytes, seeds: int) -> None:
    """Flipped bits, random bytes, cut and empty payloads, decoded at once: each is refused as by
    the native codec, or is the same other message."""
    rng = np.random.default_rng(5)
    good = native.encode_frame(raw, 2)
    damaged = [[b"", b""], [good[0], b""], [good[0][:-1], good[1]], good[::-1]]
    for _ in range(seeds):
        payload = bytearray(good[1])
        payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        damaged += [[good[0], bytes(payload)], [rng.bytes(len(p)) for p in good]]

    def outcome(codec, payloads: list[bytes]) -> object:
        try:
            return codec.decode_frame(payloads, len(raw))
        except LmzipError as error:
            return type(error)

    expected = [outcome(native, payloads) for payloads in damaged]
    assert at_once(outcome, [(ours, payloads) for payloads in damaged]) == expected
    assert expected.count(CorruptError) > len(expected) / 2


def test_damaged_payloads_fail_as_natively(native, through_torch) -> None:
    check_damage(native, through_torch, TEXT[:120], 8)


def test_damaged_payloads_fail_as_natively_through_the_triton_engine(triton_codecs) -> None:
    check_damage(*triton_codecs, b"tea at ten", 2)


def test_frames_that_come_together_are_coded_together(native, through_torch, monkeypatch) -> None:
    frames = [(TEXT[10 * i :][:size], lanes) for i, (size, lanes) in enumerate(SIZES)]
    batches = watch_batches(monkeypatch)
    check_frames_at_once(native, through_torch, frames)
    assert max(map(len, batches)) > 1


def test_a_damaged_frame_does_not_hurt_those_beside_it(native, through_torch) -> None:
    results = outcomes_beside_damage(native, through_torch, TEXT[:450])
    assert results[0] == TEXT[:150]
    for result in results[1:]:  # lanes learn from each other, so that of lane 1 shows in lane 0
        assert isinstance(result, CorruptError)
        assert "lane 0" in str(result)


def test_a_short_payload_with_a_huge_size_ends_soon(native, through_torch) -> None:
    payload = native.encode_frame(TEXT[:100], 1)[0]
    for coder in (native, through_torch):
        with pytest.raises(CorruptError, match="symbols 67108864 bytes are"):
            coder.decode_frame([payload], 1 << 26)
        with pytest.raises(CorruptError, match="lane 0 ends before its symbols do"):
            coder.decode_frame([pack_varint(1 << 24) + payload[1:]], 1 << 26)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_out_of_memory_halves_the_batch(native, small, monkeypatch, direction) -> None:
    ours = TorchTokenCodec(request(small))
    frames = [(TEXT[i * 40 :][:40], 2) for i in range(6)]
    check_out_of_memory_halves_the_batch(native, ours, frames, direction, monkeypatch)


def test_a_frame_for_which_there_is_never_memory_is_refused_by_name(small, monkeypatch) -> None:
    def starved(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_token_codec, "LlamaLanes", starved)
    with pytest.raises(LimitError, match=r"a frame of 2 lanes .* use --device cpu"):
        TorchTokenCodec(request(small)).encode_frame(TEXT[:100], 2)


def test_a_frame_of_few_lanes_is_left_to_the_cpu_beside_others(native, small, monkeypatch) -> None:
    ours = TorchTokenCodec(request(small))
    frames = [(TEXT[:30], 9), (TEXT[30:60], 1), (TEXT[60:90], 9)]
    check_few_lanes_are_left_to_the_cpu(native, ours, frames, monkeypatch)


def test_memory_counts_what_a_device_takes_besides(native, through_torch) -> None:
    grown = [through_torch.memory_needed(9000, n) - native.memory_needed(9000, n) for n in (1, 9)]
    assert grown[1] == 9 * grown[0] > 0


def test_whole_files_by_either_engine_are_the_same(small, monkeypatch) -> None:
    """Through the public functions, with the torch codec in place of the native one."""
    monkeypatch.setattr(codec, "TOKEN_CODINGS", codec.TOKEN_CODINGS[:1])  # not the mixer
    settings = {"model": small, "lanes": 3, "frame_size": 200}
    expected = lmzip.compress(TEXT, device="cpu", **settings)
    monkeypatch.setitem(codec._FACTORIES, METHOD_TOKENS, TorchTokenCodec)
    assert lmzip.compress(TEXT, device="cpu", threads=4, **settings) == expected
    assert lmzip.decompress(expected, model=small, threads=4, device="cpu") == TEXT


def test_a_device_that_disagrees_is_found_before_it_writes() -> None:
    packed = _core.LlamaModel(SMALL.tensors, SMALL.architecture.to_native())
    assert agrees_with_native(TorchLlama(SMALL), packed)
    broken = TorchLlama(SMALL)
    broken.softmax = broken.softmax * 1.001
    assert not agrees_with_native(broken, packed)
    for name in ("survey", "answer", "search"):
        broken = TorchLlama(SMALL)
        right = getattr(broken, name)
        setattr(broken, name, lambda *given, right=right: right(*given) + 1)
        assert not agrees_with_native(broken, packed), name


def test_where_triton_is_missing_or_wrong_pytorch_takes_its_place(monkeypatch) -> None:
    """The choice alone: no engine here runs on CUDA."""
    device = torch.device("cuda:0")

    def engine_of(model, where):
        assert where == device
        return TorchLlama(model)

    packed = _core.LlamaModel(SMALL.tensors, SMALL.architecture.to_native())
    monkeypatch.setattr(torch_token_codec, "TorchLlama", engine_of)
    monkeypatch.setattr(device_codec, "triton_missing", lambda _: "Triton is not installed")
    with pytest.warns(RuntimeWarning, match="cuda:0: Triton is not installed; PyTorch's own"):
        assert torch_token_codec.open_engine(SMALL, packed, device).device.type == "cpu"
    monkeypatch.setattr(torch_token_codec, "agrees_with_native", lambda *_: False)
    with (
        pytest.warns(RuntimeWarning, match="Triton is not installed"),
        pytest.raises(LmzipError, match="cuda:0 does not give the integers of the CPU"),
    ):
        torch_token_codec.open_engine(SMALL, packed, device)
    pytest.importorskip("triton", reason="Triton is not installed")
    from lmzip import triton_llama

    monkeypatch.setattr(triton_llama, "TritonLlama", lambda model, _: TorchLlama(model))
    monkeypatch.setattr(device_codec, "triton_missing", lambda _: None)
    answers = iter([False, True])
    monkeypatch.setattr(torch_token_codec, "agrees_with_native", lambda *_: next(answers))
    with pytest.warns(RuntimeWarning, match="its kernels do not give the integers"):
        torch_token_codec.open_engine(SMALL, packed, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(small) -> None:
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        codec._FACTORIES[METHOD_TOKENS](request(small, "cuda"))


# ── the coders that take logits from elsewhere ──


def flat_answers(lanes: int) -> np.ndarray:
    """Of rows of equal logits, with token 5 for a target."""
    answers = np.zeros((lanes, token_answers.ANSWER_WORDS), np.uint32)
    answers[:, :2] = 300 << 30 & 0xFFFFFFFF, 300 >> 2
    answers[:, token_answers.COUNT] = 300
    answers[:, token_answers.LIST :: 2][:, :300] = np.arange(300)
    return answers


def test_coders_refuse_other_shapes_and_missing_steps() -> None:
    packed = _core.LlamaModel(SMALL.tensors, SMALL.architecture.to_native())
    encoder = _core.TokenLockstepEncoder(packed, [([5, 6, 7], 2)], 1)
    decoder = _core.TokenLockstepDecoder(packed, [([b"\x03", b""], 3)], 1)
    assert (encoder.lanes, encoder.steps, decoder.lanes, decoder.active()) == (2, 2, 2, 2)
    words = token_answers.ANSWER_WORDS
    with pytest.raises(ValueError, match=rf"shape \(2, 1, {words}\)"):
        encoder.take(np.zeros((1, 1, words), np.uint32))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 22\)"):
        encoder.ask(np.zeros((2, 1, 21), np.uint32))
    questions = np.zeros((2, token_answers.QUESTION_WORDS), np.uint32)
    decoder.ask(questions)
    with pytest.raises(ValueError, match=rf"shape \(2, {words}\)"):
        decoder.choose(np.zeros((2, 1), np.uint32), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match=r"shape \(2\)"):
        decoder.choose(flat_answers(2), np.zeros(3, np.uint32))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        decoder.take(np.zeros((2, 2), np.uint32))
    encoder.take(flat_answers(2)[:, None])
    with pytest.raises(ValueError, match="1 of 2 steps"):
        encoder.finish()
    with pytest.raises(ValueError, match="lanes left"):
        decoder.finish(0)
    with pytest.raises(ValueError, match="stands for no bytes"):
        _core.TokenLockstepEncoder(packed, [([0], 1)], 1)
    for coder, frame in (
        (_core.TokenLockstepEncoder, ([], 0)),
        (_core.TokenLockstepDecoder, ([], 3)),
    ):
        with pytest.raises(ValueError, match="1 to 65536 lanes"):
            coder(packed, [frame], 1)


# ── on a GPU ──


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_cuda_every_kind_of_model(architecture, tmp_path) -> None:
    model = save(tmp_path, random_llama(architecture, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the Triton engine, not its substitute
        assert_same(TokenCodec(request(model)), TorchTokenCodec(request(model, "cuda")), TEXT, 80)


@pytest.mark.gpu
def test_cuda_without_triton_says_so_and_makes_the_same_bytes(small, monkeypatch) -> None:
    monkeypatch.setattr(device_codec, "triton_missing", lambda _: "there is none")
    with pytest.warns(RuntimeWarning, match="there is none; PyTorch's own operations"):
        assert_same(TokenCodec(request(small)), TorchTokenCodec(request(small, "cuda")), TEXT, 80)


@pytest.mark.gpu
def test_cuda_whole_files(small, monkeypatch) -> None:
    monkeypatch.setattr(codec, "TOKEN_CODINGS", codec.TOKEN_CODINGS[:1])
    settings = {"model": small, "lanes": 64, "frame_size": 4096}
    raw = TEXT * 40
    on_gpu = lmzip.compress(raw, device="cuda", **settings)
    assert lmzip.compress(raw, device="cpu", **settings) == on_gpu
    assert lmzip.decompress(on_gpu, model=small, device="cuda") == raw
