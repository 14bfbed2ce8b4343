"""Retrieval: ranks by hand, reports that several images share, chance, the task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark.errors import ConfigError
from benchmark.registry import METHODS
from tasks.retrieval import RetrievalOptions, RetrievalTask, _by_chance, best_ranks
from tests.small import context, method


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.9], [0.3, 0.3, 0.3]])
    assert best_ranks(scores, np.arange(3)).tolist() == [0, 2, 2]  # equal scores are no hit
    assert best_ranks(scores, np.array([0, 1, 1])).tolist() == [0, 0, 1]


def test_chance_by_hand() -> None:
    assert _by_chance(10, np.array([1, 2, 10]), 1).tolist() == pytest.approx([0.1, 0.2, 1.0])
    assert _by_chance(4, np.array([1]), 9).tolist() == [1.0]


def test_ranks_of_a_dataset(tmp_path: Path) -> None:
    wrapped = method("zero_shot").eval()
    entry = {"dataset": "phantom", "part": "mimic", "n": 24}
    found = {}
    for same in ("one", "apart"):
        task = RetrievalTask(RetrievalOptions(bootstrap=10, same_text=same))
        result = task.evaluate(wrapped, entry, "here", context(wrapped.backbone, tmp_path))
        values = {name: one["value"] for name, one in result.metrics.items()}
        assert values["r50"] == values["image_r50"] == 1
        assert values["r5"] <= values["r10"]
        assert values["r5_chance"] == pytest.approx(5 / 24, abs=0.1)
        found[same] = values["r5"]
    assert found["one"] >= found["apart"]


def test_a_method_without_features_of_reports_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no features of a report by itself"):
        RetrievalTask().check(METHODS.get("cocoop"), "tiny", ("global",))
