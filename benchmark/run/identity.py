"""Identity of a result: digests of the data as read and the weights, the arithmetic, the version of the numbers.

Stored as "identity" in a cell's ``adapt.json`` and in each ``<task>.json``. Digests come from content, never from
paths, names or times. Finished work is reused only while its identity holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset, needed, parts_of
from benchmark.data.prepared import MANIFEST, MASKS, PIXELS, NotMadeError, Prepared
from benchmark.errors import BenchmarkError, DataError, StoreError
from benchmark.files import file_sha256, user_path
from benchmark.plan import CellSpec, Plan, task_done
from benchmark.registry import BACKBONES, METHODS, TASKS
from benchmark.store.cells import CellFolder, Store, UnreadableError, digest

if TYPE_CHECKING:
    from benchmark.backbones import Backbone
    from benchmark.console import Reporter
    from benchmark.preprocess import Fitting

NUMBERS = 4
"""Version of the numbers. Raise it when the same settings, data and weights now give another number anywhere."""
KEY = "identity"
CURE = "--overwrite replaces them, or choose another --output-dir"
_ADAPTED = "adapt.json"
_SHOWN = 3
Identity = Mapping[str, Any]
"""JSON: ``numbers``, ``weights``, ``arithmetic``, ``data`` (name -> digest), ``code`` where a plugin of the user's has
made numbers too, and in results of a task ``adapter``."""
_OURS = ("benchmark", "methods", "tasks")


# --- what is stored -----------------------------------------------------------------------------------------


def of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity in a stored file's content; files of programs that kept none are of numbers 0."""
    found = stored.get(KEY)
    return dict(found) if isinstance(found, Mapping) else {"numbers": 0, "data": {}}


def of_import(spec: CellSpec, weights: str) -> dict[str, Any]:
    """Return the identity of an adapter that was trained elsewhere, for a backbone of this digest."""
    return {"numbers": NUMBERS, "weights": weights, "arithmetic": None, "data": {}} | _code_of_adapter(spec)


def data_digest(opened: Sequence[Prepared], more: Sequence[str] = ()) -> str:
    """Return ``<images>-<rows>``: a digest of what data show and one of what is said of them (texts, labels, parts).

    Args:
        opened: the data.
        more: hashes of other files that say something of them.
    """
    images = [[one.digests[PIXELS], one.digests.get(MASKS), one.selection] for one in opened]
    rows = [[one.digests[MANIFEST], one.selection] for one in opened] + [[one] for one in more]
    return f"{digest(images)}-{digest(rows)}"


def model_of(name: str, pretrained: str | None, backbone: Backbone | None = None) -> tuple[str, Fitting]:
    """Return the digest of a backbone's weights and settings, and how it wants its images.

    What has files is known by their content, which is read when they have changed; anything else by its tensors.

    Args:
        name: of the backbone.
        pretrained: its weights, tag or path.
        backbone: as it was loaded, if it was.

    Raises:
        BenchmarkError: its files are not here.
    """
    from benchmark.backbones import check_backbone, load_backbone
    from benchmark.preprocess import preprocess_of

    found = check_backbone(name, pretrained=pretrained)
    if hasattr(found, "made_of"):
        return digest(found.made_of()), preprocess_of(found).fitting
    if hasattr(found, "fingerprint"):
        return str(found.fingerprint)[:12], preprocess_of(found).fitting
    backbone = backbone or load_backbone(name, pretrained=pretrained)
    return backbone.fingerprint()[:12], preprocess_of(backbone).fitting


def _code_of_adapter(spec: CellSpec) -> dict[str, str]:
    return _code(METHODS.get(spec.method), BACKBONES.get(spec.backbone))


def _code(*plugins: Any) -> dict[str, str]:
    """Return ``code``: a digest of the files of plugins that are not our own, whose versions NUMBERS does not count."""
    modules = (sys.modules.get(str(getattr(plugin, "__module__", ""))) for plugin in plugins)
    files = [
        str(module.__file__)
        for module in modules
        if module is not None and module.__file__ and module.__name__.partition(".")[0] not in _OURS
    ]
    return {"code": digest([file_sha256(Path(file)) for file in files])} if files else {}


# --- what would be stored now -------------------------------------------------------------------------------


