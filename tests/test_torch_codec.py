"""Frames whose network runs in PyTorch are the bytes of the native engine, and each decodes the
other's: alone, many at once, with and without the mixer."""

import threading
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
from lmzip import _core, device_codec, models, torch_codec  # noqa: E402
from lmzip.codec import CodecRequest, ThreadShare  # noqa: E402
from lmzip.container import METHOD_NETWORK, METHOD_NETWORK_MIXER  # noqa: E402
from lmzip.device_codec import Batches, Job, divide  # noqa: E402
from lmzip.errors import (  # noqa: E402
    CorruptError,
    LimitError,
    LmzipError,
    UnsupportedError,
)
from lmzip.lanes import LOGITS  # noqa: E402
from lmzip.model_file import serialize  # noqa: E402
from lmzip.native import NativeCodec  # noqa: E402
from lmzip.torch_codec import TorchCodec, lockstep_text  # noqa: E402
from lmzip.torch_engine import TorchEngine, TorchLanes  # noqa: E402
from random_model import random_model, small_architecture  # noqa: E402
from recorded_graph import RecordedGraph  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_workers")
TEXT = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()[5000:]
METHODS = {"network": METHOD_NETWORK, "network and mixer": METHOD_NETWORK_MIXER}
TABLE_BITS = 18


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> models.ModelInfo:
    model = random_model(small_architecture(), 5)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    path.write_bytes(serialize(model.architecture, model.tensors, {"name": "small"}))
    return models.read(path)


def request(
    method: int, device: str = "cpu", model: models.ModelInfo | None = None
) -> CodecRequest:
    model = model or models.default()
    assert model is not None
    bits = TABLE_BITS if method == METHOD_NETWORK_MIXER else 0
    return CodecRequest(method, bits, 0, model, device, ThreadShare(2))


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> int:
    return METHODS[request.param]


@pytest.fixture(scope="module")
def native(method, small_model) -> NativeCodec:
    return NativeCodec(request(method, model=small_model))


@pytest.fixture(scope="module")
def through_torch(method, small_model) -> TorchCodec:
    return TorchCodec(request(method, model=small_model))


SIZES = [(1, 1), (2, 3), (70, 1), (131, 4), (500, 37), (10, 7)]


@pytest.mark.parametrize(("size", "lanes"), SIZES)
def test_the_same_bytes_from_both_and_each_decodes_the_other(native, through_torch, size, lanes):
    raw = TEXT[:size]
    payloads = native.encode_frame(raw, lanes)
    assert through_torch.encode_frame(raw, lanes) == payloads
    assert through_torch.decode_frame(payloads, size) == raw
    assert native.decode_frame(payloads, size) == raw


def test_the_bundled_model_too(method):
    native, through_torch = NativeCodec(request(method)), TorchCodec(request(method))
    payloads = native.encode_frame(TEXT[:300], 20)
    assert through_torch.encode_frame(TEXT[:300], 20) == payloads
    assert through_torch.decode_frame(payloads, 300) == TEXT[:300]


def test_frames_that_come_together_are_coded_together(native, through_torch, monkeypatch):
    frames = [(TEXT[1000 * i :][:size], lanes) for i, (size, lanes) in enumerate(SIZES)]
    batches = watch_batches(monkeypatch)
    check_frames_at_once(native, through_torch, frames)
    assert max(map(len, batches)) > 1


def test_a_damaged_frame_does_not_hurt_those_beside_it(native, through_torch):
    results = outcomes_beside_damage(native, through_torch, TEXT[:1200])
    assert results[0] == TEXT[:400]
    assert isinstance(results[1], CorruptError)
    assert "lane 1 ends before" in str(results[1])
    assert isinstance(results[2], CorruptError)
    assert "lane 0 is not the encoding" in str(results[2])


def test_a_short_payload_with_a_huge_size_ends_soon(native, through_torch):
    """Decoding stops when all payloads have run out, not at the size that is claimed."""
    payloads = native.encode_frame(TEXT[:300], 1)
    with pytest.raises(CorruptError, match="ends before"):
        through_torch.decode_frame(payloads, 1 << 26)


