"""The progress line: what it says, and that it says nothing where nobody watches."""

import io
from types import SimpleNamespace

import pytest

from lmzip import progress
from lmzip.progress import Progress, human_size


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_sizes_for_people(size, text):
    assert human_size(size) == text


def test_plain_line_gives_share_speed_ratio_and_time_left(terminal, monkeypatch):
    now = iter([100.0, 102.0, 102.01, 104.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "_TqdmLine", no_tqdm)
    with Progress("a.txt", 10 << 20, wanted=True) as line:
        line.update(2 << 20, 2 << 20, 1 << 19)
        line.update(3 << 20, 3 << 20, 1 << 19)  # too soon to be shown
        line.update(4 << 20, 4 << 20, 1 << 20)
    assert terminal.getvalue() == (
        "\r\x1b[Ka.txt: 20 %, 2.0 MiB, 1.0 MiB/s, 25.0 %, 0:08 left"
        "\r\x1b[Ka.txt: 40 %, 4.0 MiB, 1.0 MiB/s, 25.0 %, 0:06 left"
        "\r\x1b[K"
    )


def no_tqdm(*_):
    raise ImportError("tqdm")


def test_line_without_a_total_has_no_share(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_TqdmLine", no_tqdm)
    with Progress("(stdin)", None, wanted=True) as line:
        line.update(2048, 0, 0)
    assert "(stdin): 2.0 KiB" in terminal.getvalue()
    assert "left" not in terminal.getvalue()


def test_tqdm_is_used_where_it_is_installed(terminal, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with Progress("a.txt", 1000, wanted=True) as line:
        assert type(line._line).__name__ == "_TqdmLine"
        line.update(500, 500, 100)
    assert "a.txt" in terminal.getvalue()


def test_nothing_is_written_unless_wanted_and_on_a_terminal(terminal, monkeypatch):
    with Progress("a", 10, wanted=False) as line:
        line.update(5, 5, 5)
    assert terminal.getvalue() == ""
    plain = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=plain))
    with Progress("a", 10, wanted=True) as line:
        line.update(5, 5, 5)
    assert plain.getvalue() == ""