@dataclass
class Sources:
    """What results would be made of now; each dataset is opened once.

    Attributes:
        data_root: folder of prepared data. reporter: told about data that have to be made; None makes none.
        weights: digest of the backbone. fitting: what the backbone wants.
        arithmetic: fp32, bf16 or fp16; None where that is not known.
        complete: whether everything that was asked for could be read.
    """

    data_root: Path
    reporter: Reporter | None
    weights: str
    arithmetic: str | None
    fitting: Fitting
    complete: bool = True
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    def of_adaptation(self, spec: CellSpec) -> dict[str, Any]:
        """Return the identity of a cell's adapter; one that was not trained rests on no data.

        Raises:
            BenchmarkError: data cannot be had.
        """
        suite = needed(spec.suite, [spec.method])
        data = {use: [suite[use]] for use in ("corpus", "validation") if suite.get(use)}
        return self._with(data) | _code_of_adapter(spec)

    def of_task(self, spec: CellSpec, task: str, adapter: Identity) -> dict[str, Any]:
        """Return the identity of a task's results on an adapter of that identity.

        Raises:
            BenchmarkError: data cannot be had.
        """
        entries: Mapping[str, Mapping[str, Any]] = spec.tasks[task].get("datasets") or {}
        made_of = self._with({name: parts_of(entry) for name, entry in entries.items()})
        return made_of | _code(TASKS.get(task)) | {"adapter": digest(adapter)}

    def _with(self, data: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            "numbers": NUMBERS,
            "weights": self.weights,
            "arithmetic": self.arithmetic,
            "data": {name: self._digest(entries) for name, entries in data.items()},
        }

    def _digest(self, entries: Sequence[Mapping[str, Any]]) -> str:
        key = json.dumps(entries, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = self._read(entries)
        return self._known[key]

    def _read(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """Return the digest of data; a half that cannot be told without making them is empty."""
        reporter, make = self.reporter or NullReporter(), self.reporter is not None
        try:
            files = [user_path(one["descriptions"]) for one in entries if one.get("descriptions")]
            return data_digest(
                [load_dataset(one, self.data_root, reporter, self.fitting, make=make) for one in entries],
                [file_sha256(file) for file in files if file.is_file()],
            )
        except NotMadeError as error:
            self.complete &= error.changed
            return "changed-" if error.changed else "-"
        except BenchmarkError:
            if make:
                raise
            self.complete = False
            return "-"


class _Machine:
    """The sources of every cell of a plan: each model is looked at once."""

    def __init__(self, reporter: Reporter | None, *, elsewhere: bool = False) -> None:
        self._reporter, self._elsewhere = reporter, elsewhere
        self._models: dict[tuple[str, str | None], tuple[str, Fitting]] = {}
        self._sources: dict[tuple[Any, ...], Sources] = {}

    @property
    def complete(self) -> bool:
        return all(sources.complete for sources in self._sources.values())

    def sources(self, spec: CellSpec) -> Sources:
        model = (spec.backbone, spec.pretrained)
        if model not in self._models:
            self._models[model] = model_of(*model)
        key = (*model, spec.recipe.precision, spec.device, spec.data_root)
        if key not in self._sources:
            weights, fitting = self._models[model]
            self._sources[key] = Sources(
                spec.data_root, self._reporter, weights, self._arithmetic(spec), fitting
            )
        return self._sources[key]

    def _arithmetic(self, spec: CellSpec) -> str | None:
        if self._elsewhere and spec.recipe.precision == "auto":
            return None
        import torch

        from benchmark.backbones.towers.precision import resolve
        from benchmark.machine import find_devices

        return resolve(spec.recipe.precision, torch.device(find_devices(spec.device)[0]))


# --- then and now -------------------------------------------------------------------------------------------


def check(plan: Plan, store: Store, *, reporter: Reporter | None = None, elsewhere: bool = False) -> bool:
    """Refuse a plan whose finished work would be made of something else now.

    Args:
        plan: of a run.
        store: where its cells are.
        reporter: told about data that have to be made before they can be compared; None makes none.
        elsewhere: whether cells run on other machines, whose devices are not known here.

    Returns:
        Whether everything could be compared.

    Raises:
        StoreError: it would, in one line with what differs and what to do.
        DataError: data or weights cannot be had, though a reporter was given.
    """
    if plan.overwrite:
        return True
    machine, found, complete = _Machine(reporter, elsewhere=elsewhere), {}, True
    for cell in plan.cells:
        try:
            if lines := differing(cell.spec, store.cell(cell.spec.folder), machine.sources):
                found[cell.spec.folder] = lines
        except StoreError:
            raise
        except BenchmarkError as error:
            complete = False
            if reporter is None:
                continue
            raise DataError(
                f"{error}. Finished runs cannot be compared with it: `report` shows them as they are"
            ) from error
    if found:
        folder, lines = next(iter(found.items()))
        others = f" and {len(found) - 1} more" if found.keys() - {folder} else ""
        raise StoreError(f"{store.output_dir / folder}{others}: finished with {'; '.join(lines)}. {CURE}")
    return complete and machine.complete


def differing(
    spec: CellSpec, folder: CellFolder, sources: Callable[[CellSpec], Sources] | None = None
) -> list[str]:
    """Return what finished work in a cell's folder was made with that would be something else now, in words.

    With ``eval_only`` only the weights matter, which an adapter belongs to: the adapter is taken as it is.

    Args:
        spec: what would run.
        folder: of the cell.
        sources: returns the :class:`Sources` of a cell, asked when there is anything to compare; None looks for itself.

    Raises:
        BenchmarkError: data or weights cannot be had, or a file is of a newer version.
    """
    if folder.stored_hash() != spec.adapt_hash:
        return []
    finished = [task for task in spec.tasks if task_done(spec, task, folder)]
    adapted = _stored(folder, _ADAPTED) or (of({}) if finished else None)
    if adapted is None:
        return []
    if not spec.eval_only and adapted["numbers"] != NUMBERS:
        age = "an older" if adapted["numbers"] < NUMBERS else "a newer"
        return [f"{age} version of the program (numbers {adapted['numbers']}, now {NUMBERS})"]
    now = (sources or _Machine(NullReporter()).sources)(spec)
    if spec.eval_only:
        return _settings({"weights": adapted.get("weights")}, {"weights": now.weights})
    adaptation = now.of_adaptation(spec)
    words, data = _settings(adapted, adaptation), _data(adapted, adaptation)
    for task in finished:
        result, new = of(folder.read_json(f"{task}.json")), now.of_task(spec, task, adapted)
        words += [line for line in _settings(result, new) if line not in words]
        data += [f"{task}/{line}" for line in _data(result, new)]
    if data:
        words.append(f"other data ({'; '.join(data[:_SHOWN])}{'; ...' if data[_SHOWN:] else ''})")
    return words


def _stored(folder: CellFolder, name: str) -> dict[str, Any] | None:
    """Return the identity in a file of a cell; None where the file is not there or damaged, and so made again."""
    try:
        return of(folder.read_json(name))
    except UnreadableError:
        return None


def _settings(stored: Identity, now: Identity) -> list[str]:
    """Return what differs beside the data; what one side does not know is not compared."""
    words = []
    if stored.get("numbers", NUMBERS) != now.get("numbers", NUMBERS):
        words.append(f"another version of the program (numbers {stored['numbers']}, now {now['numbers']})")
    if None not in (stored.get("weights"), now.get("weights")) and stored["weights"] != now["weights"]:
        words.append("other weights or settings of the backbone")
    if stored.get("code") != now.get("code"):
        words.append("other code of a plugin")
    before, after = stored.get("arithmetic"), now.get("arithmetic")
    if None not in (before, after) and before != after:
        words.append(f"other arithmetic ({before}, now {after})")
    return words


def _data(stored: Identity, now: Identity) -> list[str]:
    """Return "<name>: what changed" for each dataset that both sides know."""
    before, words = stored.get("data") or {}, []
    for name, new in (now.get("data") or {}).items():
        halves = zip(str(before.get(name, "-")).split("-"), new.split("-"), strict=False)
        changed = [bool(old and other) and old != other for old, other in halves]
        if any(changed):
            parts = [
                part for part, other in zip(("images", "labels or texts"), changed, strict=False) if other
            ]
            words.append(f"{name}: {' and '.join(parts)} changed")
    return words
