"""What a requirement for methods is: how a check is registered, and how it says what it saw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.conformance import probes
from benchmark.conformance.small_models import Build, moved
from methods.base import Method

Check = Callable[[Build, str], None]
CHECKS: dict[str, Check] = {}


class ConformanceError(AssertionError):
    """A method violates a requirement for methods, or its own declaration."""


def check(run: Check) -> Check:
    """Register a check under its name, underscores as spaces."""
    CHECKS[run.__name__.removeprefix("_").replace("_", " ")] = run
    return run


def check_in_eval(run: Callable[[Method, Any], None]) -> None:
    """Register a check of a method in eval mode, without gradients, its trained values moved from their start."""

    @check
    @functools.wraps(run)
    def wrapped(build: Build, family: str) -> None:
        method, batch = moved(build, family)
        with torch.no_grad():
            run(method.eval(), batch)


def hold(condition: bool, what: str) -> None:
    """Raise ConformanceError where something does not hold."""
    if not condition:
        raise ConformanceError(what)


def close(ours: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Hold that two tensors agree in shape and, to an absolute tolerance, in value."""
    hold(*probes.close(ours, expected, what, tolerance))


def none(names: Sequence[str], what: str) -> None:
    """Hold that a list of names is empty."""
    hold(not names, f"{what}: {', '.join(names[:3])}")
