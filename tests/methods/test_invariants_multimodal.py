"""MaPLe, MMA and MMRL: what must hold, and the mistakes that keep every shape valid.

* All methods: nothing learnt is remembered, no second copy of the backbone.
* MaPLe (arXiv 2210.03117): where prompts stand and what they reach, coupling, depth.
* MMA (CVPR 2024): parallel branches from a layer on, shared middle, scale, start.
* MMRL (2503.08497): tokens inserted once and then replaced, the two image features, the loss.

What the conformance checks and the comparison with the authors' code already see is not repeated here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.conformance.small_models import small_backbone
from benchmark.registry import METHODS
from methods.base import Method
from methods.losses import clip_loss
from tests.methods.watch import (
    Watcher,
    both_families,
    both_towers,
    build,
    frozen,
    given,
    inputs,
    move,
    one_step,
)


def with_gradient(method: Method, features: Tensor) -> set[str]:
    """Return the trained tensors that a loss on one tower's features reaches."""
    method.zero_grad(set_to_none=True)
    target = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    (features * target).sum().backward()
    grads = {name: value.grad for name, value in method.trainable_parameters().items()}
    return {name for name, grad in grads.items() if grad is not None and bool((grad != 0).any())}


# ------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", METHODS.names(extras=False))
def test_no_second_copy_of_the_backbone_is_kept(name: str) -> None:
    method = build(name, "timm+bert")
    backbone = sum(p.numel() for p in small_backbone("timm+bert").parameters())
    trained_beside = 0 if name == "full_ft" else method.expected_parameters()
    assert sum(p.numel() for p in method.parameters()) == backbone + trained_beside + 1
    buffers = sum(b.numel() for n, b in method.named_buffers() if not n.startswith("backbone."))
    assert buffers == 0


# ------------------------------------------------------------------------------------------------- MaPLe
@both_families
def test_maple_prompts_stand_at_the_end_of_images_and_after_the_start_of_texts(family: str) -> None:
    method, batch = build("maple", family, n_ctx=2, prompt_depth=2), inputs(family)
    image, text = (Watcher.of(method, kind, given(batch, kind)) for kind in ("image", "text"))
    patches = 1 + math.prod(method.backbone.image.grid)
    assert image.lengths == [patches + 2] * method.backbone.image.depth
    assert set(text.lengths) == {24}  # room was made: the context is full
    couplings, vectors = method.couplings["image"], method.image_prompts()
    for block in range(2):
        expected = method.prompts[block] @ couplings[block].weight.T + couplings[block].bias
        torch.testing.assert_close(vectors[block], expected)
    assert torch.equal(image.embedded.tokens[0, -2:], vectors[0])
    assert torch.equal(text.embedded.tokens[0, 1:3], method.prompts[0])
    assert torch.equal(image.before[1].tokens[3, -2:], vectors[1])  # raw: no norm on the way
    assert torch.equal(text.before[1].tokens[3, 1:3], method.prompts[1])
    for seen, kept in (
        (image, slice(-2, None)),
        (text, slice(1, 3)),
    ):  # block 3 runs on what block 2 wrote there
        assert torch.equal(seen.before[2].tokens[:, kept], seen.after[1].tokens[:, kept])


def test_maple_depth_counts_the_embedded_input() -> None:
    method = build("maple", "timm+bert", prompt_depth=3)
    assert len(method.prompts) == len(method.couplings["image"]) == 3
    assert len(build("maple", "timm+bert", prompt_depth=1).prompts) == 1
    assert build("maple", "timm+bert").depth == 2  # three quarters of the shallower tower's three


@both_families
@both_towers
@torch.no_grad()
def test_a_deep_prompt_leaves_earlier_blocks_alone(family: str, kind: str) -> None:
    method, batch = build("maple", family, prompt_depth=3), inputs(family)
    before = Watcher.of(method, kind, given(batch, kind))
    method.prompts[2] += torch.randn(method.prompts[2].shape)
    after = Watcher.of(method, kind, given(batch, kind))
    for block in range(2):
        assert torch.equal(after.after[block].tokens, before.after[block].tokens)
    assert (after.after[2].tokens - before.after[2].tokens).abs().max() > 1e-4


