"""Converts published checkpoints to safetensors: no code is run, tensors are renamed and checked one by one.

A converted file is written beside its first source file, or in the user's cache if that folder is not writable or
belongs to the hub's cache. A JSON file of the same name lists its sources.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark.backbones.backbone import Backbone
from benchmark.backbones.checkpoints import check_finite, misfits, read_content, read_foreign, some
from benchmark.backbones.medical.heads import MissingTensor, Shapes
from benchmark.backbones.medical.model import EXTRAS, build, names_of
from benchmark.backbones.medical.records import CheckpointFile, Record
from benchmark.backbones.published import hub_cache
from benchmark.errors import DataError, StoreError
from benchmark.files import default_data_root, known_sha256, read_json, write_whole

_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda value: value,
    "transpose": lambda value: value.T,
    "squeeze": lambda value: value.flatten(1),
    "log": lambda value: value.float().log(),
}


@dataclass(frozen=True)
class Renamed:
    """Tensors by their names here.

    Attributes:
        state: name -> tensor.
        origins: name -> name in the published file.
        dropped: published names that are left behind.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def convert(record: Record, files: Mapping[Path, CheckpointFile], folder: Path | None = None) -> Path:
    """Convert the files of a checkpoint; a converted file that is up to date is kept as it is.

    Args:
        record: of the model.
        files: file -> which part of the checkpoint it is; the first gives the result its name.
        folder: where the result goes; None: beside the first file, or in the cache.

    Returns:
        The path of the safetensors file.

    Raises:
        DataError: a file is damaged or not this model's. StoreError: the result cannot be written.
    """
    sources = [
        {"file": path.name, "size": path.stat().st_size, "sha256": known_sha256(path)} for path in files
    ]
    wanted = {"model": record.name, "recipe": record.digest(), "sources": sources}
    targets = _targets(record, next(iter(files)), folder)
    for target in targets:
        if _up_to_date(target, wanted):
            return target
    renamed, inert = Renamed(), set[str]()
    for path, part in files.items():
        foreign = read_foreign(path)
        rename(record, _unwrapped(record, foreign.tensors, part.prefix), str(path), renamed)
        inert |= set(foreign.inert)
    fit(record, renamed, " and ".join(str(path) for path in files))
    about = wanted | {
        "published": [_as_published(path, part) for path, part in files.items()],
        "tensors": len(renamed.state),
        "values": sum(value.numel() for value in renamed.state.values()),
        "dropped": sorted(renamed.dropped),
        "not_looked_up": sorted(inert),
    }
    return _write(targets, renamed.state, about)


def filled(record: Record, path: Path) -> Backbone:
    """Build the backbone of a record and fill it from a converted file.

    Raises:
        DataError: the file cannot be read or does not fit.
    """
    return fill(record, Renamed(read_content(path, cure="Delete it; it is made again")), str(path))


def fill(record: Record, renamed: Renamed, where: str) -> Backbone:
    """Build the backbone of a record and fill it from tensors that have their names here.

    Raises:
        DataError: they do not fit.
    """
    fit(record, renamed, where)
    state: dict[str, Any] = dict(renamed.state)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
        backbone = build(record, Shapes.of(state))
    own = backbone.model.state_dict()
    state.setdefault("logit_scale", own.get("logit_scale"))
    backbone.model.load_state_dict(
        {key: state[key].reshape(value.shape) for key, value in own.items()}, strict=True
    )
    extras = {key.removeprefix(EXTRAS): value for key, value in state.items() if key.startswith(EXTRAS)}
    backbone.extras.load_state_dict(extras, strict=True)
    return backbone


def rename(
    record: Record, tensors: Mapping[str, Tensor], where: str, renamed: Renamed | None = None
) -> Renamed:
    """Give tensors the names that they have here.

    Args:
        record: of the model.
        tensors: by their published names.
        where: file, for messages.
        renamed: what other files of the checkpoint hold; these tensors are added.

    Raises:
        DataError: a name that no rule knows, two different tensors with one name here, or a part that is missing.
    """
    found = Renamed() if renamed is None else renamed
    fused: dict[str, dict[int, Tensor]] = {}
    strangers = []
    for name, value in tensors.items():
        target = _target(record, name)
        if target is None:
            strangers.append(name)
        elif not target:
            found.dropped.append(name)
        else:
            here, _, operation = target.partition(" | ")
            if operation.startswith("part "):
                fused.setdefault(here, {})[int(operation[-1])] = value
            else:
                value = _OPERATIONS[operation](value)
                if here in found.state and not value.is_meta and not torch.equal(found.state[here], value):
                    raise DataError(
                        f"{where}: '{name}' and '{found.origins[here]}' of '{record.name}' should be the same tensor, "
                        "but differ. Fetch it again"
                    )
                found.state[here] = value
            found.origins[here] = name
    head = f"{where}: not the weights of '{record.name}'"
    if strangers:
        raise DataError(f"{head}: {some(strangers, 'unknown')}")
    for here, parts in fused.items():
        if len(parts) < 3:
            raise DataError(f"{head}: of q, k and v beside '{found.origins[here]}', some are missing")
        found.state[here] = torch.cat([parts[index] for index in range(3)])
    return found


