"""The file system: paths, atomic writes, locks, temporary files, checksums, strict YAML."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import yaml

from benchmark.errors import ConfigError, StoreError

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "run_benchmark.py" if (ROOT / "run_benchmark.py").is_file() else "medpeft-bench"
"""How the program is called: in a checkout, and where it is installed."""
COMMAND = PROGRAM if PROGRAM == "medpeft-bench" else f"python {PROGRAM}"
"""How commands that people copy begin."""
LEFTOVERS = ".*.????????.tmp"
"""Pattern of the names of temporary files: that of the target and eight letters in between."""
SEEN = ".verified.json"
_SETTLED = 100_000_000
"""Nanoseconds after its last change within which a file can change again without another time."""
_PROBE = 2**20  # bytes
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def configs(*parts: str) -> Path:
    """Return a path below ``configs/``, for example ``configs("suites", "phantom.yaml")``."""
    return ROOT.joinpath("configs", *parts)


def shipped(file: str) -> str:
    """Return a file as the user names it; where there is none, a file below our own ``configs/`` of that name."""
    ours = Path(file).parts[:1] == ("configs",) and not Path(file).exists() and (ROOT / file).is_file()
    return str(ROOT / file) if ours else file


def paper_tables() -> Path:
    """Return the file with the numbers that the paper reports."""
    return ROOT / "results" / "paper" / "tables.csv"


def default_data_root() -> Path:
    """Return the folder of prepared data: ``medpeft-bench`` in the user's cache folder (``$XDG_CACHE_HOME``)."""
    return platformdirs.user_cache_path("medpeft-bench", appauthor=False).expanduser()


def user_path(text: str | Path) -> Path:
    """Return a path as the user writes it, with ``~`` as the home folder.

    Raises:
        ConfigError: there is no user of that name.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"'{text}': no user has this home folder. Write the path without ~") from None


DELETED = "the working folder has been deleted. Change to another one and run the command again"


def working_folder() -> Path | None:
    """Return the working folder; None when it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the checkout or the working folder when inside."""
    for base in (ROOT, working_folder()):
        if base and path.is_absolute() and path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


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
    path, handle = _locked_temporary(target, folder)
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


def _locked_temporary(target: Path, folder: bool) -> tuple[Path, int]:
    """Return a new file or folder with an open handle that holds its lock."""
    names: dict[str, Any] = {"prefix": f".{target.name}.", "suffix": ".tmp", "dir": target.parent}
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(**names))
            handle = os.open(path, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(**names)
            path = Path(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                return path, handle
        except BlockingIOError:  # a process that looks for leftovers found it before it was locked
            pass
        except OSError:  # no locks here, so nobody deletes it
            return path, handle
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return file_hash(path, "sha256")


def file_hash(path: Path, kind: str) -> str:
    """Return the checksum of a file; ``kind`` is a name that hashlib knows."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None when it is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


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
    return read_json(folder / SEEN) or {}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside it, then rename: readers never see half a file.

    The content is on the disk before the name is, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: with the path and the system's reason, also where a library would hide both.
    """
    try:
        with temporary_beside(path) as temporary:
            try:
                write(temporary)
            except Exception as error:
                _ask_disk(temporary, error)
                raise
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
    except OSError as error:
        own = not error.filename or str(error.filename).startswith(f"{path.parent}/.{path.name}.")
        if error.errno is None or not own:  # for example a file that could not be read
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _ask_disk(path: Path, error: Exception) -> None:
    """Raise OSError when the disk is why a file could not be written, which torch, NumPy and safetensors hide."""
    if told := _RUST_ERROR.search(str(error)):
        raise OSError(int(told[1]), os.strerror(int(told[1])))
    with path.open("ab") as file:
        file.write(bytes(_PROBE))
        os.fsync(file.fileno())


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool, patience: float = 0.0) -> Iterator[bool]:
    """Hold an advisory lock; the system frees it when the process ends in any way, so no lock goes stale.

    Args:
        path: the lock file. It stays behind, empty.
        wait: wait for the lock; otherwise yield False when another process holds it.
        patience: seconds to keep trying before that, for the lock of a process that is about to end.

    Raises:
        StoreError: the file system has no locks.
        OSError: the lock file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=-1 if wait else patience, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        if error.filename:  # as the caller calls it, not as it is resolved
            raise OSError(error.errno, error.strerror, str(path)) from error
        reason = error.strerror or type(error).__name__
        raise StoreError(
            f"{path}: this file system has no file locks ({reason}), which keep processes from overwriting each "
            "other's results. Choose another folder"
        ) from None
    try:
        yield True
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same result, many times faster


_MOST_VALUES = 200_000
"""Values that a YAML file may stand for: a few lines with aliases can stand for billions."""


class _Loader(_SafeLoader):  # type: ignore[misc]  # either of two classes
    """Refuses duplicate keys, which YAML readers accept silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        first, last = node.start_mark.index, node.end_mark.index
        for key, _ in node.value:
            if not (isinstance(key, yaml.ScalarNode) and first <= key.start_mark.index < last):
                continue  # merged in by <<
            if key.value in seen:
                problem = f"the key '{key.value}' occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        values: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return values


def read_yaml(path: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """Return the mapping in a YAML file; an unreadable file gives ``{}`` and one line in ``problems``."""
    problem = ""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        if values is None or isinstance(values, dict):
            return {str(key): value for key, value in (values or {}).items()}
        problem = f"expected keys and values, got {type(values).__name__}"
    except ConfigError as error:
        problem = str(error)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})"
    if problems is not None:
        problems.append(f"{shown(path)}: {problem}")
    return {}


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ConfigError: it is not YAML, or a value in it cannot be (the thirteenth month, nesting without end).
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506
        _refuse_endless(value, (), itertools.count())
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        if "nesting depth" in problem:  # libyaml's words, which older ones have not
            line, problem = "", "nested too deeply"
    except RecursionError:
        line, problem = "", "nested too deeply"
    except Exception as error:  # the loader passes on whatever a value's own type raises
        line, problem = "", " ".join(str(error).split()) or type(error).__name__
    raise ConfigError(f"not valid YAML{line}: {problem}")


def _refuse_endless(value: Any, above: tuple[int, ...], reached: Iterator[int]) -> None:
    """Raise RecursionError for a value that holds itself, and YAMLError for aliases that multiply."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if id(value) in above:
        raise RecursionError
    if next(reached) > _MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"its aliases stand for more than {_MOST_VALUES:,} values")
    for item in below:
        _refuse_endless(item, (*above, id(value)), reached)


def csv_cell(value: Any) -> Any:
    """Return a value as a cell of a CSV file: a text that a spreadsheet would compute begins with an apostrophe."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r") or value == "-":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