@both_families
def test_maple_couples_texts_to_images_and_not_back(family: str) -> None:
    method, batch = build("maple", family, prompt_depth=3), inputs(family)
    prompts = {f"prompts.{index}" for index in range(3)}
    image = with_gradient(method, method.encode_image(batch.images))
    assert image == prompts | {f"couplings.image.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert with_gradient(method, method.encode_text(batch.token_ids)) == prompts


def test_maple_couplings_but_the_first_start_equal_and_part() -> None:
    method, batch = build("maple", "open_clip", prompt_depth=3), inputs("open_clip")
    first, second, third = method.couplings["image"]
    assert torch.equal(second.weight, third.weight)
    assert not torch.equal(first.weight, second.weight)
    assert first.weight.abs().max() <= first.in_features**-0.5
    assert not torch.equal(method.prompts[1], method.prompts[2])
    one_step(method, batch)
    assert not torch.equal(second.weight, third.weight)


# --------------------------------------------------------------------------------------------------- MMA
@both_families
@both_towers
def test_mma_starts_at_its_layer_and_builds_no_graph_below(family: str, kind: str) -> None:
    """Layers count from 1 on the shallower tower (of three blocks); a deeper one is aligned at the top."""
    method, batch = build("mma", family, adapter_start=2), inputs(family)
    depth = getattr(method.backbone, kind).depth
    first = depth - 2  # two adapted blocks
    ours = Watcher.of(method, kind, given(batch, kind))
    plain = Watcher.of(frozen(family), kind, given(batch, kind))
    for block in range(depth):
        assert ours.before[block].tokens.requires_grad == (block > first), block
        same = torch.equal(ours.before[block].tokens, plain.before[block].tokens)
        assert same == (block <= first), block


@both_families
@both_towers
@torch.no_grad()
def test_mma_adds_its_scaled_branch_behind_the_block(family: str, kind: str) -> None:
    """Bias of up alone: each token's output moves by s times it; ones in front show the norm and both ReLUs."""
    method, batch = build("mma", family, adapter_start=3, adapter_scale=0.01, adapter_dim=4), inputs(family)
    tower, branch = getattr(method.backbone, kind), getattr(method, kind)["3"]
    plain = Watcher.of(frozen(family), kind, given(batch, kind))
    branch.up.weight.zero_()
    branch.up.bias.copy_(torch.arange(tower.width))
    ours = Watcher.of(method, kind, given(batch, kind))
    moved = ours.after[-1].tokens - plain.after[-1].tokens
    torch.testing.assert_close(moved, (0.01 * branch.up.bias).expand_as(moved), atol=1e-4, rtol=0)
    move(method)
    states = plain.before[-1].tokens
    normed = states if (family, kind) == ("timm+bert", "text") else tower.block_norm(tower.depth - 1, states)
    shared = method.shared["3"]
    hidden = (normed @ branch.down.weight.T + branch.down.bias).clamp(min=0)
    hidden = (hidden @ shared.weight.T + shared.bias).clamp(min=0)
    expected = 0.01 * (hidden @ branch.up.weight.T + branch.up.bias)
    moved = Watcher.of(method, kind, given(batch, kind)).after[-1].tokens - plain.after[-1].tokens
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


@both_families
def test_mma_ties_the_towers_by_the_shared_layer_alone(family: str) -> None:
    method, batch = build("mma", family), inputs(family)
    shared = {name for name in method.trainable_parameters() if name.startswith("shared")}
    for kind, features in (
        ("image", method.encode_image(batch.images)),
        ("text", method.encode_text(batch.token_ids)),
    ):
        own = {name for name in method.trainable_parameters() if name.startswith(f"{kind}.")}
        assert with_gradient(method, features) == own | shared
    assert len(method.shared) == len(method.layers) == 2  # one per layer
    assert not torch.equal(method.shared["2"].weight, method.shared["3"].weight)


def test_mma_starts_as_the_authors_layers_do() -> None:
    method = build("mma", "timm+bert", adapter_dim=32)
    branch, shared, width = method.image["3"], method.shared["3"], method.backbone.image.width
    assert branch.down.weight.std().item() == pytest.approx(math.sqrt(2 / 32), rel=0.05)
    assert shared.weight.std().item() == pytest.approx(math.sqrt(2 / 32), rel=0.1)
    assert branch.up.weight.std().item() == pytest.approx(math.sqrt(2 / width), rel=0.05)
    assert all((layer.bias == 0).all() for layer in (branch.down, branch.up, shared))


@both_families
def test_scaled_gradients_change_the_adapters_gradients_alone(family: str) -> None:
    """1/s times the true ones; what goes further down, to the branch of the layer below, stays the true one."""
    batch, results = inputs(family), []
    for trick in (False, True):
        method = build("mma", family, adapter_scale=0.05, scale_gradients=trick)
        loss = method.loss(batch)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in method.trainable_parameters().items()}))
    (plain, true), (same, scaled) = results
    assert torch.equal(plain, same)
    for name, gradient in true.items():
        factor = 1.0 if name.startswith("logit_scale") else 1 / 0.05
        torch.testing.assert_close(scaled[name], factor * gradient, atol=1e-5, rtol=1e-3)


