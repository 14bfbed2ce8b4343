"""Exports adapters as folders in the layout of Hugging Face peft, and imports adapters as finished cells.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, which ``PeftModel.from_pretrained`` reads,
and beside them ``rest.safetensors`` with the trained tensors that peft has no place for (the logit scale, as the
number that multiplies cosines, and for example a hypergraph) and ``medpeft_bench.json``, which says what made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from benchmark.backbones import Backbone
from benchmark.backbones.checkpoints import read_content
from benchmark.errors import BenchmarkError, DataError, StoreError
from benchmark.files import file_sha256, read_json, temporary_beside
from benchmark.plan import CellSpec
from benchmark.run.model_card import FILE as CARD
from benchmark.run.model_card import model_card
from benchmark.store.cells import CellFolder
from methods.base import Method, PeftAdapter

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
REST, ABOUT = "rest.safetensors", "medpeft_bench.json"
FOLDER = "peft"
"""Name of the adapter folder inside a cell."""

_SCALE = "logit_scale"
_FROZEN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class AdapterFile:
    """A trained adapter from elsewhere.

    Attributes:
        path: file or folder.
        sha256: of the file, of a folder its ``adapter_model.safetensors``.
        official: an authors' checkpoint as it was saved, nested or flat; None for a folder in peft's layout.
        config: ``adapter_config.json`` of a folder.
        tensors: ``adapter_model.safetensors`` of a folder.
        rest: what peft has no place for, where we wrote the folder.
        about: what we wrote beside it.
    """

    path: Path
    sha256: str
    official: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    tensors: Mapping[str, Tensor] | None = None
    rest: Mapping[str, Tensor] | None = None
    about: Mapping[str, Any] | None = None


# ---------------------------------------------------------------------------------------------- export
def write_adapter(method: Method, spec: CellSpec, target: Path) -> bool:
    """Write what a method has learnt as a folder in peft's layout, whole or not at all.

    Args:
        method: adapted.
        spec: the cell it comes from.
        target: the folder; what lies there is replaced.

    Returns:
        False, and nothing is written, when the method has no form in peft's layout.
    """
    form = method.as_peft()
    if form is None:
        return False
    public = spec.public()
    about = {
        "schema_version": 1,
        "method": spec.method,
        "options": public["options"],
        "backbone": public["backbone"],
        "pretrained": public["pretrained"],
        "templates": public["suite"].get("templates"),
        "source": spec.folder,
        "adapt_hash": spec.adapt_hash,
    }

    def fill(folder: Path) -> None:
        _write_json(folder / CONFIG, form.config)
        _write_json(folder / ABOUT, about)
        _write_tensors(folder / TENSORS, form.tensors)
        _write_tensors(folder / REST, _rest(method, form))

    _write_folder(target, fill)
    return True


def export_adapter(cell: Path, target: Path) -> None:
    """Copy the adapter of a cell to a new folder, with a model card, whole or not at all.

    Raises:
        StoreError: the cell has no adapter in peft's layout, or the target is not empty.
    """
    source = cell / FOLDER
    if not (cell / "config.yaml").is_file():
        raise StoreError(
            f"'{cell}' is not the folder of a cell: expected runs/<suite>/<backbone>/<method>/seed-<n>"
        )
    if not (source / TENSORS).is_file():
        finished = (cell / "adapter.safetensors").is_file()
        why = "its method has no form in peft's layout" if finished else "it is unfinished"
        raise StoreError(f"'{cell}' has no adapter to export: {why}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(f"--to: '{target}' is not empty. Choose a new folder")
    card = model_card(CellFolder(cell))

    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / CARD).write_text(card, encoding="utf-8")

    try:
        _write_folder(target, fill)
    except OSError as error:
        raise StoreError(f"--to: '{target}' cannot be written ({error.strerror or error})") from None


def _rest(method: Method, form: PeftAdapter) -> dict[str, Tensor]:
    covered = set(form.names.values())
    state = method.trainable_state().items()
    rest = {name: value for name, value in state if name not in covered and not name.startswith(f"{_SCALE}.")}
    return {**rest, _SCALE: method.logit_scale().detach().clone()}


# ---------------------------------------------------------------------------------------------- import
def read_checkpoint(path: Path) -> AdapterFile:
    """Read an authors' checkpoint or a folder in peft's layout; nothing in it is executed.

    Raises:
        StoreError: it is missing, damaged, or a pickle that would have to run code.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise StoreError(f"'{path}' does not exist. Give an authors' checkpoint or a folder with {CONFIG}")
    state = _read_content(path)
    if not isinstance(state, Mapping):
        raise StoreError(f"'{path}' holds a {type(state).__name__}, expected tensors by name")
    return AdapterFile(path, file_sha256(path), official=state)


