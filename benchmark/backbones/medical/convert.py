"""Converts published checkpoints to safetensors: no code is run, tensors are renamed and checked one by one.

The converted file is written beside its first source file, or below the user's cache if that folder is not writable or
belongs to the hub's cache. A JSON file of the same name records the sources.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmark.backbones.checkpoints import read_foreign
from benchmark.backbones.medical.heads import MissingTensor, Shapes
from benchmark.backbones.medical.model import build, names_of
from benchmark.backbones.medical.records import Record, Source
from benchmark.backbones.published import hub_cache
from benchmark.errors import DataError, StoreError
from benchmark.files import default_data_root, known_sha256, write_whole

_NAMED = 2
_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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

    state: dict[str, Tensor]
    origins: dict[str, str]
    dropped: tuple[str, ...]


def convert(record: Record, files: Mapping[Path, Source], folder: Path | None = None) -> Path:
    """Convert the files of a checkpoint; a converted file that is up to date is kept as it is.

    Args:
        record: of the model.
        files: file -> which part of the checkpoint it is; the first gives the result its name.
        folder: where the result goes; None: beside the first file, or below the cache.

    Returns:
        The path of the safetensors file.

    Raises:
        DataError: a file is damaged or not this model's. StoreError: the result cannot be written.
    """
    made_of = [
        {"file": path.name, "size": path.stat().st_size, "sha256": known_sha256(path)} for path in files
    ]
    wanted = {"model": record.name, "recipe": record.digest(), "sources": made_of}
    for target in targets(record, list(files), folder):
        if _up_to_date(target, wanted):
            return target
    renamed, inert = _read(record, files)
    fit(record, renamed, " and ".join(str(path) for path in files))
    about = wanted | {
        "published": [_as_published(path, source) for path, source in files.items()],
        "tensors": len(renamed.state),
        "values": sum(value.numel() for value in renamed.state.values()),
        "dropped": sorted(renamed.dropped),
        "not_looked_up": sorted(inert),
    }
    return _write(targets(record, list(files), folder), renamed.state, about)


def targets(record: Record, files: Sequence[Path], folder: Path | None = None) -> list[Path]:
    """Return where a converted file may lie, the preferred place first."""
    name = f"{files[0].stem}.{record.name}.safetensors"
    if folder is not None:
        return [folder / name]
    place = hashlib.sha256(str(files[0].resolve().parent).encode()).hexdigest()[:12]
    cached = default_data_root() / "converted" / place / name
    return [cached] if hub_cache() in files[0].parents else [files[0].with_name(name), cached]


def is_converted(path: Path, record: Record) -> bool:
    """Return whether a file is a converted one of this model.

    Raises:
        DataError: it is, but of another model or by another recipe.
    """
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
    except Exception:  # a reader further on says what is wrong with it
        return False
    if "medpeft_model" not in about:
        return False
    if about["medpeft_model"] != record.name or about.get("medpeft_recipe") != record.digest():
        raise DataError(
            f"{path}: converted as '{about['medpeft_model']}' by recipe {about.get('medpeft_recipe')}, not as "
            f"'{record.name}' by {record.digest()}. Convert the published file again"
        )
    return True


def rename(record: Record, tensors: Mapping[str, Tensor], where: str) -> Renamed:
    """Give tensors the names that they have here.

    Args:
        record: of the model.
        tensors: by their published names.
        where: file, for messages.

    Raises:
        DataError: a name that no rule knows, two different tensors with one name here, or a part that is missing.
    """
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    dropped, strangers = [], []
    for name, value in tensors.items():
        target = _target(record, name)
        if target is None:
            strangers.append(name)
        elif not target:
            dropped.append(name)
        else:
            here, _, operation = target.partition(" | ")
            if operation.startswith("part "):
                parts.setdefault(here, {})[int(operation[-1])] = value
            else:
                value = _OPERATIONS[operation](value) if operation else value
                _put(state, here, value, f"{where}: '{name}' and '{origins.get(here)}' of '{record.name}'")
            origins[here] = name
    if strangers:
        raise DataError(f"{where}: not the weights of '{record.name}': {some(strangers, 'unknown')}")
    for here, pieces in parts.items():
        missing = [str(index) for index in range(3) if index not in pieces]
        if missing:
            raise DataError(
                f"{where}: not the weights of '{record.name}': of q, k and v beside '{origins[here]}', some are missing"
            )
        state[here] = torch.cat([pieces[index] for index in range(3)])
    return Renamed(state, origins, tuple(dropped))


def fit(record: Record, renamed: Renamed, where: str) -> None:
    """Make sure that the tensors are those of the model, all of them, in their published sizes.

    Raises:
        DataError: naming what is missing, unknown or of another size.
    """
    shapes = Shapes.of(renamed.state)
    head = f"{where}: not the weights of '{record.name}'"
    wrong = [name for name, shape in record.shapes.items() if shapes.get(name, shape) != shape]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{head}: '{renamed.origins[name]}' is {list(shapes[name])}, expected {list(record.shapes[name])}"
        )
    lacking = [name for name in record.shapes if name not in shapes]
    try:
        with torch.device("meta"):  # shapes only
            own = names_of(build(record, shapes))
    except MissingTensor as error:
        raise DataError(f"{head}: {_missing(record, [*lacking, str(error.args[0])])}") from None
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, AssertionError) as error:
        raise DataError(f"{head}: sizes do not go together ({' '.join(str(error).split())[:120]})") from None
    optional = {"logit_scale"} if record.scale is not None else set()
    missing = [
        name for name in dict.fromkeys([*lacking, *own]) if name not in shapes and name not in optional
    ]
    extra = [name for name in shapes if name not in own and not _matches_any(record.spare, name)]
    other = [name for name in shapes if name in own and tuple(own[name].shape) != shapes[name]]
    problems = [_missing(record, missing), some([renamed.origins[name] for name in extra], "unknown")]
    if other:
        name = other[0]
        sizes = f"'{renamed.origins[name]}' is {list(shapes[name])}, expected {list(own[name].shape)}"
        problems.append(f"{len(other)} of another size ({sizes})")
    if any(problems):
        raise DataError(f"{head}: {', '.join(filter(None, problems))}")
    broken = [
        name
        for name, value in renamed.state.items()
        if not value.is_meta and not bool(value.isfinite().all())
    ]
    if broken:
        names = some([renamed.origins[name] for name in broken], "with values that are not finite")
        raise DataError(f"{where}: {names}. Fetch it again")


def some(names: Sequence[str], what: str) -> str:
    """Return "3 missing ('a', 'b', ...)"; empty without names."""
    more = ", ..." if len(names) > _NAMED else ""
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return f"{len(names)} {what} ({listed}{more})" if names else ""


def file_hash(path: Path, kind: str = "sha256") -> str:
    """Return the checksum of a file."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------- internals
