"""The settings that the adapted weights depend on: if one differs, it is another cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmark.config.declared import NOT_ADAPTATION
from benchmark.config.run_config import Recipe
from benchmark.store.cells import digest


def adapt_settings(public: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a cell's public settings that its adapted weights depend on."""
    suite, recipe = public.get("suite") or {}, public.get("recipe") or {}
    unimportant = {
        item.name
        for item in dataclasses.fields(Recipe)
        if not item.metadata["hashed"]
        or (item.metadata["hashed"] == "unless default" and recipe.get(item.name) == item.default)
    }
    keys = ["backbone", "pretrained", "method", "options", "seed", "limit"]
    # Elsewhere several processes give the results of one.
    if recipe.get("negatives") == "local" and public.get("processes", 1) > 1:
        keys.append("processes")
    return {key: public.get(key) for key in keys} | {
        "recipe": {key: value for key, value in recipe.items() if key not in unimportant},
        "suite": {key: value for key, value in suite.items() if key not in NOT_ADAPTATION},
    }


def settings_key(config: Mapping[str, Any]) -> str:
    """Return a hash of all settings in a config.yaml that the adapted weights depend on, the seed left out.

    Runs of one method may be averaged only when they have the same. ``limit`` is in it.
    """
    settings = adapt_settings(config)
    return digest({key: value for key, value in settings.items() if key != "seed"})
