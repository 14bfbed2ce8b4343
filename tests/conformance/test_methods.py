"""Every registered method goes through every check on one tower family, those of ``all`` through some on the other too.

What looks at losses, classes or files, and whether a method can learn, is the same whatever the towers are.
"""

from __future__ import annotations

import functools

import pytest

import methods
from benchmark.conformance.checks import CHECKS, matching
from benchmark.conformance.small_models import FAMILIES
from benchmark.registry import METHODS

# a family stands for no method; its members are tried where the family is tested
NAMES = [name for name in METHODS.names() if not METHODS.entry(name).family]
ALL = METHODS.names(extras=False)
IN_TOWERS = {*ALL, "clip_svd", "kgcoop"}
"""Methods that act in towers, or on texts: the first family, that of the embedded backbones, says more."""
OF_TOWERS = matching(
    [
        "frozen tensors",
        "receive gradients",
        "identity",
        "alone",
        "deterministic",
        "padding",
        "in bf16 and",
        "merge",
    ]
)

CASES = [(name, check, FAMILIES[0 if name in IN_TOWERS else 1]) for name in NAMES for check in CHECKS]
CASES += [(name, check, FAMILIES[1]) for name in ALL for check in OF_TOWERS]


@pytest.mark.parametrize(("name", "check", "family"), CASES)
def test_method(name: str, check: str, family: str) -> None:
    CHECKS[check](functools.partial(methods.build, name), family)
