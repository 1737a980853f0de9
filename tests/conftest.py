"""What all tests share: hypothesis profiles, where the evaluation files are, the gpu marker."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from lmzip import _core
from lmzip.devices import driver_present

# Without a GPU, Triton's kernels run in its interpreter.  Triton reads this when it is imported.
if not driver_present():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LMZIP_DATA", ROOT.parent / "shared" / "data"))

# Times say nothing on a shared machine, so no example has a deadline.
_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_CALM)
settings.register_profile("ci", max_examples=200, **_CALM)
settings.register_profile("deep", max_examples=10_000, **_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def cuda_missing() -> str | None:
    """Why GPU tests cannot run here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    reason = cuda_missing() if gpu_items else None
    if reason:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=f"gpu: {reason}"))
    if not DATA.is_dir():
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=f"data: {DATA} is missing; set LMZIP_DATA"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The evaluation files. Tests that use it carry the mark `data`."""
    return DATA


@pytest.fixture(scope="session")
def vectors_module() -> ModuleType:
    """tests/vectors/make.py, which is a program and in no package."""
    path = ROOT / "tests" / "vectors" / "make.py"
    spec = importlib.util.spec_from_file_location("make_vectors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=_core.kernels())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with each kernel that this machine has."""
    before = _core.active_kernel()
    _core.set_active_kernel(request.param)
    yield request.param
    _core.set_active_kernel(before)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python(script, check=True, NAME=value...) in a fresh interpreter."""

    def run(script: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script],
            check=check,
            capture_output=True,
            text=True,
            env={**os.environ, **env},
        )

    return run


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Work this small waits longer for threads than it takes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device codecs find no engines of another test."""
    from lmzip import device_codec

    monkeypatch.setattr(device_codec, "_shared", {})
