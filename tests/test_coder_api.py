"""lmzip.Encoder and lmzip.Decoder: every way in, every way to be wrong."""

import array
import copy
import importlib.util
import itertools
import mmap
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmzip
from lmzip import Decoder, DistributionError, Encoder, _core

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def random_block(steps: int, lanes: int, n: int, seed: int = 0):
    """(T, L) symbols drawn from (T, L, n) float32 distributions."""
    rng = np.random.default_rng(seed)
    probs = rng.random((steps, lanes, n), np.float32) ** 6
    ends = np.cumsum(probs, -1)
    symbols = (ends < rng.random((steps, lanes, 1)) * ends[..., -1:]).sum(-1)
    return np.minimum(symbols, n - 1), probs


def encode_one(symbols, probs=None, **kwargs) -> bytes:
    encoder = Encoder()
    encoder.encode(symbols, probs, **kwargs)
    return encoder.finish()


# ── Shapes ──


def test_one_lane_as_a_block_as_steps_and_with_a_lane_axis_gives_the_same_bytes():
    symbols, probs = random_block(50, 1, 20)
    block = encode_one(symbols[:, 0], probs[:, 0])
    steps, axis = Encoder(), Encoder()
    for symbol, row in zip(symbols[:, 0], probs[:, 0], strict=True):
        steps.encode(int(symbol), row)
    axis.encode(symbols, probs)
    assert block == steps.finish() == axis.finish()


def test_lanes_as_a_block_as_steps_and_alone_give_the_same_bytes():
    symbols, probs = random_block(30, 5, 40)
    block, steps = Encoder(lanes=5), Encoder(lanes=5)
    block.encode(symbols, probs)
    for symbol, rows in zip(symbols, probs, strict=True):
        steps.encode(symbol, rows)
    alone = [encode_one(symbols[:, lane], probs[:, lane]) for lane in range(5)]
    assert block.finish() == steps.finish() == alone


@pytest.mark.parametrize("cut", [(50,), (1,) * 50, (0, 7, 0, 43), (49, 1)])
@pytest.mark.parametrize("lanes", [1, 3])
def test_what_one_block_encodes_any_cut_decodes(cut, lanes):
    symbols, probs = random_block(50, lanes, 33)
    encoder = Encoder(lanes=lanes)
    encoder.encode(symbols, probs)
    decoder = Decoder(encoder.finish())
    pieces, begin = [], 0
    for steps in cut:
        pieces.append(decoder.decode(probs[begin : begin + steps]))
        begin += steps
    assert (np.concatenate(pieces) == symbols).all()
    decoder.finish()


def test_symbols_come_back_in_the_shape_of_the_rows():
    symbols, probs = random_block(4, 3, 9)
    encoder = Encoder(lanes=3)
    encoder.encode(symbols, probs)
    decoder = Decoder(encoder.finish())
    first, rest = decoder.decode(probs[0]), decoder.decode(probs[1:])
    assert first.shape == (3,)
    assert rest.shape == (3, 3)
    assert first.dtype == rest.dtype == np.int64
    one = Decoder(encode_one(5, probs[0, 0])).decode(probs[0, 0])
    assert type(one) is int
    assert one == 5


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_threads_change_nothing(threads, lanes):
    symbols, probs = random_block(40, lanes, 64)
    plain, threaded = Encoder(lanes=lanes), Encoder(lanes=lanes, threads=threads)
    for encoder in (plain, threaded):
        encoder.encode(symbols, probs)
    data = plain.finish()
    assert data == threaded.finish()
    assert (Decoder(data, threads=threads).decode(probs) == symbols).all()


def test_lanes_can_take_part_by_turns():
    """Lanes of different lengths: those that have ended stay out."""
    symbols, probs = random_block(6, 3, 16)
    encoder = Encoder(lanes=3)
    encoder.encode(symbols[:4], probs[:4])
    encoder.encode(symbols[4:, [2, 0]], probs[4:, [2, 0]], lanes=[2, 0])
    data = encoder.finish()
    assert data[1] == encode_one(symbols[:4, 1], probs[:4, 1])
    assert data[2] == encode_one(symbols[:, 2], probs[:, 2])
    decoder = Decoder(data)
    assert (decoder.decode(probs[:4]) == symbols[:4]).all()
    assert (decoder.decode(probs[4:, [2, 0]], lanes=[2, 0]) == symbols[4:, [2, 0]]).all()
    decoder.finish()


