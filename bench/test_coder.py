"""The coder beside constriction and torchac: the same float32 tensors, in the same run.

    make bench

Whole blocks, one thread, one stream. `make bench` takes the process's CPU time, as the machine may
be shared. The output of each timed function is compared: what does not decode has no time. torchac
takes cumulative sums, so its time contains making them with PyTorch; a second line gives it
ready-made 16-bit integers, which no model produces. bandwidth is a plain sum over the same tensor:
whoever has to look at every probability once cannot be faster.
"""

import importlib.util
import warnings
from typing import NamedTuple

import numpy as np
import pytest

import lmzip

SHAPES = {256: 16_384, 50_000: 200}  # symbols of the alphabet: rows; 17 and 40 MB
ROUNDS = {"rounds": 25, "warmup_rounds": 2, "iterations": 1}


class Message(NamedTuple):
    probs: np.ndarray  # (rows, V) float32
    symbols: np.ndarray  # (rows,) int64
    entropy_bits: float  # -sum log2 of the coded symbols' probabilities, from the same float32


def make_message(n: int, rows: int) -> Message:
    """Rows like a language model's: a softmax of normal logits, some sure, some not."""
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(rows, n)) * rng.uniform(0.5, 5, (rows, 1))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs = (probs / probs.sum(-1, keepdims=True)).astype(np.float32)
    exact = probs.astype(np.float64)
    exact /= exact.sum(-1, keepdims=True)
    points = rng.random((rows, 1))
    symbols = np.minimum((exact.cumsum(-1) < points).sum(-1), n - 1)
    bits = -np.log2(np.take_along_axis(exact, symbols[:, None], -1)).sum()
    return Message(probs, symbols, float(bits))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda n: f"{n} symbols")
def message(request) -> Message:
    return make_message(request.param, SHAPES[request.param])


class Lmzip:
    """float32 rows as they are."""

    version = lmzip.__version__

    def __init__(self, message: Message) -> None:
        self.message = message

    def encode(self) -> bytes:
        encoder = lmzip.Encoder()
        encoder.encode(self.message.symbols, self.message.probs)
        return encoder.finish()

    def decode(self, data: bytes) -> np.ndarray:
        return lmzip.Decoder(data).decode(self.message.probs)


class Constriction:
    """Its range coder with the model family that its manual calls the fastest."""

    def __init__(self, message: Message) -> None:
        constriction = pytest.importorskip("constriction")
        self.version = "0.5.0"
        self.queue = constriction.stream.queue
        self.family = constriction.stream.model.Categorical(perfect=False)
        self.probs, self.symbols = message.probs, message.symbols.astype(np.int32)

    def encode(self) -> bytes:
        encoder = self.queue.RangeEncoder()
        encoder.encode(self.symbols, self.family, self.probs)
        return encoder.get_compressed().tobytes()

    def decode(self, data: bytes) -> np.ndarray:
        decoder = self.queue.RangeDecoder(np.frombuffer(data, np.uint32))
        return decoder.decode(self.family, self.probs)


class Torchac:
    """Cumulative sums by PyTorch, on one thread like the others."""

    ready_made = False

    def __init__(self, message: Message) -> None:
        for module in ("torch", "torchac", "ninja"):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
        import torch

        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compiles itself here
            import torchac
        if message.probs.shape[1] > 32_768:
            pytest.skip("torchac has symbols of 16 bits, signed")
        self.torch, self.torchac, self.version = torch, torchac, "0.9.3"
        self.probs = torch.from_numpy(message.probs)
        self.symbols = torch.from_numpy(message.symbols.astype(np.int16))
        self.ready = torchac.torchac._convert_to_int_and_normalize(self.sums(), True)

    def sums(self):
        sums = self.torch.zeros(self.probs.shape[0], self.probs.shape[1] + 1)
        self.torch.cumsum(self.probs, -1, out=sums[:, 1:])
        return sums.clamp_(max=1.0)

    def encode(self) -> bytes:
        if self.ready_made:
            return self.torchac.encode_int16_normalized_cdf(self.ready, self.symbols)
        return self.torchac.encode_float_cdf(self.sums(), self.symbols)

    def decode(self, data: bytes) -> np.ndarray:
        if self.ready_made:
            return self.torchac.decode_int16_normalized_cdf(self.ready, data).numpy()
        return self.torchac.decode_float_cdf(self.sums(), data).numpy()


class TorchacReadyMade(Torchac):
    """Without making the sums."""

    ready_made = True


LIBRARIES = {
    "lmzip": Lmzip,
    "constriction": Constriction,
    "torchac": Torchac,
    "torchac, sums ready-made": TorchacReadyMade,
}


@pytest.fixture(params=LIBRARIES)
def library(request, message):
    made = LIBRARIES[request.param](message)
    made.name = request.param
    return made


def test_encode(benchmark, library, message, record):
    data = benchmark.pedantic(library.encode, **ROUNDS)
    assert (library.decode(data) == message.symbols).all()
    overhead = 8 * len(data) / message.entropy_bits - 1
    if library.name == "lmzip":  # 0.01 %, and the last word of 32 bits, which short messages feel
        assert 8 * len(data) <= 1.0001 * message.entropy_bits + 32
    record(library, "encode", message, len(data), overhead)


def test_decode(benchmark, library, message, record):
    data = library.encode()
    symbols = benchmark.pedantic(library.decode, args=(data,), **ROUNDS)
    assert (symbols == message.symbols).all()
    record(library, "decode", message, len(data), 8 * len(data) / message.entropy_bits - 1)


class Memory:
    """What memory allows: a sum of the tensor's 64-bit words, which NumPy does with AVX2."""

    name, version = "bandwidth", np.__version__


def test_bandwidth(benchmark, message, record):
    words = message.probs.reshape(-1).view(np.uint64)
    benchmark.pedantic(words.sum, **ROUNDS)
    record(Memory, "read", message, 0, 0.0)
