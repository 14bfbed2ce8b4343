"""The origin of a result: settings, seed, versions, commit, hardware; no names of people or hosts."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.files import ROOT
from benchmark.machine import hardware

DISTRIBUTION = "medpeft-bench"
PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers", "peft", "safetensors",
    "numpy", "scipy", "pandas", "scikit-learn",
)  # fmt: skip


_SOURCES = ("run_benchmark.py", "pyproject.toml", "benchmark", "methods", "tasks", "configs")


# Where a path begins: at its root, below a home folder, or at a folder beside or above this one; not the rest of an
# address (https://...) or of "a/b".
_ROOT = r"(?:(?:~[\w.-]*)?(?:(?<!:)//+|/)|\.{1,2}/)"
# A folder's name may hold blanks, but not at its ends: "/a/x and /b/y" are two paths.
_PATH = re.compile(rf"(?<![\w./~-]){_ROOT}(?:[^\s/'\":;](?:[^/'\":;\n]*[^\s/'\":;])?/)*([^\s/'\":;,()]+)/?")


# The same where its end is known: in quotation marks, or alone.
_QUOTED = re.compile(rf"""(['"]){_ROOT}(?:[^'"\n]*/)?([^'"/\n]+)/?\1""")


_ALONE = re.compile(rf"(?!.*\s/)((?:[\w.-]+:)?){_ROOT}(?!/)(?:[^:\n]*/)?([^:/\n]+)/?")


_FILE = re.compile(r"[^\s/:]+/(?:[^/:\n]+/)*([^/:\n]+\.[A-Za-z]\w{1,7})")
"""A file below a folder of this one, alone."""


def provenance(config: Mapping[str, Any], config_hash: str) -> dict[str, Any]:
    """Return what is needed to repeat a cell, as JSON types.

    Args:
        config: the resolved settings of the cell.
        config_hash: hash of the settings that the adapted weights depend on.
    """
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "program": {"name": DISTRIBUTION, "version": program_version()},
        "git": git_state(),
        "seed": config.get("seed"),
        "limited": config.get("limit"),
        "config_hash": config_hash,
        "config": scrub(config),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


@functools.cache
def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit of the checkout and whether its sources differ from it; None outside a repository."""
    # an installed copy may lie in the checkout of something else
    commit = _git(root, "rev-parse", "HEAD") if (root / _SOURCES[0]).is_file() else ""
    present = [name for name in _SOURCES if (root / name).exists()]
    changes = _git(root, "status", "--porcelain", "--", *present) if commit else None
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def scrub(value: Any) -> Any:
    """Return a copy of nested values in which every path is only its last part."""
    if isinstance(value, Mapping):
        return {str(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return _without_folders(value) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    if "/" not in text:
        return text
    text = text.replace("file://", "")
    if home := os.path.expanduser("~").strip("/~"):
        text = text.replace(f"/{home}/", "~/")
    if alone := _ALONE.fullmatch(text):
        return alone[1] + alone[2]
    if file := _FILE.fullmatch(text):
        return file[1]
    return _PATH.sub(r"\1", _QUOTED.sub(r"\1\2\1", text))


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def program_version() -> str | None:
    """Return the version of this program; None where it runs without having been installed."""
    return _version(DISTRIBUTION)


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