def test_slices_and_other_strides_need_no_copy_and_give_the_same_bytes():
    symbols, probs = random_block(12, 4, 10)
    expected = Encoder(lanes=4)
    expected.encode(symbols[::2], np.ascontiguousarray(probs[::2]))
    variants = [
        (symbols[::2], probs[::2]),
        (symbols.T.copy().T[::2], np.asfortranarray(probs)[::2]),
        (symbols[::-1][1::2][::-1], probs[::-1][1::2][::-1]),
        (symbols[::2].astype(np.uint8), probs[::2].astype(">f4")),
    ]
    data = expected.finish()
    for variant_symbols, variant_probs in variants:
        encoder = Encoder(lanes=4)
        encoder.encode(variant_symbols, variant_probs)
        assert encoder.finish() == data


def unaligned(values: np.ndarray) -> np.ndarray:
    """A copy at an odd address."""
    buffer = bytearray(1 + values.nbytes)
    copied = np.frombuffer(buffer, values.dtype, offset=1).reshape(values.shape)
    copied[...] = values
    assert not copied.flags.aligned
    return copied


def test_numbers_at_odd_addresses_give_the_same_bytes():
    symbols, probs = random_block(12, 1, 10)
    symbols, probs = symbols[:, 0], probs[:, 0]
    data = encode_one(symbols, probs)
    assert encode_one(unaligned(symbols), unaligned(probs)) == data
    assert (Decoder(data).decode(unaligned(probs)) == symbols).all()
    # One row, of which only the stride is odd, which NumPy calls aligned.
    fields = np.zeros((1, 1), [("probs", np.float32, 10), ("flag", np.uint8)])
    fields["probs"] = probs[0]
    assert encode_one(symbols[:1, None], fields["probs"]) == encode_one(symbols[:1], probs[:1])


def test_a_message_may_be_any_buffer_of_bytes():
    symbols, probs = random_block(20, 1, 10)
    data = encode_one(symbols[:, 0], probs[:, 0])
    mapped = mmap.mmap(-1, len(data))
    mapped[:] = data
    buffers = [bytearray(data), memoryview(data), array.array("B", data), mapped]
    buffers += [np.frombuffer(data, np.uint8), np.frombuffer(data, np.int8)]
    buffers += [np.repeat(np.frombuffer(data, np.uint8), 2)[::2]]
    for buffer in buffers:
        for message in (buffer, [buffer]):
            decoder = Decoder(message)
            assert (decoder.decode(probs[:, 0]) == symbols[:, 0]).all()
            decoder.finish()


@pytest.mark.parametrize(
    "data",
    [
        [5],
        [b"", np.uint8(5)],
        5,
        "text",
        None,
        np.array([174, 3]),
        np.zeros((2, 3), np.uint8),
        array.array("I", [174]),
        [1.5],
    ],
    ids=repr,
)
def test_a_message_that_is_no_buffer_of_bytes_is_refused(data):
    with pytest.raises(TypeError, match=r"bytes|not iterable"):
        Decoder(data)


def test_nothing_is_nothing():
    assert Encoder().finish() == b""
    assert Encoder(lanes=3).finish() == [b"", b"", b""]
    Decoder(b"").finish()
    Decoder([b"", b""]).finish()
    assert encode_one(np.empty(0, int), np.empty((0, 5), np.float32)) == b""
    assert Decoder(b"").decode(np.empty((0, 5), np.float32)).shape == (0,)
    assert encode_one([], np.empty((0, 5), np.float32)) == b""


@given(st.data())
def test_round_trip_property(data):
    steps, lanes = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
    n = data.draw(st.sampled_from([1, 2, 5, 32, 33, 100]))
    block = random_block(steps, lanes, n, data.draw(st.integers(0, 1000)))
    encoder = Encoder(lanes=lanes)
    encoder.encode(*block)
    payloads = encoder.finish()
    decoder = Decoder(payloads if lanes > 1 else [payloads])
    assert (decoder.decode(block[1]) == block[0]).all()
    decoder.finish()


# ── Kinds of numbers ──

