"""Requirements of methods where class labels supervise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.conformance.requirements import check, check_in_eval, close, hold, none
from benchmark.conformance.small_models import Build, class_scores, made, with_classes
from benchmark.errors import ConfigError
from methods.base import Method


@check_in_eval
def _classes_supervise_what_is_evaluated(method: Method, batch: Any) -> None:
    """The loss of labelled images follows from the scores of an evaluation, live and from features of frozen towers."""
    labelled = with_classes(method, batch)
    live = class_scores(method, labelled)
    if "image" not in method.adapts:
        labelled.image_features = method.backbone.image.features(batch.images)
    cached = method.embed_classes(labelled, labelled.supervision)
    hold(
        all(len(value) == len(batch.images) for value in cached.values()), "embed_classes: batch not in front"
    )
    close(cached["cosines"], live, "scores in training", 1e-5)


@check
def _class_bound_methods_refuse_other_classes(build: Build, family: str) -> None:
    method, batch = made(build, family)
    if not method.class_bound:
        return
    hold(method.needs_classes, "class_bound without needs_classes: what would pairs teach it?")
    other = batch.token_ids[1:2, None]
    try:
        method.prepare_classes(other)
    except ConfigError as error:
        hold("\n" not in str(error), "the refusal is not one line")
        return
    hold(False, "classes that it was not fitted to are scored")


@check
def _a_fit_is_the_same_twice_and_helps(build: Build, family: str) -> None:
    method, batch = made(build, family)
    if not method.fits:
        return
    again, _ = made(build, family)
    ours, other = method.trainable_state(), again.trainable_state()
    none([name for name, value in ours.items() if not torch.equal(other[name], value)], "two fits differ in")
    labelled = with_classes(method, batch)
    with torch.no_grad():
        fitted = method.logit_scale() * class_scores(method, labelled)
        frozen = method.from_image_features(method.backbone.image.features(batch.images))
        plain = method.backbone.logit_scale * frozen @ labelled.supervision.frozen().T
    found, before = _quality(fitted, labelled.labels), _quality(plain, labelled.labels)
    hold(
        found > before,
        f"right on {found[0]:.0%} of the images it was fitted to, zero-shot on {before[0]:.0%}",
    )


def _quality(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the share of right answers, and the likelihood, which decides between equal ones."""
    right = (logits.argmax(dim=1) == labels).float().mean()
    return float(right), -float(functional.cross_entropy(logits, labels))
