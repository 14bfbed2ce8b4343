"""Every method against its authors' own code on a tiny OpenAI-style CLIP (features, logits, losses, gradients)."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import methods
from benchmark.errors import StoreError
from methods.base import Method
from tests.parity.clip_reference import clip_backbone, facts, tensors, under

UNIT, RAW, LOGITS = 5e-6, 5e-5, 2e-4
"""Allowed differences: of unit-norm features, of raw ones, of logits."""


def build(name: str, folder: str | None = None, **options: Any) -> Method:
    """Build a method with the authors' trained values, in eval mode so that nothing is random."""
    method = methods.build(name, clip_backbone(), **options)
    import_module(f"methods.{name}").load_official(method, under(f"{folder or name}.param."))
    return method.eval()


def ids(name: str) -> Tensor:
    return tensors()[name].long()


def classified(method: Method, token_ids: Tensor) -> Tensor:
    """Return logits of the stored images with one-template classes, through the zero-shot path."""
    batch = SimpleNamespace(images=tensors()["images"])
    return method.logit_scale() * method.classify(batch, method.prepare_classes(token_ids[:, None]))


def same(ours: Tensor, name: str, tolerance: float = UNIT) -> None:
    """Compare with a stored tensor."""
    torch.testing.assert_close(ours, tensors()[name], atol=tolerance, rtol=0)


def same_towers(method: Method, token_ids: Tensor, name: str) -> None:
    """Compare the features of the stored images and of texts."""
    same(method.encode_image(tensors()["images"]), f"{name}.image_features")
    same(method.encode_text(token_ids), f"{name}.text_features")


def check_gradients(method: Method, loss: Tensor, prefix: str, names: dict[str, str]) -> None:
    """Compare gradients with the stored ones, tensor by tensor; names are ours -> the authors'."""
    parameters = method.trainable_parameters()
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    for official, gradient in zip(names.values(), gradients, strict=True):
        stored = tensors()[f"{prefix}.{official}"].reshape(gradient.shape)
        error = (gradient - stored).norm() / stored.norm().clamp(min=1e-12)
        assert error < 1e-3, (official, error.item())


def cross_entropy(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, tensors()["labels"])


def check_training(
    method: Method, logits: Tensor, name: str, names: dict[str, str], gradients: str = "grad"
) -> None:
    """Compare logits, their cross-entropy with the stored labels, and its gradients."""
    same(logits, f"{name}.logits", LOGITS)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"][name]["loss"], abs=1e-4)
    check_gradients(method, loss, f"{name}.{gradients}", names)


def test_prompt_ensemble_and_zero_shot_logits() -> None:
    method = methods.build("zero_shot", clip_backbone())
    same(method.class_features(ids("taskres_ens.ids")), "base.ensemble_text_features")
    same(classified(method, ids("base.ids")), "base.logits", LOGITS)


def test_coop() -> None:
    method, plain = build("coop"), ids("coop.ids_plain")
    raw = method.backbone.text.features(method.text_ids(plain), interventions=method.text_interventions())
    same(raw, "coop.text_features_raw", RAW)
    same_towers(method, plain, "coop")
    logits = method.similarity(tensors()["images"], plain)
    check_training(method, logits, "coop", {"text.ctx": "ctx"})
    same(classified(method, plain), "coop.logits", 2 * LOGITS)


@pytest.mark.parametrize("position", ["middle", "front"])
def test_coop_with_the_class_name_elsewhere(position: str) -> None:
    method, plain = build("coop", class_token_position=position), ids("coop.ids_plain")
    same(method.encode_text(plain), f"coop.{position}.text_features")
    logits = classified(method, plain)
    same(logits, f"coop.{position}.logits", LOGITS)
    expected = facts()["methods"]["coop"][f"loss_{position}"]
    assert cross_entropy(logits).item() == pytest.approx(expected, abs=1e-4)


