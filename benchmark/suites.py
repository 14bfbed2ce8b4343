"""What a suite says when the user says nothing: its file, its backbone, a method's recipe and options.

Kept between calls: a report asks for the same few many times.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.config import Recipe, Settings, suite_options, suite_recipe
from benchmark.layers import read_yaml
from benchmark.paths import configs
from benchmark.registry import METHODS


def read_suite(name: str) -> dict[str, Any] | None:
    """Return a suite of ``configs/suites/``, or None when there is no such file."""
    path = configs("suites", f"{name}.yaml")
    if not path.is_file():
        return None
    return {"name": name, **_cached_yaml(path, path.stat().st_mtime_ns)}


def own_backbone(suite: Mapping[str, Any]) -> str:
    """Return the backbone that a suite runs on by default."""
    return str(suite.get("backbone") or Settings.backbone)


def recipe_of(method: str, suite: Mapping[str, Any]) -> Recipe:
    """Return `benchmark.config.suite_recipe`."""
    return _recipe(method, _said(suite))


def options_of(method: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return `benchmark.config.suite_options`."""
    return _options(METHODS.get(method), method, _said(suite))


def _said(suite: Mapping[str, Any]) -> str:
    """Return the part of a suite that recipes and options depend on, as a key."""
    return json.dumps({key: suite[key] for key in ("name", "recipe", "methods") if key in suite}, default=str)


@functools.lru_cache(maxsize=256)
def _recipe(method: str, said: str) -> Recipe:
    return suite_recipe(method, json.loads(said))


@functools.lru_cache(maxsize=256)
def _options(plugin: Any, method: str, said: str) -> dict[str, Any]:
    del plugin  # a part of the key: another class of the same name has other options
    return suite_options(method, json.loads(said))


@functools.lru_cache(maxsize=64)
def _cached_yaml(path: Path, changed: int) -> dict[str, Any]:
    del changed  # a part of the key: a file that was edited is read again
    return read_yaml(path)
