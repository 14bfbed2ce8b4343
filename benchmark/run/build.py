"""Builds the method and the tasks of a cell from their names and options."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import methods
from benchmark.backbones import Backbone
from benchmark.config.load import build_options
from benchmark.config.run_config import Recipe
from benchmark.registry import TASKS
from methods.base import Method
from tasks.base import Task

OF_RECIPE = ("logit_scale", "loss", "label_match")
"""Keys of the recipe that shape every method."""


def build_method(
    name: str, backbone: Backbone, options: Mapping[str, Any], recipe: Recipe, *, seed: int | None = None
) -> Method:
    """Return a method on a backbone, which it changes.

    Args:
        name: of the method.
        backbone: on its device; the method goes there too.
        options: the method's own.
        recipe: that it will be trained with.
        seed: of its start values; None draws from where the generators are.

    Raises:
        ConfigError: an option is wrong.
    """
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (for plugins that draw from the global generator)
        torch.manual_seed(seed)
    common = {key: getattr(recipe, key) for key in OF_RECIPE}
    return methods.build(name, backbone, **options, **common).to(backbone.logit_scale.device)


def build_task(name: str, settings: Mapping[str, Any]) -> Task:
    """Return a task with the options of a cell; its datasets are left out.

    Raises:
        ConfigError: an option is wrong.
    """
    plugin = TASKS.get(name)
    options = {key: value for key, value in settings.items() if key != "datasets"}
    made: Task = plugin(build_options(plugin.Options, options))
    return made
