"""The result store: one folder per cell, every file written completely or not at all, and results.csv.

``<output-dir>/runs/<suite>/<backbone>/<method>[+<variant>]/seed-<n>/`` holds config.yaml, adapter.safetensors,
adapt.json, history.jsonl, provenance.json, efficiency.json, status.json, one ``<task>.json`` per task and
``predictions/``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmark.errors import StoreError
from benchmark.files import LEFTOVERS, csv_cell, file_lock, parse_yaml, remove_dead, write_whole
from benchmark.store.contents import OWN, Config, History, Result, content_problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SCHEMA_VERSION = 1


RESULT_COLUMNS = (
    "suite", "backbone", "method", "seed", "task", "dataset", "metric",
    "value", "ci_low", "ci_high", "n", "status", "config_hash", "identity", "protocol", "shots", "subset",
)  # fmt: skip


class UnreadableError(StoreError):
    """A result file that is damaged: it can be made again."""


class CellFolder:
    """The folder of one cell; all names are relative to it and cannot leave it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, name: str) -> Path:
        """Return the path of a file or folder in the cell; raise StoreError when the name leads out of it."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise StoreError(f"'{name}' is not a name inside a result folder")
        return self.path / name

    def exists(self, name: str) -> bool:
        """Return whether the cell has this file."""
        return self.inside(name).exists()

    def write_json(self, name: str, obj: Mapping[str, Any]) -> None:
        """Write a JSON object with ``schema_version``; numbers that are not finite become null."""
        content = {"schema_version": SCHEMA_VERSION, **_jsonable(obj)}
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole(self.inside(name), lambda path: path.write_text(text, encoding="utf-8"))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON object.

        Raises:
            UnreadableError: the file is missing or damaged.
            StoreError: a newer version wrote it.
        """
        path = self.inside(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path, getattr(error, "strerror", None) or "damaged") from None
        return _checked(path, content, OWN.get(path.name, Result))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors as safetensors."""
        from safetensors.torch import save_file

        ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_whole(self.inside(name), lambda path: save_file(ready, str(path)))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file, on the CPU.

        Raises:
            UnreadableError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.inside(name)
        try:
            tensors: dict[str, Tensor] = load_file(str(path))
        except (OSError, SafetensorError):
            raise _damaged(path, "missing or damaged") from None
        return tensors

    def write_npz(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write arrays as a compressed npz file, without pickles."""
        import numpy as np

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(
                    file, allow_pickle=False, **{key: np.asarray(x) for key, x in arrays.items()}
                )

        write_whole(self.inside(name), write)

    def read_npz(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of an npz file; raise UnreadableError when it is missing or damaged."""
        import numpy as np

        path = self.inside(name)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except Exception:  # of a damaged archive, zip and NumPy raise whatever they find
            raise _damaged(path, "missing or damaged") from None

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write history.jsonl, one JSON object per row."""
        text = "".join(json.dumps(_jsonable(row), allow_nan=False) + "\n" for row in rows)
        write_whole(self.inside("history.jsonl"), lambda path: path.write_text(text, encoding="utf-8"))

    def read_history(self) -> list[dict[str, Any]]:
        """Return the rows of history.jsonl; none when there is no such file."""
        path = self.inside("history.jsonl")
        if not path.exists():
            return []
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError):
            raise _damaged(path, "damaged") from None
        return _checked(path, {"rows": rows}, History)["rows"]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml, the resolved settings of the cell."""
        content = {"schema_version": SCHEMA_VERSION, **_jsonable(config)}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=False, width=110)
        write_whole(self.inside("config.yaml"), lambda path: path.write_text(text, encoding="utf-8"))

    def read_config(self) -> dict[str, Any]:
        """Return config.yaml; raise UnreadableError when damaged, StoreError when it is newer than us."""
        path = self.inside("config.yaml")
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        return _checked(path, content, Config, "missing or damaged")

    def find_json(self, name: str) -> dict[str, Any]:
        """Return a JSON object; an empty one when the file is missing or damaged."""
        try:
            return self.read_json(name)
        except UnreadableError:
            return {}

    def find_config(self) -> dict[str, Any]:
        """Return config.yaml; nothing when it is missing or damaged."""
        try:
            return self.read_config()
        except UnreadableError:
            return {}

    def stored_hash(self) -> str | None:
        """Return the adaptation hash of what is stored; None when there is nothing, or it is damaged."""
        found = self.find_config().get("adapt_hash")
        return None if found is None else str(found)

    def imported(self) -> dict[str, Any] | None:
        """Return where the adapter was imported from; None when it was trained here."""
        origin = self.find_json("adapt.json").get("imported")
        return None if origin is None else dict(origin)

    def results(self) -> dict[str, Path]:
        """Return task name -> its result file."""
        files = sorted(self.path.glob("*.json"))
        return {path.stem: path for path in files if path.name not in OWN and path.name[0] != "."}

    def remove(self, name: str) -> None:
        """Delete a file or folder of the cell, if there is one."""
        path = self.inside(name)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything in the cell except its lock."""
        for path in list(self.path.iterdir()) if self.path.exists() else []:
            if path.name != ".lock":
                self.remove(path.name)

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[bool]:
        """Hold the cell while the block runs; yields False when another process holds it for ``patience`` seconds."""
        with file_lock(self.path / ".lock", wait=False, patience=patience) as held:
            yield held

    def is_running(self) -> bool:
        """Return whether another process holds the cell now."""
        if not self.exists(".lock"):
            return False
        with self.lock() as held:
            return not held

    def remove_leftovers(self) -> None:
        """Delete temporary files and folders of a process that was killed while it wrote."""
        remove_dead(self.path, "**/.*.tmp")


