"""Progress on a terminal: share, speed, ratio and time left; nothing anywhere else.

Uses tqdm if it is installed, else one line of its own.
"""

import sys
import time
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TextIO

REFRESH_SECONDS = 0.1


def human_size(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class Progress:
    """Context manager; `update` with the totals so far. `total` is None if it is not known."""

    def __init__(self, label: str, total: int | None, *, wanted: bool) -> None:
        self._line: _PlainLine | _TqdmLine | None = None
        if wanted and sys.stderr.isatty():
            self._line = _line(label, total, sys.stderr)

    def update(self, done: int, raw: int, compressed: int) -> None:
        """`done` of `total` has been worked through; `raw` bytes correspond to `compressed`."""
        if self._line is not None:
            ratio = f"{100 * compressed / raw:.1f} %" if raw else ""
            self._line.show(done, ratio)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._line is not None:
            self._line.close()


def _line(label: str, total: int | None, stream: TextIO) -> "_PlainLine | _TqdmLine":
    try:
        return _TqdmLine(label, total, stream)
    except ImportError:
        return _PlainLine(label, total, stream)


class _TqdmLine:
    def __init__(self, label: str, total: int | None, stream: TextIO) -> None:
        self._bar: Any = import_module("tqdm").tqdm(
            desc=label,
            total=total,
            file=stream,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            mininterval=REFRESH_SECONDS,
        )

    def show(self, done: int, ratio: str) -> None:
        self._bar.set_postfix_str(ratio, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _PlainLine:
    def __init__(self, label: str, total: int | None, stream: TextIO) -> None:
        self._label, self._total, self._stream = label, total, stream
        self._started = time.monotonic()
        self._shown = 0.0

    def show(self, done: int, ratio: str) -> None:
        now = time.monotonic()
        if now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        speed = done / max(now - self._started, 1e-9)
        parts = [human_size(done), f"{human_size(speed)}/s", ratio]
        if self._total:
            parts.insert(0, f"{100 * done / self._total:.0f} %")
            left = (self._total - done) / speed if speed else 0
            parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        self._stream.write(f"\r\x1b[K{self._label}: {', '.join(filter(None, parts))}")
        self._stream.flush()

    def close(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()
