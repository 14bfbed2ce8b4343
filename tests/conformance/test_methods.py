"""Every registered method goes through every check: those of ``all`` on both tower families, the others on one."""

from __future__ import annotations

import functools

import pytest

import methods
from benchmark.conformance.checks import CHECKS
from benchmark.conformance.small_models import FAMILIES
from benchmark.registry import METHODS

# a family stands for no method; its members are tried where the family is tested
NAMES = [name for name in METHODS.names() if not METHODS.entry(name).family]
TOWERS = {"clip_svd", "kgcoop"}
"""Methods outside ``all`` that act on towers of their own, or on texts: the first family says more than the second."""


def families(name: str) -> tuple[str, ...]:
    if name in METHODS.names(extras=False):
        return FAMILIES
    return FAMILIES[:1] if name in TOWERS else FAMILIES[1:]


CASES = [(name, check, family) for name in NAMES for check in CHECKS for family in families(name)]


@pytest.mark.parametrize(("name", "check", "family"), CASES)
def test_method(name: str, check: str, family: str) -> None:
    CHECKS[check](functools.partial(methods.build, name), family)
