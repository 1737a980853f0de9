"""What all tests share: hypothesis profiles, where the evaluation files are, the gpu marker."""

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The evaluation files. Tests that use it carry the mark `data`."""
    return DATA
