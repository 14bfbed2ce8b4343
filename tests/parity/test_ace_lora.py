"""ACE-LoRA and CLIP-LoRA against tensors that the authors' unmodified modules produced."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import methods
from benchmark.errors import StoreError
from methods import ace_lora, clip_lora
from methods.base import Method
from methods.layers.hypergraph import incidence, refine, refine_all
from tests.parity.ace_reference import GOLDEN, facts, golden_backbone, tensors, under

FEATURES = {"atol": 2e-5, "rtol": 0}
VARIANTS = ("both", "vision", "text", "clip_lora")


def batch(labels: bool) -> SimpleNamespace:
    """Return the stored batch; labels as the float rows a label file gives."""
    stored = tensors()
    return SimpleNamespace(
        images=stored["images"],
        token_ids=stored["input_ids"].long(),
        labels=stored["labels"].float() if labels else None,
    )


def build(variant: str, *, dropout: float = 0.0) -> Method:
    """Build a variant with the stored trained values."""
    if variant == "clip_lora":
        method = methods.build("clip_lora", golden_backbone(), lora_dropout=dropout, logit_scale="linear")
        state = {k: v for k, v in under("adapter.").items() if k.startswith("layer_") or k == "logit_scale"}
        clip_lora.load_official(method, state)
        return method
    method = methods.build(
        "ace_lora",
        golden_backbone(),
        lora_dropout=dropout,
        logit_scale="linear",
        hidden_features=facts()["hgnn_hidden"],
        topk=facts()["topk"],
        apply_to=variant,
    )
    ace_lora.load_official(method, under("adapter."))
    return method


def official_name(name: str) -> str:
    """Translate one of our trained names to the authors'."""
    if name == "logit_scale.value":
        return "logit_scale"
    parts = name.split(".")
    if parts[0] == "graphs":
        return f"{'img' if parts[1] == 'image' else 'text'}_{parts[2]}_adapter.{'.'.join(parts[3:])}"
    _, tower, block, part, letter = parts
    layer = int(block) + (0 if tower == "text" else facts()["config"]["t_depth"])
    return f"layer_{layer}.{part}_proj.w_lora_{letter}"