INTEGER_TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_integers_are_weights_whatever_their_width(dtype):
    weights = np.array([[5, 0, 100], [1, 1, 1]])
    symbols = [1, 2]
    data = encode_one(symbols, weights.astype(dtype))
    assert data == encode_one(symbols, weights)
    assert Decoder(data).decode(weights.astype(dtype)).tolist() == symbols


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_of_the_same_value_give_the_same_bytes(dtype):
    probs = np.array([[0.5, 0.25, 0.125]] * 30)
    symbols = np.arange(30) % 3
    assert encode_one(symbols, probs.astype(dtype)) == encode_one(symbols, probs)


def test_lists_are_taken_too():
    data = encode_one([0, 1], [[0.9, 0.1], [0.2, 0.8]])
    assert Decoder(data).decode([[0.9, 0.1], [0.2, 0.8]]).tolist() == [0, 1]


def test_logits_and_their_weights_give_the_same_bytes():
    logits = np.array([[0, -1024, -2048]] * 20, np.int32)
    symbols = np.arange(20) % 3
    data = encode_one(symbols, logits=logits)
    assert data == encode_one(symbols, [[4, 2, 1]] * 20)
    assert (Decoder(data).decode(logits=logits) == symbols).all()


def test_a_symbol_with_probability_zero_can_be_coded():
    probs = np.array([[1.0, 0.0]] * 3, np.float32)
    data = encode_one([1, 1, 1], probs)
    assert len(data) in range(11, 14)  # 3 * 30 bits
    assert Decoder(data).decode(probs).tolist() == [1, 1, 1]


# ── Errors ──

GOOD = np.full((2, 4), 0.25, np.float32)


def spoiled(step: int, symbol: int, value: float) -> np.ndarray:
    probs = GOOD.copy()
    probs[step, symbol] = value
    return probs


