"""The plan of a run: its cells, and which of them are already finished in the store.

One cell per method and seed; with the few-shot protocols per dataset and number of shots, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmark.config.cell_settings import adapt_settings
from benchmark.config.declared import NOT_ADAPTATION
from benchmark.config.experiments import variant_text
from benchmark.config.fewshot import shares
from benchmark.config.layers import plain
from benchmark.config.run_config import Recipe, RunConfig
from benchmark.errors import ConfigError, StoreError, unknown
from benchmark.machine import processes
from benchmark.registry import METHODS, TASKS, is_deterministic
from benchmark.store.cells import CellFolder, Store, cell_name, digest, leaves
from benchmark.store.provenance import scrub

State = Literal["todo", "partial", "done"]
_SHOWN = 4
"""Settings that a message names."""
_LONGEST = 100
"""Characters of a variant, which is part of a folder's name."""


@dataclass(frozen=True)
class CellSpec:
    """Everything one cell needs, and nothing that changes while it runs.

    Attributes:
        suite: the suite as read; its data entries say what to adapt and validate on.
        options: all options of the method, as JSON types.
        tasks: task name -> its options and datasets.
        variant: what tells the cell from the method's own, as ``key=value,...``; empty when nothing does.
        beside: whether it has its variant because results of other settings have the name of the method.
        processes: how many processes work on the cell together.
        hash_ids: whether stored predictions hold hashes of image and patient ids.
        allow_overlap: whether test images may be in the corpus or the validation set; results then say so.
    """

    suite_name: str
    suite: Mapping[str, Any]
    backbone: str
    pretrained: str | None
    method: str
    options: Mapping[str, Any]
    seed: int
    recipe: Recipe
    tasks: Mapping[str, Mapping[str, Any]]
    data_root: Path
    device: str = "cpu"
    num_workers: int = 0
    limit: int | None = None
    plugins: tuple[str, ...] = ()
    eval_only: bool = False
    variant: str = ""
    hash_ids: bool = False
    processes: int = 1
    allow_overlap: bool = False
    beside: bool = False

    @property
    def cell(self) -> str:
        """Name of the method with its variant, ``<method>[+<variant>]``."""
        return cell_name(self.method, self.variant)

    @property
    def label(self) -> str:
        """Name of the cell for people."""
        return f"{self.cell} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Folder of the cell relative to the output folder, for example ``runs/<suite>/<backbone>/<method>/seed-0``."""
        names = (_safe(scrub(name)) for name in (self.suite_name, self.backbone, self.cell))
        return "/".join(("runs", *names, f"seed-{self.seed}"))

    @cached_property
    def adapt_hash(self) -> str:
        """Hash of all settings that the adapted weights depend on."""
        return digest(adapt_settings(self.public()))

    def task_hash(self, task: str) -> str:
        """Hash of all settings that the results of a task depend on."""
        return digest([self.adapt_hash, task, scrub(self.tasks[task])])

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as JSON types; `from_dict` reads it back."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellSpec:
        """Build a cell from `to_dict`'s result."""
        recipe = dict(values["recipe"])
        made: dict[str, Any] = {"recipe": Recipe(**recipe | {"betas": tuple(recipe["betas"])})}
        made |= {"data_root": Path(values["data_root"]), "plugins": tuple(values["plugins"])}
        return cls(**{**values, **made})

    def public(self) -> dict[str, Any]:
        """Return the resolved settings for config.yaml: without folders of this machine."""
        hidden = ("data_root", "eval_only", *(() if self.beside else ("beside",)))
        return scrub({key: value for key, value in self.to_dict().items() if key not in hidden})


@dataclass(frozen=True)
class PlannedCell:
    """One cell of a plan.

    Attributes:
        state: "done" is reused, "partial" has its adapter but lacks the tasks in ``missing``.
        cost: the method's hint of how long it takes compared with others.
    """

    spec: CellSpec
    state: State
    missing: tuple[str, ...]
    cost: float = 1.0


@dataclass(frozen=True)
class Plan:
    """All cells of a request, in its order.

    Attributes:
        overwrite: whether finished cells run again.
        notes: one line per thing that is not as the user may expect.
    """

    cells: tuple[PlannedCell, ...]
    overwrite: bool = False
    notes: tuple[str, ...] = ()

    @property
    def open(self) -> list[PlannedCell]:
        """Cells that have to run."""
        return [cell for cell in self.cells if cell.state != "done"]