class Store:
    """All cells below one output folder."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir

    def cell(self, folder: str) -> CellFolder:
        """Return the cell folder of a plan's relative name, for example ``runs/<suite>/<backbone>/<method>/seed-0``."""
        return CellFolder(self.output_dir / folder)

    def cells(self) -> Iterator[CellFolder]:
        """Yield the folders of all cells that have been started, in a fixed order."""
        for path in sorted(self.output_dir.glob("runs/*/*/*/seed-*")):
            if (path / "config.yaml").is_file():
                yield CellFolder(path)

    def check_writable(self) -> None:
        """Create the output folder; raise StoreError when nothing can be written or locked there."""
        try:
            (self.output_dir / "runs").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output_dir / "runs"):
                pass
            with file_lock(self.output_dir / "runs" / ".lock", wait=False):
                pass
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(
                f"--output-dir: '{self.output_dir}' cannot be written ({reason}). Choose another folder"
            ) from None

    def remove_leftovers(self) -> None:
        """Delete temporary files of dead processes outside the cells, which look after their own."""
        remove_dead(self.output_dir, LEFTOVERS, f"report/**/{LEFTOVERS}", f"shared/*/{LEFTOVERS}")

    def damaged(self) -> list[str]:
        """Return one line for each file of a cell that cannot be read; those of predictions are not opened."""
        problems: list[str] = []
        for cell in self.cells():
            names = [
                name for name in (*OWN, *(f"{task}.json" for task in cell.results())) if cell.exists(name)
            ]
            readers: list[Callable[[], object]] = [cell.read_config, cell.read_history]
            readers += [partial(cell.read_json, name) for name in names]
            for read in readers:
                try:
                    read()
                except StoreError as error:
                    problems.append(str(error))
        return problems

    def rebuild_results_csv(self) -> list[str]:
        """Write results.csv from all cells.

        Returns:
            One line for each result file that was left out: damaged, or written by a newer version.
        """
        problems: list[str] = []
        # Under a lock, so that of two processes the later one also sees the cells of the earlier one.
        with file_lock(self.output_dir / "runs" / ".lock", wait=True):
            rows = [row for cell in self.cells() for row in _cell_rows(cell, problems)]
            rows.sort(key=lambda row: tuple(map(_sort_key, row[:7])))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(
                [RESULT_COLUMNS, *(map(csv_cell, row) for row in rows)]
            )
            target = self.output_dir / "results.csv"
            write_whole(target, lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
        return problems

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Read the store and write its report in this block: of two processes the later one sees all cells."""
        with file_lock(self.output_dir / "runs" / ".report-lock", wait=True):
            yield


def digest(content: Any) -> str:
    """Return 12 hex digits of the SHA-256 of JSON types."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def leaves(values: Any, prefix: str = "", *, lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their places ("recipe.lr"); without ``lists``, lists stay whole."""
    inside = (
        isinstance(values, Mapping)
        and (values or lists or not prefix)
        or (lists and isinstance(values, list))
    )
    if not inside:
        yield prefix, list(values) if isinstance(values, tuple) else values
        return
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key), lists=lists)


