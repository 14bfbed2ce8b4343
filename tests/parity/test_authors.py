"""Every method against its authors' own code on a tiny OpenAI-style CLIP (features, logits, losses, gradients)."""

from __future__ import annotations

from collections.abc import Callable
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

UNIT = {"atol": 5e-6, "rtol": 0}
RAW = {"atol": 5e-5, "rtol": 0}


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


def check_gradients(
    method: Method, loss: Tensor, expected: Callable[[str], Tensor], names: dict[str, str]
) -> None:
    """Compare gradients with the stored ones, tensor by tensor."""
    parameters = method.trainable_parameters()
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    for (_, official), gradient in zip(names.items(), gradients, strict=True):
        stored = expected(official).reshape(gradient.shape)
        error = (gradient - stored).norm() / stored.norm().clamp(min=1e-12)
        assert error < 1e-3, (official, error.item())


def cross_entropy(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, tensors()["labels"])


def test_prompt_ensemble_and_zero_shot_logits() -> None:
    method = methods.build("zero_shot", clip_backbone())
    torch.testing.assert_close(
        method.class_features(ids("taskres_ens.ids")), tensors()["base.ensemble_text_features"], **UNIT
    )
    torch.testing.assert_close(
        classified(method, ids("base.ids")), tensors()["base.logits"], atol=2e-4, rtol=0
    )


