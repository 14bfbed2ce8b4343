"""What runs the cells of a plan: this machine (`local`) or a Ray cluster (`ray`); each file has ``run(grid, ...)``."""

from __future__ import annotations

import os
from collections.abc import Callable


def ray_engine() -> Callable[..., None]:
    """Return the ``run`` of the Ray engine; ModuleNotFoundError where Ray is not installed."""
    # Ray copies messages of its own processes into our output, logs of dead ones among them; and it reports its use.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"[\s\S]*")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from benchmark.engines.ray import run

    return run
