"""Temporary files and folders beside their targets; what a dead process has left is told from what a live one writes.

A process holds a lock on each of its temporary files, which the system frees when the process ends in any way. So who
gets the lock may delete the file. Where a file system has no locks nothing is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LEFTOVERS = ".*.????????.tmp"
"""Pattern of the names: that of the target and eight letters in between."""


@contextlib.contextmanager
def temporary_beside(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield an empty file or folder beside a target; what has not been renamed by the end of the block is deleted.

    Args:
        target: where the content is to be in the end; its folder is made.
        folder: a folder instead of a file.

    Raises:
        OSError: nothing can be written there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path, handle = _locked(target, folder)
    try:
        yield path
    finally:
        _delete(path)
        os.close(handle)


def remove_dead(folder: Path, *patterns: str) -> None:
    """Delete temporary files and folders whose processes are gone.

    Args:
        folder: to look in.
        patterns: globs below it.
    """
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            with contextlib.suppress(OSError):  # its process lives, or nothing can be locked or deleted here
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _delete(path)
                finally:
                    os.close(handle)


def _locked(target: Path, folder: bool) -> tuple[Path, int]:
    """Return a new file or folder with an open handle that holds its lock."""
    while True:
        path, handle = _made(target, folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                return path, handle
        except BlockingIOError:  # who looks for leftovers has found it before it had its lock
            pass
        except OSError:  # no locks here, so nobody deletes it
            return path, handle
        os.close(handle)


def _made(target: Path, folder: bool) -> tuple[Path, int]:
    prefix, suffix = f".{target.name}.", ".tmp"
    if folder:
        name = tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=target.parent)
        return Path(name), os.open(name, os.O_RDONLY)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
    return Path(name), handle


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
