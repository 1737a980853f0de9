"""Every .lmz file in tests/vectors is answered as its name and README.md say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lmzip

VECTORS = Path(__file__).parent / "vectors"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_lmz", VECTORS / "make_lmz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_lmz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_lmz = _load()
CASES = make_lmz.cases()
GOOD = [name for name, case in CASES.items() if case.error is None]
REFUSED = [name for name, case in CASES.items() if case.error is not None]


def test_files_are_those_of_the_generator():
    names = {path.name for path in VECTORS.glob("*.lmz")}
    assert {name for name in names if not name.startswith("golden-")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_file_is_what_the_generator_makes(name):
    assert (VECTORS / name).read_bytes() == CASES[name].data


def test_readme_has_a_line_for_each_file():
    assert make_lmz.readme_lines() in (VECTORS / "README.md").read_text()


@pytest.mark.parametrize("name", GOOD)
def test_good_file_is_decoded_in_every_way(name):
    path, raw = VECTORS / name, CASES[name].raw
    data = path.read_bytes()
    assert lmzip.decompress(data) == raw
    with lmzip.open(path) as file:
        assert file.read() == raw
    assert lmzip.inspect(path).raw_size == len(raw)
    out, rest = b"", data
    while rest:
        decompressor = lmzip.LmzDecompressor()
        out += decompressor.decompress(rest)
        assert decompressor.eof
        rest = decompressor.unused_data
    assert out == raw


@pytest.mark.parametrize("name", REFUSED)
def test_refused_file_raises_its_error(name):
    case = CASES[name]
    data = (VECTORS / name).read_bytes()
    with pytest.raises(lmzip.LmzipError, match=case.message) as caught:
        lmzip.decompress(data)
    assert caught.type is case.error
    with pytest.raises(case.error), lmzip.open(VECTORS / name) as file:
        file.read()
