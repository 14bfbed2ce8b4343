"""Requirements of methods where class labels supervise."""

from __future__ import annotations

from typing import Any

from benchmark.conformance.requirements import check_in_eval, close, hold
from benchmark.conformance.small_models import with_classes
from benchmark.data.samples import Batch
from methods.base import Method


@check_in_eval
def _classes_supervise_what_is_evaluated(method: Method, batch: Any) -> None:
    """The loss of labelled images follows from the scores of an evaluation, live and from features of frozen towers."""
    labelled = with_classes(method, batch)
    live = method.classify(Batch(images=batch.images), method.prepare_classes(labelled.supervision.prompts))
    if "image" not in method.adapts:
        labelled.image_features = method.backbone.image.features(batch.images)
    cached = method.embed_classes(labelled, labelled.supervision)
    hold(
        all(len(value) == len(batch.images) for value in cached.values()), "embed_classes: batch not in front"
    )
    close(cached["cosines"], live, "scores in training", 1e-5)