def test_lanes_that_were_kept_make_room(small_model, method, monkeypatch):
    """On a device for 20 lanes, 16 of an encoder are kept; then 16 of a decoder are wanted."""
    codec = TorchCodec(request(method, model=small_model))
    [worker] = codec._workers
    make = worker._make_lanes

    def limited(shape):
        kept = sum(shape[0] * len(lanes) for shape, lanes in worker._kept.items())
        if kept + shape[0] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(shape)

    monkeypatch.setattr(worker, "_make_lanes", limited)
    payloads = codec.encode_frame(TEXT[:100], 16)
    assert worker._kept
    assert codec.decode_frame(payloads, 100) == TEXT[:100]
    assert worker._max_frames == device_codec.MAX_FRAMES


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_out_of_memory_halves_the_batch(native, small_model, method, monkeypatch, direction):
    codec = TorchCodec(request(method, model=small_model))
    frames = [(TEXT[i * 100 :][:100], 2) for i in range(6)]
    check_out_of_memory_halves_the_batch(native, codec, frames, direction, monkeypatch)


def test_a_frame_for_which_there_is_never_memory_is_refused_by_name(small_model, monkeypatch):
    def starved(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_codec.DeviceWorker, "_encode", starved)
    codec = TorchCodec(request(METHOD_NETWORK, model=small_model))
    with pytest.raises(LimitError, match=r"a frame of 2 lanes .* use --device cpu"):
        codec.encode_frame(TEXT[:100], 2)


def test_frames_have_tables_of_their_own_size(native, through_torch, method):
    """Of a large frame, a small one, and one between, at once."""
    sizes = (9000, 300, 3000)
    theirs, ours = ([codec.sized(size) for size in sizes] for codec in (native, through_torch))
    assert [c.table_bits for c in ours] == [c.table_bits for c in theirs]
    assert len({c.table_bits for c in ours}) == (1 if method == METHOD_NETWORK else 2)
    raws = [TEXT[:size] for size in sizes]
    payloads = [c.encode_frame(raw, 3) for c, raw in zip(theirs, raws, strict=True)]
    coded = [*zip(ours, payloads, raws, strict=True)]
    assert at_once(lambda codec, _, raw: codec.encode_frame(raw, 3), coded) == payloads
    assert at_once(lambda codec, lanes, raw: codec.decode_frame(lanes, len(raw)), coded) == raws


def test_codecs_of_a_model_share_its_workers(small_model, monkeypatch):
    """Of all tables and methods: a device that two workers use would record two graphs at once.
    Frames with a mixer and without go in batches of their own."""
    both = [TorchCodec(request(method, model=small_model)) for method in METHODS.values()]
    assert both[0]._workers is both[1]._workers
    batches = watch_batches(monkeypatch)
    encoded = at_once(lambda codec, raw: codec.encode_frame(raw, 3), [(c, TEXT[:50]) for c in both])
    assert encoded == [
        NativeCodec(request(method, model=small_model)).encode_frame(TEXT[:50], 3)
        for method in METHODS.values()
    ]
    assert [len(batch) for batch in batches] == [1, 1]


def test_memory_is_that_of_the_host(native, through_torch):
    """What lanes take on the device is not taken from the limit of -M."""
    more = through_torch.memory_needed(9000, 64) - native.memory_needed(9000, 64)
    assert more == 64 * torch_codec.ByteWorker.pinned_memory < 100_000


def test_several_devices_share_the_frames():
    both = threading.Barrier(2, timeout=30)
    seen = {}

    def worker(name):
        def run(jobs):
            both.wait()  # passes only if the other device works at the same time
            seen[name] = len(jobs)
            return [name] * len(jobs)

        return run

    batches = Batches([worker("first"), worker("second")])
    outcomes = at_once(batches.run, [(Job(1, 10),) for _ in range(8)])
    assert sorted(set(outcomes)) == ["first", "second"]
    assert sum(seen.values()) == 8


def test_what_a_batch_raises_reaches_every_thread_of_it():
    def broken(_):
        raise ValueError("broken")

    batches = Batches([broken])
    results = at_once(batches.run, [(Job(1, 10),) for _ in range(3)])
    assert [str(result) for result in results] == ["broken"] * 3


def test_few_lanes_are_left_to_the_cpu(small_model, monkeypatch):
    codec = TorchCodec(request(METHOD_NETWORK, model=small_model))
    payloads = codec.encode_frame(TEXT[:200], 2)
    monkeypatch.setitem(device_codec.MIN_DECODE_LANES, "cpu", 3)
    monkeypatch.setattr(device_codec.DeviceWorker, "_decode", None)  # would fail
    assert codec.decode_frame(payloads, 200) == TEXT[:200]


