"""Output files that appear whole or not at all.

The bytes go to a temporary file beside the target, are flushed to the disk, and take the
target's name in one step. Whatever else happens, the temporary file is removed.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class AtomicFile:
    """Context manager over a new file at `path`; `file` is what to write to.

    Leaving the block normally puts the file in place; leaving it by an exception removes it.
    With `overwrite`, an existing file is replaced, otherwise FileExistsError is raised, before
    anything is written and again if it has appeared meanwhile. `like` carries over permissions,
    owner (as far as allowed) and times.
    """

    def __init__(self, path: Path, *, overwrite: bool, like: os.stat_result | None = None) -> None:
        self.path, self._overwrite, self._like = path, overwrite, like
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} exists already; -f overwrites it")

    def __enter__(self) -> BinaryIO:
        try:
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name[:32]}.", suffix=".tmp"
            )
        except OSError as error:
            error.filename = os.fspath(self.path)  # the name that means something to the caller
            raise
        self._temporary = Path(name)
        self.file: BinaryIO = os.fdopen(handle, "wb")
        return self.file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError):  # of the flush in close: the file goes anyway
                self.file.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        self.file.flush()
        _carry_over(self.file.fileno(), self._like)
        os.fsync(self.file.fileno())
        if self._overwrite:
            self._temporary.replace(self.path)
        else:
            self._place_new()
        _sync_folder(self.path.parent)

    def _place_new(self) -> None:
        """Take the name only if it is free: link() decides that in one step."""
        try:
            os.link(self._temporary, self.path)
        except FileExistsError:
            raise FileExistsError(f"{self.path} has appeared meanwhile; -f overwrites it") from None
        except OSError:  # a file system without links
            if os.path.lexists(self.path):
                raise FileExistsError(f"{self.path} has appeared meanwhile") from None
            self._temporary.rename(self.path)


def descriptor(path: Path) -> int | None:
    """The descriptor of this process that /dev/stdout, /dev/fd/3 or a link to them stands for.

    Whatever file it is open on, that file is the caller's: it is written to, never replaced.
    """
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = folder / path.readlink()
    return None


def _carry_over(handle: int, like: os.stat_result | None) -> None:
    """Permissions, owner and times as far as the system allows; it starts with 0600, its owner's.

    What is refused is EPERM, or EINVAL for owners that a container has no number for, or whatever
    a foreign file system answers.
    """
    if like is None:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    else:
        mode = stat.S_IMODE(like.st_mode) & 0o777
        with contextlib.suppress(OSError):
            os.fchown(handle, like.st_uid, -1)
        try:
            os.fchown(handle, -1, like.st_gid)
        except OSError:  # another group must not gain what only "others" were denied
            mode &= 0o707 | (mode & 0o007) << 3
    with contextlib.suppress(OSError):
        os.fchmod(handle, mode)
    if like is not None:
        with contextlib.suppress(OSError):
            os.utime(handle, ns=(like.st_atime_ns, like.st_mtime_ns))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every folder lets itself be opened or flushed
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
