"""Every registered method goes through every check, on both tower families."""

from __future__ import annotations

import pytest

import methods
from benchmark.conformance import CHECKS, FAMILIES
from benchmark.registry import METHODS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", list(CHECKS))
@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str, check: str, family: str) -> None:
    CHECKS[check](lambda backbone: methods.build(name, backbone), family)