def test_a_frame_of_few_lanes_is_left_to_the_cpu_beside_others(native, small_model, monkeypatch):
    codec = TorchCodec(request(native.method, model=small_model))
    frames = [(TEXT[:60], 9), (TEXT[60:120], 1), (TEXT[120:180], 9)]
    check_few_lanes_are_left_to_the_cpu(native, codec, frames, monkeypatch)


def test_groups_have_about_as_many_lanes_each():
    jobs = [Job(lanes, 100) for lanes in (16, 1, 16, 3, 16)]
    assert sorted(sum(j.lanes for j in group) for group in divide(jobs)) == [20, 32]
    assert divide(jobs[:1]) == [jobs[:1]]


def test_text_in_lockstep():
    text = lockstep_text([Job(2, 3, b"abc"), Job(3, 4, b"wxyz")], 3)
    assert [bytes(row) for row in text] == [b"\0ab\0", b"\0c\0\0", b"\0wx\0", b"\0yz\0", b"\0" * 4]


@pytest.mark.parametrize("preset", ["network", "default"])
def test_whole_files_by_either_device_are_the_same(preset, small_model, monkeypatch):
    """Through the public functions, with the torch codec in place of the native one."""
    from lmzip import codec

    raw = TEXT[:20_000]
    settings = {"preset": preset, "model": small_model, "lanes": 5, "frame_size": 3000}
    native = lmzip.compress(raw, device="cpu", **settings)
    for factory in (METHOD_NETWORK, METHOD_NETWORK_MIXER):
        monkeypatch.setitem(codec._FACTORIES, factory, TorchCodec)
    assert lmzip.compress(raw, device="cpu", threads=4, **settings) == native
    assert lmzip.decompress(native, model=small_model, threads=4, device="cpu") == raw


def test_an_interval_that_cannot_be_is_refused_and_not_followed():
    """A defect of the device must not divide by an empty range."""
    [payloads] = encoder_payloads([(TEXT[:10], 1)])
    decoder = _core.LockstepDecoder([(payloads, 10)], [(0, "text")], 1)
    slots = np.zeros(1, np.uint32)
    decoder.slots(slots)
    for lo, freq in ((slots[0], 0), (slots[0] + 1, 5), (slots[0], 1 << 30), (slots[0] - 1, 1)):
        interval = np.array([[lo, freq]], np.uint32)
        with pytest.raises(RuntimeError, match="defect of the device"):
            decoder.take_intervals(np.zeros(1, np.uint8), interval)
    encoder = _core.LockstepEncoder([(TEXT[:10], 1)], [(0, "text")], 1)
    for lo, freq in ((5, 0), ((1 << 30) - 1, 2)):
        with pytest.raises(RuntimeError, match="defect of the device"):
            encoder.take_intervals(np.array([[[lo, freq]]], np.uint32))


def encoder_payloads(frames):
    encoder = _core.LockstepEncoder(frames, [(0, "text")] * len(frames), 1)
    lanes = sum(lanes for _, lanes in frames)
    for _ in range(max(-(-len(raw) // lanes) for raw, lanes in frames)):
        encoder.take_intervals(np.full((lanes, 1, 2), 1 << 20, np.uint32))
    return encoder.finish()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, _: e.take_intervals(np.zeros((3, 1, 2), np.uint32)), r"shape \(2, 1, 2\)"),
        (lambda e, _: e.take_distances(np.zeros((2, 1, 256), np.uint16)), "intervals are needed"),
        (lambda _, d: d.slots(np.zeros(3, np.uint32)), r"shape \(2\)"),
        (lambda _, d: d.take_distances(np.zeros((2, 256), np.uint16), np.zeros(2, np.uint8)),
         "intervals are needed"),
    ],
)  # fmt: skip
def test_arrays_of_another_shape_are_refused(call, message):
    encoder = _core.LockstepEncoder([(b"abc", 2)], [(0, "text")], 1)
    decoder = _core.LockstepDecoder([([b"", b""], 3)], [(0, "text")], 1)
    with pytest.raises(ValueError, match=message):
        call(encoder, decoder)


def test_a_device_that_disagrees_is_found_before_it_writes(small_model):
    model = torch_codec.load(small_model.path)
    make = torch_codec.open_engine(model, torch.device("cpu"))
    assert torch_codec.agrees_with_native(model, make)

    def broken(*shape):
        lanes = make(*shape)
        wait = lanes.wait

        def wrong():
            result = wait()
            result.rows[-1, -1, -1] += 1
            return result

        lanes.wait = wrong
        return lanes

    assert make(1, 1, LOGITS) is not None
    assert not torch_codec.agrees_with_native(model, broken)


