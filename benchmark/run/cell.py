"""One cell: build the backbone, wrap it with the method, adapt it on the corpus, evaluate it on each task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmark.backbones import Backbone, load_backbone
from benchmark.backbones.backbone import cut_texts
from benchmark.backbones.towers.precision import resolve
from benchmark.config.run_config import Recipe
from benchmark.console import Reporter
from benchmark.data.batches import Batches, ClassBatches, PairBatches
from benchmark.data.entries import load_dataset, needed
from benchmark.data.features import FrozenFeatures
from benchmark.data.samples import PairData, blank_pairs
from benchmark.errors import BenchmarkError, CellError, ConfigError, DataError, StoreError
from benchmark.machine import use_device
from benchmark.plan import CellSpec, task_done
from benchmark.preprocess import preprocess_of
from benchmark.registry import TASKS, is_deterministic
from benchmark.run import adapters, identity
from benchmark.run.build import build_method, build_task
from benchmark.run.checks import overlap
from benchmark.run.checks.frozen import check_frozen, check_mode, frozen_digests
from benchmark.run.checks.pairs import pairs_match, warning
from benchmark.run.checks.results import check_result
from benchmark.run.cost import forget, frozen_flops, inference_costs, measure_method, step_times
from benchmark.run.few_labels import FewLabels
from benchmark.run.prepare_suite import read_pairs
from benchmark.run.shared_results import FROZEN, TowerResults, is_shared
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.trainer import Adaptation, Trainer, Validate
from benchmark.store.cells import CellFolder, digest
from benchmark.store.hashed_ids import Pseudonyms, id_key
from benchmark.world import ALONE, World
from methods.base import Method
from tasks.base import DatasetResult, Task, TaskContext, fill, measured_metrics

T = TypeVar("T")
_FLOPS_PAIRS = 8
_COUNTED: dict[str, Any] = {}
"""Operations that this process has counted."""

_FEW_CUT = 0.01
"""Share of a corpus's texts that may be longer than the model's context without a word about it."""


def run_cell(spec: CellSpec, folder: CellFolder, reporter: Reporter, world: World = ALONE) -> None:
    """Bring one cell to its end; what an earlier, interrupted run finished is kept.

    Args:
        spec: what to run.
        folder: where everything goes.
        reporter: told about progress.
        world: processes that call this together, each with its own device in ``spec``. They adapt as one, and deal out
            the tasks; the first one writes all else.

    Raises:
        BenchmarkError: whatever the user can mend.
    """
    _Cell(spec, folder, reporter, world).run()


class _Cell:
    def __init__(self, spec: CellSpec, folder: CellFolder, reporter: Reporter, world: World) -> None:
        self.spec, self.folder, self.reporter, self.world = spec, folder, reporter, world
        self.device = torch.device(spec.device)
        use_device(spec.device, deterministic=spec.recipe.deterministic)
        forget(self.device)
        reporter.start("load backbone", 1)
        backbone = load_backbone(spec.backbone, pretrained=spec.pretrained, device=self.device)
        if backbone.origin and world.is_first:
            folder.write_json(
                "provenance.json", folder.read_json("provenance.json") | {"weights": backbone.origin}
            )
        self.prompts = _prompts(spec.suite)
        self.context = _context(spec, backbone, self.device, reporter)
        self.sources = identity.Sources(
            spec.data_root,
            reporter,
            weights=identity.model_of(spec.backbone, spec.pretrained, backbone)[0],
            arithmetic=resolve(spec.recipe.precision, self.device),
            fitting=preprocess_of(backbone).fitting,
        )
        # before the method wraps the backbone
        self.frozen_flops = self.counted("frozen", lambda: frozen_flops(backbone, self.prompts))
        output_dir = folder.path.parents[len(Path(spec.folder).parts) - 1]
        hide = Pseudonyms(id_key(spec.data_root)).hide if spec.hash_ids else dict
        self.towers = TowerResults(output_dir / "shared", spec, self.context, hide, self.sources.weights)
        self.few = FewLabels(spec, self.context) if "support" in spec.suite else None
        self.pairs: PairData | None = None
        self.doubts = self.doubts_of_pairs()  # before the method changes a tower
        self.method = build_method(spec.method, backbone, spec.options, spec.recipe, seed=spec.seed)

    def run(self) -> None:
        if lines := self.world.from_first(
            lambda: identity.differing(self.spec, self.folder, lambda _: self.sources)
        ):
            raise StoreError(f"finished with {'; '.join(lines)}. {identity.CURE}")
        self.overlaps = self.world.from_first(self.shared_images)
        if self.world.from_first(self.adapted):
            if self.few:
                self.method.bind(self.few.classes(self.method))
            self.method.load_trainable_state(self.folder.read_tensors("adapter.safetensors"))
            self.identity = identity.of(self.folder.read_json("adapt.json"))
        else:
            self.adapt()
        if self.world.is_first:
            self.folder.remove("checkpoint")
            if not self.folder.exists(adapters.FOLDER):
                adapters.write_adapter(self.method, self.spec, self.folder.inside(adapters.FOLDER))
        self.method.eval()
        check_mode(self.method)
        for name in self.world.mine(self.world.from_first(self.open_tasks)):
            self.evaluate(name)

    def adapted(self) -> bool:
        """Return whether everything of the adaptation is stored; ``adapt.json`` is written last."""
        return self.folder.exists("adapter.safetensors") and self.folder.exists("adapt.json")

    def open_tasks(self) -> list[str]:
        spec = self.spec
        return [name for name in spec.tasks if spec.eval_only or not task_done(spec, name, self.folder)]

    def doubts_of_pairs(self) -> str:
        """Return what the frozen model says against the corpus it is to be adapted on; empty when it says nothing."""
        spec = self.spec
        trains = not (is_deterministic(spec.method) or self.few)
        if not (trains and self.world.is_first) or self.folder.exists("adapter.safetensors"):
            return ""
        try:
            self.pairs = self.stored_pairs()
        except BenchmarkError:  # told where it is needed
            return ""
        line = warning(self.pairs, pairs_match(self.pairs, self.context.frozen))
        if line:
            self.reporter.log(line)
        return line

    def shared_images(self) -> list[overlap.Overlap]:
        """Return what the cell's datasets share, as its backbone sees their images; a leak ends the cell."""
        spec = self.spec
        suite: Mapping[str, Any] = {**spec.suite, "tasks": dict(spec.tasks)}
        if "support" not in suite:  # else the clean test of all methods is the same
            suite = needed(suite, [spec.method])
        found = overlap.overlaps(
            suite, spec.data_root, self.reporter, fitting=self.context.fitting, limit=spec.limit
        )
        overlap.check(found, allow=spec.allow_overlap)
        return found

    # ------------------------------------------------------------------ adaptation
    def adapt(self) -> None:
        spec, started = self.spec, time.perf_counter()
        few = None if is_deterministic(spec.method) else self.few
        batches, facts = self.labelled(few) if few else self.paired()
        self.identity = self.sources.of_adaptation(spec)
        key = f"{spec.adapt_hash} {digest(self.identity)}"
        checkpoint = Checkpoint(self.folder.inside("checkpoint") / "state.pt", key)
        outcome = None
        if few and self.method.fits:
            few.fit(self.method)
        elif self.method.trainable_parameters():
            frozen = frozen_digests(self.method)
            outcome = self.train(batches, few.recipe() if few else spec.recipe, checkpoint)
            check_frozen(self.method, frozen)
        if self.world.is_first:
            self.keep(outcome, facts, self.cost(batches, outcome, time.perf_counter() - started))

    def labelled(self, few: FewLabels) -> tuple[ClassBatches, dict[str, Any]]:
        """Return batches of labelled images, to whose classes the method belongs from now on, and facts about them."""
        rank, size = self.share()
        batches = few.batches(self.method, rank=rank, size=size)
        self.method.bind(batches.classes)
        return batches, few.facts()

    def paired(self) -> tuple[PairBatches, dict[str, Any]]:
        """Return batches of image-report pairs, and facts about them."""
        spec, corpus = self.spec, self.corpus()
        trains = bool(self.method.trainable_parameters())
        rank, size = self.share()
        batches = PairBatches(
            self.method,
            corpus,
            self.context.frozen,
            batch_size=spec.recipe.batch_size if trains else min(spec.recipe.batch_size, len(corpus)),
            seed=spec.seed,
            device=self.device,
            num_workers=spec.num_workers,
            length_bucket=spec.recipe.length_bucket,
            rank=rank,
            size=size,
        )
        cut = cut_texts(self.method.backbone, self.context.frozen.token_ids(corpus.texts))
        facts = {"pairs": len(corpus), **corpus.facts}
        facts |= {"cut_texts": cut} if cut > _FEW_CUT * len(corpus) else {}
        if self.doubts:
            facts["data_notes"] = [*(corpus.facts.get("data_notes") or ()), self.doubts]
        return batches, facts

    def share(self) -> tuple[int, int]:
        """Return which part of a batch is this process's, and of how many."""
        shared = self.method.splits or self.spec.recipe.negatives == "local"
        return (self.world.rank, self.world.size) if shared else (0, 1)

    def keep(self, outcome: Adaptation | None, facts: dict[str, Any], cost: dict[str, Any]) -> None:
        if outcome is not None:
            self.folder.write_history(outcome.history)
        self.folder.write_tensors("adapter.safetensors", self.method.trainable_state())
        adapter = self.folder.inside("adapter.safetensors").stat().st_size
        self.folder.write_json("efficiency.json", {**cost, "adapter_bytes": adapter})
        best = None if outcome is None else outcome.best
        made_of: dict[str, Any] = {
            "adapt_hash": self.spec.adapt_hash,
            identity.KEY: self.identity,
            "best": best,
        }
        self.folder.write_json("adapt.json", made_of | facts)

    def train(self, batches: Batches, recipe: Recipe, checkpoint: Checkpoint) -> Adaptation:
        validate, metric = (None, "") if self.few else self.selector()
        return Trainer(
            self.method,
            batches,
            recipe,
            validate=validate,
            metric=metric,
            checkpoint=checkpoint,
            device=self.device,
            reporter=self.reporter,
            world=self.world,
        ).run()

    def selector(self) -> tuple[Validate, str]:
        """Return what scores the method on the validation set, and the score that selects."""
        entry = self.spec.suite.get("validation") or {}
        if lacking := {"task", "metric"} - set(entry):
            raise ConfigError(
                f"suite '{self.spec.suite_name}': validation needs the keys {', '.join(sorted(lacking))}"
            )
        return self.validator(entry), entry["metric"]

    def corpus(self) -> PairData:
        """Return the pairs to adapt on; without any, a method that trains nothing has its costs read off blank ones."""
        try:
            return self.pairs or self.stored_pairs()
        except BenchmarkError:
            if self.method.trainable_parameters():
                raise
            count = max(_FLOPS_PAIRS, self.spec.recipe.batch_size)
            return blank_pairs(self.method.backbone.input_spec.size, self.prompts, count)

    def stored_pairs(self) -> PairData:
        entry = None if self.few else self.spec.suite.get("corpus")
        if not entry:
            raise DataError(f"suite '{self.spec.suite_name}' has no corpus")
        prepared = load_dataset(entry, self.spec.data_root, self.reporter, self.context.fitting)
        return read_pairs(entry, prepared, self.spec.limit)

    def cost(self, batches: Batches, outcome: Adaptation | None, seconds: float) -> dict[str, Any]:
        """Return the cell's efficiency figures; FLOPs are those of the towers at work, not of cached features."""
        rows = np.arange(_FLOPS_PAIRS) % batches.pairs  # a smaller corpus gives some of them twice

        def measured(what: str, *, cached: bool) -> dict[str, Any]:
            batch = batches.batch(rows, cached=cached)
            sizes = {name: [*one.shape] for name, one in vars(batch).items() if isinstance(one, torch.Tensor)}
            count = partial(measure_method, self.method.train(), batch, pairs=_FLOPS_PAIRS)
            return self.counted(what, count, *self.what_counts(), sizes)

        figures = dict(measured("step", cached=False))
        if batches.constant and outcome is not None:
            cached = measured("cached step", cached=True)
            figures["step_flops_per_pair_cached"] = cached["step_flops_per_pair"]
        times = step_times(*((outcome.step_seconds, outcome.step_waits) if outcome else ((), ())))
        median = times["step_time_p50_s"]
        costs = {
            **figures,
            **self.counted(
                "use",
                lambda: inference_costs(self.method, self.prompts, self.frozen_flops),
                *self.what_counts(),
            ),
            **times,
            "images_per_s": self.spec.recipe.batch_size / median if median else None,
            "peak_memory_bytes": outcome.peak_memory if outcome else None,
            "wall_time_s": seconds if outcome is None else outcome.wall_seconds,
            "cached_features": batches.constant,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
        }
        some = np.arange(min(self.spec.recipe.eval_batch_size, batches.pairs))
        learnt = self.method.eval().figures(lambda: batches.batch(some))
        return {**costs, **({"learnt": learnt} if learnt else {})}

    def counted(self, what: str, count: Callable[[], Any], *own: Any) -> Any:
        """Return operations that are counted, once for all cells of a process that would count the same.

        A count depends on sizes: neither on the seed nor on what was learnt.
        """
        spec = self.spec
        model = [spec.backbone, self.sources.weights, spec.recipe.precision, spec.device]
        key = digest([what, model, self.prompts, own])
        if key not in _COUNTED:
            _COUNTED[key] = count()
        return _COUNTED[key]

    def what_counts(self) -> list[Any]:
        """Return what the operations of a method depend on, beside the model."""
        spec, recipe = self.spec, self.spec.recipe
        # a loss may ask for each label of a corpus
        labels = None if "support" in spec.suite else spec.suite.get("corpus")
        method = [spec.method, id(type(self.method)), spec.options]
        return [*method, labels, recipe.loss, recipe.logit_scale, recipe.gradient_checkpointing]

    # ------------------------------------------------------------------ evaluation
    def with_memory(self, run: Callable[[TaskContext], T]) -> T:
        """Call with the surroundings of an evaluation; where memory does not suffice, with half the images at a time.

        Raises:
            CellError: it does not suffice for one image.
        """
        while True:
            try:
                return run(self.context)
            except torch.OutOfMemoryError as error:
                if self.context.batch_size == 1:
                    raise CellError(
                        "out of memory in evaluation with one image at a time: use a smaller backbone or --device cpu"
                    ) from error
            self.context = replace(self.context, batch_size=self.context.batch_size // 2)
            self.context.frozen.batch_size = self.context.batch_size
            forget(self.device)  # the error is gone, and with it the frames that held tensors
            self.reporter.log(
                f"out of memory: evaluation now takes {self.context.batch_size} images at a time"
            )

    def evaluated(
        self, task: Task, name: str, dataset: str, entry: Mapping[str, Any], context: TaskContext
    ) -> DatasetResult:
        return replace(self.towers, context=context).evaluate(task, name, dataset, entry, self.method)

    def validator(self, entry: Mapping[str, Any]) -> Validate:
        task: Task = TASKS.get(entry["task"])()
        made = {self.context.batch_size: task.validator(entry, self.context)}  # each has opened its data

        def score(method: Method, context: TaskContext) -> dict[str, float]:
            size = context.batch_size
            made[size] = made.get(size) or task.validator(entry, context)
            return made[size](method)

        return lambda method: self.with_memory(partial(score, method))

    def task(self, name: str) -> Task:
        """Return a task with its options."""
        return build_task(name, self.spec.tasks[name])

    def evaluate(self, name: str) -> None:
        """Evaluate one task on all its datasets and store it whole; test data are opened here for the first time."""
        entries, task = self.spec.tasks[name].get("datasets", {}), self.task(name)
        results: dict[str, DatasetResult] = {}
        made_of = self.sources.of_task(self.spec, name, self.identity)
        for dataset, entry in entries.items():
            leaked = np.array(sorted(overlap.leaked(self.overlaps, name, dataset)), dtype=np.str_)
            hidden = self.towers.hide({"image_id": leaked})["image_id"].tolist()
            measured = self.with_memory(partial(self.evaluated, task, name, dataset, entry))
            results[dataset] = measured.without(hidden, task.metrics)
            check_result(results[dataset], f"{name}, '{dataset}'")
            self.folder.write_npz(f"predictions/{name}-{dataset}.npz", results[dataset].predictions)
        self.folder.write_json(
            f"{name}.json",
            {
                "task": name,
                "status": "success",
                "task_hash": self.spec.task_hash(name),
                identity.KEY: made_of,
                "metrics": {
                    one.name: one.stored() for one in measured_metrics(task.metrics, results.values())
                },
                "datasets": {
                    dataset: _public(result, overlap.facts(self.overlaps, name, dataset))
                    for dataset, result in results.items()
                },
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
        frozen=FrozenFeatures(
            backbone,
            spec.data_root / "features",
            precision=spec.recipe.precision,
            batch_size=size,
            reporter=reporter,
        ),
        reporter=reporter,
        seed=spec.seed,
        preprocess=preprocess_of(backbone),
    )


def _prompts(suite: Mapping[str, Any]) -> list[str]:
    """Return a prompt for each of at most five classes: what the cost of scoring an image is measured with.

    With few labels for each class: a method may be bound to them.
    """
    few = "support" in suite
    names = (suite.get("corpus" if few else "validation") or {}).get("classes") or ["finding"]
    return [fill(tuple(suite["templates"])[:1], str(name))[0] for name in (names if few else names[:5])]


def _public(result: DatasetResult, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored of a result, and what its images share with other datasets."""
    notes = [*(result.info.get("data_notes") or ()), *shared.get("data_notes", ())]
    info = {**result.info, **shared, **({"data_notes": notes} if notes else {})}
    return {"n": result.n, "kind": result.kind, "metrics": result.metrics, "info": info}


def _headline(task: Task, results: Mapping[str, DatasetResult]) -> str:
    """Return one line such as ``rsna acc 74.3 auroc 81.1`` for the progress display."""
    words = []
    for dataset, result in results.items():
        numbers = [
            f"{metric.name} {metric.text(value)}"
            for metric in task.metrics
            if metric.headline and (value := result.metrics.get(metric.name, {}).get("value")) is not None
        ]
        words.append(" ".join([dataset, *numbers]))
    return ", ".join(words)
