"""Grounding: whether the similarity of patches with a finding's prompts shows where the finding is.

Protocol of the ACE-LoRA paper's Figure 3: cosines of all patch features with the text feature of the finding,
up-sampled to the image and laid beside the radiologists' boxes. Nothing is trained. The paper shows two films and gives
no numbers; the metrics are those of ``benchmark/metrics/grounding.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmark.backbones.towers.precision import autocast
from benchmark.errors import ConfigError
from benchmark.metrics.classification import Array, Metric, SampleMean, WeightedMetric, stored_form
from benchmark.metrics.grounding import boxed, central_map, scores_of
from benchmark.preprocess import preprocess_of
from benchmark.registry import register_task
from benchmark.settings import setting
from methods.base import Method
from tasks.base import DatasetResult, IntervalOptions, Task, TaskContext
from tasks.dense import CONSTANT_ANSWER
from tasks.heads.images import DenseImages, panel_rows, read_part
from tasks.zeroshot import class_tokens


@dataclass(frozen=True)
class GroundingOptions(IntervalOptions):
    """Options of the task."""

    panels: int = setting(6, "images that are stored with boxes and map", low=0)


@register_task("grounding")
class GroundingTask(Task):
    """Pointing game, AUROC of pixels and contrast-to-noise ratio, each with an interval clustered by patient."""

    title = "Grounding"
    Options = GroundingOptions
    metrics = (
        Metric(
            "pointing",
            "pointing game",
            references={"pointing_trivial": CONSTANT_ANSWER, "pointing_random": "A random place"},
        ),
        Metric("map_auroc", "map AUROC", headline=True, references={"map_auroc_trivial": CONSTANT_ANSWER}),
        Metric("cnr", "CNR", unit="", references={"cnr_trivial": CONSTANT_ANSWER}),
        Metric("cnr_signed", "signed CNR", unit="", references={"cnr_signed_trivial": CONSTANT_ANSWER}),
    )
    needs = ("positive",)
    validates = ()

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Map the finding (``positive`` of the entry) on every image that shows it, and compare with its boxes."""
        texts, column = _finding(entry, name)
        whole = entry if "test" in entry else {**entry, "test": {}}
        data = read_part(whole, "test", "boxes", context, preprocess_of(method.backbone).fitting)
        grids = similarity_maps(method, data, texts, column, context)
        insides = [boxed(boxes, data.size) for boxes in data.boxes or ()]
        maps = (upsample(grid, data.size) for grid in grids)
        found = {metric: SampleMean(values) for metric, values in scores_of(maps, insides).items()}
        return DatasetResult.of(
            "grounding",
            self.formulas(found, insides, data),
            data,
            predictions=stored_form(found) | _panels(data, grids, panel_rows(data.ids, self.options.panels)),
            info={
                "title": data.title,
                "finding": texts[column],
                "templates": list(context.templates),
                "grid": list(grids.shape[1:]),
                "data": data.digest,
            },
            resamples=self.options.bootstrap,
            seed=self.options.bootstrap_seed,
        )

    @staticmethod
    def formulas(
        found: Mapping[str, WeightedMetric], insides: list[Array], data: DenseImages
    ) -> dict[str, WeightedMetric]:
        """Return all metrics.

        ``..._trivial`` is the map that is highest in the middle of every image; ``pointing_random`` a random pixel's
        hit rate, which is the share of the image inside boxes.
        """
        trivial = scores_of([central_map(data.size)] * len(insides), insides)
        return {
            **found,
            **{f"{metric}_trivial": SampleMean(values) for metric, values in trivial.items()},
            "pointing_random": SampleMean(np.array([inside.mean() for inside in insides])),
        }


@torch.no_grad()
def similarity_maps(
    method: Method, data: DenseImages, texts: tuple[str, ...], column: int, context: TaskContext
) -> Array:
    """Return the cosines of all patches with one class, float32 ``[N, h, w]`` on the tower's grid.

    Args:
        method: in eval mode.
        data: images.
        texts: all classes, as they enter the templates.
        column: the class that is mapped.
        context: of the evaluation.
    """
    grid, parts = method.backbone.image.grid, []
    context.reporter.start(f"grounding {data.title}", len(data))
    with autocast(context.precision, context.device):
        classes = method.prepare_classes(class_tokens(method, texts, context))
        for start in range(0, len(data), context.batch_size):
            rows = range(start, min(len(data), start + context.batch_size))
            pixels = np.stack([data.pixels(row) for row in rows])
            images = method.backbone.input_spec.to_input(pixels, context.device)
            parts.append(method.classify_patches(images, classes)[..., column].float())
            context.reporter.advance(len(rows))
    return torch.cat(parts).unflatten(1, grid).cpu().numpy()


def upsample(grid: Array, size: tuple[int, int]) -> Array:
    """Return a map ``[h, w]`` of patches as one of pixels ``[H, W]``: bilinear between the patches' centres."""
    values = torch.from_numpy(np.asarray(grid, dtype=np.float64))[None, None]
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _finding(entry: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], int]:
    """Return the class texts of an entry and the place of the finding that its boxes show."""
    finding = entry.get("positive")
    classes = list(entry.get("classes") or [finding])
    if finding is None or finding not in classes:
        raise ConfigError(
            f"grounding on '{name}': no key 'positive' names the finding that the boxes show, one of 'classes'"
        )
    prompts = entry.get("prompts") or {}
    return tuple(str(prompts.get(label, label)) for label in classes), classes.index(finding)


def _panels(data: DenseImages, grids: Array, shown: Array) -> dict[str, Array]:
    assert data.boxes is not None  # read_part saw to it
    boxes = [data.boxes[row] for row in shown]
    return {
        "panel_id": np.array(data.ids)[shown],
        "panel_pixels": np.stack([data.pixels(row) for row in shown]) if len(shown) else np.empty(0),
        "panel_truth": np.concatenate([np.empty((0, 4)), *boxes]).astype(np.float32),
        "panel_truth_image": np.repeat(np.arange(len(shown)), [len(one) for one in boxes]),
        "panel_map": grids[shown],
    }
