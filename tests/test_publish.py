"""The search of learning rates follows its rule, and pages show what the files of results/reference hold."""

from __future__ import annotations

import importlib
import sys

import pytest

from benchmark.config.load import load_config
from benchmark.files import ROOT

FOLDER = str(ROOT / "results" / "reference")


@pytest.fixture(scope="module")
def rates():
    sys.path.insert(0, FOLDER)
    yield importlib.import_module("learning_rates")
    sys.path.remove(FOLDER)


@pytest.fixture(scope="module")
def publish(rates):
    return importlib.import_module("publish")


@pytest.mark.parametrize(
    ("tried", "following"),
    [
        ({}, 1e-3),
        ({1e-3: 0.5}, 3.3e-4),
        ({1e-3: 0.5, 3.3e-4: 0.9}, 3e-3),
        ({1e-3: 0.5, 3.3e-4: 0.9, 3e-3: 0.1}, 1.1e-4),  # beyond the lower edge
        ({1e-3: 0.5, 3.3e-4: 0.1, 3e-3: 0.9}, 9e-3),  # beyond the upper one
        ({1e-3: 0.9, 3.3e-4: 0.1, 3e-3: 0.5}, 1.7e-3),  # towards the better neighbour
        ({1e-3: 0.9, 3.3e-4: 0.5, 3e-3: 0.1}, 5.7e-4),
    ],
)
def test_the_next_candidate_follows_from_those_tried(rates, tried, following):
    assert rates.proposed(1e-3, tried) == following


def test_of_equal_rates_the_smallest_is_best_and_an_edge_is_seen(rates):
    tried = {1e-3: 0.9, 3e-3: 0.9, 1e-2: 0.1, 3e-4: 0.2}
    assert rates.best(tried) == 1e-3
    assert not rates.on_edge(tried)
    assert rates.on_edge({1e-3: 0.9, 3e-3: 0.5})


def test_every_method_of_the_suite_that_trains_is_searched(rates):
    everyone = set(load_config({"methods": "all", "tasks": "none"}).methods)
    volumes = {
        "zero_shot",
        "clip_lora",
        "full_ft",
        "molre",
        "taskres",
    }  # those that the suite of volumes is shown with
    for suite, prior in rates.PRIOR.items():
        assert set(prior) | {"zero_shot"} == (volumes if suite == "phantom_ct" else everyone), suite


def test_a_block_is_replaced_whole(publish):
    page = "a\n<!-- x: begin -->\nold\nold\n<!-- x: end -->\nb"
    assert publish.replaced(page, "x", "new") == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb"
    with pytest.raises(ValueError, match="no place for 'y'"):
        publish.replaced(page, "y", "new")


@pytest.mark.parametrize("name", ["result", "judged", "start", "references", "rates"])
def test_pages_show_what_the_files_hold(publish, name):
    page, make = publish.BLOCKS[name]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert publish.replaced(text, name, make()) == text, "python results/reference/publish.py"