COCOOP = {
    "text.ctx": "ctx",
    **{
        f"meta_net.{layer}.{kind}": f"meta_net.{official}.{kind}"
        for layer, official in ((0, "linear1"), (2, "linear2"))
        for kind in ("weight", "bias")
    },
}


def test_cocoop() -> None:
    method, stored, plain = build("cocoop"), tensors(), ids("cocoop.ids_plain")
    image = method.encode_image(stored["images"])
    same(image, "cocoop.image_features")
    same(method.meta_net(image), "cocoop.shift", RAW)
    pairs = method.conditioned(image.repeat_interleave(5, 0), plain.repeat(4, 1)).unflatten(0, (4, 5))
    same(pairs, "cocoop.text_features")
    check_training(method, method.similarity(stored["images"], plain), "cocoop", COCOOP)
    same(classified(method, plain), "cocoop.logits", 2 * LOGITS)
    first = functional.cross_entropy(method.similarity(stored["images"][:1], plain), stored["labels"][:1])
    assert first.item() == pytest.approx(facts()["methods"]["cocoop"]["loss_first_image_only"], abs=1e-4)
    check_gradients(method, first, "cocoop.grad_first_image_only", COCOOP)


def test_clip_adapter() -> None:
    method, images = build("clip_adapter"), tensors()["images"]
    raw = method.backbone.image.features(images)
    same(method.adapters["image"](raw), "clip_adapter.adapter_out", RAW)
    same(method.image_head(raw), "clip_adapter.image_features_blend", RAW)
    same(method.encode_image(images), "clip_adapter.image_features")
    logits = method.similarity(images, ids("clip_adapter.ids"))
    names = {"adapters.image.down.weight": "fc.0.weight", "adapters.image.up.weight": "fc.2.weight"}
    check_training(method, logits, "clip_adapter", names)


def test_taskres_shared_row() -> None:
    method, token_ids = build("taskres", "taskres_shared"), ids("taskres.ids")
    same(method.backbone.text.features(token_ids), "taskres_shared.base_text_features", RAW)
    same(method.encode_text(token_ids), "taskres_shared.text_features")
    names = {"residuals.text": "shared_row"}
    check_training(method, classified(method, token_ids), "taskres_shared", names)


@pytest.mark.parametrize("case", ["taskres", "taskres_ens"], ids=["one template", "ensemble"])
def test_taskres_per_class(case: str) -> None:
    method, token_ids = (
        build("taskres", case, rows="per_class", n_classes=5),
        ids(f"{case}.ids").view(5, -1, 24),
    )
    raw = method.backbone.text.features(token_ids.flatten(0, 1)).unflatten(0, token_ids.shape[:2]).mean(dim=1)
    same(raw, f"{case}.base_text_features", RAW)
    same(method.class_features(token_ids), f"{case}.text_features")
    batch = SimpleNamespace(images=tensors()["images"])
    logits = method.logit_scale() * method.classify(batch, method.prepare_classes(token_ids))
    check_training(method, logits, case, {"residuals.text": "text_feature_residuals"})
    assert method.residuals["text"].numel() == method.expected_parameters() == 5 * 48


def test_rows_of_classes_do_not_fit_a_shared_row() -> None:
    with pytest.raises(StoreError, match="text_feature_residuals"):
        build("taskres")


def test_maple() -> None:
    method, plain = build("maple", prompt_depth=2), ids("maple.ids_plain")
    same(torch.stack(method.image_prompts()), "maple.visual_prompts", RAW)
    same_towers(method, plain, "maple")
    names = {
        "prompts.0": "prompt_learner.ctx",
        "prompts.1": "prompt_learner.compound_prompts_text.0",
        "couplings.image.0.weight": "prompt_learner.proj.weight",
        "couplings.image.0.bias": "prompt_learner.proj.bias",
        "couplings.image.1.weight": "prompt_learner.compound_prompt_projections.0.weight",
        "couplings.image.1.bias": "prompt_learner.compound_prompt_projections.0.bias",
    }
    check_training(method, method.similarity(tensors()["images"], plain), "maple", names)


