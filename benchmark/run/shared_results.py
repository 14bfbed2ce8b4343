"""Results that depend on the image tower alone are measured once for all methods that do not change that tower.

They are stored in ``<output-dir>/shared/``, one folder per image tower, task settings, data entry and seed. If another
worker is making one, a worker waits for it. The reference on an untrained tower is stored there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones import Backbone, load_backbone
from benchmark.backbones.backbone import tower_digest
from benchmark.backbones.towers.precision import resolve
from benchmark.data.entries import load_dataset, parts_of
from benchmark.files import file_lock
from benchmark.metrics.classification import UNTRAINED
from benchmark.plan import CellSpec
from benchmark.run import identity
from benchmark.settings import unsaid
from benchmark.store.cells import CellFolder, UnreadableError, digest
from benchmark.store.provenance import scrub
from methods.base import Method
from tasks.base import DatasetResult, Task, TaskContext

Predictions = dict[str, np.ndarray]


FROZEN = "frozen image tower"
"""What ``<task>.json`` says under "shared" when the result is that of the tower as it was pretrained."""


_RESULT, _SAMPLES = "result.json", "predictions.npz"


@dataclass(frozen=True)
class TowerResults:
    """Evaluates tasks; those that see the image tower alone take over what another method has given.

    Attributes:
        folder: where shared results are kept. spec: of the cell. context: of its evaluations.
        hide: what is done to predictions before they are kept: identifiers may be replaced.
        weights: digest of the backbone.
    """

    folder: Path
    spec: CellSpec
    context: TaskContext
    hide: Callable[[Predictions], Predictions]
    weights: str = ""

    def evaluate(
        self, task: Task, name: str, dataset: str, entry: Mapping[str, Any], method: Method
    ) -> DatasetResult:
        """Evaluate a method, or take over what the untouched tower has given; add the untrained reference.

        Args:
            task: with its options.
            name: of the task.
            dataset: its name in results.
            entry: of the suite.
            method: adapted.
        """

        def measure(one: Method) -> DatasetResult:
            found = task.evaluate(one, entry, dataset, self.context)
            return replace(found, predictions=self.hide(found.predictions))

        said = {key: one for key, one in asdict(task.options).items() if key not in unsaid(task.options)}

        def once(tower: str, make: Callable[[], Method]) -> DatasetResult:
            key = {"task": name, "options": said, "dataset": dataset, "tower": tower}
            rests_on = {"entry": scrub(entry), **made_of(entry, self.context)}
            return self._once(key | rests_on, lambda: measure(make()))

        result = (
            once(tower_digest(method.backbone), lambda: method)
            if is_shared(task, method)
            else measure(method)
        )
        if not (task.image_only and getattr(task.options, "untrained", False)):
            return result
        spec, first = self.spec, task.metrics[0].name
        reference = once(f"untrained {spec.backbone} {self.weights}", self._untrained)
        return replace(result, metrics=result.metrics | {first + UNTRAINED: reference.metrics[first]})

    def _untrained(self) -> Method:
        backbone = load_backbone(self.spec.backbone, pretrained=self.spec.pretrained)
        forget_image_tower(backbone)
        return Method(backbone.to(self.context.device)).to(self.context.device).eval()

    def _once(self, key: Mapping[str, Any], measure: Callable[[], DatasetResult]) -> DatasetResult:
        spec = self.spec
        whole = {
            **key,
            "numbers": identity.NUMBERS,
            "seed": spec.seed,
            "limit": spec.limit,
            "arithmetic": resolve(
                spec.recipe.precision, self.context.device
            ),  # "auto" is not the same everywhere
            "device": self.context.device.type,
            **({"hash_ids": True} if spec.hash_ids else {}),
        }
        name = f"{key['task']}-{key['dataset']}-{digest(whole)}".replace("/", "-")
        cell = CellFolder(self.folder / name)
        with file_lock(cell.path / ".lock", wait=False) as held:
            if held:
                return _kept_or_made(cell, whole, measure)
        self.context.reporter.start(f"wait for the shared result of {key['task']}", 1)
        with file_lock(cell.path / ".lock", wait=True):
            return _kept_or_made(cell, whole, measure)


def is_shared(task: Task, method: Method) -> bool:
    """Return whether a method's result of a task is that of the frozen image tower."""
    return task.image_only and "image" not in method.adapts


@torch.no_grad()
def forget_image_tower(backbone: Backbone, seed: int = 0) -> None:
    """Give the image tower, in place, the random weights that its layers start with.

    Values of no layer of torch's own (class token, positions) are drawn with their tensor's mean and spread.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reset: set[int] = set()
        for name, value in backbone.model.named_parameters():
            if backbone.tower_of(name) == "image":
                owner: Any = backbone.model.get_submodule(name.rpartition(".")[0])
                start = getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None)
                if start is None:
                    _redraw(value)
                elif id(owner) not in reset:
                    reset.add(id(owner))
                    start()


def _redraw(value: Tensor) -> None:
    spread = float(value.float().std()) if value.numel() > 1 else 0.0
    value.copy_(torch.randn(value.shape) * spread + value.float().mean())


def made_of(entry: Mapping[str, Any], context: TaskContext) -> dict[str, Any]:
    """Return what a shared result depends on besides its settings: the present data."""
    opened = [
        load_dataset(part, context.data_root, context.reporter, context.fitting)
        for part in parts_of(entry)
        if "dataset" in part
    ]
    return {"data": identity.data_digest(opened)} if opened else {}


def _kept_or_made(
    cell: CellFolder, key: Mapping[str, Any], measure: Callable[[], DatasetResult]
) -> DatasetResult:
    """Return the stored result; measure and store it if it is missing or unreadable."""
    try:
        content, samples = cell.read_json(_RESULT), cell.read_npz(_SAMPLES)
        return DatasetResult(content["n"], content["kind"], content["metrics"], samples, content["info"])
    except UnreadableError:
        pass
    result = measure()
    cell.write_npz(_SAMPLES, result.predictions)
    facts = {"n": result.n, "kind": result.kind, "metrics": result.metrics, "info": result.info}
    cell.write_json(_RESULT, {"key": scrub(key), **facts})
    return result
