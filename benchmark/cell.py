"""One cell: build the backbone, wrap it with the method, adapt it on the corpus, evaluate it on each task."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import methods
from benchmark import adapters
from benchmark.backbones import Backbone, load_backbone
from benchmark.checkpoint import Checkpoint
from benchmark.config import build_options
from benchmark.console import Reporter
from benchmark.data.batches import PairBatches
from benchmark.data.features import FrozenFeatures
from benchmark.data.load import check_dataset, data_entries, load_dataset
from benchmark.data.samples import POLICIES, PairData, pairs
from benchmark.efficiency import measure_method, peak_memory, step_times
from benchmark.errors import ConfigError
from benchmark.inference import frozen_flops, inference_costs
from benchmark.plan import CellSpec, task_done
from benchmark.registry import TASKS
from benchmark.shared import FROZEN, TowerResults, is_shared
from benchmark.store import CellFolder
from benchmark.trainer import Adaptation, Trainer
from tasks.base import DatasetResult, Task, TaskContext
from tasks.prompts import fill

_FLOPS_PAIRS = 8


def prepare_suite(suite: Mapping[str, Any], data_root: Path, reporter: Reporter) -> None:
    """Make what all cells of a suite share, once: generated datasets are written now, missing ones are told."""
    for entry in data_entries(suite):
        check_dataset(entry, data_root, reporter)


def run_cell(spec: CellSpec, folder: CellFolder, reporter: Reporter) -> None:
    """Bring one cell to its end; what an earlier, interrupted run finished is kept.

    Args:
        spec: what to run.
        folder: where everything goes.
        reporter: told about progress.

    Raises:
        BenchmarkError: whatever the user can mend.
    """
    _Cell(spec, folder, reporter).run()


class _Cell:
    def __init__(self, spec: CellSpec, folder: CellFolder, reporter: Reporter) -> None:
        self.spec, self.folder, self.reporter = spec, folder, reporter
        self.device = torch.device(spec.device)
        reporter.start("load backbone", 1)
        backbone = load_backbone(spec.backbone, pretrained=spec.pretrained, device=self.device)
        if backbone.origin:
            folder.write_json(
                "provenance.json", folder.read_json("provenance.json") | {"weights": backbone.origin}
            )
        self.prompts = _prompts(spec.suite)
        self.frozen_flops = frozen_flops(backbone, self.prompts)  # before the method wraps the backbone
        self.context = _context(spec, backbone, self.device, reporter)
        output_dir = folder.path.parents[len(Path(spec.folder).parts) - 1]
        self.towers = TowerResults(output_dir / "shared", spec, self.context)
        _seed(spec.seed)
        recipe = spec.recipe
        self.method = methods.build(
            spec.method,
            backbone,
            **spec.options,
            logit_scale=recipe.logit_scale,
            loss=recipe.loss,
            label_match=recipe.label_match,
        ).to(self.device)

    def run(self) -> None:
        if self.folder.exists("adapter.safetensors"):
            self.method.load_trainable_state(self.folder.read_tensors("adapter.safetensors"))
        else:
            self.adapt()
        if not self.folder.exists(adapters.FOLDER):
            adapters.write_adapter(self.method, self.spec, self.folder.inside(adapters.FOLDER))
        self.method.eval()
        for name in self.spec.tasks:
            if self.spec.eval_only or not task_done(self.spec, name, self.folder):
                self.evaluate(name)

    # ------------------------------------------------------------------ adaptation
    def adapt(self) -> None:
        spec, started = self.spec, time.perf_counter()
        corpus = self.corpus()
        batches = PairBatches(
            self.method,
            corpus,
            self.context.frozen,
            batch_size=spec.recipe.batch_size,
            seed=spec.seed,
            device=self.device,
        )
        checkpoint = Checkpoint(self.folder.inside("checkpoint") / "state.pt", spec.adapt_hash)
        outcome = self.train(batches, checkpoint) if self.method.trainable_parameters() else None
        if outcome is not None:
            self.folder.write_history(outcome.history)
        cost = self.cost(batches, outcome, time.perf_counter() - started)
        self.folder.write_tensors("adapter.safetensors", self.method.trainable_state())
        adapter = self.folder.inside("adapter.safetensors").stat().st_size
        self.folder.write_json("efficiency.json", {**cost, "adapter_bytes": adapter})
        best = None if outcome is None else outcome.best
        self.folder.write_json(
            "adapt.json", {"adapt_hash": spec.adapt_hash, "pairs": len(corpus), "best": best, **corpus.facts}
        )
        self.folder.remove("checkpoint")

    def train(self, batches: PairBatches, checkpoint: Checkpoint) -> Adaptation:
        entry = self.spec.suite.get("validation") or {}
        if lacking := {"task", "metric"} - set(entry):
            raise ConfigError(
                f"suite '{self.spec.suite_name}': validation needs the keys {', '.join(sorted(lacking))}"
            )
        task: Task = TASKS.get(entry["task"])()
        return Trainer(
            self.method,
            batches,
            self.spec.recipe,
            validate=task.validator(entry, self.context),
            metric=entry["metric"],
            checkpoint=checkpoint,
            device=self.device,
            reporter=self.reporter,
        ).run()

    def corpus(self) -> PairData:
        entry = self.spec.suite["corpus"]
        prepared = load_dataset(entry, self.spec.data_root, self.reporter, self.context.image_size)
        limits = [limit for limit in (entry.get("limit"), self.spec.limit) if limit is not None]
        policy = {key: str(entry[key]) for key in POLICIES if key in entry}
        share = float(entry.get("fraction", 1))
        return pairs(
            str(entry["dataset"]), prepared, limit=min(limits, default=None), fraction=share, **policy
        )

    def cost(self, batches: PairBatches, outcome: Adaptation | None, seconds: float) -> dict[str, Any]:
        """Return the cell's efficiency figures; FLOPs are those of the towers at work, not of cached features."""
        sample = batches.batch(np.arange(_FLOPS_PAIRS), cached=False)
        figures = measure_method(self.method.train(), sample, pairs=_FLOPS_PAIRS)
        if batches.constant and outcome is not None:
            cached = measure_method(self.method, batches.batch(np.arange(_FLOPS_PAIRS)), pairs=_FLOPS_PAIRS)
            figures["step_flops_per_pair_cached"] = cached["step_flops_per_pair"]
        times = step_times(outcome.step_seconds if outcome else [])
        median = times["step_time_p50_s"]
        return {
            **figures,
            **inference_costs(self.method, self.prompts, self.frozen_flops),
            **times,
            "images_per_s": self.spec.recipe.batch_size / median if median else None,
            "peak_memory_bytes": peak_memory(self.device),
            "wall_time_s": seconds if outcome is None else outcome.wall_seconds,
            "cached_features": batches.constant,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    # ------------------------------------------------------------------ evaluation
    def evaluate(self, name: str) -> None:
        """Evaluate one task on all its datasets and store it whole; test data are opened here for the first time."""
        settings = dict(self.spec.tasks[name])
        entries = settings.pop("datasets", {})
        plugin = TASKS.get(name)
        task: Task = plugin(build_options(plugin.Options, settings))
        results: dict[str, DatasetResult] = {}
        for dataset, entry in entries.items():
            results[dataset] = (
                self.towers.evaluate(task, name, dataset, entry, self.method)
                if task.image_only
                else task.evaluate(self.method, entry, dataset, self.context)
            )
            self.folder.write_npz(f"predictions/{name}-{dataset}.npz", results[dataset].predictions)
        self.folder.write_json(
            f"{name}.json",
            {
                "task": name,
                "status": "success",
                "task_hash": self.spec.task_hash(name),
                "datasets": {dataset: _public(result) for dataset, result in results.items()},
                **({"shared": FROZEN} if is_shared(task, self.method) else {}),
            },
        )
        self.reporter.log(_headline(task, results))


def _context(spec: CellSpec, backbone: Backbone, device: torch.device, reporter: Reporter) -> TaskContext:
    size = spec.recipe.eval_batch_size
    return TaskContext(
        templates=tuple(spec.suite["templates"]),
        data_root=spec.data_root,
        limit=spec.limit,
        device=device,
        batch_size=size,
        precision=spec.recipe.precision,
        frozen=FrozenFeatures(backbone, spec.data_root / "features", batch_size=size, reporter=reporter),
        reporter=reporter,
        seed=spec.seed,
        image_size=backbone.input_spec.size,
    )


def _prompts(suite: Mapping[str, Any]) -> list[str]:
    """Return a prompt for each of at most five classes: what the cost of scoring an image is measured with."""
    names = (suite.get("validation") or {}).get("classes") or ["finding"]
    return [fill(tuple(suite["templates"])[:1], str(name))[0] for name in names[:5]]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (for plugins that draw from the global generator)
    torch.manual_seed(seed)


def _public(result: DatasetResult) -> dict[str, Any]:
    return {"n": result.n, "kind": result.kind, "metrics": result.metrics, "info": result.info}


def _headline(task: Task, results: Mapping[str, DatasetResult]) -> str:
    """Return one line such as ``rsna acc 74.3 auroc 81.1`` for the progress display."""
    words = []
    for dataset, result in results.items():
        numbers = [
            f"{name} {100 * float(value):.1f}"
            for name in task.headline
            if (value := result.metrics.get(name, {}).get("value")) is not None
        ]
        words.append(" ".join([dataset, *numbers]))
    return ", ".join(words)
