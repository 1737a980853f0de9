"""python -m lmzip: the same as the command."""

from lmzip.cli import entry

if __name__ == "__main__":
    entry()
