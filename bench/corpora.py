"""Where measurements find the open set: LMZIP_DATA/open (default ../shared/data/open).

bench/open_set.tsv names its files, by path, size, SHA-256 of the raw file, source and licence;
each is kept as an .xz (docs/performance.md, Data).
"""

import lzma
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LMZIP_DATA", ROOT.parent / "shared" / "data"))
OPEN = DATA / "open"
MANIFEST = ROOT / "bench" / "open_set.tsv"


def stored(name: str) -> Path:
    """The .xz of a file of the set; SystemExit where it is missing."""
    path = OPEN / f"{name}.xz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set LMZIP_DATA: docs/performance.md, Data")
    return path


def raw(name: str, begin: int = 0, size: int = -1) -> bytes:
    """Read bit by bit: a child's peak memory starts at that of its parent."""
    with lzma.open(stored(name)) as file:
        file.seek(begin)
        return file.read(size)