def options_of(checkpoint: AdapterFile, name: str, cls: type[Method], backbone: Backbone) -> dict[str, Any]:
    """Return the options of a method that a checkpoint tells, as JSON types.

    Args:
        checkpoint: as :func:`read_checkpoint` returned it.
        name: of the method.
        cls: its class.
        backbone: what it was made for.

    Raises:
        StoreError: it is not a checkpoint of this method.
    """
    fields = set(getattr(cls.Options, "__dataclass_fields__", ()))
    if checkpoint.official is not None:
        tell: Any = getattr(sys.modules[cls.__module__], "official_options", None)
        with _naming(checkpoint.path):
            told = dict(tell(checkpoint.official)) if tell else {}
    else:
        assert checkpoint.config is not None and checkpoint.tensors is not None  # noqa: PT018  (a folder has both)
        with _naming(checkpoint.path):
            told = cls.options_from_peft(checkpoint.config, checkpoint.tensors, backbone)
        about = checkpoint.about or {}
        told = {**(about.get("options") or {} if about.get("method") == name else {}), **told}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}
    return {key: value for key, value in plain.items() if key in fields}


def load_checkpoint(method: Method, checkpoint: AdapterFile) -> list[str]:
    """Load a checkpoint into a method that was built with its options.

    Returns:
        names of trained tensors that it does not hold: they keep their start values.

    Raises:
        StoreError: tensors are missing, left over or of other shapes.
    """
    scale = float(method.logit_scale().detach())
    load = _load_folder if checkpoint.official is None else _load_official
    missing = load(method, checkpoint)
    changed = abs(float(method.logit_scale().detach()) - scale) > 1e-6 * scale
    if changed and not method.logit_scale.value.requires_grad:
        raise StoreError(
            f"'{checkpoint.path}' brings its own logit scale: recipe.logit_scale=frozen cannot hold it"
        )
    return missing


def _load_official(method: Method, checkpoint: AdapterFile) -> list[str]:
    load = getattr(sys.modules[type(method).__module__], "load_official", None)
    if load is None:
        raise StoreError(f"{method.card.title} reads no authors' checkpoint, only folders in peft's layout")
    try:
        with _naming(checkpoint.path):
            load(method, checkpoint.official)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"'{checkpoint.path}' does not fit {method.card.title}: {reason}") from error
    return []


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of a checkpoint in front of what a method reports about it."""
    try:
        yield
    except BenchmarkError as error:
        raise StoreError(f"'{path}': {error}") from error


def _load_folder(method: Method, checkpoint: AdapterFile) -> list[str]:
    form, tensors = method.as_peft(), dict(checkpoint.tensors or {})
    if form is None:
        raise StoreError(f"{method.card.title} has no form in peft's layout")
    _same_names(form.tensors, tensors, checkpoint.path / TENSORS)
    for name, value in form.tensors.items():
        if name not in form.names and not torch.allclose(tensors[name], value, atol=_FROZEN_TOLERANCE):
            raise StoreError(
                f"'{checkpoint.path}': the frozen tensor '{name}' differs from what its options give here"
            )
    state = method.trainable_state()
    state |= {own: tensors[name] for name, own in form.names.items()}
    rest = dict(checkpoint.rest or {})
    scale = rest.pop(_SCALE, None)
    free = {name for name in state if name not in form.names.values() and not name.startswith(f"{_SCALE}.")}
    if rest:
        _same_names({name: state[name] for name in free}, rest, checkpoint.path / REST)
    method.load_trainable_state(state | rest)
    if scale is not None:
        method.logit_scale.set(float(scale))
    return sorted(free - set(rest)) + ([] if scale is not None else [_SCALE])


def _same_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing, left_over = set(expected) - set(found), set(found) - set(expected)
    for kind, names in (("is missing", missing), ("has no place", left_over)):
        if names:
            raise StoreError(f"'{path}': tensor '{min(names)}' {kind} ({len(names)} such)")
    for name, value in expected.items():
        if value.shape != found[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(value.shape)}"
            raise StoreError(f"'{path}': tensor '{name}' has shape {shapes}")


def _read_folder(path: Path) -> AdapterFile:
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        raise StoreError(f"'{path}' is no adapter of peft: expected {CONFIG} and {TENSORS} in it")
    rest, about, config = path / REST, path / ABOUT, _read_json(path / CONFIG)
    if not isinstance(config.get("peft_type"), str):
        raise StoreError(f"'{path / CONFIG}' names no peft_type, so it does not describe an adapter of peft")
    return AdapterFile(
        path,
        file_sha256(path / TENSORS),
        config=config,
        tensors=_read_content(path / TENSORS),
        rest=_read_content(rest) if rest.is_file() else None,
        about=_read_json(about) if about.is_file() else None,
    )


# ---------------------------------------------------------------------------------------------- files
def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        raise StoreError(f"'{path}' cannot be read: expected a JSON object")
    return content


def _read_content(path: Path) -> Any:
    try:
        return read_content(path)
    except DataError as error:
        raise StoreError(str(error)) from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    ready = {name: value.cpu().contiguous() for name, value in tensors.items()}
    path.write_bytes(save(ready, {"format": "pt"}))  # save_file would hide it from other users


def _write_folder(target: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary folder beside the target, then rename it: readers never see half a folder."""
    with temporary_beside(target, folder=True) as temporary:
        fill(temporary)
        temporary.chmod(target.parent.stat().st_mode & 0o777)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
