"""The few-shot experiment's page shows what results/reference/fewshot holds; the suite has the chosen rates."""

from __future__ import annotations

import importlib
import json
import sys

import pandas as pd
import pytest

from benchmark.config.load import load_config
from benchmark.files import ROOT

FOLDER = str(ROOT / "results" / "reference")


@pytest.fixture(scope="module")
def published():
    sys.path.insert(0, FOLDER)
    yield importlib.import_module("fewshot")
    sys.path.remove(FOLDER)


def test_the_page_shows_what_the_files_hold(published):
    text = published.PAGE.read_text(encoding="utf-8")
    blocks = list(published.blocks())
    assert blocks
    for name, content in blocks:
        assert published.replaced(text, name, content) == text, "python results/reference/fewshot.py publish"


def test_the_suite_has_the_rates_that_were_chosen(published):
    frame = pd.read_csv(published.RESULTS / "rates.csv")
    chosen = frame[frame.chosen == 1].set_index("method").lr
    flags = {"suite": "phantom", "protocol": "fewshot", "shots": "4", "methods": "all,fewshot"}
    recipes = load_config(flags).recipes
    assert set(chosen.index) == set(published.TRAINED)
    assert {name: recipes[name].lr for name in chosen.index} == dict(chosen)
    for name, tried in frame.groupby("method"):
        assert published.best(dict(zip(tried.lr, tried["mean"], strict=True))) == chosen[name]
        assert tuple(sorted(tried.lr)) == published.RATES


def test_of_equal_rates_the_smallest_is_taken(published, tmp_path):
    assert published.best({1e-3: 0.5, 3e-3: 0.5, 1e-2: 0.4}) == 1e-3
    for rate, scores in ((0.001, (0.4, 0.6)), (0.01, (0.7, 0.5)), (0.1, (0.9, None))):
        for shots, score in zip(published.SHOTS, scores, strict=True):
            cell = tmp_path / f"lr={rate:g}" / "runs" / "s" / "b" / f"coop+{shots}" / "seed-100"
            cell.mkdir(parents=True)
            (cell / "config.yaml").write_text(
                f"{{method: coop, recipe: {{lr: {rate}}}, suite: {{support: {{shots: {shots}}}}}}}"
            )
            if score is not None:
                found = {published.SET: {"metrics": {"acc": {"value": score}}}}
                (cell / "zeroshot.json").write_text(json.dumps({"datasets": found}))
    rows = published.searched(tmp_path)  # a rate that lacks a number of shots is not finished
    assert [(row["lr"], row["mean"], row["chosen"]) for row in rows] == [
        (0.001, "0.5000", 0),
        (0.01, "0.6000", 1),
    ]
