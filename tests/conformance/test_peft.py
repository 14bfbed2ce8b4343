"""peft's tuners go through the conformance suite: one of each kind through all of it, the others in part.

All checks on all twelve would take longer than the eleven methods together; the tuners left to the short list share
their code with one of the others: low-rank (dora), with a budget (adalora), scaling (ia3), orthogonal (oft). On the
second family, whose towers peft sees through the same wrappers, only the first of them goes through all.
"""

from __future__ import annotations

import pytest

import methods
from benchmark.conformance import CHECKS
from benchmark.small_models import FAMILIES
from tests.methods.test_peft import NAMED

IN_FULL = ("dora", "adalora", "ia3", "oft")
SHORT = (
    "declared parameter count",
    "identity at initialisation",
    "frozen tensors stay bit identical",
    "trained state survives the store",
)
CASES = [
    (name, check, family)
    for name in NAMED
    for check in CHECKS
    for family in FAMILIES
    if check in SHORT or (name in IN_FULL if family == FAMILIES[0] else name == IN_FULL[0])
]

# the small text tower's width, 48, is no multiple of OFT's 32: peft takes 24
pytestmark = pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")


@pytest.mark.parametrize(("name", "check", "family"), CASES)
def test_tuner(name: str, check: str, family: str) -> None:
    CHECKS[check](lambda backbone: methods.build(f"peft:{name}", backbone), family)


def test_the_short_list_names_checks() -> None:
    assert set(SHORT) <= set(CHECKS)
