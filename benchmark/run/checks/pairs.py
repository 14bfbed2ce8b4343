"""Checks with the frozen model whether the texts of a corpus belong to its images.

A file does not show that its texts were shuffled. But a model that knows the domain prefers true pairs to permuted
ones; if it does not, the run reports it and goes on, because the model may simply not know such images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from benchmark.data.features import FrozenFeatures
from benchmark.data.prepared import take
from benchmark.data.samples import PairData

PAIRS = 128
"""Pairs that are looked at, spread evenly over the corpus."""
_PERMUTATIONS = 999
_LEVEL = 0.05


def pairs_match(corpus: PairData, frozen: FrozenFeatures) -> float:
    """Return the share of text permutations that a frozen model prefers to the given order, ties included.

    Args:
        corpus: at most ``PAIRS`` of its pairs are looked at.
        frozen: of the model before adaptation; features are computed once and kept.

    Returns:
        The p-value of a one-sided permutation test of the mean cosine of image and text.
    """
    rows = np.unique(np.linspace(0, len(corpus) - 1, min(PAIRS, len(corpus))).round().astype(np.intp))
    images = frozen.of_images(take(corpus.pixels, rows), f"{corpus.digest}:{len(rows)} spread")
    texts = frozen.of_texts(frozen.token_ids([corpus.texts[row] for row in rows]))
    with torch.no_grad():
        cosines = (
            (functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T).double().numpy()
        )
    generator, here = np.random.default_rng(0), np.arange(len(rows))
    drawn = [cosines[here, generator.permutation(len(rows))].mean() for _ in range(_PERMUTATIONS)]
    return float((1 + np.sum(np.array(drawn) >= np.trace(cosines) / len(rows) - 1e-12)) / (1 + _PERMUTATIONS))


def warning(corpus: PairData, chance: float) -> str:
    """Return the line that a run shows and keeps, or an empty one where images and texts fit."""
    if chance <= _LEVEL:
        return ""
    return (
        f"corpus '{corpus.name}': the frozen model likes its pairs no more than permuted ones (p = {chance:.2f}): "
        "either it knows nothing of such images, or texts and images were shuffled against each other"
    )
