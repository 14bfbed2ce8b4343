"""Where a result comes from: settings, seed, versions, commit, hardware; no names of people or hosts."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.paths import ROOT

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers", "peft", "safetensors",
    "numpy", "scipy", "pandas", "scikit-learn",
)  # fmt: skip
_SOURCES = ("run_benchmark.py", "pyproject.toml", "benchmark", "methods", "tasks", "configs")
# An absolute path, or one below a home folder, but not the rest of an address (https://...) or of "a/b".
_PATH = re.compile(r"(?<![\w./~-])(?:~[\w.-]*)?(?:(?<!:)//+|/)(?:[^\s/'\":;,()]+/)*([^\s/'\":;,()]+)/?")
# The same where its end is known, so that names of folders may hold blanks: in quotation marks, or alone.
_QUOTED = re.compile(r"""(['"])(?:~[\w.-]*)?/(?:[^'"\n]*/)?([^'"/\n]+)/?\1""")
_ALONE = re.compile(r"(?!.*\s/)((?:[\w.-]+:)?)(?:~[\w.-]*)?/(?!/)(?:[^:\n]*/)?([^:/\n]+)/?")


def provenance(config: Mapping[str, Any], config_hash: str) -> dict[str, Any]:
    """Return what is needed to repeat a cell, as JSON types.

    Args:
        config: the resolved settings of the cell.
        config_hash: hash of the settings that the adapted weights depend on.
    """
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "program": {"name": "medpeft-bench", "version": _version("medpeft-bench")},
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
    commit = _git(root, "rev-parse", "HEAD")
    present = [name for name in _SOURCES if (root / name).exists()]
    changes = _git(root, "status", "--porcelain", "--", *present) if commit else None
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory in GiB and (when torch is loaded) the GPUs."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch and cuda else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(min(memory, _group_limit("memory.max", memory)) / 2**30, 1),
        "gpus": gpus,
    }


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, or its container's smaller share."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):
        return max(1, affinity)


def available_memory() -> float:
    """Return the memory in GiB that is free here: the machine's, or its container's smaller share."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _group_limit("memory.max", free)
    return min(free, limit) / 2**30


def scrub(value: Any) -> Any:
    """Return a copy of nested values in which every absolute path is only its last part."""
    if isinstance(value, Mapping):
        return {str(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    if isinstance(value, Path):
        return value.name if value.is_absolute() else str(value)
    return _without_folders(value) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    if "/" not in text:
        return text
    text = text.replace("file://", "")
    if home := os.path.expanduser("~").strip("/~"):
        text = text.replace(f"/{home}/", "~/")
    if alone := _ALONE.fullmatch(text):
        return alone[1] + alone[2]
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


def _group_limit(name: str, default: int) -> int:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return default


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