def test_coop() -> None:
    method, stored = build("coop"), tensors()
    plain = ids("coop.ids_plain")
    raw = method.backbone.text.features(method.text_ids(plain), interventions=method.text_interventions())
    torch.testing.assert_close(raw, stored["coop.text_features_raw"], **RAW)
    torch.testing.assert_close(method.encode_text(plain), stored["coop.text_features"], **UNIT)
    torch.testing.assert_close(method.encode_image(stored["images"]), stored["coop.image_features"], **UNIT)
    logits = method.similarity(stored["images"], plain)
    torch.testing.assert_close(logits, stored["coop.logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(classified(method, plain), logits, atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["coop"]["loss"], abs=1e-4)
    check_gradients(method, loss, lambda n: stored[f"coop.grad.{n}"], {"text.ctx": "ctx"})


@pytest.mark.parametrize("position", ["middle", "front"])
def test_coop_with_the_class_name_elsewhere(position: str) -> None:
    method, stored = build("coop", class_token_position=position), tensors()
    plain = ids("coop.ids_plain")
    torch.testing.assert_close(method.encode_text(plain), stored[f"coop.{position}.text_features"], **UNIT)
    logits = classified(method, plain)
    torch.testing.assert_close(logits, stored[f"coop.{position}.logits"], atol=2e-4, rtol=0)
    expected = facts()["methods"]["coop"][f"loss_{position}"]
    assert cross_entropy(logits).item() == pytest.approx(expected, abs=1e-4)


COCOOP = {
    "text.ctx": "ctx",
    "meta_net.0.weight": "meta_net.linear1.weight",
    "meta_net.0.bias": "meta_net.linear1.bias",
    "meta_net.2.weight": "meta_net.linear2.weight",
    "meta_net.2.bias": "meta_net.linear2.bias",
}


def test_cocoop() -> None:
    method, stored = build("cocoop"), tensors()
    plain = ids("cocoop.ids_plain")
    image = method.encode_image(stored["images"])
    torch.testing.assert_close(image, stored["cocoop.image_features"], **UNIT)
    torch.testing.assert_close(method.meta_net(image), stored["cocoop.shift"], **RAW)
    pairs = method.conditioned(image.repeat_interleave(5, 0), plain.repeat(4, 1)).unflatten(0, (4, 5))
    torch.testing.assert_close(pairs, stored["cocoop.text_features"], **UNIT)
    logits = method.similarity(stored["images"], plain)
    torch.testing.assert_close(logits, stored["cocoop.logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(classified(method, plain), logits, atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["cocoop"]["loss"], abs=1e-4)
    check_gradients(method, loss, lambda n: stored[f"cocoop.grad.{n}"], COCOOP)
    first = functional.cross_entropy(method.similarity(stored["images"][:1], plain), stored["labels"][:1])
    assert first.item() == pytest.approx(facts()["methods"]["cocoop"]["loss_first_image_only"], abs=1e-4)
    check_gradients(method, first, lambda n: stored[f"cocoop.grad_first_image_only.{n}"], COCOOP)


def test_clip_adapter() -> None:
    method, stored = build("clip_adapter"), tensors()
    raw = method.backbone.image.features(stored["images"])
    torch.testing.assert_close(method.adapters["image"](raw), stored["clip_adapter.adapter_out"], **RAW)
    torch.testing.assert_close(method.image_head(raw), stored["clip_adapter.image_features_blend"], **RAW)
    torch.testing.assert_close(
        method.encode_image(stored["images"]), stored["clip_adapter.image_features"], **UNIT
    )
    logits = method.similarity(stored["images"], ids("clip_adapter.ids"))
    torch.testing.assert_close(logits, stored["clip_adapter.logits"], atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["clip_adapter"]["loss"], abs=1e-4)
    names = {"adapters.image.down.weight": "fc.0.weight", "adapters.image.up.weight": "fc.2.weight"}
    check_gradients(method, loss, lambda n: stored[f"clip_adapter.grad.{n}"], names)


def test_taskres_shared_row() -> None:
    method, stored = build("taskres", "taskres_shared"), tensors()
    token_ids = ids("taskres.ids")
    raw = method.backbone.text.features(token_ids)
    torch.testing.assert_close(raw, stored["taskres_shared.base_text_features"], **RAW)
    torch.testing.assert_close(method.encode_text(token_ids), stored["taskres_shared.text_features"], **UNIT)
    logits = classified(method, token_ids)
    torch.testing.assert_close(logits, stored["taskres_shared.logits"], atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["taskres_shared"]["loss"], abs=1e-4)
    check_gradients(
        method, loss, lambda n: stored[f"taskres_shared.grad.{n}"], {"residuals.text": "shared_row"}
    )


@pytest.mark.parametrize("case", ["taskres", "taskres_ens"], ids=["one template", "ensemble"])
def test_taskres_per_class(case: str) -> None:
    method, stored = build("taskres", case, rows="per_class", n_classes=5), tensors()
    token_ids = ids(f"{case}.ids").view(5, -1, 24)
    raw = method.backbone.text.features(token_ids.flatten(0, 1)).unflatten(0, token_ids.shape[:2]).mean(dim=1)
    torch.testing.assert_close(raw, stored[f"{case}.base_text_features"], **RAW)
    classes = method.class_features(token_ids)
    torch.testing.assert_close(classes, stored[f"{case}.text_features"], **UNIT)
    batch = SimpleNamespace(images=stored["images"])
    logits = method.logit_scale() * method.classify(batch, method.prepare_classes(token_ids))
    torch.testing.assert_close(logits, stored[f"{case}.logits"], atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"][case]["loss"], abs=1e-4)
    names = {"residuals.text": "text_feature_residuals"}
    check_gradients(method, loss, lambda n: stored[f"{case}.grad.{n}"], names)
    assert method.residuals["text"].numel() == method.expected_parameters() == 5 * 48


def test_rows_of_classes_do_not_fit_a_shared_row() -> None:
    with pytest.raises(StoreError, match="text_feature_residuals"):
        build("taskres")


def test_maple() -> None:
    method, stored = build("maple", prompt_depth=2), tensors()
    plain = ids("maple.ids_plain")
    torch.testing.assert_close(torch.stack(method.image_prompts()), stored["maple.visual_prompts"], **RAW)
    torch.testing.assert_close(method.encode_image(stored["images"]), stored["maple.image_features"], **UNIT)
    torch.testing.assert_close(method.encode_text(plain), stored["maple.text_features"], **UNIT)
    logits = method.similarity(stored["images"], plain)
    torch.testing.assert_close(logits, stored["maple.logits"], atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["maple"]["loss"], abs=1e-4)
    names = {
        "prompts.0": "prompt_learner.ctx",
        "prompts.1": "prompt_learner.compound_prompts_text.0",
        "couplings.image.0.weight": "prompt_learner.proj.weight",
        "couplings.image.0.bias": "prompt_learner.proj.bias",
        "couplings.image.1.weight": "prompt_learner.compound_prompt_projections.0.weight",
        "couplings.image.1.bias": "prompt_learner.compound_prompt_projections.0.bias",
    }
    check_gradients(method, loss, lambda n: stored[f"maple.grad.{n}"], names)


@pytest.mark.parametrize("trick", [True, False], ids=["authors", "true"])
def test_mma(trick: bool) -> None:
    settings = {"adapter_start": 2, "adapter_end": 3, "adapter_dim": 8, "adapter_scale": 0.1}
    method, stored = build("mma", **settings, scale_gradients=trick), tensors()
    token_ids = ids("mma.ids")
    torch.testing.assert_close(method.encode_image(stored["images"]), stored["mma.image_features"], **UNIT)
    torch.testing.assert_close(method.encode_text(token_ids), stored["mma.text_features"], **UNIT)
    logits = method.similarity(stored["images"], token_ids)
    torch.testing.assert_close(logits, stored["mma.logits"], atol=2e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["mma"]["loss"], abs=1e-4)
    names = {}
    for layer in (2, 3):
        for kind in ("weight", "bias"):
            names[f"shared.{layer}.{kind}"] = f"shared_adapter.{layer}.0.{kind}"
            for ours, theirs in (("image", "visual"), ("text", "text")):
                names[f"{ours}.{layer}.down.{kind}"] = f"{theirs}_adapter.{layer}.down.0.{kind}"
                names[f"{ours}.{layer}.up.{kind}"] = f"{theirs}_adapter.{layer}.up.{kind}"
    check_gradients(method, loss, lambda n: stored[f"mma.grad_{'authors' if trick else 'true'}.{n}"], names)


def test_mmrl() -> None:
    method = build("mmrl", n_rep_tokens=3, rep_layers=[2, 3], rep_dim=20, alpha=0.7, reg_weight=0.5)
    stored, token_ids = tensors(), ids("mmrl.ids")
    method.logit_scale.set(100.0)  # the authors' constant
    for tower, name in ((method.backbone.image, "visual"), (method.backbone.text, "text")):
        aligned = torch.stack(list(method.block_tokens(tower).values()))
        torch.testing.assert_close(aligned, stored[f"mmrl.rep_tokens_{name}"], **RAW)
    parts = method.embed(SimpleNamespace(images=stored["images"], token_ids=token_ids))
    for ours, theirs in (
        ("image", "image_features"),
        ("representation", "image_features_rep"),
        ("text", "text_features"),
        ("frozen_image", "image_features_zero_shot"),
        ("frozen_text", "text_features_zero_shot"),
    ):
        torch.testing.assert_close(parts[ours], stored[f"mmrl.{theirs}"], **UNIT)
    plain, representation = (
        100 * parts["image"] @ parts["text"].T,
        100 * parts["representation"] @ parts["text"].T,
    )
    torch.testing.assert_close(plain, stored["mmrl.logits"], atol=5e-4, rtol=0)
    torch.testing.assert_close(representation, stored["mmrl.logits_rep"], atol=5e-4, rtol=0)
    torch.testing.assert_close(
        classified(method, ids("mmrl.ids_new")), stored["mmrl.eval_new.new_output"], atol=5e-4, rtol=0
    )
    moved = [(1 - (parts[k] * parts[f"frozen_{k}"]).sum(-1)).mean() for k in ("image", "text")]
    loss = 0.7 * cross_entropy(plain) + 0.3 * cross_entropy(representation) + 0.5 * sum(moved)
    assert loss.item() == pytest.approx(facts()["methods"]["mmrl"]["loss"], abs=1e-4)
    prefix = "representation_learner.compound_rep_tokens"
    names = {"tokens": prefix, "projections.image": "image_encoder.proj_rep"}
    for kind, official in (("image", "r2vproj"), ("text", "r2tproj")):
        for index in (0, 1):
            for part in ("weight", "bias"):
                names[f"aligners.{kind}.{index}.{part}"] = f"{prefix}_{official}.{index}.{part}"
    check_gradients(method, loss, lambda n: stored[f"mmrl.grad.{n}"], names)


def test_clip_lora() -> None:
    method = build("clip_lora", r=2, lora_dropout=0.0)
    stored, token_ids = tensors(), ids("clip_lora.ids")
    method.logit_scale.set(100.0)
    torch.testing.assert_close(
        method.encode_image(stored["images"]), stored["clip_lora.train.image_features"], **UNIT
    )
    torch.testing.assert_close(method.encode_text(token_ids), stored["clip_lora.train.text_features"], **UNIT)
    logits = method.similarity(stored["images"], token_ids)
    torch.testing.assert_close(logits, stored["clip_lora.eval.logits"], atol=5e-4, rtol=0)
    loss = cross_entropy(logits)
    assert loss.item() == pytest.approx(facts()["methods"]["clip_lora"]["loss_true"], abs=1e-4)
    names = {}
    for tower, first in (("text", 0), ("image", 3)):
        for block in range(3):
            for part in ("q", "k", "v"):
                for letter in ("A", "B"):
                    ours = f"adapters.{tower}.{block}.{part}.{letter}"
                    names[ours] = f"layer_{first + block}.{part}_proj.w_lora_{letter}"
    check_gradients(method, loss, lambda n: stored[f"clip_lora.grad_true.{n}"], names)
