"""Retrieval: does a report find its image among all images of a dataset, and an image its report?

R@k is the share of queries whose counterpart is among the k best (CT-CLIP, arXiv 2403.17834, for reports and volumes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.backbone import cut_texts
from benchmark.backbones.towers.precision import autocast
from benchmark.data.entries import load_dataset
from benchmark.data.prepared import Prepared
from benchmark.data.samples import LabelledImages, pairs
from benchmark.errors import ConfigError
from benchmark.metrics.classification import Metric, SampleMean, stored_form
from benchmark.registry import register_task
from benchmark.settings import setting
from methods.base import Method
from tasks.base import DatasetResult, IntervalOptions, Task, TaskContext
from tasks.zeroshot import image_batches

DEPTHS = (5, 10, 50, 100)


@dataclass(frozen=True)
class RetrievalOptions(IntervalOptions):
    """Options of the task."""

    same_text: Literal["one", "apart"] = setting(
        "one", "images with the same report: any of them answers it (one), or its own alone (apart)"
    )


@register_task("retrieval")
class RetrievalTask(Task):
    """R@k of reports that look for images, and of images that look for reports, over the whole dataset."""

    title = "Retrieval"
    Options = RetrievalOptions
    metrics = (
        *(Metric(f"r{depth}", f"R@{depth}", headline=depth == DEPTHS[0],
                 references={f"r{depth}_chance": "Guessing"}) for depth in DEPTHS),
        *(Metric(f"image_r{depth}") for depth in DEPTHS),
    )  # fmt: skip
    validates = ()
    options: RetrievalOptions

    @classmethod
    def check_entry(cls, entry: Mapping[str, Any], *, validation: bool = False) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with an entry; see :meth:`Task.check_entry`."""
        yield from super().check_entry(entry, validation=validation)
        if "classes" in entry:
            yield "classes", "reports are looked for, not classes: leave it out"

    @classmethod
    def check_data(cls, entry: Mapping[str, Any], data: Prepared) -> str | None:
        """Read the reports of a dataset; see :meth:`Task.check_data`."""
        pairs("", data, limit=entry.get("limit"))
        return None

    def check(self, method: type[Method], backbone: str, rules: Sequence[str]) -> None:
        """Refuse a method whose texts have no features of their own."""
        if method.similarity is not Method.similarity or method.needs_classes or method.class_bound:
            raise ConfigError(
                f"{method.card.title} has no features of a report by itself, which retrieval compares: leave it out of "
                "this task"
            )

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Rank all images for every report, and all reports for every image."""
        prepared = load_dataset(entry, context.data_root, context.reporter, context.fitting)
        limits = [limit for limit in (entry.get("limit"), context.limit) if limit is not None]
        found = pairs(name, prepared, limit=min(limits, default=None))
        patients = prepared.manifest.get("patient_id")
        title = str(entry.get("title", name))
        data = LabelledImages(
            name, title, "multiclass", found.pixels, np.zeros(len(found), dtype=np.int64), (), found.ids,
            None if patients is None else patients.astype(str).tolist()[: len(found)], found.digest, found.facts,
        )  # fmt: skip
        cosines, cut = self.cosines(method, data, found.texts, context)
        own = np.arange(len(found))
        if self.options.same_text == "one":
            own = np.unique([" ".join(text.split()) for text in found.texts], return_inverse=True)[1]
        formulas: dict[str, SampleMean] = {}
        for start, ranks in (("r", best_ranks(cosines.T, own)), ("image_r", best_ranks(cosines, own))):
            formulas |= {f"{start}{depth}": SampleMean(ranks < depth) for depth in DEPTHS}
        sizes = np.bincount(own)[own]
        formulas |= {f"r{depth}_chance": SampleMean(_by_chance(len(found), sizes, depth)) for depth in DEPTHS}
        return DatasetResult.of(
            "retrieval",
            formulas,
            data,
            predictions=stored_form(formulas),
            info={
                "title": title,
                "same_text": self.options.same_text,
                "texts": len(np.unique(own)),
                **cut,
                **(context.preprocess.facts() if context.preprocess else {}),
                "data": data.digest,
                **data.facts,
            },
            resamples=self.options.bootstrap,
            seed=self.options.bootstrap_seed,
        )

    @torch.no_grad()
    def cosines(
        self, method: Method, data: LabelledImages, texts: list[str], context: TaskContext
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Return cosines ``[N images, N texts]`` (float64), and how many texts were cut off, if any were."""
        backbone, size = method.backbone, context.batch_size
        ids = backbone.tokenize(texts).long()
        images: list[Tensor] = []
        batches = image_batches(method, data, context, f"retrieval {data.title}")
        with autocast(context.precision, context.device):
            images = [method.embed_images(batch).float().cpu() for batch in batches]
            words = []
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                part = backbone.trim(part) if method.text_padding == "longest" else part
                words.append(method.encode_text(part.to(context.device)).float().cpu())
        cut = cut_texts(backbone, ids)
        return (torch.cat(images).double() @ torch.cat(words).double().T).numpy(), {
            "cut_reports": cut
        } if cut else {}


def best_ranks(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the rank ``[N]``, from 0, of the best counterpart of each query; equal scores rank in front of it.

    Args:
        scores: of queries with candidates, ``[N, N]``.
        group: ``[N]``; the counterparts of query i are the candidates of its group.
    """
    same = group[:, None] == group[None]
    best = np.where(same, scores, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(((scores >= best) & ~same).sum(axis=1))


def _by_chance(count: int, sizes: np.ndarray, depth: int) -> np.ndarray:
    """Return the chance ``[N]`` that one of ``sizes`` counterparts is among ``depth`` of ``count`` candidates."""
    missed = np.ones(len(sizes))
    for step in range(min(depth, count)):
        missed *= np.clip((count - sizes - step) / (count - step), 0, 1)
    return 1 - missed
