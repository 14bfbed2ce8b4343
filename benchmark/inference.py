"""What using an adapted model costs beyond the frozen one, in floating-point operations.

Per image: scoring it against a few classes whose prompts are encoded beforehand (CoCoOp encodes them anew for every
image). Per text: encoding one prompt. FLOPs are counted as in ``benchmark/efficiency.py``; they do not depend on what
the images show, so blank ones do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmark.data.samples import Batch
from benchmark.efficiency import flops
from benchmark.precision import similarity

if TYPE_CHECKING:
    from benchmark.backbones import Backbone
    from methods.base import Method

_IMAGES = 2


@dataclass(frozen=True)
class InferenceFlops:
    """Operations per image and per text."""

    image: float
    text: float


@torch.no_grad()
def frozen_flops(backbone: Backbone, prompts: Sequence[str]) -> InferenceFlops:
    """Count what the frozen model does; call it before a method wraps the backbone.

    Args:
        backbone: as it was loaded.
        prompts: one per class.
    """
    images, ids = _inputs(backbone, prompts)
    texts = backbone.text.features(ids)

    def score() -> Tensor:
        return similarity(backbone.image.features(images), texts)

    return InferenceFlops(flops(score) / len(images), flops(lambda: backbone.text.features(ids)) / len(ids))


@torch.no_grad()
def inference_costs(method: Method, prompts: Sequence[str], frozen: InferenceFlops) -> dict[str, Any]:
    """Count what the adapted model does, as keys of efficiency.json.

    Args:
        method: left in eval mode.
        prompts: as for :func:`frozen_flops`.
        frozen: what that returned for the same backbone.

    Returns:
        inference_flops_per_image, inference_flops_per_text; inference_overhead: operations per image as a multiple of
        the frozen model's; inference_overhead_merged: the same once all that the frozen weights can take up is folded
        into them, None where there is nothing of the kind.
    """
    method.eval()
    with _needing_no_gradient(method):
        adapted = _adapted_flops(method, prompts)
        merged = _merged_overhead(method, prompts, adapted, frozen)
    return {
        "inference_flops_per_image": adapted.image,
        "inference_flops_per_text": adapted.text,
        "inference_overhead": adapted.image / frozen.image,
        "inference_overhead_merged": merged,
    }


@contextlib.contextmanager
def _needing_no_gradient(method: Method) -> Iterator[None]:
    """Let no parameter ask for a gradient: torch's counter fails on a module that returns a view of one that does."""
    trained = list(method.trainable_parameters().values())
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _merged_overhead(
    method: Method, prompts: Sequence[str], adapted: InferenceFlops, frozen: InferenceFlops
) -> float | None:
    if method.mergeable:  # the whole method becomes a plain backbone (checked for every method that says so)
        return 1.0
    with contextlib.ExitStack() as stack:
        for tower in (method.backbone.image, method.backbone.text):
            stack.enter_context(tower.without_deltas(only_foldable=True))
        rest = _adapted_flops(method, prompts)
    return None if rest == adapted else rest.image / frozen.image


def _adapted_flops(method: Method, prompts: Sequence[str]) -> InferenceFlops:
    images, ids = _inputs(method.backbone, prompts, context=method.text_padding == "context")
    classes = method.prepare_classes(ids[:, None])
    score = flops(lambda: method.classify(Batch(images=images), classes))
    return InferenceFlops(score / len(images), flops(lambda: method.encode_text(ids)) / len(ids))


def _inputs(backbone: Backbone, prompts: Sequence[str], *, context: bool = False) -> tuple[Tensor, Tensor]:
    spec, device = backbone.input_spec, backbone.logit_scale.device
    ids = backbone.tokenize(prompts).long()
    ids = ids if context else backbone.trim(ids)
    return torch.zeros(_IMAGES, len(spec.mean), *spec.size, device=device), ids.to(device)