# -------------------------------------------------------------------------------------------------- MMRL
@both_families
@both_towers
def test_mmrl_tokens_are_inserted_once_and_then_replaced(family: str, kind: str) -> None:
    method, batch = build("mmrl", family, rep_layers=(2, 3), n_rep_tokens=5), inputs(family)
    tower, inside = getattr(method.backbone, kind), given(batch, kind)
    ours, plain = Watcher.of(method, kind, inside), Watcher.of(frozen(family), kind, inside)
    first, length = tower.depth - 2, plain.lengths[0]
    assert ours.lengths == [length] * first + [length + 5] * 2
    tokens = method.block_tokens(tower)
    for block in range(tower.depth):
        keep, bare = ours.before[block].keep, plain.before[block].keep
        if kind == "text":  # the key mask grows with the tokens, not before
            assert torch.equal(keep.sum(dim=1), bare.sum(dim=1) + (5 if block >= first else 0))
            assert keep[:, : 6 if block >= first else 1].all()
        if block <= first:
            below = ours.before[block].tokens
            below = torch.cat([below[:, :1], below[:, 6:]], dim=1) if block == first else below
            assert torch.equal(below, plain.before[block].tokens)
            assert not (block < first and below.requires_grad)
        if block >= first:
            placed = ours.before[block].tokens[:, 1:6]
            assert torch.equal(placed, tokens[block].expand_as(placed))
    assert not ours.after[first - 1].tokens.requires_grad


def test_mmrl_aligners_start_equal_and_part() -> None:
    method, batch = build("mmrl", "open_clip", rep_layers=(1, 2, 3)), inputs("open_clip")
    for tower in (method.backbone.image, method.backbone.text):
        first, *others = method.block_tokens(tower).values()
        assert all(torch.equal(first, other) for other in others)
    assert method.tokens.std().item() == pytest.approx(0.02, rel=0.1)
    width = method.backbone.image.width
    assert method.projections["image"].std().item() == pytest.approx(width**-0.5, rel=0.1)
    one_step(method, batch)
    for tower in (method.backbone.image, method.backbone.text):
        first, second, _ = method.block_tokens(tower).values()
        assert not torch.equal(first, second)


@both_families
@torch.no_grad()
def test_mmrl_loss_by_hand(family: str) -> None:
    """f_r: norm each token, mean, project; both NCE terms share w; class and text features are regularised."""
    method, batch = build("mmrl", family, alpha=0.6, reg_weight=0.3, n_rep_tokens=3), inputs(family)
    move(method)
    pairs = SimpleNamespace(images=batch.images, token_ids=batch.token_ids, labels=None)
    tower, plain = method.backbone.image, frozen(family)
    tokens = tower.final_norm(Watcher.of(method, "image", batch.images).after[-1].tokens)
    representation = functional.normalize(tokens[:, 1:4].mean(dim=1) @ method.projections["image"], dim=-1)
    image = functional.normalize(tower.project(tokens[:, 0]), dim=-1)
    text, scale = method.encode_text(batch.token_ids), method.logit_scale()
    torch.testing.assert_close(method.encode_image(batch.images), image, atol=1e-5, rtol=0)
    moved = (image - plain.encode_image(batch.images)).square().sum(-1).mean() / 2  # = 1 - cosine
    moved = moved + (text - plain.encode_text(batch.token_ids)).square().sum(-1).mean() / 2
    expected = 0.6 * clip_loss(scale * image @ text.T) + 0.4 * clip_loss(scale * representation @ text.T)
    torch.testing.assert_close(method.loss(pairs), expected + 0.3 * moved, atol=1e-4, rtol=0)


@both_families
@torch.no_grad()
def test_mmrl_scores_unseen_classes_by_the_class_feature(family: str) -> None:
    method, batch = build("mmrl", family), inputs(family)
    prompts = batch.token_ids[:, None]
    before = method.classify(batch, method.prepare_classes(prompts))
    method.projections["image"].normal_()
    assert torch.equal(method.classify(batch, method.prepare_classes(prompts)), before)
    method.tokens.normal_()  # tokens reach the class feature through attention
    assert (method.classify(batch, method.prepare_classes(prompts)) - before).abs().max() > 1e-4


def test_mmrl_couples_by_its_tokens_alone() -> None:
    method, batch = build("mmrl", "timm+bert"), inputs("timm+bert")
    reached = with_gradient(method, method.encode_image(batch.images))
    assert "tokens" in reached
    assert {name.split(".")[1] for name in reached - {"tokens"}} == {"image"}
    assert {
        name.split(".")[1] for name in with_gradient(method, method.encode_text(batch.token_ids)) - {"tokens"}
    } == {"text"}
