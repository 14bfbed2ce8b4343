"""peft's tuners go through the conformance suite: one of each kind through all of it, the others in part.

All checks on all twelve would take longer than the eleven methods together; the tuners left to the short list share
their code with one of the others: low-rank (dora), with a budget (adalora), scaling (ia3), orthogonal (oft). On the
second family, whose towers peft sees through the same wrappers, only the first of them goes. Every usable tuner of
the installed peft, named or not, makes a step in bf16 and trains the same tensors wherever it is built.
"""

from __future__ import annotations

import pytest

import methods
from benchmark.conformance.checks import CHECKS
from benchmark.conformance.small_models import FAMILIES
from methods.layers.peft_tuners import candidates, tried
from tests.methods.test_peft import NAMED

IN_FULL = ("dora", "adalora", "ia3", "oft")
SHORT = (
    "declared parameter count",
    "identity at initialisation",
    "frozen tensors stay bit identical",
    "trained state survives the store",
    "similarities and loss are not rounded",
)
EVERY = ("makes a step in bf16", "trains the same tensors once moved")
SIZES = {"c3a": {"block_size": 32}, "road": {"group_size": 32}, "vblora": {"vector_length": 32}}
"""Options of tuners whose defaults do not fit a width of 64."""
CASES = [
    (name, check, family)
    for name in NAMED
    for check in CHECKS
    for family in FAMILIES
    if (check in SHORT or name in IN_FULL if family == FAMILIES[0] else name == IN_FULL[0])
]


@pytest.mark.parametrize(("name", "check", "family"), CASES)
def test_tuner(name: str, check: str, family: str) -> None:
    CHECKS[check](lambda backbone: methods.build(f"peft:{name}", backbone), family)


@pytest.mark.parametrize("check", EVERY)
@pytest.mark.parametrize("name", [name for name in candidates() if name not in IN_FULL])
def test_every_tuner(name: str, check: str) -> None:
    if problem := tried(name).problem:
        pytest.skip(problem)
    options = {"position": "bottom", **SIZES.get(name, {})}
    CHECKS[check](lambda backbone: methods.build(f"peft:{name}", backbone, **options), FAMILIES[0])


def test_the_short_list_names_checks() -> None:
    assert {*SHORT, *EVERY} <= set(CHECKS)
