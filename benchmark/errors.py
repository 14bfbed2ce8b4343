"""Error types of the program: each message says what is wrong, where, and what to do next.

The command line prints the message as one clear line and exits with its code; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

_LONGEST = 100
"""Characters of a value that a message shows."""
_LONGEST_PATH = 400
_CURES = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space, or have the quota raised",
    errno.EFBIG: "Raise the limit on the size of files",
    errno.EROFS: "Make it writable, or choose another folder",
    errno.EACCES: "Make it writable, or choose another folder",
    errno.EPERM: "Make it writable, or choose another folder",
    errno.EIO: "Look after the disk, or choose another folder",
}
"""What helps against a fault of the file system; then the same command goes on."""


class BenchmarkError(ValueError):
    """Base of every error that is the user's to mend; never used for our own bugs."""

    exit_code = 2


class ConfigError(BenchmarkError):
    """A configuration or command line that cannot be run. Holds all problems found, not only the first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class DataError(BenchmarkError):
    """A data file that is missing, unreadable or not in the expected layout."""


class PluginError(BenchmarkError):
    """A method, task, dataset or backbone plugin that cannot be found or loaded."""


class StoreError(BenchmarkError):
    """A result folder that cannot be read or written (wrong schema, no permission, other settings)."""


class LostError(StoreError):
    """A run that lost its machines in its midst; what was finished is kept."""

    exit_code = 1


class CellError(BenchmarkError):
    """One cell failed (non-finite loss, out of memory); the other cells continue."""


def quoted(value: object, most: int = _LONGEST) -> str:
    """Return a value as messages show it: as Python writes it, cut to ``most`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value that holds itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def file_fault(error: OSError) -> str:
    """Return the one line of an error of the file system: which file, why, and what to do where that is known."""
    where = quoted(str(error.filename), _LONGEST_PATH) if error.filename else "a file"
    cure = _CURES.get(error.errno or 0)
    return f"{where}: {error.strerror or error}" + (
        f". {cure} and run the same command again" if cure else ""
    )


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string when none is near."""
    spelt = {str(item).lower(): str(item) for item in known}
    near = difflib.get_close_matches(str(name).lower(), list(spelt), n=1, cutoff=0.5)
    return f" Did you mean '{spelt[near[0]]}'?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one-line message for an unknown name: what it is, the nearest one, and the whole list."""
    names = sorted(str(item) for item in known)
    shown = str(name) if len(str(name)) <= _LONGEST else f"{str(name)[:_LONGEST]}..."
    return f"unknown {kind} '{shown}'.{suggest(shown, names)} Known: {', '.join(names) or 'none'}"
