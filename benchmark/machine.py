"""What this machine offers: processor, cores, memory, GPUs, threads; how it computes; whether torchrun started us."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmark.errors import ConfigError


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


_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Return whether torchrun started this process together with others."""
    return all(name in os.environ for name in _LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1


def processes() -> int:
    """Return how many processes work on a cell together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def on_this_machine() -> tuple[int, int]:
    """Return the number of this process among those of its machine, and how many these are."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if launched() else (0, 1)


def find_devices(wanted: str) -> list[str]:
    """Return the devices to use for "auto", "cpu", "cuda" (all GPUs) or "cuda:<i>".

    Raises:
        ConfigError: no such GPU here.
    """
    if wanted == "cpu":
        return ["cpu"]
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if wanted == "auto":
        return gpus or ["cpu"]
    if wanted == "cuda" and gpus:
        return gpus
    if wanted not in gpus:
        here = f"here: {', '.join(gpus)}" if gpus else "no CUDA GPU is visible here"
        raise ConfigError(f"--device: '{wanted}' does not exist ({here}). Use --device auto or cpu")
    return [wanted]


def use_device(device: str, *, deterministic: bool = False) -> None:
    """Compute on a device from now on, in the one arithmetic of this project.

    fp32 means fp32: TF32, whose products have 10 bits of 23, is off everywhere. torch itself would use it for
    convolutions alone. Who wants speed has bf16 (`recipe.precision`).

    Args:
        device: "cpu" or "cuda:<i>"; a GPU becomes the current one, on which libraries place what names no device.
        deterministic: let torch use deterministic algorithms alone; an operation on a GPU that has none is an error.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it loads torch's compiler
        torch.use_deterministic_algorithms(deterministic)
    place = torch.device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)


def threads_each(processes: int) -> int:
    """Return the threads of each of so many processes: the cores divided among them, at most OMP_NUM_THREADS."""
    return threads_of(usable_cores() // processes)


def threads_of(cores: int) -> int:
    """Return the threads of a process with so many cores: as many, at most OMP_NUM_THREADS."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wish)) if wish.isdecimal() and int(wish) > 0 else cores)


def limit_threads(threads: int) -> None:
    """Let the numerical libraries of this process use at most ``threads`` threads."""
    os.environ.update(thread_variables(threads))
    if torch := sys.modules.get("torch"):  # later imports read the variables
        torch.set_num_threads(threads)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of numerical libraries."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
