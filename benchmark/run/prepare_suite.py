"""Open and check the data of cells once, before the first of them runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.backbones import find_backbone, rules_of
from benchmark.console import Reporter
from benchmark.data.batch_size import check_corpus
from benchmark.data.descriptions import read_descriptions
from benchmark.data.entries import entries_by_use, load_dataset, needed
from benchmark.data.labels import POLICIES
from benchmark.data.prepared import Prepared
from benchmark.data.samples import LabelledImages, PairData, labelled_images, pairs
from benchmark.errors import BenchmarkError, DataError
from benchmark.files import LEFTOVERS, remove_dead
from benchmark.plan import CellSpec
from benchmark.preprocess import Fitting, preprocess_of
from benchmark.registry import METHODS, TASKS, is_deterministic
from benchmark.run.build import build_task
from benchmark.run.checks import overlap


def prepare_cells(specs: Sequence[CellSpec], reporter: Reporter, trained: Collection[str] = ()) -> None:
    """Check the backbones and tasks of cells and prepare the data of their suites, each once.

    Args:
        specs: the open cells.
        reporter: told about progress.
        trained: folders of those that have no adapter yet.

    Raises:
        BenchmarkError: weights or data are missing, or contradict the suite; or a task refuses a method.
    """
    named = dict.fromkeys((spec.backbone, spec.pretrained) for spec in specs)
    models = {(name, weights): find_backbone(name, pretrained=weights) for name, weights in named}
    fittings = {model: preprocess_of(found).fitting for model, found in models.items()}
    _check_tasks(specs, models)
    suites: dict[str, list[CellSpec]] = {}
    for spec in specs:  # experiments ask for different tasks of one suite
        data = [spec.suite_name, spec.suite.get("corpus"), spec.suite.get("validation")]
        data.append(spec.suite.get("support", {}).get("dataset"))
        suites.setdefault(json.dumps(data, default=str), []).append(spec)
    for cells in suites.values():
        # of several numbers of shots the largest may lack images
        first = max(cells, key=lambda spec: spec.suite.get("support", {}).get("shots", 0))
        tasks = {name: options for spec in cells for name, options in spec.tasks.items()}
        prepare_suite(
            needed({**first.suite, "tasks": tasks}, {spec.method for spec in cells}),
            first.data_root,
            reporter,
            fittings=dict.fromkeys(fittings[spec.backbone, spec.pretrained] for spec in cells),
            limit=first.limit,
            allow_overlap=first.allow_overlap,
            batch_sizes={
                spec.recipe.batch_size
                for spec in cells
                if spec.folder in trained and not is_deterministic(spec.method)
            },
        )


def _check_tasks(specs: Sequence[CellSpec], models: Mapping[tuple[str, str | None], Any]) -> None:
    """Refuse a method or backbone that a task cannot evaluate.

    Raises:
        ConfigError: of the first such cell.
    """
    for spec in specs:
        rules = rules_of(models[spec.backbone, spec.pretrained])
        for name, settings in spec.tasks.items():
            build_task(name, settings).check(METHODS.get(spec.method), spec.backbone, rules)


def prepare_suite(
    suite: Mapping[str, Any],
    data_root: Path,
    reporter: Reporter,
    *,
    fittings: Iterable[Fitting] = (),
    limit: int | None = None,
    allow_overlap: bool = False,
    batch_sizes: Collection[int] = (),
) -> None:
    """Prepare the data of a suite once for all its cells, and check them.

    Half-written files of processes that have ended are deleted. Generated datasets are written, and images are fitted
    to a backbone for each of ``fittings``. Images that two datasets share are reported, or stop the run
    (benchmark/run/checks/overlap.py); so does a corpus that is smaller than one of the ``batch_sizes``.

    Raises:
        BenchmarkError: data are missing, damaged, or contradict the suite.
    """
    remove_dead(data_root, *(f"{depth}{LEFTOVERS}" for depth in ("", "*/", "*/*/")))
    fittings = tuple(fittings)
    for use, entry in entries_by_use(suite):
        prepared = _fitted(entry, data_root, reporter, fittings)
        if use == "corpus" and "support" in suite:
            found_images = labelled_images(
                str(entry["dataset"]), prepared, dict(entry), limit=entry.get("limit")
            )
            said = few_images(found_images, suite["support"])
            if entry.get("descriptions"):
                read_descriptions(entry["descriptions"], found_images.classes)
        elif use == "corpus":
            count = len(read_pairs(entry, prepared))
            said = check_corpus(str(entry["dataset"]), min(count, limit or count), batch_sizes)
        elif check := getattr(TASKS.get(use), "check_data", None):
            limits = [most for most in (entry.get("limit"), limit) if most is not None]
            said = check({**entry, "limit": min(limits)} if limits else entry, prepared)
        else:
            continue
        if said:
            reporter.log(said)
    found = {
        str(item): item
        for fitting in fittings or (None,)
        for item in overlap.overlaps(suite, data_root, reporter, fitting=fitting, limit=limit)
    }
    for line in found:
        reporter.log(line)
    overlap.check(found.values(), allow=allow_overlap)


def few_images(pool: LabelledImages, support: Mapping[str, Any]) -> str | None:
    """Return a line on classes with fewer labelled images than shots, or None.

    Raises:
        DataError: a class has none.
    """
    counts = dict(
        zip(pool.classes, np.bincount(pool.targets, minlength=len(pool.classes)).tolist(), strict=True)
    )
    name, shots = support["dataset"], support["shots"]
    if none := [label for label, count in counts.items() if not count]:
        raise DataError(f"dataset '{name}': no labelled image of {', '.join(none)} to adapt on")
    few = [f"{label} {count}" for label, count in counts.items() if count < shots]
    return f"dataset '{name}': fewer than {shots} images of a class: {', '.join(few)}" if few else None


def _fitted(
    entry: Mapping[str, Any], data_root: Path, reporter: Reporter, fittings: Sequence[Fitting]
) -> Prepared:
    """Return a dataset as the first of several backbones takes it that can; without any backbone, its rows.

    Raises:
        BenchmarkError: no backbone can take its images.
    """
    fault: BenchmarkError | None = None
    for fitting in fittings:
        try:
            return load_dataset(entry, data_root, reporter, fitting)
        except BenchmarkError as error:  # the cells of the others say so themselves
            fault = fault or error
    if fault:
        raise fault
    return load_dataset(entry, data_root, reporter)


def read_pairs(entry: Mapping[str, Any], prepared: Prepared, limit: int | None = None) -> PairData:
    """Return the pairs of a suite's corpus, at most ``limit``.

    Raises:
        ConfigError, DataError: as in :func:`benchmark.data.samples.pairs`.
    """
    limits = [most for most in (entry.get("limit"), limit) if most is not None]
    policy = {key: str(entry[key]) for key in POLICIES if key in entry}
    share = float(entry.get("fraction", 1))
    return pairs(str(entry["dataset"]), prepared, limit=min(limits, default=None), fraction=share, **policy)
