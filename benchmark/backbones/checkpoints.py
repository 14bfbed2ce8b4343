"""The one reader of weight files: nothing that a file names is run, and a file that cannot be used is one line."""

from __future__ import annotations

import collections
import pickle
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._weights_only_unpickler
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark.backbones.published import SUFFIXES
from benchmark.errors import DataError

State = dict[str, Tensor]

# Buffers and sizes that older releases stored. They hold no learnt value, and today's modules make them anew.
_HARMLESS = (
    "position_ids", "token_type_ids", "attn_mask", "input_resolution", "context_length", "vocab_size",
)  # fmt: skip
_LISTED = 2
_ZIP = b"PK\x03\x04"
_DEPTH = 8  # dictionaries in dictionaries: no checkpoint needs more, and a dictionary may hold itself


# ---------------------------------------------------------------------------- what a file holds
def read_content(path: Path, inert: set[str] | None = None, *, cure: str = "Fetch it again") -> Any:
    """Return what was saved in a file, its tensors on the CPU.

    Args:
        path: ``.safetensors``, anything else is read as a file of ``torch.save``.
        inert: None refuses a file that holds objects of other classes than torch's own. A set takes their names: a
            stand-in that does nothing is put in the place of each; only zip archives are read in this way.
        cure: what a message says to do about a damaged file.

    Raises:
        DataError: missing, damaged, of another format, or holding objects that could run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # torch warns of pickles by other hands
            warnings.simplefilter("ignore")
            _refuse_program(path)
            return _with_torchs_own(path) if inert is None else _with_stand_ins(path, inert)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except pickle.UnpicklingError:
        raise DataError(_refusal(path)) from None
    except Exception as error:  # torch's and safetensors' readers raise any kind on damaged bytes
        reason = " ".join(str(error).split()).partition(". ")[0][:120]
        why = f" ({reason})" if reason else ""
        raise DataError(f"{path}: cannot be read as weights{why}. {cure}") from None


def _refusal(path: Path) -> str:
    """Name the objects that a pickle asks for; looking for them runs nothing."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # not a zip archive, or cut short
        names = []
    if names:
        listed = ", ".join(name[:100] for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        return (
            f"{path}: refused, it holds Python objects that could run code ({listed}). Use a safetensors file"
        )
    return f"{path}: not a file of tensors, or damaged. Fetch it again or use a safetensors file"


def _refuse_program(path: Path) -> None:
    """Raise DataError for a program: torch would load one. It is torch's own view of the archive that counts."""
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:  # no archive
        return
    if "constants.pkl" in records:
        raise DataError(f"{path}: refused, it is a TorchScript program, not a file of weights")


def _with_torchs_own(path: Path) -> Any:
    """Read with the unpickler of ``weights_only=True``.

    With that flag torch also looks for words in its error, in a time that grows with the square of a name's length:
    minutes for some kilobytes.
    """
    reader = torch._weights_only_unpickler
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def _with_stand_ins(path: Path, inert: set[str]) -> Any:
    with path.open("rb") as stream:
        # Both: torch goes by the first bytes, and takes any other file for a pickle of its older format.
        if stream.read(len(_ZIP)) != _ZIP or not zipfile.is_zipfile(stream):
            raise DataError(
                f"{path}: refused, not a zip archive of torch.save (an older file, or none of weights). Save its "
                "tensors again as safetensors where you trust it"
            )

    # The reader in Python: the one in C keeps a list as long as the largest number that a file gives an object.
    class Restricted(pickle._Unpickler):
        def find_class(self, module_name: str, global_name: str) -> Any:
            """Return one of the few things that tensors are made with, else a stand-in."""
            found = _ALLOWED.get((module_name, global_name))
            if module_name == "torch" and isinstance(vars(torch).get(global_name), torch.dtype):
                found = vars(torch)[global_name]
            if found is not None:
                return found
            inert.add(f"{module_name}.{global_name}")
            return type("Inert", (_Inert,), {})

    module: Any = types.ModuleType("restricted_pickle")
    module.Unpickler = Restricted
    return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False, pickle_module=module)


class _Sealed:
    """A function that a pickle may call and cannot change: a pickle can set attributes of whatever it names."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it would change a function of torch")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    **{
        ("torch._utils", name): _Sealed(getattr(torch._utils, name))
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}


class _Inert:
    """Stands for an object that is not a tensor: takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


