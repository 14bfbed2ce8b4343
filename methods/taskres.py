"""TaskRes: a learned residual added to the frozen text feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmark.errors import ConfigError
from benchmark.registry import register_method
from methods.base import Method, MethodCard, choice, positive
from methods.layers.official import copy_into, flatten

SIDES: dict[str, tuple[str, ...]] = {"text": ("text",), "vision": ("image",), "both": ("image", "text")}


@dataclass(frozen=True)
class TaskResOptions:
    """Options in the authors' spelling.

    Attributes:
        residual_scale: factor on the residual. apply_to: "text" (the method), "vision" (the authors' commented-out
            image form) or "both".
    """

    residual_scale: float = 0.5
    apply_to: Literal["text", "vision", "both"] = "text"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: naming the option.
        """
        positive("residual_scale", self.residual_scale, allow_zero=True)
        choice("apply_to", self.apply_to, SIDES)


@register_method("taskres")
class TaskRes(Method):
    """One residual shared by all texts, added before normalising."""

    card = MethodCard(
        title="TaskRes",
        paper="Yu et al., CVPR 2023",
        arxiv="2211.10277",
        repository="geekyutao/TaskRes",
        equation="t' = t + residual_scale x, then normalised; t is not normalised before",
        trains="x [E], starting at zero",
        count="E per side",
        deviations=(
            "one row shared by all texts instead of one per class: classes are unknown during training",
            "added to each prompt before averaging, so that step 0 equals zero-shot",
        ),
    )
    Options = TaskResOptions
    identity_at_init = True
    cost_hint = 0.2

    def setup(self) -> None:
        """Create the residuals at zero."""
        width = self.backbone.embed_dim
        sides = SIDES[self.options.apply_to]
        self.residuals = nn.ParameterDict({side: nn.Parameter(torch.zeros(width)) for side in sides})

    def image_head(self, features: Tensor) -> Tensor:
        """Add the image residual."""
        return self._add("image", features)

    def text_head(self, features: Tensor) -> Tensor:
        """Add the text residual."""
        return self._add("text", features)

    def _add(self, side: str, features: Tensor) -> Tensor:
        if side not in self.residuals:
            return features
        return features + self.options.residual_scale * self.residuals[side]

    def expected_parameters(self) -> int:
        """Return E per side."""
        return len(SIDES[self.options.apply_to]) * self.backbone.embed_dim


def load_official(method: TaskRes, state: Mapping[str, Any]) -> None:
    """Load a shared row (``shared_row`` or ``text_feature_residuals`` of one row).

    Raises:
        StoreError: if it is missing, or holds one row per class: those are meaningless for other classes.
    """
    if "text" not in method.residuals:
        raise ConfigError(
            "official checkpoint of TaskRes: it holds a text residual; build with apply_to=text or both"
        )
    flat = {name.removeprefix("prompt_learner."): value for name, value in flatten(state).items()}
    name = "shared_row" if "shared_row" in flat else "text_feature_residuals"
    copy_into(method.residuals["text"], flat, name, who="TaskRes")
