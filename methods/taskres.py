"""TaskRes: a learned residual added to the frozen text feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.precision import at_least_fp32
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import SIDES, Method, MethodCard, Sides
from methods.layers.official import OfficialTensors


@dataclass(frozen=True)
class TaskResOptions:
    """Options in the authors' spelling.

    Raises:
        ConfigError: ``n_classes`` without rows=per_class or the other way round, or rows per class for images.
    """

    residual_scale: float = setting(0.5, "factor on the residual", low=0)
    apply_to: Sides = setting(
        "text", "text (the method), vision (the authors' commented-out image form) or both"
    )
    rows: Literal["shared", "per_class"] = setting(
        "shared",
        "shared by all texts, or the authors' per_class: bound to one list of n_classes classes, so that it has class "
        "features alone and cannot embed reports",
    )
    n_classes: int | None = setting(None, "number of these classes", low=1)

    def __post_init__(self) -> None:
        if (self.rows == "per_class") != (self.n_classes is not None):
            raise ConfigError("n_classes: expected together with rows=per_class, and only then")
        if self.n_classes is not None and self.apply_to != "text":
            raise ConfigError(f"apply_to: expected text with rows=per_class, got '{self.apply_to}'")


@register_method("taskres")
class TaskRes(Method):
    """One residual shared by all texts, added before normalising; or the authors' one per class."""

    card = MethodCard(
        title="TaskRes",
        paper="Yu et al., CVPR 2023",
        arxiv="2211.10277",
        repository="geekyutao/TaskRes",
        equation="t' = t + residual_scale x, then normalised; t is not normalised before",
        trains="x [E], starting at zero",
        count="E per side; n_classes E with rows=per_class",
        deviations=(
            "one row shared by all texts instead of one per class: classes are unknown during training",
            "added to each prompt before averaging, so that step 0 equals zero-shot",
            "rows=per_class is the authors' form: base = mean over templates of raw features, x one row per class",
        ),
    )
    Options = TaskResOptions
    identity_at_init = True
    cost_hint = 0.2

    def setup(self) -> None:
        """Create the residuals at zero."""
        self.class_bound = self.needs_classes = self.options.rows == "per_class"
        width = self.backbone.embed_dim
        shape = (width,) if self.options.n_classes is None else (self.options.n_classes, width)
        sides = SIDES[self.options.apply_to]
        self.residuals = nn.ParameterDict({side: nn.Parameter(torch.zeros(shape)) for side in sides})

    def image_head(self, features: Tensor) -> Tensor:
        """Add the image residual."""
        return self._add("image", features)

    def text_head(self, features: Tensor) -> Tensor:
        """Add the text residual.

        Raises:
            ConfigError: with one residual per class: a text that is not one of the classes has none.
        """
        if self.options.rows == "per_class":
            raise ConfigError(
                "taskres: rows=per_class has a residual for each of its classes and none for other texts, so it "
                "cannot train on image-text pairs; use class_features, or rows=shared"
            )
        return self._add("text", features)

    def _add(self, side: str, features: Tensor) -> Tensor:
        if side not in self.residuals:
            return features
        return features + self.options.residual_scale * self.residuals[side]

    def class_features(self, token_ids: Tensor) -> Tensor:
        """Return class features ``[C, E]``; per class: row c is added to the raw mean of the templates of class c.

        Raises:
            ConfigError: if there are more or fewer classes than rows.
        """
        raw = self.backbone.text.features(token_ids.flatten(0, 1))
        return self.from_class_features(raw.unflatten(0, token_ids.shape[:2]))

    def from_class_features(self, features: Tensor) -> Tensor:
        """Return the same from the frozen tower's features ``[C, T, E]``."""
        if self.options.rows == "shared":
            return super().from_class_features(features)
        if len(features) != self.options.n_classes:
            raise ConfigError(
                f"taskres: rows=per_class is bound to its {self.options.n_classes} classes, got prompts of "
                f"{len(features)}; rows=shared works for any classes"
            )
        return functional.normalize(self._add("text", at_least_fp32(features).mean(dim=1)), dim=-1)

    def expected_parameters(self) -> int:
        """Return E per side, times the number of classes where each has its row."""
        return len(SIDES[self.options.apply_to]) * self.backbone.embed_dim * (self.options.n_classes or 1)


def load_official(method: TaskRes, state: Mapping[str, Any]) -> None:
    """Load ``text_feature_residuals``: one row, or with rows=per_class a row for each class (``shared_row``: one row).

    Raises:
        StoreError: if it is missing, or holds another number of rows: those of other classes mean nothing.
    """
    if "text" not in method.residuals:
        raise ConfigError(
            "official checkpoint of TaskRes: it holds a text residual; build with apply_to=text or both"
        )
    tensors = OfficialTensors(method, state, "prompt_learner.")
    tensors.copy(
        "shared_row" if "shared_row" in tensors else "text_feature_residuals", method.residuals["text"]
    )
