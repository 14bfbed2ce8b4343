"""The table of mutants follows the code; ``python -m tests.mutants`` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.table import MUTANTS

ROOT = Path(__file__).resolve().parents[1]


def test_there_are_mutants_of_every_area_and_no_name_twice():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert len(names) >= 40
    areas = {name.partition(":")[0] for name in names}
    assert {
        "loss",
        "auroc",
        "bootstrap",
        "holm",
        "delong",
        "iou",
        "ap",
        "dice",
        "rle",
        "hypergraph",
        "lora",
    } <= areas


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_changes_its_file_and_its_tests_exist(mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.applied(text) != text
    for test in mutant.tests:
        assert (ROOT / test.partition("::")[0]).is_file()
