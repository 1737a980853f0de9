"""Frames coded through PyTorch are the bytes of the native engine, and each decodes the other's."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip import models  # noqa: E402
from lmzip.codec import CodecRequest, ThreadShare  # noqa: E402
from lmzip.container import METHOD_NETWORK  # noqa: E402
from lmzip.errors import LmzipError, UnsupportedError  # noqa: E402
from lmzip.native import NativeCodec  # noqa: E402
from lmzip.torch_codec import TorchCodec  # noqa: E402

TEXT = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()[5000:]


def request(device: str = "cpu") -> CodecRequest:
    model = models.default()
    assert model is not None
    return CodecRequest(METHOD_NETWORK, 0, 0, model, device, ThreadShare(2))


@pytest.fixture(scope="module")
def native() -> NativeCodec:
    return NativeCodec(request())


@pytest.fixture(scope="module")
def through_torch() -> TorchCodec:
    return TorchCodec(request())


@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (2, 3), (300, 1), (301, 4), (500, 37)])
def test_the_same_bytes_from_both_and_each_decodes_the_other(native, through_torch, size, lanes):
    raw = TEXT[:size]
    payloads = native.encode_frame(raw, lanes)
    assert through_torch.encode_frame(raw, lanes) == payloads
    assert through_torch.decode_frame(payloads, size) == raw
    assert native.decode_frame(payloads, size) == raw


def test_damaged_payloads_are_refused_by_name(through_torch, native):
    [payload] = native.encode_frame(TEXT[:200], 1)
    with pytest.raises(LmzipError):
        through_torch.decode_frame([payload + b"more"], 200)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named():
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        TorchCodec(request("cuda"))


@pytest.mark.gpu
def test_cuda_makes_the_bytes_of_the_cpu(native):
    codec = TorchCodec(request("cuda"))
    raw = TEXT[:20_000]
    payloads = native.encode_frame(raw, 64)
    assert codec.encode_frame(raw, 64) == payloads
    assert codec.decode_frame(payloads, len(raw)) == raw
