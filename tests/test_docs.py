"""Every ```python block of the README and of docs/ runs, those of a file one after the other."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line, code) of each block."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in BLOCK.finditer(text)]


WITH_CODE = [path for path in DOCUMENTS if blocks(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.name)
def test_code_in_documents_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "document"}
    for line, code in blocks(path):
        if "import torch" in code and importlib.util.find_spec("torch") is None:
            pytest.skip("PyTorch is not installed")
        # Blank lines in front, so that a failure shows the line of the document.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)  # noqa: S102


def test_the_coder_document_has_examples():
    assert len(blocks(ROOT / "docs" / "coder.md")) >= 2
