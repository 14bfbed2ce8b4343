"""Cached files: the first process makes a file, others wait for it and read it."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from benchmark.console import Reporter
from benchmark.files import file_lock, write_whole

T = TypeVar("T")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, SafetensorError, zipfile.BadZipFile)


def cached(
    path: Path | None,
    *,
    make: Callable[[], T],
    read: Callable[[Path], T],
    write: Callable[[Path, T], object],
    what: str,
    reporter: Reporter,
) -> T:
    """Return the content of a file; the first process that asks for it computes and writes it.

    A file that cannot be read (after a full disk or a killed process) is computed again. Where nothing can be written,
    the computed value is returned all the same.

    Args:
        path: of the file; None caches nothing.
        make: computes the content.
        read: returns the content of the file.
        write: writes it, under a temporary name.
        what: a description, for messages while waiting.
        reporter: told about waiting and about a folder that cannot be written.
    """
    if path is None:
        return make()
    found = _found(path, read)
    if found is not None:
        return found
    with _alone(path, what, reporter):
        found = _found(path, read)  # another process may have made it meanwhile
        if found is not None:
            return found
        made = make()
        try:
            write_whole(path, lambda temporary: write(temporary, made))
        except OSError as error:
            reporter.log(f"{what} cannot be kept in {path.parent} ({error.strerror or error})")
        return made


def _found(path: Path, read: Callable[[Path], T]) -> T | None:
    if path.exists():
        with contextlib.suppress(*_UNREADABLE):
            return read(path)
    return None


@contextlib.contextmanager
def _alone(path: Path, what: str, reporter: Reporter) -> Iterator[None]:
    """Keep other processes from making the same file; where no lock can be had, each makes its own."""
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            if not held.enter_context(file_lock(lock, wait=False)):
                reporter.start(f"wait for {what}", 1)
                held.enter_context(file_lock(lock, wait=True))
        except OSError as error:
            reporter.log(f"{what} cannot be kept in {path.parent} ({error.strerror or error})")
        yield
        with contextlib.suppress(OSError):
            lock.unlink()  # whoever comes later finds the file
