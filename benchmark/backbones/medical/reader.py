"""Tensors out of checkpoints of other groups, whose pickles may name any code: nothing in them is ever run.

``torch.load(weights_only=True)`` refuses a file that holds one object of a training library beside its tensors, as most
of these do. Here such objects become inert stand-ins and are left behind; what builds tensors is the only thing that a
pickle can call.
"""

from __future__ import annotations

import collections
import pickle
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from benchmark.errors import DataError

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_ZIP = b"PK\x03\x04"
_DEPTH = 8  # dictionaries in dictionaries; no checkpoint needs more, and a loop must end
_CALLABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class Inert:
    """Stands for an object that is not a tensor: takes whatever a pickle does to it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Accept any arguments."""
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Return another stand-in."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore the item."""

    def extend(self, items: Any) -> None:
        """Ignore the items."""

    def add(self, item: Any) -> None:
        """Ignore the item."""


@dataclass(frozen=True)
class Foreign:
    """What a file holds.

    Attributes:
        tensors: name -> tensor on the CPU; names of nested dictionaries are joined by dots.
        inert: classes and functions that the file names and that were not looked up.
    """

    tensors: dict[str, Tensor]
    inert: tuple[str, ...] = ()


def read_foreign(path: Path) -> Foreign:
    """Return the tensors of a file without running anything that it names.

    Args:
        path: ``.safetensors``, or a zip archive of ``torch.save``.

    Raises:
        DataError: missing, damaged, of an older or another format, or without tensors.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: not a weights file: expected {', '.join(SUFFIXES)}")
    named: set[str] = set()
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path, named)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (SafetensorError, Exception) as error:  # a damaged pickle can fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". ")[0][:120]
        raise DataError(f"{path}: cannot be read as weights ({reason}). Fetch it again") from None
    tensors = dict(_flat(content))
    if not tensors:
        raise DataError(f"{path}: holds no tensors. Fetch it again")
    return Foreign(tensors, tuple(sorted(named)))


def _unpickled(path: Path, named: set[str]) -> Any:
    with path.open("rb") as stream:
        # Both: torch goes by the first bytes, and takes any other file for a pickle of its older format.
        if stream.read(len(_ZIP)) != _ZIP or not zipfile.is_zipfile(stream):
            raise DataError(
                f"{path}: refused, not a zip archive of torch.save (an older file, or none of weights). Save its "
                "tensors again as safetensors where you trust it"
            )
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise DataError(f"{path}: refused, it is a TorchScript program, not a file of weights")
    restricted: Any = types.ModuleType("restricted_pickle")
    restricted.Unpickler = _unpickler(named)
    with warnings.catch_warnings():  # torch warns of foreign pickles, which are what this is about
        warnings.simplefilter("ignore")
        return torch.load(
            str(path), map_location="cpu", mmap=True, weights_only=False, pickle_module=restricted
        )


def _unpickler(named: set[str]) -> type[pickle.Unpickler]:
    """Return a class of unpicklers that add to ``named`` whatever they did not look up."""

    class Restricted(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str) -> Any:
            """Return one of the few things that tensors are built with, else a stand-in."""
            found = _CALLABLE.get((module_name, global_name))
            if found is None and module_name == "torch":
                kind = vars(torch).get(global_name)
                found = kind if isinstance(kind, torch.dtype) else None
            if found is not None:
                return found
            named.add(f"{module_name}.{global_name}")
            return type("Inert", (Inert,), {})

    return Restricted


def _flat(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries; a prefix of data-parallel training is taken off at each level."""
    if isinstance(content, Tensor):
        yield name, content.detach()
    elif isinstance(content, Mapping) and depth < _DEPTH:
        wrapped = bool(content) and all(str(key).startswith("module.") for key in content)
        for key, value in content.items():
            own = str(key).removeprefix("module.") if wrapped else str(key)
            yield from _flat(value, f"{name}.{own}" if name else own, depth + 1)