@pytest.mark.parametrize("trick", [True, False], ids=["authors", "true"])
def test_mma(trick: bool) -> None:
    settings = {"adapter_start": 2, "adapter_end": 3, "adapter_dim": 8, "adapter_scale": 0.1}
    method, token_ids = build("mma", **settings, scale_gradients=trick), ids("mma.ids")
    same_towers(method, token_ids, "mma")
    names = {}
    for layer in (2, 3):
        for kind in ("weight", "bias"):
            names[f"shared.{layer}.{kind}"] = f"shared_adapter.{layer}.0.{kind}"
            for ours, theirs in (("image", "visual"), ("text", "text")):
                names[f"{ours}.{layer}.down.{kind}"] = f"{theirs}_adapter.{layer}.down.0.{kind}"
                names[f"{ours}.{layer}.up.{kind}"] = f"{theirs}_adapter.{layer}.up.{kind}"
    logits = method.similarity(tensors()["images"], token_ids)
    check_training(method, logits, "mma", names, "grad_authors" if trick else "grad_true")


def test_mmrl() -> None:
    method = build("mmrl", n_rep_tokens=3, rep_layers=[2, 3], rep_dim=20, alpha=0.7, reg_weight=0.5)
    stored, token_ids = tensors(), ids("mmrl.ids")
    method.logit_scale.set(100.0)  # the authors' constant
    for tower, name in ((method.backbone.image, "visual"), (method.backbone.text, "text")):
        same(torch.stack(list(method.block_tokens(tower).values())), f"mmrl.rep_tokens_{name}", RAW)
    parts = method.embed(SimpleNamespace(images=stored["images"], token_ids=token_ids))
    for ours, theirs in (
        ("image", "image_features"),
        ("representation", "image_features_rep"),
        ("text", "text_features"),
        ("frozen_image", "image_features_zero_shot"),
        ("frozen_text", "text_features_zero_shot"),
    ):
        same(parts[ours], f"mmrl.{theirs}")
    plain, representation = (100 * parts[which] @ parts["text"].T for which in ("image", "representation"))
    same(plain, "mmrl.logits", 5e-4)
    same(representation, "mmrl.logits_rep", 5e-4)
    same(classified(method, ids("mmrl.ids_new")), "mmrl.eval_new.new_output", 5e-4)
    moved = [(1 - (parts[k] * parts[f"frozen_{k}"]).sum(-1)).mean() for k in ("image", "text")]
    loss = 0.7 * cross_entropy(plain) + 0.3 * cross_entropy(representation) + 0.5 * sum(moved)
    assert loss.item() == pytest.approx(facts()["methods"]["mmrl"]["loss"], abs=1e-4)
    prefix = "representation_learner.compound_rep_tokens"
    names = {"tokens": prefix, "projections.image": "image_encoder.proj_rep"}
    for kind, official in (("image", "r2vproj"), ("text", "r2tproj")):
        for index in (0, 1):
            for part in ("weight", "bias"):
                names[f"aligners.{kind}.{index}.{part}"] = f"{prefix}_{official}.{index}.{part}"
    check_gradients(method, loss, "mmrl.grad", names)


def test_clip_lora() -> None:
    method, token_ids = build("clip_lora", r=2, lora_dropout=0.0), ids("clip_lora.ids")
    method.logit_scale.set(100.0)
    same_towers(method, token_ids, "clip_lora.train")
    logits = method.similarity(tensors()["images"], token_ids)
    same(logits, "clip_lora.eval.logits", 5e-4)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["clip_lora"]["loss_true"], abs=1e-4)
    names = {
        f"adapters.{tower}.{block}.{part}.{letter}": f"layer_{first + block}.{part}_proj.w_lora_{letter}"
        for tower, first in (("text", 0), ("image", 3))
        for block in range(3)
        for part in "qkv"
        for letter in "AB"
    }
    check_gradients(method, loss, "clip_lora.grad_true", names)