def make_plan(config: RunConfig | Sequence[RunConfig], store: Store, only: Sequence[str] = ()) -> Plan:
    """Return the cells of one or several configurations with the state that the store gives them.

    A cell that several of them ask for is planned once, with the tasks of all. Where a name has finished results of
    other settings, a method gets a variant beside it, named by what differs.

    Args:
        config: those of one request; what is said of the request as a whole is read off the first.
        store: where finished cells are.
        only: names of cells, ``[[<suite>/]<backbone>/]<method>[+<variant>]/seed-<n>``; the others are left out.

    Raises:
        ConfigError: a name is not that of a cell, or hashed ids and their key would lie together.
        StoreError: finished cells were made by a newer version, or with other settings and the same variant, or
            --eval-only finds no adapter, or two configurations want different cells of one name.
    """
    several = [config] if isinstance(config, RunConfig) else list(config)
    config = several[0]
    if config.hash_ids:
        _check_ids(config, store)
    cells = []
    conflicts: dict[str, list[str]] = {}
    specs = _distinct(spec for one in several for spec in _specs(one))
    notes: list[str] = []
    if config.beside and not config.overwrite:
        specs = _placed(specs, store, notes)
    for spec in _named(specs, only):
        folder = store.cell(spec.folder)
        state: State = "todo"
        missing = tuple(spec.tasks)
        if not config.overwrite:
            if differing := differing_settings(spec, folder):
                conflicts[spec.folder] = differing
            state, missing = cell_state(spec, folder)
        if config.eval_only and not folder.exists("adapter.safetensors"):
            raise StoreError(f"--eval-only: no adapter in {folder.path}. Run without --eval-only first")
        cells.append(
            PlannedCell(spec, state, missing, float(getattr(METHODS.get(spec.method), "cost_hint", 1.0)))
        )
    if conflicts:
        raise StoreError(_conflict_message(conflicts, store))
    return Plan(tuple(cells), config.overwrite, tuple(notes))


def cell_state(spec: CellSpec, folder: CellFolder) -> tuple[State, tuple[str, ...]]:
    """Return the state of a cell and the tasks it lacks, from the files in its folder.

    Raises:
        StoreError: a file was written by a newer version.
    """
    stored = folder.stored_hash()
    if stored is None or stored != spec.adapt_hash:
        return "todo", tuple(spec.tasks)
    missing = [task for task in spec.tasks if spec.eval_only or not task_done(spec, task, folder)]
    # Results may be complete in a cell that was killed before it could say so: then only that is left to do.
    if not missing and folder.find_json("status.json").get("status") != "running":
        return "done", ()
    return ("partial" if folder.exists("adapter.safetensors") else "todo"), tuple(missing)


def task_done(spec: CellSpec, task: str, folder: CellFolder) -> bool:
    """Return whether a task has been finished with these settings."""
    result = folder.find_json(f"{task}.json")
    return result.get("status") == "success" and result.get("task_hash") == spec.task_hash(task)


def differing_settings(spec: CellSpec, folder: CellFolder, *, held: bool = False) -> list[str]:
    """Return "key: old there, new now" lines for a folder whose results are of other settings.

    They are finished, imported, or what another process is at.

    Args:
        spec: the cell.
        folder: its folder.
        held: this process holds the folder's lock, so no other is at it.
    """
    return [f"{key}: {old} there, {new} now" for key, (old, new) in _differing(spec, folder, held).items()]


def _differing(spec: CellSpec, folder: CellFolder, held: bool = False) -> dict[str, tuple[Any, Any]]:
    """Return key -> the value of a folder's finished results, or import, and the one of a cell, where they differ."""
    stored = folder.find_config()
    finished = [
        task for task in folder.results() if folder.find_json(f"{task}.json").get("status") == "success"
    ]
    if not stored:
        return {}
    other = stored.get("adapt_hash") != spec.adapt_hash
    if not (finished or folder.imported() or (other and not held and folder.is_running())):
        return {}
    if other:
        found = _differences(adapt_settings(stored), adapt_settings(spec.public()))
        return found or {"settings": ("others", "these")}
    if finished and bool(stored.get("hash_ids")) != spec.hash_ids:
        return {"hash_ids": (not spec.hash_ids, spec.hash_ids)}
    differing: dict[str, tuple[Any, Any]] = {}
    for task in spec.tasks if not spec.eval_only else ():
        if task in finished and not task_done(spec, task, folder):
            old, new = (stored.get("tasks") or {}).get(task, {}), scrub(spec.tasks[task])
            found = _differences({"tasks": {task: old}}, {"tasks": {task: new}})
            differing |= found or {f"tasks.{task}": ("others", "these")}
    return differing


# --- beside what is there -----------------------------------------------------------------------------------