def _read(record: Record, files: Mapping[Path, Source]) -> tuple[Renamed, set[str]]:
    """Return the tensors of all files under their names here, and what the files name beside tensors."""
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    dropped: list[str] = []
    inert: set[str] = set()
    for path, source in files.items():
        found = read_foreign(path)
        renamed = rename(record, _unwrapped(record, found.tensors, source.prefix), str(path))
        for name, value in renamed.state.items():
            _put(
                state,
                name,
                value,
                f"{path}: '{renamed.origins[name]}' and '{origins.get(name)}' of '{record.name}'",
            )
        origins |= renamed.origins
        dropped += renamed.dropped
        inert |= set(found.inert)
    return Renamed(state, origins, tuple(dropped)), inert


def _unwrapped(record: Record, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take off the first known dictionary around the tensors, and put the part's name in front."""
    for wrapper in record.unwrap:
        inside = {name: value for name, value in tensors.items() if name.startswith(f"{wrapper}.")}
        if inside:
            tensors = {name.removeprefix(f"{wrapper}."): value for name, value in inside.items()}
            break
    if not prefix:
        return dict(tensors)
    return {f"{prefix}.{name}" if name else prefix: value for name, value in tensors.items()}


def _put(state: dict[str, Tensor], name: str, value: Tensor, both: str) -> None:
    """Keep a tensor; where there is one of that name, they must be equal."""
    if name in state and not value.is_meta and not torch.equal(state[name], value):
        raise DataError(f"{both} should be the same tensor, but differ. Fetch it again")
    state[name] = value


@functools.cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", "(.*?)"))


def _filled(glob: str, texts: Sequence[str]) -> str:
    """Return a name with the texts in the place of its stars."""
    rest = iter(texts)
    return re.sub(r"\*", lambda _: next(rest, ""), glob)


def _target(record: Record, name: str) -> str | None:
    """Return the name (and operation) here, "" where the tensor is left behind, None where no rule knows it."""
    for theirs, ours in record.names:
        if match := _pattern(theirs).fullmatch(name):
            return "" if ours is None else _filled(ours, match.groups())
    return None


def _published_name(record: Record, name: str) -> str:
    """Return the name in the published file of a tensor that was not found there."""
    for theirs, ours in record.names:
        match = None if ours is None else _pattern(ours.partition(" | ")[0]).fullmatch(name)
        if match and _target(record, _filled(theirs, match.groups())):
            return _filled(theirs, match.groups())
    return name


def _missing(record: Record, names: Sequence[str]) -> str:
    return some([_published_name(record, name) for name in dict.fromkeys(names)], "missing")


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    return any(_pattern(pattern).fullmatch(name) for pattern in patterns)


def _as_published(path: Path, source: Source) -> bool | None:
    """Return whether a file is the published one; None where its checksum is not known."""
    return file_hash(path, "md5") == source.md5 if source.md5 else None


def _up_to_date(target: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        about = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return target.is_file() and all(about.get(key) == value for key, value in wanted.items())


def _write(places: Sequence[Path], state: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write tensors and JSON to the first place that takes them; the JSON comes last and makes the file valid."""
    content = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    labels = {"medpeft_model": str(about["model"]), "medpeft_recipe": str(about["recipe"])}
    lines = json.dumps(about, indent=1) + "\n"
    for target in places:
        try:
            target.with_suffix(".json").unlink(missing_ok=True)
            write_whole(target, lambda path: save_file(content, path, metadata=labels))
            write_whole(target.with_suffix(".json"), lambda path: path.write_text(lines, encoding="utf-8"))
        except OSError as error:
            reason = f"{target}: cannot be written ({error})"
            continue
        return target
    raise StoreError(f"{reason}. Say another folder with --out")
