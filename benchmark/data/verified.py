"""Whether a file still holds what it held when it was written: its SHA-256, compared once per change of the file.

Reading gigabytes at every start would take longer than some runs. A file whose size and times are those of the last
comparison is not read again; times that a copy or any writer has touched lead to another comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path

from benchmark.paths import default_data_root
from benchmark.store import write_whole

SEEN = ".verified.json"
_SETTLED = 100_000_000
"""Nanoseconds after its last change within which a file can change again without another time."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def is_as_written(path: Path, sha256: str) -> bool:
    """Return whether a file has this SHA-256; it is read only if it, or what is known about it, has changed.

    Args:
        path: of the file. What is known stands beside it, where that can be written.
        sha256: expected.
    """
    if _seen(path.parent).get(path.name) == _state(path, sha256):
        return True
    if file_sha256(path) != sha256:
        return False
    remember(path, sha256)
    return True


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of someone else's; it is read only if it, or what is known about it, has changed.

    What is known stands in our own cache: nothing is written beside the file.
    """
    place = hashlib.sha256(str(path.parent.resolve()).encode()).hexdigest()[:12]
    folder = default_data_root() / "files" / place
    known = _seen(folder).get(path.name)
    if known and known == _state(path, str(known[0])):
        return str(known[0])
    sha256 = file_sha256(path)
    remember(path, sha256, folder)
    return sha256


def remember(path: Path, sha256: str, folder: Path | None = None) -> None:
    """Keep that a file, as it is now, has this SHA-256; where nothing can be written it is compared every time.

    Args:
        path: of the file.
        sha256: of its content.
        folder: where that is kept; None: beside the file.
    """
    state, folder = _state(path, sha256), folder or path.parent
    if time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) > _SETTLED:
        with contextlib.suppress(OSError):
            text = json.dumps({**_seen(folder), path.name: state})
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / SEEN, lambda beside: beside.write_text(text, encoding="utf-8"))


def _state(path: Path, sha256: str) -> list[str | int]:
    found = path.stat()
    return [sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _seen(folder: Path) -> dict[str, list[str | int]]:
    try:
        content = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
