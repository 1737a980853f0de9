"""Every kernel makes the bytes that the committed signature stands for; old files still decode."""

from pathlib import Path

import pytest

import lmzip
import signature
from lmzip import _core

HERE = Path(__file__).parent
EXPECTED = (HERE / "vectors" / "signature.txt").read_text().strip()
GOLDEN = sorted((HERE / "vectors").glob("golden-*.lmz"))


@pytest.mark.parametrize("kernel", _core.kernels())
def test_every_kernel_makes_the_same_bytes(kernel, run_python):
    script = f"import sys; sys.path.insert(0, {str(HERE)!r}); import signature as s"
    done = run_python(f"{script}; print(s.signature())", LMZIP_KERNEL=kernel)
    assert done.stdout.strip() == EXPECTED, (
        "compressed bytes have changed: tests/signature.py says what that means"
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_decode(path):
    """Files of earlier commits, with models that are still shipped: the start of alice29.txt."""
    model = signature.TINY if path.stem == "golden-tokens" else None
    raw = lmzip.decompress(path.read_bytes(), model=model)
    assert raw == (HERE / "data" / "alice29.txt").read_bytes()[: len(raw)]
    assert len(raw) >= 2000


def test_there_are_golden_files():
    assert {path.stem for path in GOLDEN} == {
        f"golden-{name}" for name in ("best", "default", "fast", "network", "tokens")
    }