def test_frozen_backbone_gives_the_stored_features() -> None:
    backbone, stored = golden_backbone(), tensors()
    image = functional.normalize(backbone.image.features(stored["images"]), dim=-1)
    text = functional.normalize(backbone.text.features(stored["input_ids"].long()), dim=-1)
    torch.testing.assert_close(image, stored["base.image_embeds"], **FEATURES)
    torch.testing.assert_close(text, stored["base.text_embeds"], **FEATURES)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_tokens_attention_row_and_hypergraph(kind: str) -> None:
    method, stored = build("both").eval(), tensors()
    inputs = stored["images"] if kind == "image" else stored["input_ids"].long()
    with torch.no_grad():
        graph = method.graph_of(getattr(method.backbone, kind), inputs)
        matrix = incidence(graph.tokens, graph.row, topk=5)
        network = method.graphs[kind]
        everything = refine_all(network, graph.tokens, graph.row, topk=5)
        only_global = refine(network, graph.tokens, graph.row, topk=5)
    torch.testing.assert_close(graph.tokens, stored[f"eval.{kind}_tokens"], **FEATURES)
    torch.testing.assert_close(graph.row, stored[f"eval.{kind}_attn_row"], **FEATURES)
    torch.testing.assert_close(matrix, stored[f"eval.{kind}_A"], **FEATURES)
    torch.testing.assert_close(everything, stored[f"eval.{kind}_hgnn_out"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(only_global, everything[:, 0], atol=1e-4, rtol=1e-5)
    encoded = method.encode_image(inputs) if kind == "image" else method.encode_text(inputs)
    torch.testing.assert_close(encoded, stored[f"eval.{kind}_final"][:, 0], **FEATURES)


def test_clip_lora_features() -> None:
    method, stored = build("clip_lora").eval(), tensors()
    image, text = method.encode_image(stored["images"]), method.encode_text(stored["input_ids"].long())
    torch.testing.assert_close(image, stored["clip_lora.image_embeds"], **FEATURES)
    torch.testing.assert_close(text, stored["clip_lora.text_embeds"], **FEATURES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str) -> None:
    stored = tensors()
    logits = build(variant).eval().similarity(stored["images"], stored["input_ids"].long())
    torch.testing.assert_close(logits, stored[f"logits.{variant}"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("labelled", [True, False], ids=["label", "nolabel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss(variant: str, labelled: bool, mode: str) -> None:
    method = build(variant).train(mode == "train")
    key = f"{variant}.{'label' if labelled else 'nolabel'}.{mode}"
    assert method.loss(batch(labelled)).item() == pytest.approx(facts()["losses"][key], abs=1e-4)


def test_label_mask_is_the_authors() -> None:
    from methods.losses import label_mask

    stored = tensors()
    assert torch.equal(label_mask(stored["labels"].float()).int(), stored["label_mask"])


@pytest.mark.parametrize("labelled", [True, False], ids=["label", "nolabel"])
@pytest.mark.parametrize("variant", ["both", "vision", "text", "clip_lora"])
def test_gradient_norms(variant: str, labelled: bool) -> None:
    method = build(variant).train()
    method.loss(batch(labelled)).backward()
    expected = facts()["grad_norms"][f"{variant}.{'label' if labelled else 'nolabel'}.train"]
    ours = {official_name(n): p.grad.norm().item() for n, p in method.trainable_parameters().items()}
    assert set(ours) == {name for name, norm in expected.items() if norm is not None}
    for name, norm in ours.items():
        assert norm == pytest.approx(expected[name], rel=1e-3), name


def test_gradients() -> None:
    method = build("both").train()
    method.loss(batch(True)).backward()
    for name, parameter in method.trainable_parameters().items():
        expected = tensors()[f"grad.{official_name(name)}"]
        error = (parameter.grad - expected).norm() / expected.norm().clamp(min=1e-12)
        assert error < 1e-3, (name, error.item())


def test_six_optimiser_steps() -> None:
    method = build("both").train()
    optimiser = torch.optim.AdamW(method.trainable_parameters().values(), lr=1e-3, weight_decay=1e-2)
    for step in facts()["six_steps"]:
        optimiser.param_groups[0]["lr"] = step["lr_used"]
        loss = method.loss(batch(True))
        assert loss.item() == pytest.approx(step["loss_before_step"], abs=1e-3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in method.trainable_state().items():
        torch.testing.assert_close(value, tensors()[f"after6.{official_name(name)}"], atol=1e-4, rtol=0)


def test_class_features_follow_the_authors_prompt_ensemble() -> None:
    method, stored = build("both").eval(), tensors()
    ids = stored["classes.input_ids"].long()
    with torch.no_grad():
        classes = method.class_features(ids)
        image = method.encode_image(stored["images"])
        probabilities = (method.logit_scale() * image @ classes.T).softmax(dim=-1)
        plain = build("clip_lora").eval().class_features(ids)
        vision = build("vision").eval().class_features(ids)
    torch.testing.assert_close(classes, stored["classes.ace_text_embeds"], **FEATURES)
    torch.testing.assert_close(probabilities, stored["classes.ace_zero_shot_probs"], atol=1e-4, rtol=0)
    torch.testing.assert_close(plain, stored["classes.plain_text_embeds"], **FEATURES)
    torch.testing.assert_close(vision, stored["classes.plain_text_embeds"], **FEATURES)


def test_official_checkpoint_file_loads() -> None:
    state = torch.load(GOLDEN / "ace_lora_tiny_a_official.pt", weights_only=True)
    method = methods.build("ace_lora", golden_backbone(), hidden_features=16, logit_scale="linear")
    ace_lora.load_official(method, state)
    loaded: dict[str, Tensor] = {official_name(n): v for n, v in method.trainable_state().items()}
    assert loaded.keys() == under("adapter.").keys()
    for name, value in under("adapter.").items():
        assert torch.equal(loaded[name], value), name


def test_official_checkpoint_of_other_sizes_is_refused() -> None:
    method = methods.build("ace_lora", golden_backbone(), hidden_features=8)
    with pytest.raises(StoreError, match="img_edge_adapter.down.weight"):
        ace_lora.load_official(method, under("adapter."))


def test_pads_move_the_published_text_graph_and_not_the_masked_one() -> None:
    stored = tensors()
    ids = stored["input_ids"][1:2].long()
    trimmed = ids[:, : int((ids != 0).sum())]
    shift = {}
    for graph in ("official", "masked"):
        method = methods.build("ace_lora", golden_backbone(), hidden_features=16, text_graph=graph)
        ace_lora.load_official(method, under("adapter."))
        with torch.no_grad():
            shift[graph] = (method.eval().encode_text(ids) - method.encode_text(trimmed)).abs().max().item()
    assert shift["masked"] < 1e-6
    assert shift["official"] > 1e-4
