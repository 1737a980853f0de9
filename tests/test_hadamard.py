"""What hadamard.py turns stays the same function, without outliers, on every machine."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from lmzip import _core
from lmzip.checkpoint import Checkpoint
from lmzip.hadamard import _signs, spread
from lmzip.import_model import WIDE_AFTER_HADAMARD, quantize
from lmzip.llama_model import WIDE_INPUTS, LlamaModel
from lmzip.reference import LOGIT_MAX
from test_import_model import plain_checkpoint


def matrix(d: int) -> np.ndarray:
    """Q by its definition: H(2n) = [[H(n), H(n)], [H(n), -H(n)]]."""
    block = 1
    while d % (2 * block) == 0:
        block *= 2
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    return _signs(d)[:, None] * np.kron(np.eye(d // block), h / np.sqrt(block))


@pytest.mark.parametrize("d", [32, 64, 96, 576])
def test_spread_is_a_product_with_an_orthogonal_matrix(d: int) -> None:
    q = matrix(d)
    np.testing.assert_allclose(q @ q.T, np.eye(d), atol=1e-12)
    rows = np.random.default_rng(d).normal(0, 1, (3, 5, d)).astype(np.float32)
    expected = rows.astype(np.float64) @ q
    for given in (rows, np.asfortranarray(rows)):  # however they lie in memory
        found = spread(given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_outlier_is_spread() -> None:
    row = np.zeros(576, np.float32)
    row[100] = 64.0
    np.testing.assert_array_equal(np.sort(np.abs(spread(row))), [0.0] * 512 + [8.0] * 64)


def test_every_machine_computes_the_same() -> None:
    rows = np.random.default_rng(5).integers(-999, 999, (4, 96)).astype(np.float32) / 7
    digest = hashlib.sha256(spread(rows).astype("<f4").tobytes()).hexdigest()
    assert digest == "52aed52cf569c4a222eef31c0cf913dcdac6f1f0d76a8b92cac704d798611fdc"


def logits(model: LlamaModel) -> np.ndarray:
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    tokens = np.random.default_rng(2).integers(1, model.architecture.vocabulary, (1, 40))
    return _core.LlamaEngine(native, 1, 40).feed(tokens.astype(np.uint32))[0].astype(np.float64)


def with_outliers(checkpoint: Checkpoint) -> Checkpoint:
    """A few channels of the residual stream are 20 times as great as the others."""
    tensors = dict(checkpoint.tensors)
    for name, t in tensors.items():
        factor = np.ones(64, np.float32)
        factor[[7, 30]] = 20
        if name == "embed_tokens.weight":
            tensors[name] = t * factor
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = t * factor[:, None]
        elif name.endswith("norm.weight"):
            tensors[name] = np.abs(t) + 0.5
    return replace(checkpoint, tensors=tensors)


def test_outliers_take_no_resolution_from_inputs_of_8_bits() -> None:
    checkpoint = with_outliers(plain_checkpoint())

    def cost(hadamard: bool) -> float:
        """Of 8 bits in place of 14, as a part of the logits' spread."""
        wide, narrow = (
            logits(quantize(checkpoint, hadamard=hadamard, wide=wide))
            for wide in (WIDE_INPUTS, WIDE_AFTER_HADAMARD)
        )
        used = wide[0] > -LOGIT_MAX
        return float(np.abs(wide - narrow)[:, used].mean() / wide[:, used].std())

    assert cost(hadamard=True) < cost(hadamard=False) / 1.5