# ---------------------------------------------------------------------------- tensors by name
@dataclass(frozen=True)
class Foreign:
    """What a training script has saved.

    Attributes:
        tensors: name -> tensor on the CPU; names of nested dictionaries are joined by dots.
        inert: classes and functions that the file names and that were not looked up.
    """

    tensors: State
    inert: tuple[str, ...] = ()


def read_foreign(path: Path) -> Foreign:
    """Return all tensors of a file, however deep they lie; objects of other classes are left out.

    Raises:
        DataError: as :func:`read_content`, or without tensors.
    """
    inert: set[str] = set()
    tensors = dict(_flat(read_content(_with_known_suffix(path), inert)))
    if not tensors:
        raise DataError(f"{path}: holds no tensors. Fetch it again")
    return Foreign(tensors, tuple(sorted(inert)))


def _flat(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries; a prefix of data-parallel training is taken off at each level."""
    if isinstance(content, Tensor):
        yield name, content.detach()
    elif isinstance(content, Mapping) and depth < _DEPTH:
        for key, value in _unwrapped(content).items():
            yield from _flat(value, f"{name}.{key}" if name else key, depth + 1)


def _unwrapped(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a dictionary without the prefix that data-parallel training puts in front of every name."""
    wrapped = all(str(key).startswith("module.") for key in content)
    return {str(key).removeprefix("module." if wrapped else ""): value for key, value in content.items()}


def read_state(path: Path) -> State:
    """Return the tensors of a file that holds nothing else but what a training script puts around them.

    Raises:
        DataError: as :func:`read_content`, or something else than tensors by name.
    """
    content = read_content(_with_known_suffix(path))
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    if not content:
        raise DataError(f"{path}: holds no tensors. Fetch it again")
    if not all(isinstance(name, str) for name in content):
        raise DataError(f"{path}: expected tensors by name, some are called by other things than texts")
    return _unwrapped(content)


def _with_known_suffix(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: not a weights file: expected {', '.join(SUFFIXES)}")
    return path


# ---------------------------------------------------------------------------- fit
def load_weights(model: nn.Module, path: Path, label: str) -> None:
    """Copy the weights of a file into an open_clip model, every tensor of it.

    Args:
        model: is filled.
        path: the file.
        label: what a message calls the model.

    Raises:
        DataError: unreadable, of another model, or with values that are not finite.
    """
    state, own = read_state(path), model.state_dict()
    if "positional_embedding" in state and "positional_embedding" not in own:
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # stored as one value or as a vector of one
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    state = {
        name: value
        for name, value in state.items()
        if name in own or name.rpartition(".")[2] not in _HARMLESS
    }
    if found := misfits(state, own):
        raise DataError(f"{path}: not the weights of {label} (expected {len(own)} tensors): {found}")
    check_finite(state, str(path))
    model.load_state_dict(state, strict=True)


def misfits(
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    called: Callable[[str], str] = str,
    *,
    spare: Sequence[str] = (),
) -> str:
    """Return how tensors differ from a model's in names and sizes; empty where they do not.

    Args:
        state: name -> tensor or its size, as found.
        own: the same, as expected.
        called: gives the name under which a message tells a tensor.
        spare: names in ``state`` that the model does without.
    """
    found, expected = (
        {name: list(getattr(value, "shape", value)) for name, value in one.items()} for one in (state, own)
    )
    other = [name for name in expected if name in found and found[name] != expected[name]]
    parts = [
        some([called(name) for name in expected if name not in found], "missing"),
        some([called(name) for name in found if name not in expected and name not in spare], "unknown"),
    ]
    if other:
        name = other[0]
        parts.append(
            f"{len(other)} of another size ('{called(name)}' is {found[name]}, expected {expected[name]})"
        )
    return ", ".join(filter(None, parts))


def check_finite(state: Mapping[str, Tensor], where: str, called: Callable[[str], str] = str) -> None:
    """Raise DataError where a tensor holds infinite values or NaN; arguments as in :func:`misfits`."""
    broken = [name for name, value in state.items() if not value.is_meta and not bool(value.isfinite().all())]
    if broken:
        names = some([called(name) for name in broken], "with values that are not finite")
        raise DataError(f"{where}: {names}. Fetch it again")


def some(names: Sequence[str], what: str) -> str:
    """Return "3 missing ('a', 'b', ...)"; empty without names."""
    more = ", ..." if len(names) > _LISTED else ""
    listed = ", ".join(f"'{name}'" for name in names[:_LISTED])
    return f"{len(names)} {what} ({listed}{more})" if names else ""
