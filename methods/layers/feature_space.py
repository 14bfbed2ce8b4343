"""What classifiers in feature space share: they are fitted to the frozen features of labelled images, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.precision import full_precision, similarity
from benchmark.errors import ConfigError, StoreError
from methods.base import LogitScale, Method
from methods.supervision import Classes


class FeatureSpace(Method):
    """Base of classifiers that :meth:`fit` makes; both towers stay as they are, and so does the logit scale.

    Class attributes:
        learnt: names of the tensors that a fit leaves.
        cosines: whether scores are cosines with rows of ``weights``; else the logit scale is 1 and scores are logits.
    """

    class_bound = True
    needs_classes = True
    fits: ClassVar[bool] = True
    cost_hint = 0.1
    learnt: ClassVar[tuple[str, ...]] = ("weights",)
    cosines: ClassVar[bool] = True
    fitted: nn.ParameterDict

    def setup(self) -> None:
        """Hold the logit scale."""
        self.model_scale = float(self.backbone.logit_scale.detach())
        self.logit_scale = LogitScale(self.model_scale if self.cosines else 1.0, "frozen")
        self.fitted = nn.ParameterDict()
        self.register_buffer("bound", None, persistent=False)
        self.register_buffer("text", None, persistent=False)

    def bind(self, classes: Classes) -> None:
        """Belong to these classes: their prompts, by which they are known again, and the frozen model's features."""
        self.bound = self._prompts(classes.prompts)
        self.text = classes.frozen()

    def keep(self, **tensors: Tensor) -> None:
        """Hold what a fit has found."""
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(value.detach()) for name, value in tensors.items()}
        )

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`trainable_state` returned; shapes follow from the images of the fit."""
        names = {f"fitted.{name}": name for name in self.learnt}
        if set(state) != set(names):
            raise StoreError(
                f"adapter of {self.card.title}: expected the tensors {', '.join(sorted(names))}, got "
                f"{', '.join(sorted(state))}; was it made with another method?"
            )
        device = self.logit_scale.value.device
        self.keep(**{name: state[full].to(device) for full, name in names.items()})

    def expected_parameters(self) -> int:
        """Return C E."""
        return self.classes * self.backbone.embed_dim

    @property
    def classes(self) -> int:
        """Number of bound classes."""
        return 0 if self.bound is None else len(self.bound)

    # ------------------------------------------------------------------ scores
    def classifier(self) -> Tensor:
        """Return what :meth:`scores` needs of the classes."""
        return functional.normalize(self.fitted["weights"], dim=-1)

    def scores(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return scores ``[..., C]`` of unit-norm features ``[..., E]``."""
        return similarity(features, classes)

    def from_class_features(self, features: Tensor) -> Tensor:
        """Return the classifier of the bound classes."""
        return self.classifier()

    def prepare_classes(self, token_ids: Tensor) -> Tensor:
        """Return the classifier.

        Raises:
            ConfigError: these are not the prompts of the bound classes.
        """
        if self.bound is None or not torch.equal(self._prompts(token_ids), self.bound):
            raise ConfigError(
                f"{self.card.title} is bound to the {self.classes} classes that it was fitted to and has no scores for "
                f"these {len(token_ids)}: evaluate it on its own classes and prompts"
            )
        return self.classifier()

    def classify(self, batch: Any, classes: Tensor) -> Tensor:
        """Return scores ``[B, C]``, which the logit scale multiplies."""
        return self.scores(self.embed_images(batch), classes)

    def classify_patches(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return scores ``[B, N, C]`` of all patches."""
        return self.scores(self.patch_features(images), classes)

    def _prompts(self, token_ids: Tensor) -> Tensor:
        """Return prompts ``[C, T, L]`` without the padding that they do not need."""
        return self.backbone.trim(token_ids.flatten(0, 1)).unflatten(0, token_ids.shape[:2])


class Affine(FeatureSpace):
    """Base of those whose logits are ``f w_c + b_c``."""

    learnt = ("weights", "bias")
    cosines = False

    def classifier(self) -> Tensor:
        """Return weights and biases ``[C, E + 1]``."""
        return torch.cat([self.fitted["weights"], self.fitted["bias"][:, None]], dim=1)

    def scores(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return logits ``[..., C]``."""
        with full_precision(features.device):
            return similarity(features, classes[:, :-1]) + classes[:, -1]

    def expected_parameters(self) -> int:
        """Return C (E + 1)."""
        return self.classes * (self.backbone.embed_dim + 1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class indices ``[N]`` as ``[N, C]`` of 0 and 1."""
    return functional.one_hot(labels, classes).float()
