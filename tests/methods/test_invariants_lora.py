"""LoRA on both towers and full fine-tuning: what must hold, and the mistakes that keep every shape valid.

* LoRA (arXiv 2106.09685, on CLIP 2405.18541): start, rank, scale, dropout, no merging behind one's back.
* Full fine-tuning: which tensors can have no gradient and are not decayed either, the towers' own dropout.

One LoRA update alone is in test_lora.py, the authors' numbers are in tests/parity.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from benchmark.conformance.small_models import small_backbone
from methods.layers import lora
from methods.layers.lora import dropout
from tests.methods.watch import both_families, build, frozen, given, inputs, move, one_step


# ------------------------------------------------------------------------------------------------- LoRA
@both_families
@torch.no_grad()
def test_lora_at_its_start_changes_nothing_even_with_dropout(family: str) -> None:
    method, plain, batch = build("clip_lora", family, lora_dropout=0.5), frozen(family), inputs(family)
    for kind in ("image", "text"):
        ours = getattr(method.train(), f"encode_{kind}")(given(batch, kind))
        assert torch.equal(
            getattr(method, f"encode_{kind}")(given(batch, kind)), ours
        )  # dropout has nothing to drop
        ours = getattr(method.eval(), f"encode_{kind}")(given(batch, kind))
        expected = getattr(plain, f"encode_{kind}")(given(batch, kind))
        if family == "timm+bert":
            assert torch.equal(ours, expected)
        else:  # adapted blocks of open_clip are spelled out: the same mathematics, other rounding
            torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


@both_families
def test_lora_moves_b_first_and_a_from_the_second_step_on(family: str) -> None:
    method, batch = build("clip_lora", family), inputs(family)
    values = method.trainable_parameters()
    method.loss(batch).backward()
    assert not any(values[name].grad.any() for name in values if name.endswith(".A"))
    assert all(values[name].grad.any() for name in values if name.endswith(".B"))
    one_step(method, batch)
    method.zero_grad()
    method.loss(batch).backward()
    assert all(values[name].grad.any() for name in values if name.endswith(".A"))


@both_families
@torch.no_grad()
def test_q_k_and_v_of_a_fused_map_have_their_own_input_space(family: str) -> None:
    """Each update has rank r; stacked they reach 3 r, which one pair on the fused map could not."""
    method = move(build("clip_lora", family, r=4))
    states = torch.eye(method.backbone.image.width)
    block = method.adapters["image"]["1"]
    updates = [block[part](states).double() for part in "qkv"]  # columns of W's update, transposed
    assert [int(torch.linalg.matrix_rank(update, rtol=1e-5)) for update in updates] == [4, 4, 4]
    assert int(torch.linalg.matrix_rank(torch.cat(updates, dim=1), rtol=1e-5)) == 12


@both_families
@torch.no_grad()
def test_q_k_and_v_have_dropout_masks_of_their_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = build("clip_lora", family, lora_dropout=0.5), inputs(family)
    masks: list[Tensor | None] = []

    def watched(values: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
        thinned, keep = dropout(values, probability)
        masks.append(keep)
        return thinned, keep

    monkeypatch.setattr(lora, "dropout", watched)
    for kind in ("image", "text"):
        for training in (True, False):
            masks.clear()
            getattr(method.train(training), f"encode_{kind}")(given(batch, kind))
            assert len(masks) == 3 * len(method.adapters[kind])
            pairs = itertools.combinations(masks[:3], 2)
            assert not any(torch.equal(*pair) for pair in pairs) if training else set(masks) == {None}


@both_families
def test_changing_the_mode_never_touches_the_frozen_weights(family: str) -> None:
    """The repositories merge on eval() and subtract on train(); loading in between would corrupt the weights."""
    method = move(build("clip_lora", family))
    before, state = method.backbone.fingerprint(), method.trainable_state()
    for mode in (True, False, True, False):
        assert method.train(mode) is method
        method.load_trainable_state(state)
    assert method.backbone.fingerprint() == before == small_backbone(family).fingerprint()


# ---------------------------------------------------------------------------------------------- full FT
@both_families
def test_rows_that_no_text_uses_have_no_gradient_and_no_decay(family: str) -> None:
    method, batch = build("full_ft", family), inputs(family)
    ids = method.backbone.trim(batch.token_ids)
    method.loss(SimpleNamespace(images=batch.images, token_ids=ids, labels=None)).backward()
    used, longest = set(ids.flatten().tolist()), ids.shape[1]
    checked = 0
    for name, value in method.trainable_parameters().items():
        rows = value.grad.abs().flatten(1).sum(dim=1) if value.ndim > 1 else None
        if name.endswith(("word_embeddings.weight", "token_embedding.weight")):
            idle = [index for index in range(len(rows)) if index not in used]
        elif name.endswith(("position_embeddings.weight", "model.positional_embedding")):
            idle = list(range(longest, len(rows)))
        elif name.endswith("token_type_embeddings.weight"):
            idle = [1]
        else:
            continue
        checked += 1
        assert idle
        assert not rows[idle].any(), name
        assert not method.decays(name), name
    assert checked == (3 if family == "timm+bert" else 2)


def test_full_fine_tuning_switches_the_towers_own_dropout_on() -> None:
    method, batch = build("full_ft", "timm+bert"), inputs("timm+bert")
    for module in method.backbone.model.text.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    plain = method.eval().encode_text(batch.token_ids)
    assert torch.equal(method.encode_text(batch.token_ids), plain)
    assert not torch.equal(method.train().encode_text(batch.token_ids), plain)
    adapted = build("clip_lora", "timm+bert").train()
    for module in adapted.backbone.model.text.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    first = adapted.encode_text(batch.token_ids)
    assert torch.equal(adapted.encode_text(batch.token_ids), first)  # frozen towers stay in eval mode
