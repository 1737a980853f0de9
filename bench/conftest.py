"""Collects the results of a benchmark run and writes them as CSV, with their provenance."""

import csv
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lmzip import _core

COLUMNS = [
    "library", "version", "operation", "symbols", "rows", "ns_per_symbol", "ns_per_symbol_min",
    "gb_per_s", "bytes", "overhead_percent", "device", "commit", "date", "command",
]  # fmt: skip

_rows: list[dict[str, object]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", metavar="FILE", help="write the results to this CSV file")


def device() -> str:
    """The processor's name and the kernel that this process uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {_core.active_kernel()}"


def commit() -> str:
    """The commit, with a plus sign if sources differ from it."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
    )
    if head.returncode != 0:
        return "unknown"
    difference = [*git, "diff", "--quiet", "HEAD", "--", ":/csrc", ":/python"]
    dirty = subprocess.run(difference, check=False).returncode != 0
    return head.stdout.strip() + ("+" if dirty else "")


def provenance() -> dict[str, object]:
    """Where a row of results comes from.  Absolute paths are of this machine: only their names."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    return {
        "device": device(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *words]),
    }


@pytest.fixture
def record(benchmark, request):
    """record(library, operation, message, coded bytes, overhead), after the benchmark ran."""

    def add(library, operation, message, size, overhead) -> None:
        if benchmark.stats is None:  # --benchmark-disable
            return
        stats = benchmark.stats.stats
        rows, n = message.probs.shape
        _rows.append(
            {
                "library": library.name,
                "version": library.version,
                "operation": operation,
                "symbols": n,
                "rows": rows,
                "ns_per_symbol": f"{stats.median / rows * 1e9:.1f}",
                "ns_per_symbol_min": f"{stats.min / rows * 1e9:.1f}",
                "gb_per_s": f"{message.probs.nbytes / stats.median / 1e9:.2f}",
                "bytes": size,
                "overhead_percent": f"{100 * overhead:.4f}",
                **provenance(),
                "command": "pytest " + " ".join(request.config.invocation_params.args),
            }
        )

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--results")
    if not path or not _rows:
        return
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(_rows)
    print(f"\nwrote {path}", file=sys.stderr)