def cell_name(method: str, variant: str = "") -> str:
    """Return how the cells of a method, or of a variant of it, are called: ``<method>[+<variant>]``."""
    return f"{method}+{variant}" if variant else method


def check_schema(path: Path, content: Mapping[str, Any]) -> None:
    """Raise StoreError when a newer version of this program wrote the file."""
    version = content.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer version (schema {version}, this one reads up to {SCHEMA_VERSION}). "
            "Update medpeft-bench or choose another --output-dir"
        )


def _damaged(path: Path, what: str) -> UnreadableError:
    return UnreadableError(f"{path}: {what}. Delete it and run the same command again")


def _checked(path: Path, content: Any, hint: type, otherwise: str = "damaged") -> dict[str, Any]:
    """Return the content of a file, or raise UnreadableError when it does not hold what it should."""
    if not isinstance(content, dict):
        raise _damaged(path, otherwise)
    check_schema(path, content)
    if problem := content_problem(content, hint):
        raise _damaged(path, problem)
    return content


def _cell_rows(cell: CellFolder, problems: list[str]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    try:
        config = cell.read_config()
    except StoreError as error:
        problems.append(str(error))
        return rows
    method = cell_name(str(config.get("method", "")), str(config.get("variant") or ""))
    identity = [config.get("suite_name", ""), config.get("backbone", ""), method, config.get("seed", "")]
    for task in cell.results():
        try:
            found = _task_rows(task, cell.read_json(f"{task}.json"))
            rows += [[*identity, *_with_protocol(config, row)] for row in found]
        except StoreError as error:
            problems.append(str(error))
    return rows


def _with_protocol(config: Mapping[str, Any], row: Sequence[Any]) -> list[Any]:
    """Return a row with protocol, shots and subset behind it, all blank for a run on pairs."""
    task, dataset, *rest = row
    support = (config.get("suite") or {}).get("support")
    if not support:
        return [*row, "", "", ""]
    entry = (((config.get("tasks") or {}).get(task) or {}).get("datasets") or {}).get(dataset) or {}
    subset = entry.get("subset", "all")
    said = [support.get("protocol", ""), support.get("shots", ""), subset]
    return [task, dataset.removesuffix(f"-{subset}"), *rest, *said]


def _task_rows(task: str, result: Mapping[str, Any]) -> Iterator[list[Any]]:
    made_of = digest(result["identity"]) if result.get("identity") else ""
    for dataset, scores in (result.get("datasets") or {}).items():
        for metric, score in (scores.get("metrics") or {}).items():
            numbers = [_number(score.get(key)) for key in ("value", "ci_low", "ci_high", "n")]
            yield [
                task,
                dataset,
                metric,
                *numbers,
                result.get("status", ""),
                result.get("task_hash", ""),
                made_of,
            ]


def _number(value: Any) -> str:
    return "" if value is None else repr(value)


def _sort_key(value: Any) -> tuple[int, int, str]:
    return (0, value, "") if isinstance(value, int) else (1, 0, str(value))


def _jsonable(value: Any) -> Any:
    """Return a value as JSON types: NumPy and torch scalars become numbers, not-finite ones None."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)