def test_where_triton_is_missing_or_wrong_pytorch_takes_its_place(small_model, monkeypatch):
    """The choice alone: no engine here runs on CUDA."""
    device = torch.device("cuda:0")
    model = torch_codec.load(small_model.path)
    on_cpu = TorchEngine(model)
    monkeypatch.setattr(torch_codec, "TorchEngine", lambda *_: on_cpu)
    monkeypatch.setattr(device_codec, "triton_missing", lambda _: "Triton is not installed")
    with pytest.warns(RuntimeWarning, match="cuda:0: Triton is not installed; PyTorch's own"):
        make_lanes = torch_codec.open_engine(model, device)
    assert isinstance(make_lanes(1, 1, LOGITS), TorchLanes)
    monkeypatch.setattr(torch_codec, "agrees_with_native", lambda *_: False)
    with (
        pytest.warns(RuntimeWarning, match="Triton is not installed"),
        pytest.raises(LmzipError, match="cuda:0 does not give the integers of the CPU"),
    ):
        torch_codec.open_engine(model, device)


def test_a_triton_that_fails_or_is_too_old_is_named(monkeypatch):
    def broken():
        raise RuntimeError("Failed to find C compiler")

    device = torch.device("cuda:0")
    monkeypatch.setattr(device_codec, "triton_missing", lambda _: None)
    with pytest.warns(RuntimeWarning, match="cannot be had there .RuntimeError: Failed to find C"):
        assert device_codec.engine_that_agrees(device, broken, lambda: 7, lambda _: True) == 7
    monkeypatch.undo()
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert device_codec.triton_missing(device) is None
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert "Triton 3.2.0 is too old" in device_codec.triton_missing(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named():
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        TorchCodec(request(METHOD_NETWORK, "cuda"))


# ── the Triton engine through the same codec; without a GPU in the interpreter ──


@pytest.fixture
def triton_lanes(monkeypatch):
    """Makes the codec's CPU device run the Triton engine."""
    kernels = pytest.importorskip("lmzip.triton_kernels", reason="Triton is not installed")
    if not kernels.INTERPRETED:
        pytest.skip("Triton compiles here; the tests marked gpu do this on the device")
    from lmzip.triton_engine import TritonEngine, TritonLanes

    def open_engine(model, device):
        engine = TritonEngine(model, device)
        return lambda *shape: TritonLanes(engine, *shape)

    monkeypatch.setattr(torch_codec, "open_engine", open_engine)


@pytest.mark.usefixtures("triton_lanes")
def test_frames_through_the_triton_engine_are_the_native_bytes(native, method, small_model):
    codec = TorchCodec(request(method, model=small_model))
    raw = TEXT[:35]
    payloads = native.encode_frame(raw, 5)
    assert codec.encode_frame(raw, 5) == payloads
    assert codec.decode_frame(payloads, len(raw)) == raw


@pytest.mark.usefixtures("triton_lanes")
def test_frames_through_recorded_graphs_are_the_native_bytes(
    native, method, small_model, monkeypatch
):
    """Twice, so that the lanes of the first batch are used again."""
    from lmzip import triton_engine

    monkeypatch.setattr(triton_engine, "graphs_of", lambda _: RecordedGraph)
    codec = TorchCodec(request(method, model=small_model))
    for first in (0, 50):
        frames = [(TEXT[first:][:8], 2), (TEXT[first + 20 :][:3], 1)]
        check_frames_at_once(native, codec, frames)


# ── on a GPU ──


@pytest.mark.gpu
@pytest.mark.parametrize("lanes", [1, 64, 1000])
def test_cuda_makes_the_bytes_of_the_cpu(method, lanes):
    native, codec = NativeCodec(request(method)), TorchCodec(request(method, "cuda"))
    raw = TEXT[:20_000]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the Triton engine, not its substitute
        payloads = native.encode_frame(raw, lanes)
        assert codec.encode_frame(raw, lanes) == payloads
        assert codec.decode_frame(payloads, len(raw)) == raw


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["network", "default"])
def test_whole_files_across_devices(preset):
    raw = TEXT * 8
    on_gpu = lmzip.compress(raw, preset=preset, device="cuda", frame_size=1 << 17)
    on_cpu = lmzip.compress(raw, preset=preset, device="cpu", frame_size=1 << 17)
    assert on_gpu == on_cpu
    assert lmzip.decompress(on_cpu, device="cuda") == raw
    assert lmzip.decompress(on_gpu, device="cpu") == raw
