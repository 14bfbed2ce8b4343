"""A stored cell is run again from its own folder.

Nothing that the folder names is executed: plugins run only when the user names them again. Places on disk, which
config.yaml does not hold, are said by the user too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.config.data_entries import DataEntries
from benchmark.config.layers import Layer
from benchmark.console import Console
from benchmark.errors import BenchmarkError, ConfigError, StoreError
from benchmark.machine import find_devices, limit_threads, threads_each
from benchmark.plan import CellSpec
from benchmark.registry import METHODS, TASKS, load_plugins
from benchmark.run.execute import Outcome, execute_cell
from benchmark.run.prepare_suite import prepare_cells
from benchmark.store.cells import CellFolder, Store
from benchmark.store.compare import ADAPTED, ADAPTER

COSTS = "efficiency.json"
_TYPES: dict[str, tuple[type, ...]] = {
    "suite_name": (str,),
    "suite": (Mapping,),
    "backbone": (str,),
    "pretrained": (str, type(None)),
    "method": (str,),
    "options": (Mapping,),
    "seed": (int,),
    "tasks": (Mapping,),
    "limit": (int, type(None)),
    "variant": (str,),
}


@dataclass(frozen=True)
class StoredCell:
    """A cell as its folder holds it.

    Attributes:
        folder: where it lies.
        spec: what was run, with its finished tasks alone.
        threads: that it was run with; None where nothing says so.
        imported: whether its adapter came from elsewhere: it is then evaluated only.
    """

    folder: CellFolder
    spec: CellSpec
    threads: int | None
    imported: bool


def read_cell(
    path: Path,
    *,
    data_root: Path,
    device: str | None = None,
    plugins: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> StoredCell:
    """Read the settings of a cell from its folder; its plugins are loaded.

    Args:
        path: ``runs/<suite>/<backbone>/<method>/seed-<n>``.
        data_root: folder of prepared data.
        device: where to run; None: the kind of device that the cell was run on.
        plugins: files or modules, those of the cell among them.
        files: files and folders of which config.yaml holds the names alone.

    Raises:
        ConfigError: plugins are needed that were not named, or there is no such device.
        PluginError: its method or a task is not known here.
        StoreError: it is no cell, or damaged, unfinished, or made by another version.
    """
    folder = CellFolder(path)
    if not folder.exists("config.yaml"):
        raise StoreError(
            f"'{path}' is not the folder of a cell: expected runs/<suite>/<backbone>/<method>/seed-<n>"
        )
    config = folder.read_config()
    _load(config.get("plugins") or (), plugins)
    settings = _placed(config, {place.name: str(place) for place in files})
    kind = "cuda" if str(config.get("device")).startswith("cuda") else "cpu"
    settings |= {"data_root": str(data_root), "plugins": list(plugins), "device": device or kind}
    spec = _spec(
        path, {key: settings[key] for key in settings if key not in ("schema_version", "adapt_hash")}
    )
    tasks = {name: values for name, values in spec.tasks.items() if _finished(folder, name)}
    if not tasks and not folder.exists(ADAPTER):
        raise StoreError(f"'{path}' is unfinished: there is nothing to compare with")
    spec = dataclasses.replace(spec, tasks=tasks, device=find_devices(spec.device)[0])
    threads = folder.read_json(COSTS).get("threads") if folder.exists(COSTS) else None
    return StoredCell(
        folder,
        spec,
        threads if isinstance(threads, int) and threads > 0 else None,
        folder.imported() is not None,
    )


def run_again(stored: StoredCell, store: Store, console: Console) -> Outcome:
    """Adapt and evaluate a cell once more, with as many threads as before.

    Args:
        stored: the cell.
        store: where the second run goes; it must not hold this cell yet.
        console: where progress is shown.

    Returns:
        "done", or "failed" with the error.

    Raises:
        StoreError: the folder of the second run exists, or cannot be written.
        BenchmarkError: its data cannot be had.
    """
    spec, target = stored.spec, store.cell(stored.spec.folder)
    if target.path.exists():
        raise StoreError(f"--output-dir: {target.path} exists. Choose a new folder")
    store.check_writable()
    limit_threads(stored.threads or threads_each(1))
    if stored.imported:
        _copy_adapter(stored, target)
    with console.board(1) as board:
        with board.preparing("reading data") as reporter:
            prepare_cells([spec], reporter)
        board.cell_started(0, spec.label)
        outcome = execute_cell(spec, store, board.reporter(0))
        board.cell_finished(0, outcome.status, outcome.error)
    return outcome


def settings_changed(stored: StoredCell) -> bool:
    """Return whether config.yaml gives another hash than the one that was written with it."""
    return stored.folder.read_config().get("adapt_hash") != stored.spec.adapt_hash


def _copy_adapter(stored: StoredCell, target: CellFolder) -> None:
    """Put an imported adapter where the run finds it; what it was imported from goes along."""
    target.write_tensors(ADAPTER, stored.folder.read_tensors(ADAPTER))
    for name in (ADAPTED, COSTS):
        target.write_json(name, stored.folder.read_json(name))
    target.write_config({"adapt_hash": stored.spec.adapt_hash, **stored.spec.public()})


# --- from config.yaml to a cell -----------------------------------------------------------------------------


def _load(names: Sequence[str], plugins: Sequence[str]) -> None:
    """Load the user's plugins; those that a cell names must be among them."""
    given = {Path(plugin).name for plugin in plugins}
    if lacking := [str(name) for name in names if str(name) not in given]:
        raise ConfigError(
            f"the cell was made with the plugins {', '.join(lacking)}, which are code: name them with --plugins"
        )
    if broken := load_plugins(plugins):
        raise ConfigError(broken)


