"""Every registered method goes through every check, on both tower families."""

from __future__ import annotations

import functools

import pytest

import methods
from benchmark.conformance.checks import CHECKS
from benchmark.conformance.small_models import FAMILIES
from benchmark.registry import METHODS

# a family stands for no method; its members are tried where the family is tested
NAMES = [name for name in METHODS.names() if not METHODS.entry(name).family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", list(CHECKS))
@pytest.mark.parametrize("name", NAMES)
def test_method(name: str, check: str, family: str) -> None:
    CHECKS[check](functools.partial(methods.build, name), family)