@pytest.mark.parametrize(
    ("symbols", "probs", "message"),
    [
        ([0, 0], spoiled(1, 2, np.nan), r"step 1: the number of symbol 2 is NaN"),
        ([0, 0], spoiled(0, 3, -0.5), r"step 0: the number of symbol 3 is negative"),
        ([0, 0], spoiled(1, 0, np.inf), r"step 1: the number of symbol 0 is infinite"),
        ([0, 0], GOOD * 0, r"step 0: all numbers of the row are zero"),
        ([0, 4], GOOD, r"step 1: symbol 4 is outside 0\.\.3"),
        ([-1, 0], GOOD, r"step 0: symbol -1 is outside 0\.\.3"),
        (np.array([0, 2**63], np.uint64), GOOD, r"step 1: symbol \d+ is outside 0\.\.3"),
        ([0.0, 1.0], GOOD, r"symbols must be integers, not float64"),
        ([0], GOOD, r"the symbols have the shape \(1,\), the distributions call for \(2,\)"),
        (0, GOOD, r"the symbols have the shape \(\), the distributions call for \(2,\)"),
        ([[0, 0]], GOOD, r"the symbols have the shape \(1, 2\)"),
        (0, 0.5, r"the shape \(\); expected \(V,\), \(steps, V\) or \(steps, 1, V\)"),
        ([[0], [0]], GOOD.reshape(1, 2, 4), r"the shape \(1, 2, 4\); expected"),
        ([0, 0], np.empty((2, 0), np.float32), r"1 to 1048576 symbols, not 0"),
        ([0], np.zeros((1, 2**20 + 1), np.int8), r"1 to 1048576 symbols, not 1048577"),
        ([0, 0], GOOD.astype(complex), r"probabilities must be float32.*not complex128"),
        ([0, 0], GOOD > 0, r"probabilities must be float32.*not bool"),
        ([0], np.array([[1, -1]]), r"symbol 1 is negative, or 2\^31 or more"),
        ([0], np.array([[1, -1]], np.int8), r"symbol 1 is negative, or 2\^31 or more"),
        ([0], np.array([[2**31, 1]]), r"symbol 0 is negative, or 2\^31 or more"),
        ([0], np.array([[2**32 + 1, 1]]), r"symbol 0 is negative, or 2\^31 or more"),
        ([0], np.array([[2**31, 1]], np.uint32), r"symbol 0 is negative, or 2\^31 or more"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name_and_changes_nothing(symbols, probs, message):
    encoder = Encoder()
    encoder.encode([1, 2], GOOD)
    with pytest.raises(DistributionError, match=message):
        encoder.encode(symbols, probs)
    with pytest.raises(ValueError, match=message):  # callers may catch what NumPy would raise
        encoder.encode(symbols, probs)
    assert encoder.finish() == encode_one([1, 2], GOOD)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_row_is_named_with_step_and_lane(threads):
    symbols, probs = random_block(10, 4, 5)
    probs[7, 2, 1] = np.nan
    probs[3, 3, 4] = -1
    encoder = Encoder(lanes=4, threads=threads)
    with pytest.raises(DistributionError, match="step 3, lane 3: the number of symbol 4 is neg"):
        encoder.encode(symbols, probs)
    with pytest.raises(DistributionError, match="step 3, lane 3: the number of symbol 4 is neg"):
        Decoder([b"123"] * 4, threads=threads).decode(probs)


def test_a_refused_block_leaves_the_decoder_where_it_was():
    symbols, probs = random_block(20, 2, 30)
    encoder = Encoder(lanes=2)
    encoder.encode(symbols, probs)
    decoder = Decoder(encoder.finish())
    decoder.decode(probs[:5])
    bad = probs[5:].copy()
    bad[-1, 1, 0] = np.nan
    with pytest.raises(DistributionError, match="step 14, lane 1"):
        decoder.decode(bad)
    assert (decoder.decode(probs[5:]) == symbols[5:]).all()
    decoder.finish()


def test_logits_must_be_int32():
    for dtype in ("float32", "int64", "uint32"):
        with pytest.raises(DistributionError, match=f"logits must be int32.*not {dtype}"):
            Encoder().encode([0], logits=np.zeros((1, 3), dtype))


def test_probs_or_logits_but_not_both():
    for kwargs in ({}, {"probs": GOOD, "logits": GOOD}):
        with pytest.raises(TypeError, match="either probs or logits"):
            Encoder().encode([0, 0], **kwargs)
        with pytest.raises(TypeError, match="either probs or logits"):
            Decoder(b"").decode(**kwargs)


@pytest.mark.parametrize("lanes", [[0, 0], [3], [-1], [0, 1, 2, 3]])
def test_impossible_lanes_are_refused(lanes):
    probs = np.ones((1, len(lanes), 2))
    with pytest.raises(DistributionError, match="different numbers from 0 to 2"):
        Encoder(lanes=3).encode(np.zeros((1, len(lanes)), int), probs, lanes=lanes)
    with pytest.raises(DistributionError, match="different numbers from 0 to 2"):
        Decoder([b""] * 3).decode(probs, lanes=lanes)


def test_the_number_of_lanes_must_fit():
    with pytest.raises(DistributionError, match=r"shape \(2, 4\); expected \(3, V\) or"):
        Encoder(lanes=3).encode([0, 0], GOOD)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Encoder(lanes=bad)
        with pytest.raises(ValueError, match="must be 1 or more"):
            Encoder(threads=bad)
    with pytest.raises(ValueError, match="must be 1 or more"):
        Decoder([])


def test_a_finished_encoder_says_so():
    encoder = Encoder()
    encoder.finish()
    with pytest.raises(ValueError, match="has been finished"):
        encoder.encode(0, [1.0, 1.0])
    with pytest.raises(ValueError, match="has been finished"):
        encoder.finish()


def test_nothing_is_encoded_into_an_encoder_that_was_finished_meanwhile():
    """Another thread may finish it while a call prepares its arrays, or waits for its turn."""
    encoder = Encoder()

    class Finishing:
        def __array__(self, dtype=None, copy=None):
            encoder.finish()
            return np.zeros(1, np.int64)

    with pytest.raises(ValueError, match="has been finished"):
        encoder.encode(Finishing(), [[1.0, 1.0]])
    core = _core.LaneEncoder(1)
    assert core.finish() == [b""]
    with pytest.raises(ValueError, match="has been finished"):
        core.encode_rows("float32", np.ones((1, 1, 2), np.float32), np.zeros((1, 1), int), [0], 1)
    with pytest.raises(ValueError, match="has been finished"):
        core.encode_intervals(np.array([[[0, 1]]], np.uint32), [0])
    with pytest.raises(ValueError, match="has been finished"):
        core.finish()


@pytest.mark.parametrize("make", [Encoder, lambda: Decoder(b"")], ids=["Encoder", "Decoder"])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(make, duplicate):
    """They would share one state."""
    with pytest.raises(TypeError, match="coder cannot be copied or pickled"):
        duplicate(make())


def test_ragged_lists_are_value_errors():
    with pytest.raises(ValueError, match="inhomogeneous"):
        Encoder().encode([0, 1], [[1, 2], [1]])


def test_reading_past_the_end_is_an_error_and_changes_nothing():
    symbols, probs = random_block(40, 1, 50)
    decoder = Decoder(encode_one(symbols[:, 0], probs[:, 0]))
    with pytest.raises(lmzip.TruncatedError, match=r"step \d+: the data end before this symbol"):
        decoder.decode(np.concatenate([probs] * 9)[:, 0])
    assert (decoder.decode(probs[:, 0]) == symbols[:, 0]).all()
    decoder.finish()


def test_truncated_at_every_byte_is_noticed():
    """Of the last bytes, a shorter message may be another one; then the symbols differ."""
    symbols, probs = random_block(30, 1, 50)
    data = encode_one(symbols[:, 0], probs[:, 0])
    for size in range(len(data)):
        decoder = Decoder(data[:size])
        try:
            decoded = decoder.decode(probs[:, 0])
            decoder.finish()
        except (lmzip.TruncatedError, lmzip.CorruptError):
            continue
        assert size >= len(data) - 4
        assert encode_one(decoded, probs[:, 0]) == data[:size]
        assert (decoded != symbols[:, 0]).any()


def test_a_flipped_bit_is_noticed_or_another_message():
    symbols, probs = random_block(30, 1, 50)
    data = encode_one(symbols[:, 0], probs[:, 0])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 128 >> bit % 8
        decoder = Decoder(damaged)
        try:
            decoded = decoder.decode(probs[:, 0])
            decoder.finish()
        except (lmzip.TruncatedError, lmzip.CorruptError):
            continue
        assert encode_one(decoded, probs[:, 0]) == damaged
        assert (decoded != symbols[:, 0]).any()


def test_trailing_data_are_an_error():
    decoder = Decoder([b"", encode_one([1], [[1, 1]]) + b"x"])
    decoder.decode(np.ones((2, 2)))
    with pytest.raises(lmzip.CorruptError, match="lane 1: data follow the last symbol"):
        decoder.finish()


def test_missing_data_are_an_error():
    probs = np.ones((9, 200))
    decoder = Decoder(encode_one([7] * 9, probs)[:-5])
    with pytest.raises(lmzip.TruncatedError, match="cut short"):
        decoder.decode(probs)


def test_altered_data_are_an_error():
    """Of the numbers that lead to the same symbols, an encoder writes one."""
    found = 0
    for length in range(1, 20):
        probs = np.ones((length, 3))
        data = encode_one([2] * length, probs)
        for last in set(range(256)) - {data[-1]}:
            decoder = Decoder(data[:-1] + bytes([last]))
            if decoder.decode(probs).tolist() == [2] * length:
                with pytest.raises(lmzip.CorruptError, match="lane 0: the data are damaged"):
                    decoder.finish()
                found += 1
    assert found > 100


@given(st.binary(max_size=40), st.integers(1, 40))
def test_garbage_never_crashes_property(data, steps):
    decoder = Decoder(data)
    try:
        symbols = decoder.decode(np.ones((steps, 10)))
        decoder.finish()
    except (lmzip.TruncatedError, lmzip.CorruptError):
        return
    assert encode_one(symbols, np.ones((steps, 10))) == data


# ── PyTorch ──


def test_numpy_users_do_not_import_torch(run_python):
    script = """
import sys, numpy, lmzip
encoder = lmzip.Encoder()
encoder.encode([1, 0], numpy.ones((2, 2)))
assert lmzip.Decoder(encoder.finish()).decode(numpy.ones((2, 2))).tolist() == [1, 0]
assert "torch" not in sys.modules
"""
    run_python(script)


def test_importing_lmzip_imports_neither_numpy_nor_torch(run_python):
    run_python("import sys, lmzip; assert not {'numpy', 'torch'} & set(sys.modules)")


TORCH_TYPES = ["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "int64"]


@needs_torch
@pytest.mark.parametrize("dtype", TORCH_TYPES)
@pytest.mark.parametrize("lanes", [1, 3])
def test_torch_tensors_code_like_numpy_arrays(dtype, lanes):
    import torch

    symbols, probs = random_block(20, lanes, 24)
    tensor = torch.from_numpy(probs * 100 + 1).to(getattr(torch, dtype))
    encoder, expected = Encoder(lanes=lanes), Encoder(lanes=lanes)
    encoder.encode(torch.from_numpy(symbols), tensor)
    values = tensor.float() if dtype == "bfloat16" else tensor
    expected.encode(symbols, values.numpy())
    data = encoder.finish()
    assert data == expected.finish()
    decoded = Decoder(data).decode(tensor)
    assert isinstance(decoded, torch.Tensor)
    assert decoded.dtype == torch.int64
    assert (decoded.numpy() == symbols).all()


@needs_torch
def test_tensors_with_gradients_and_odd_strides_are_taken():
    import torch

    logits = torch.randn(6, 5, requires_grad=True)
    probs = logits.softmax(-1)
    symbols = torch.tensor([0, 1, 2, 3, 4, 0])
    data = encode_one(symbols, probs)
    turned = probs.T.contiguous().T
    assert not turned.is_contiguous()
    assert data == encode_one(symbols, turned)
    assert (Decoder(data).decode(turned) == symbols).all()
    assert Decoder(data).decode(probs[0]) == 0


@needs_torch
def test_tensors_that_cannot_be_handed_over_are_refused_by_pytorch():
    import torch

    for rows in (torch.ones(1, 2).to_sparse(), torch.ones(1, 2, device="meta")):
        with pytest.raises((TypeError, RuntimeError), match=r"[Ss]parse|meta tensor"):
            Encoder().encode([0], rows)
        with pytest.raises((TypeError, RuntimeError), match=r"[Ss]parse|meta tensor"):
            Decoder(b"").decode(rows)


@needs_torch
def test_dlpack_is_taken_without_the_array_interface():
    class Producer:
        """What another library shows: DLPack and nothing else."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    symbols, probs = random_block(5, 1, 7)
    expected = encode_one(symbols[:, 0], probs[:, 0])
    assert encode_one(symbols[:, 0], Producer(probs[:, 0].copy())) == expected


# The device path, run on the CPU: the same integer operations as on any other device.


def device_intervals(kind, rows, symbols):
    from lmzip import coder_torch

    return coder_torch.intervals(kind, rows, symbols)


def native_intervals(kind, rows, symbols):
    from lmzip import _core, coder_torch

    ends = _core.cumulative(kind, coder_torch._on_cpu(kind, rows)).astype(np.int64)
    lo = np.take_along_axis(ends, symbols[..., None], -1)
    hi = np.take_along_axis(ends, symbols[..., None] + 1, -1)
    return np.concatenate([lo, hi - lo], -1)


def tricky_rows(kind: str):
    """(T, L, n) tensors with the corners of each type: subnormal, -0.0, greatest, spread, sums."""
    import torch

    rng = np.random.default_rng(7)
    n = 70
    if kind in ("weights", "logits"):
        low, high = (0, 2**31) if kind == "weights" else (-(2**31), 2**31)
        blocks = [rng.integers(low, high, (2, 3, n)), rng.integers(low // 2**17, 5, (2, 3, n))]
        blocks.append(np.full((2, 3, n), high - 1))
        blocks.append(np.concatenate([np.ones((2, 3, 1), int), np.zeros((2, 3, n - 1), int)], -1))
        return [torch.from_numpy(block.astype(np.int32)) for block in blocks]
    integer, mantissa, infinity = {
        "float64": (np.uint64, 52, 0x47EFFFFFE0000000),
        "float32": (np.uint32, 23, 0x7F800000),
        "float16": (np.uint16, 10, 0x7C00),
        "bfloat16": (np.uint16, 7, 0x7F80),
    }[kind]
    patterns = [
        rng.integers(0, infinity, (2, 3, n), np.uint64),  # anything
        infinity - rng.integers(1, 3 << mantissa, (2, 3, n), np.uint64),  # the greatest
    ]
    if kind == "float64":  # around the least numbers of float32; ties
        patterns.append(rng.integers(0x368 << 52, 0x384 << 52, (2, 3, n), np.uint64))
        patterns.append(rng.integers(0x369, 0x3FF, (2, 3, n), np.uint64) << 52 | 1 << 28)
        patterns.append(rng.integers(0x369 << 10, 0x384 << 10, (2, 3, n), np.uint64) << 42)
    else:
        patterns.append(rng.integers(0, 1 << mantissa, (2, 3, n), np.uint64))  # subnormal
        patterns.append(rng.integers(0, 3 << mantissa, (2, 3, n), np.uint64))  # and a little more
    minus_zero = patterns[0].copy()
    minus_zero[..., ::3] = 1 << (8 * integer().itemsize - 1)
    numpy_type = {"bfloat16": np.int16}.get(kind, kind)
    tensors = [
        torch.from_numpy(pattern.astype(integer).view(numpy_type))
        for pattern in [*patterns, minus_zero]
    ]
    return [t.view(torch.bfloat16) if kind == "bfloat16" else t for t in tensors]


KINDS = ["float32", "float16", "bfloat16", "float64", "weights", "logits"]


@needs_torch
@pytest.mark.parametrize("kind", KINDS)
def test_device_intervals_equal_native_ones(kind):
    rng = np.random.default_rng(8)
    for rows in tricky_rows(kind):
        for _ in range(5):
            symbols = rng.integers(0, rows.shape[-1], rows.shape[:2])
            assert (
                device_intervals(kind, rows, symbols) == native_intervals(kind, rows, symbols)
            ).all()


@needs_torch
@pytest.mark.parametrize("kind", KINDS)
def test_device_decoder_rows_mean_the_same_distributions(kind):
    from lmzip import _core, coder_torch

    for rows in tricky_rows(kind):
        sent_kind, sent = coder_torch.decoder_rows(kind, rows)
        expected = _core.cumulative(kind, coder_torch._on_cpu(kind, rows))
        assert (_core.cumulative(sent_kind, sent) == expected).all()
        row_weights, valid = coder_torch.weights(kind, rows)
        assert bool(valid)
        assert (_core.cumulative("weights", row_weights.numpy()) == expected).all()


@needs_torch
def test_device_intervals_do_not_depend_on_the_chunks(monkeypatch):
    from lmzip import coder_torch

    rows = tricky_rows("float32")[0]
    symbols = np.arange(6).reshape(2, 3)
    whole = device_intervals("float32", rows, symbols)
    monkeypatch.setattr(coder_torch, "CHUNK", 100)
    assert (device_intervals("float32", rows, symbols) == whole).all()


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64"])
def test_the_device_path_refuses_with_the_native_messages(dtype):
    import torch

    kind = "weights" if dtype == "int64" else dtype
    good = torch.ones(4, 2, 5, dtype=getattr(torch, dtype))
    symbols = np.zeros((4, 2), np.int64)
    bad_values = [-1, 2**31] if kind == "weights" else [-1.0, np.nan, np.inf, -np.inf]
    for value in bad_values:
        rows = good.clone()
        rows[2, 1, 3] = value
        with pytest.raises(DistributionError, match="step 2, lane 1: the number of symbol 3 is"):
            device_intervals(kind, rows, symbols)
    rows = good.clone()
    rows[1, 0] = 0
    with pytest.raises(DistributionError, match="step 1, lane 0: all numbers of the row are zero"):
        device_intervals(kind, rows, symbols)
    symbols[3, 0] = 5
    with pytest.raises(DistributionError, match=r"step 3, lane 0: symbol 5 is outside 0\.\.4"):
        device_intervals(kind, good, symbols)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_codes_the_same_bytes(kind):
    import torch

    key = "logits" if kind == "logits" else "probs"
    for rows in tricky_rows(kind):
        steps, lanes, n = rows.shape
        symbols = torch.arange(steps * lanes).reshape(steps, lanes) % n
        on_cpu, on_cuda = Encoder(lanes=lanes), Encoder(lanes=lanes)
        on_cpu.encode(symbols, **{key: rows})
        on_cuda.encode(symbols.cuda(), **{key: rows.cuda()})
        data = on_cpu.finish()
        assert data == on_cuda.finish()
        decoded = Decoder(data).decode(**{key: rows.cuda()})
        assert decoded.is_cuda
        assert torch.equal(decoded.cpu(), symbols)


@pytest.mark.gpu
def test_cuda_steps_decode_what_a_cpu_block_encoded():
    import torch

    symbols, probs = random_block(20, 4, 300)
    encoder = Encoder(lanes=4)
    encoder.encode(symbols, probs)
    decoder = Decoder(encoder.finish())
    for expected, rows in itertools.zip_longest(symbols, probs):
        assert decoder.decode(torch.from_numpy(rows).cuda()).tolist() == expected.tolist()
    decoder.finish()