def fit(record: Record, renamed: Renamed, where: str) -> None:
    """Make sure that the tensors are those of the model, all of them, in their published sizes.

    Raises:
        DataError: naming what is missing, unknown or of another size.
    """
    shapes = Shapes.of(renamed.state)
    head = f"{where}: not the weights of '{record.name}'"
    published = functools.partial(_published_name, record, renamed.origins)
    for name, shape in record.shapes.items():
        if shapes.get(name, shape) != shape:
            raise DataError(f"{head}: '{published(name)}' is {list(shapes[name])}, expected {list(shape)}")
    try:
        with torch.device("meta"):  # shapes only
            own = names_of(build(record, shapes))
    except MissingTensor as error:
        lacking = [name for name in [*record.shapes, str(error.args[0])] if name not in shapes]
        missing = some([published(name) for name in dict.fromkeys(lacking)], "missing")
        raise DataError(f"{head}: {missing}") from None
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, AssertionError) as error:
        raise DataError(f"{head}: sizes do not go together ({' '.join(str(error).split())[:120]})") from None
    expected: dict[str, Any] = {**record.shapes, **own}
    if record.scale is not None and "logit_scale" not in shapes:
        del expected["logit_scale"]
    spare = [name for name in shapes if any(_pattern(one).fullmatch(name) for one in record.spare)]
    if problems := misfits(shapes, expected, published, spare=spare):
        raise DataError(f"{head}: {problems}")
    check_finite(renamed.state, where, published)


# ---------------------------------------------------------------------------- names
def _unwrapped(record: Record, tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Take off the first known dictionary around the tensors, and put the part's name in front."""
    for wrapper in record.unwrap:
        start = f"{wrapper}."
        inside = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        if inside:
            tensors = inside
            break
    if not prefix:
        return tensors
    return {f"{prefix}.{name}" if name else prefix: value for name, value in tensors.items()}


@functools.cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", "(.*?)"))


def _with_texts(glob: str, texts: Sequence[str]) -> str:
    """Return a name with the texts in the place of its stars."""
    rest = iter(texts)
    return re.sub(r"\*", lambda _: next(rest, ""), glob)


def _target(record: Record, name: str) -> str | None:
    """Return the name (and operation) here, "" where the tensor is left behind, None where no rule knows it."""
    for theirs, ours in record.names:
        if match := _pattern(theirs).fullmatch(name):
            return "" if ours is None else _with_texts(ours, match.groups())
    return None


def _published_name(record: Record, origins: Mapping[str, str], name: str) -> str:
    """Return the name in the published file of a tensor, whether it was found there or not."""
    if name in origins:
        return origins[name]
    for theirs, ours in record.names:
        match = None if ours is None else _pattern(ours.partition(" | ")[0]).fullmatch(name)
        if match and _target(record, _with_texts(theirs, match.groups())):
            return _with_texts(theirs, match.groups())
    return name


# ---------------------------------------------------------------------------- files
def _targets(record: Record, first: Path, folder: Path | None) -> list[Path]:
    """Return where a converted file may lie, the preferred place first."""
    name = f"{first.stem}.{record.name}.safetensors"
    if folder is not None:
        return [folder / name]
    place = hashlib.sha256(str(first.resolve().parent).encode()).hexdigest()[:12]
    cached = default_data_root() / "converted" / place / name
    return [cached] if hub_cache() in first.parents else [first.with_name(name), cached]


def _as_published(path: Path, part: CheckpointFile) -> bool | None:
    """Return whether a file is the published one; None where its checksum is not known."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == part.md5 if part.md5 else None


def _up_to_date(target: Path, wanted: Mapping[str, Any]) -> bool:
    about = read_json(target.with_suffix(".json")) or {}
    return target.is_file() and all(about.get(key) == value for key, value in wanted.items())


def _write(targets: Sequence[Path], state: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write tensors and JSON to the first place that takes them; the JSON comes last and makes the file valid."""
    content = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    labels = {"medpeft_model": str(about["model"]), "medpeft_recipe": str(about["recipe"])}
    lines = json.dumps(about, indent=1) + "\n"
    for target in targets:
        try:
            target.with_suffix(".json").unlink(missing_ok=True)
            write_whole(target, lambda path: save_file(content, path, metadata=labels))
            write_whole(target.with_suffix(".json"), lambda path: path.write_text(lines, encoding="utf-8"))
        except OSError as error:
            reason = f"{target}: cannot be written ({error})"
            continue
        return target
    raise StoreError(f"{reason}. Say another folder with --out")
