"""Reads published weights without running code, and loads them into a model strictly: every tensor must match."""

from __future__ import annotations

import collections
import pickle
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark.errors import DataError

State = dict[str, Tensor]


# Buffers and sizes that older releases stored; they hold no learnt value, and today's modules create them.
_HARMLESS = (
    "position_ids",
    "token_type_ids",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
)


_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


_NAMED = 2


def read_state(path: Path) -> State:
    """Return the tensors of a weights file, on the CPU; wrappers of training scripts are taken off.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``, which is read with ``weights_only=True``.

    Raises:
        DataError: missing, damaged, of another kind, or holding objects that are not tensors.
    """
    if path.suffix != ".safetensors" and path.suffix not in _PICKLES:
        raise DataError(f"{path}: not a weights file: expected .safetensors, {', '.join(_PICKLES)}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # torch warns of pickles by other hands, which are refused below
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise DataError(_refusal(path, error)) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:120]
        raise DataError(f"{path}: cannot be read as weights ({reason}). Fetch it again") from None
    return _tensors(path, content)


def _refusal(path: Path, error: Exception) -> str:
    """Say which objects a pickle asks for; finding them runs nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a zip archive, or cut short
        names = []
    if names:
        listed = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        return (
            f"{path}: refused, it holds Python objects that could run code ({listed}). Use a safetensors file"
        )
    reason = " ".join(str(error).split())[-80:]
    return f"{path}: not a file of tensors, or damaged ({reason}). Fetch it again or use a safetensors file"


def _tensors(path: Path, content: Any) -> State:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    if not content:
        raise DataError(f"{path}: holds no tensors. Fetch it again")
    if not all(isinstance(name, str) for name in content):
        raise DataError(f"{path}: expected tensors by name, some are called by other things than texts")
    names = list(content)
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def load_weights(model: nn.Module, path: Path, label: str) -> None:
    """Copy the weights of a file into a model, every tensor of it.

    Args:
        model: an open_clip model.
        path: the file.
        label: what a message calls the model.

    Raises:
        DataError: unreadable, of another model, or with values that are not finite.
    """
    state, own = read_state(path), model.state_dict()
    if "positional_embedding" in state and "positional_embedding" not in own:
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # stored as one value or as a vector of one
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    state = {
        name: value
        for name, value in state.items()
        if name in own or name.rpartition(".")[2] not in _HARMLESS
    }
    _check_fit(path, label, state, own)
    model.load_state_dict(state, strict=True)


def _check_fit(path: Path, label: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    parts = [_some(missing, "missing"), _some(extra, "unknown")]
    if other:
        name = other[0]
        sizes = f"'{name}' is {list(state[name].shape)}, expected {list(own[name].shape)}"
        parts.append(f"{len(other)} of another size ({sizes})")
    if missing or extra or other:
        found = ", ".join(part for part in parts if part)
        raise DataError(f"{path}: not the weights of {label} (expected {len(own)} tensors): {found}")
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise DataError(f"{path}: {_some(broken, 'with values that are not finite')}. Fetch it again")


def _some(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return f"{len(names)} {what} ({listed}{more})" if names else ""


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