def _placed(values: Any, places: Mapping[str, str]) -> Any:
    """Return nested settings with the names of files, alone or behind a colon, replaced by their places."""
    if isinstance(values, Mapping):
        return {key: _placed(value, places) for key, value in values.items()}
    if isinstance(values, list):
        return [_placed(value, places) for value in values]
    if isinstance(values, str):
        head, colon, name = values.rpartition(":")
        return head + colon + places.get(name, name)
    return values


def _spec(path: Path, settings: Mapping[str, Any]) -> CellSpec:
    """Return the cell of settings that may come from anywhere.

    Raises:
        PluginError: its method or a task is not known here.
        StoreError: a setting is missing, unknown or of a wrong type.
    """
    try:
        wrong = [key for key, kinds in _TYPES.items() if not isinstance(settings.get(key), kinds)]
        if wrong:
            raise TypeError(f"{wrong[0]}: {settings.get(wrong[0], 'missing')}")
        spec = CellSpec.from_dict(settings)
        METHODS.resolve(spec.method)
        for task in spec.tasks:
            TASKS.resolve(task)
        str(spec.adapt_hash)
        if problems := _entry_problems(path, spec):
            raise ConfigError(problems)
    except BenchmarkError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(
            f"{path / 'config.yaml'}: not the settings of a cell, or of another version ({reason})"
        ) from None
    return spec


def _entry_problems(path: Path, spec: CellSpec) -> list[str]:
    """Return what is wrong with its data entries, by the checks of a run."""
    layer = Layer(str(path / "config.yaml"), {**spec.suite, "tasks": spec.tasks})
    entries = DataEntries([])
    entries.read(layer)
    entries.check_names()
    if not entries.problems:
        entries.check_keys()
        entries.check_validation(layer, trains=False)
    for task in () if entries.problems else spec.tasks:
        entries.check_task(TASKS.resolve(task), TASKS.get(task))
    return entries.problems


def _finished(folder: CellFolder, task: str) -> bool:
    """Return whether a task has results.

    Raises:
        UnreadableError: they are damaged.
    """
    return folder.exists(f"{task}.json") and folder.read_json(f"{task}.json").get("status") == "success"
