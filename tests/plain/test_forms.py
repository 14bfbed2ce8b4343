"""The plain forms compute what the fast ones compute."""

from __future__ import annotations

import pytest
import torch

import methods
from benchmark.conformance.small_models import move, small_backbone, small_batch
from benchmark.errors import ConfigError
from tests.plain import build
from tests.plain.towers import PlainBert, PlainVit

FAMILY = "timm+bert"


def both(name: str, **options: object):
    """Fast and plain form in fp64 with the same trained values, and pairs."""
    torch.manual_seed(0)
    fast = methods.build(name, small_backbone(FAMILY).double(), **options).double().train()
    plain = build(name, small_backbone(FAMILY).double(), **options).double().train()
    move(fast)
    plain.load_trainable_state(fast.trainable_state())
    batch = small_batch(fast.backbone)
    batch.images = batch.images.double()
    return fast, plain, batch


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip_lora", {}),
        ("clip_lora", {"params": ("q", "o", "up", "down"), "position": "top3"}),
        ("ace_lora", {}),
        ("ace_lora", {"text_graph": "masked"}),
        ("ace_lora", {"apply_to": "vision", "topk": 3}),
        ("coop", {}),
    ],
)
def test_loss_gradients_and_scores_agree(name, options) -> None:
    if "lora" in name:
        options = {"lora_dropout": 0.0, **options}
    fast, plain, batch = both(name, **options)
    losses = [method.loss(batch) for method in (fast, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    theirs = plain.trainable_parameters()
    for key, value in fast.trainable_parameters().items():
        torch.testing.assert_close(value.grad, theirs[key].grad, rtol=1e-9, atol=1e-12, msg=key)
    ids = batch.token_ids.unflatten(0, (3, 2))
    with torch.no_grad():
        scores = [m.eval().classify(batch, m.prepare_classes(ids)) for m in (fast, plain)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-10, atol=1e-12)


def test_the_plain_form_takes_none_of_the_shortcuts(monkeypatch) -> None:
    _, plain, batch = both("ace_lora")

    def shortcut(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", shortcut)
    monkeypatch.setattr("methods.ace_lora.refine", shortcut)
    monkeypatch.setattr("methods.layers.lora.LoRA.forward", shortcut)
    plain.loss(batch).backward()
    whole = plain.backbone.image.forward(batch.images, global_only=True).sequence
    assert whole.tokens.shape[1] == 1 + 16


def test_evaluation_takes_one_image_and_one_prompt_at_a_time(monkeypatch) -> None:
    _, plain, batch = both("clip_lora")
    seen: list[int] = []
    for tower in (PlainVit, PlainBert):
        original = tower.forward
        monkeypatch.setattr(
            tower, "forward",
            lambda self, inputs, original=original, **how: seen.append(len(inputs)) or original(self, inputs, **how),
        )  # fmt: skip
    with torch.no_grad():
        plain.eval().classify(batch, plain.prepare_classes(batch.token_ids.unflatten(0, (3, 2))))
    assert seen == [1] * (6 + 6)


def test_what_has_no_plain_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="needed are a timm ViT and a BERT"):
        build("clip_lora", small_backbone("open_clip"))
    with pytest.raises(ConfigError, match="the plain form knows attention, got gat"):
        build("ace_lora", small_backbone(FAMILY), incidence="gat")