def _placed(specs: Sequence[CellSpec], store: Store, notes: list[str]) -> list[CellSpec]:
    """Return the cells under names that finished results of other settings do not have; seeds stay together."""
    groups: dict[str, list[CellSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.folder.rpartition("/")[0], []).append(spec)
    moved: dict[str, list[str]] = {}
    placed: dict[str, CellSpec] = {}
    for cells in groups.values():
        found, why = _place(cells, store)
        placed |= {cell.folder: new for cell, new in zip(cells, found, strict=True)}
        if found[0].variant != cells[0].variant:
            moved.setdefault("; ".join(why), []).append(found[0].cell)
    for differing, names in moved.items():
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        notes.append(
            f"finished with other settings ({differing}): this run goes beside, as {listed}; --overwrite replaces"
        )
    return [placed[spec.folder] for spec in specs]


def _place(cells: Sequence[CellSpec], store: Store) -> tuple[list[CellSpec], list[str]]:
    """Return the seeds of one method under the first name that is free or has their results, and what had the others.

    They come back as they are where no such name can be made: then the plan says what is in the way.
    """
    wanted, why = list(cells), list[str]()
    while differing := _in_the_way(wanted := [_as_stored(cell, store) for cell in wanted], store):
        why += [f"{key}: {old} there, {new} now" for key, (old, new) in differing.items()][
            : _SHOWN - len(why)
        ]
        now = dict(leaves(cells[0].public(), lists=False))
        changes = {_short(key): now.get(key, "absent") for key in differing}
        variant = _variant(wanted[0].variant, changes)
        moved = [dataclasses.replace(cell, variant=variant, beside=True) for cell in wanted]
        no_adapter = cells[0].eval_only and not store.cell(moved[0].folder).exists("adapter.safetensors")
        if "hash_ids" in differing or no_adapter or moved[0].folder == wanted[0].folder:
            return list(cells), []
        wanted = moved
    return wanted, why


def _in_the_way(cells: Sequence[CellSpec], store: Store) -> dict[str, tuple[Any, Any]]:
    """Return what tells the results that have the name of these seeds from them; nothing when they can go there."""
    for cell in cells:
        if found := _differing(cell, store.cell(cell.folder)):
            return found
    stored = [store.cell(cell.folder).stored_hash() for cell in cells]
    if any(one is not None and one == cell.adapt_hash for one, cell in zip(stored, cells, strict=True)):
        return {}
    others: dict[str, tuple[Any, Any]] = {}
    for path in sorted((store.output_dir / cells[0].folder).parent.glob("seed-*")):
        if (number := path.name.partition("-")[2]).isdecimal():
            cell = _as_stored(dataclasses.replace(cells[0], seed=int(number)), store)
            folder = store.cell(cell.folder)
            if folder.stored_hash() == cell.adapt_hash:
                return {}
            others = others or _differing(cell, folder)
    return others


def _as_stored(spec: CellSpec, store: Store) -> CellSpec:
    """Return a cell that trains nothing with the stored recipe, corpus and validation set, on which nothing depends."""
    stored = store.cell(spec.folder).find_config() if is_deterministic(spec.method) else {}
    recipe, suite = stored.get("recipe"), stored.get("suite")
    if not (recipe and suite) or stored.get("adapt_hash") == spec.adapt_hash:
        return spec
    own = {item.name: recipe.get(item.name, item.default) for item in dataclasses.fields(Recipe)}
    own |= {key: getattr(spec.recipe, key) for key in ("precision", "eval_batch_size")}
    parts = {key: suite.get(key) for key in ("corpus", "validation") if key in suite}
    rest = {key: value for key, value in spec.suite.items() if key not in ("corpus", "validation")}
    with contextlib.suppress(ConfigError, TypeError):
        made = dataclasses.replace(
            spec, recipe=Recipe(**own | {"betas": tuple(own["betas"])}), suite=rest | parts
        )
        return made if made.adapt_hash == stored.get("adapt_hash") else spec
    return spec


def _short(key: str) -> str:
    """Return a setting's key as rows of experiments spell it: r and not options.r."""
    return key.removeprefix("options.").removeprefix("suite.")


def _variant(own: str, changes: Mapping[str, Any]) -> str:
    """Return the variant of a method with more changes; a long one is cut, and told from others by a hash."""
    said = [one for one in own.split(",") if one and one.partition("=")[0] not in changes]
    words = [*said, *variant_text(changes).split(",")]
    text = ",".join(words)
    if len(text) <= _LONGEST:
        return text
    kept = [word for at, word in enumerate(words) if len(",".join(words[: at + 1])) <= _LONGEST - 20]
    return ",".join([*kept, f"more={digest(text)[:8]}"])


# --- the request --------------------------------------------------------------------------------------------


def _specs(config: RunConfig) -> Iterator[CellSpec]:
    for method in config.methods:
        one = is_deterministic(method)
        for share in shares(config, method):
            variant = ",".join(filter(None, (share.variant, config.variants.get(method))))
            for number, seed in enumerate(share.seeds):
                tasks = share.tasks
                if one and number > 0:  # only what a task itself draws differs from the first seed
                    tasks = {name: tasks[name] for name in tasks if getattr(TASKS.get(name), "draws", False)}
                    if not tasks:
                        continue
                yield CellSpec(
                    suite_name=config.suite_name, suite=share.suite, backbone=config.backbone,
                    pretrained=config.pretrained, method=method, options=config.options[method], seed=seed,
                    recipe=config.recipes[method], tasks=tasks, data_root=config.data_root,
                    device=config.device, num_workers=config.num_workers, limit=config.limit,
                    plugins=config.plugins, eval_only=config.eval_only, variant=variant,
                    hash_ids=config.hash_ids, processes=processes(), allow_overlap=config.allow_overlap,
                )  # fmt: skip


def _check_ids(config: RunConfig, store: Store) -> None:
    """Refuse an output folder where hashed ids would stand beside their key, or beside plain ones."""
    if config.data_root.resolve().is_relative_to(store.output_dir.resolve()):
        raise ConfigError(
            "hash_ids: --data-root lies in --output-dir, and keeps the key of the hashes. Choose another --data-root"
        )
    plain = next((cell for cell in store.cells() if not cell.find_config().get("hash_ids")), None)
    if plain is not None:
        raise StoreError(f"hash_ids: {plain.path} was made without it. Choose another --output-dir")


def _named(specs: Sequence[CellSpec], names: Sequence[str]) -> Sequence[CellSpec]:
    """Return the cells whose folder ends with one of the names; all of them when there are none."""
    if not names:
        return specs
    wanted = [tuple(name.strip("/").split("/")) for name in names]
    parts = {spec.folder: tuple(spec.folder.split("/")) for spec in specs}
    short = ["/".join(folder[-2:]) for folder in parts.values()]
    problems = [
        f"--cell: {unknown('cell', name, short)}"
        for name, word in zip(names, wanted, strict=True)
        if not any(folder[-len(word) :] == word for folder in parts.values())
    ]
    if problems:
        raise ConfigError(problems)
    return [spec for spec in specs if any(parts[spec.folder][-len(word) :] == word for word in wanted)]


def _distinct(specs: Iterable[CellSpec]) -> list[CellSpec]:
    """Return the cells without repeats; the tasks of repeated ones are brought together."""
    found: dict[str, CellSpec] = {}
    for spec in specs:
        known = found.setdefault(spec.folder, spec)
        if known is spec:
            continue
        shared = known.tasks.keys() & spec.tasks.keys()
        if known.adapt_hash == spec.adapt_hash and _places(known) != _places(spec):
            raise StoreError(
                f"{spec.folder} is asked for with files of two folders: run them apart, each with an --output-dir"
            )
        if known.adapt_hash != spec.adapt_hash or any(known.tasks[x] != spec.tasks[x] for x in shared):
            differing = _differences(adapt_settings(known.public()), adapt_settings(spec.public()))
            lines = [f"{key}: {old} once, {new} now" for key, (old, new) in differing.items()]
            listed = "; ".join(lines) or "tasks"
            raise StoreError(f"{spec.folder} is asked for with different settings ({listed})")
        found[spec.folder] = dataclasses.replace(known, tasks={**known.tasks, **spec.tasks})
    return list(found.values())


def _places(spec: CellSpec) -> str:
    """Return what a cell reads with the folders that its hashes leave out."""
    parts = {key: value for key, value in spec.suite.items() if key not in NOT_ADAPTATION}
    return json.dumps([spec.backbone, spec.pretrained, spec.options, parts], sort_keys=True, default=str)


def _conflict_message(conflicts: Mapping[str, list[str]], store: Store) -> str:
    folder, differing = next(iter(conflicts.items()))
    others = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
    listed = "; ".join(differing[:_SHOWN]) + ("; ..." if len(differing) > _SHOWN else "")
    return (
        f"{store.output_dir / folder}{others} finished with other settings ({listed}). "
        "Choose another --output-dir, or --overwrite to replace them"
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    before, after = dict(leaves(old, lists=False)), dict(leaves(new, lists=False))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: (before.get(key, "absent"), after.get(key, "absent")) for key in keys}


def _safe(name: str) -> str:
    """Return a name as one folder name."""
    return re.sub(r"[^A-Za-z0-9._+=,-]+", "-", name).strip(".-") or "unnamed"
