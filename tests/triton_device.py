"""Where tests run Triton's kernels: on a CUDA device, or in Triton's interpreter (conftest.py).

A module that imports this is skipped where neither can be had.
"""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("triton", reason="Triton is not installed")

from lmzip import triton_kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and not triton_kernels.INTERPRETED:
    pytest.skip("no CUDA device, but a driver: set TRITON_INTERPRET=1", allow_module_level=True)
