"""CoOp, CoCoOp, CLIP-Adapter and TaskRes: what must hold, and the mistakes that keep every shape valid.

* CoOp (arXiv 2109.01134): insertion, key mask, truncation, number of word pieces, class position.
* CoCoOp (2203.05557): conditioning without a leak between candidates, sampled anchors, the meta network.
* CLIP-Adapter (2110.04544): last ReLU, side of the ratio, homogeneity.
* TaskRes (2211.10277): un-normalised base, normalising after the sum, shared row and row per class.

What the conformance checks (gradients, identity, padding, batch mates) and the comparison with the authors' code
already see is not repeated here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.conformance.small_models import small_backbone
from benchmark.errors import ConfigError
from methods.losses import Objective
from tests.methods.watch import END, Watcher, both_families, build, frozen, inputs, move


def text(*words: int, length: int = 24) -> Tensor:
    """Return ids ``[1, length]`` of a text: start token, words, end token, padding."""
    ids = torch.zeros(1, length, dtype=torch.long)
    ids[0, : len(words) + 2] = torch.tensor([2, *words, END])
    return ids


# ---------------------------------------------------------------------------------------------------- CoOp
@both_families
@torch.no_grad()
def test_word_rows_as_context_are_the_literal_prefix(family: str) -> None:
    """An overwriting insertion, a second LayerNorm, shifted positions or a short mask would all differ."""
    method = build("coop", family, n_ctx=3, ctx_init="")
    method.text["ctx"].copy_(method.backbone.text.word_embeddings(torch.tensor([11, 12, 13])))
    for words in ((30,), (30, 31, 32, 33), tuple(range(20, 39))):
        ours = method.encode_text(text(*words))
        literal = frozen(family).encode_text(text(11, 12, 13, *words))
        torch.testing.assert_close(ours, literal, atol=2e-6, rtol=0)


@both_families
@pytest.mark.parametrize("name", ["coop", "maple"])
def test_the_key_mask_grows_by_the_prompt(name: str, family: str) -> None:
    method, ids = build(name, family, n_ctx=4), inputs(family).token_ids
    seen = Watcher.of(method, "text", ids)
    assert torch.equal(seen.before[0].keep.sum(dim=1), method.backbone.text.lengths(ids) + 4)
    for row, length in enumerate(method.backbone.text.lengths(ids).tolist()):
        assert seen.before[0].keep[row, : length + 4].all()


@torch.no_grad()
def test_every_context_vector_and_the_end_token_are_visible() -> None:
    """BERT pools the start token: what the mask hides from it cannot move the feature."""
    method, ids = build("coop", "timm+bert", n_ctx=4, ctx_init=""), text(30, 31, 32)
    plain = method.encode_text(ids)
    for index in range(4):
        method.text["ctx"][index] += torch.randn(method.backbone.text.width)
        moved = method.encode_text(ids)
        assert (moved - plain).abs().max() > 1e-5, index
        plain = moved
    for position in (1, 3, 4):  # first word, last word, end token
        other = ids.clone()
        other[0, position] = 60
        assert (method.encode_text(other) - plain).abs().max() > 1e-5, position


def long_text_through(backbone: Backbone, context: int, pieces: int, n_ctx: int) -> Tensor:
    """Return the ids of a report of ``pieces`` pieces as they enter a tower with this context length."""
    backbone.text.context_length = context
    ids = text(*(5 + piece % 70 for piece in range(pieces)), length=pieces + 2)
    return backbone.text.make_room(ids, n_ctx)[0]


@both_families
def test_a_report_of_300_pieces_keeps_250_and_its_end_token(family: str) -> None:
    backbone = small_backbone(family)
    for n_ctx, kept in ((4, 250), (16, 238), (0, 254)):
        ids = long_text_through(backbone, 256, 300, n_ctx)
        assert len(ids) + n_ctx == 256
        assert ids[-1] == END
        assert torch.equal(ids[1:-1], torch.tensor([5 + piece % 70 for piece in range(kept)]))


@both_families
def test_a_full_text_fills_the_context_and_no_more(family: str) -> None:
    method = build("coop", family, n_ctx=4)
    seen = Watcher.of(method, "text", text(*range(10, 60), length=52))
    assert seen.lengths == [24] * method.backbone.text.depth
    assert seen.before[0].keep.all()
    words = method.backbone.text.word_embeddings(torch.tensor([2, *range(10, 28), END]))
    content = torch.cat([seen.embedded.tokens[0, :1], seen.embedded.tokens[0, 5:]])
    assert torch.equal(content, words)  # 24 - 2 - 4 words, in order, between start and end token
    assert torch.equal(seen.embedded.tokens[0, 1:5], method.text["ctx"])


def test_context_words_are_counted_in_pieces() -> None:
    backbone = load_backbone("tiny")
    pieces = len(backbone.tokenizer.tokens("chest x-ray of")) - 2
    assert pieces > 3  # more pieces than words
    with pytest.raises(ConfigError, match=f"ctx_init: .* is {pieces} word pieces .* set n_ctx={pieces}"):
        methods.build("coop", backbone, n_ctx=3, ctx_init="chest x-ray of")
    method: Any = methods.build("coop", backbone, n_ctx=pieces, ctx_init="chest x-ray of")
    ids = backbone.tokenize(["chest x-ray of"])[0, 1 : 1 + pieces]
    assert torch.equal(method.text["ctx"], backbone.text.word_embeddings(ids))


def test_a_random_context_has_the_authors_spread() -> None:
    method = build("coop", "timm+bert", n_ctx=16, ctx_init="")
    assert method.text["ctx"].std().item() == pytest.approx(0.02, rel=0.1)


@both_families
@pytest.mark.parametrize(
    ("position", "long", "short"),
    [
        (
            "middle",
            (41, 31, 32, 33, 42, 43, 50),
            (41, 60, 42, 43, 61),
        ),  # 3 // 2 vectors stand before the words
        ("front", (31, 32, 33, 41, 42, 43, 50), (60, 41, 42, 43, 61)),
    ],
)
@torch.no_grad()
def test_where_the_words_stand(
    family: str, position: str, long: tuple[int, ...], short: tuple[int, ...]
) -> None:
    """Context 41 42 43, texts 31 32 33 50 and 60 61: the last piece and the end token stay last."""
    method = build("coop", family, n_ctx=3, ctx_init="", class_token_position=position)
    method.text["ctx"].copy_(method.backbone.text.word_embeddings(torch.tensor([41, 42, 43])))
    ours = method.encode_text(torch.cat([text(31, 32, 33, 50), text(60, 61)]))
    literal = frozen(family).encode_text(torch.cat([text(*long), text(*short)]))
    torch.testing.assert_close(ours, literal, atol=2e-6, rtol=0)
    one_piece = Watcher.of(method, "text", text(61)).embedded.tokens[0, 1:5]  # no words in front of it
    assert torch.equal(one_piece, method.backbone.text.word_embeddings(torch.tensor([41, 42, 43, 61])))


def test_only_coop_has_class_positions() -> None:
    with pytest.raises(ConfigError, match="class_token_position: .*'middle'.*got 'middel'"):
        build("coop", "open_clip", class_token_position="middel")
    with pytest.raises(ConfigError, match="unknown option 'class_token_position'"):
        build("cocoop", "open_clip", class_token_position="front")


# -------------------------------------------------------------------------------------------------- CoCoOp
@both_families
@torch.no_grad()
def test_a_silent_meta_network_is_coop_bit_for_bit(family: str) -> None:
    method, coop, batch = build("cocoop", family), build("coop", family), inputs(family)
    coop.text["ctx"].copy_(method.text["ctx"])
    method.meta_net[2].weight.zero_()
    method.meta_net[2].bias.zero_()
    image = method.encode_image(batch.images)
    assert torch.equal(method.conditioned(image, batch.token_ids), coop.encode_text(batch.token_ids))
    torch.testing.assert_close(
        method.similarity(batch.images, batch.token_ids), coop.similarity(batch.images, batch.token_ids)
    )


@both_families
@torch.no_grad()
def test_an_entry_depends_on_its_image_and_its_text_alone(family: str) -> None:
    method, batch = move(build("cocoop", family)), inputs(family, 4)
    logits = method.similarity(batch.images, batch.token_ids)
    images, ids = batch.images.clone(), batch.token_ids.clone()
    images[2] = torch.randn(images[2].shape, generator=torch.Generator().manual_seed(3))
    ids[1] = text(9, 8, 7)[0]
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[2] = kept[:, 1] = False
    changed = (method.similarity(images, ids) - logits).abs()
    assert changed[kept].max() < 1e-4
    assert changed[~kept].min() > 1e-4


@both_families
@pytest.mark.parametrize("labelled", [True, False])
@torch.no_grad()
def test_anchors_average_to_the_loss_of_the_full_matrix(family: str, labelled: bool) -> None:
    """All anchors at once, and one at a time; the label mask acts on row and column of an anchor."""
    method, batch = move(build("cocoop", family)), inputs(family, 4)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]) if labelled else None
    pairs = SimpleNamespace(images=batch.images, token_ids=batch.token_ids, labels=labels)
    full = Objective()(method.similarity(batch.images, batch.token_ids), labels)
    torch.testing.assert_close(method.loss(pairs), full, atol=1e-4, rtol=0)
    single: dict[int, Tensor] = {}
    method.train()
    for seed in range(60):
        torch.manual_seed(seed)
        anchor = int(torch.randperm(4)[0])
        if anchor not in single:
            torch.manual_seed(seed)
            single[anchor] = method.loss(pairs)
    assert len(single) == 4
    assert len({round(value.item(), 4) for value in single.values()}) > 1
    torch.testing.assert_close(torch.stack(list(single.values())).mean(), full, atol=1e-4, rtol=0)


@torch.no_grad()
def test_several_templates_are_averaged_per_image() -> None:
    method, batch = move(build("cocoop", "timm+bert")), inputs("timm+bert", 4)
    prompts = batch.token_ids.view(2, 2, -1)
    image = method.encode_image(batch.images)
    expected = torch.empty(4, 2)
    for i in range(4):
        for c in range(2):
            parts = method.conditioned(image[i].expand(2, -1), prompts[c])
            mean = (parts[0] + parts[1]) / 2
            expected[i, c] = (image[i] * mean).sum() / mean.norm()
    ours = method.classify(SimpleNamespace(images=batch.images), method.prepare_classes(prompts))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------- CLIP-Adapter
@torch.no_grad()
def test_blend_by_hand() -> None:
    method = build("clip_adapter", "timm+bert", ratio=0.2)
    raw = method.backbone.image.features(inputs("timm+bert").images)
    adapter = method.adapters["image"]
    hidden = (raw @ adapter.down.weight.T).clamp(min=0)
    new = (hidden @ adapter.up.weight.T).clamp(min=0)  # rectified once more at its output
    blend = method.image_head(raw)
    torch.testing.assert_close(blend, 0.2 * new + 0.8 * raw, atol=1e-6, rtol=0)
    part = blend - 0.8 * raw
    assert part.min() > -1e-6
    assert (part.abs() < 1e-7).float().mean() > 0.2
    torch.testing.assert_close(
        method.from_image_features(3.7 * raw), method.from_image_features(raw), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(method.from_image_features(raw), functional.normalize(blend, dim=-1))


@torch.no_grad()
def test_a_dead_adapter_at_full_weight_stays_finite() -> None:
    method, batch = build("clip_adapter", "open_clip", ratio=1.0), inputs("open_clip")
    method.adapters["image"].up.weight.zero_()
    assert torch.equal(method.encode_image(batch.images), torch.zeros(6, method.backbone.embed_dim))


# ------------------------------------------------------------------------------------------------- TaskRes
@torch.no_grad()
def test_the_residual_joins_every_prompt_before_normalising() -> None:
    method, ids = move(build("taskres", "timm+bert"), size=1.0), inputs("timm+bert").token_ids
    raw, x = method.backbone.text.features(ids), method.residuals["text"]
    moved = (raw + 0.5 * x) / (raw + 0.5 * x).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(method.encode_text(ids), moved, atol=1e-6, rtol=0)
    mean = moved.view(3, 2, -1).mean(dim=1)
    expected = mean / mean.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(method.class_features(ids.view(3, 2, -1)), expected, atol=1e-6, rtol=0)


def test_rows_per_class_are_bound_to_their_classes() -> None:
    method, batch = build("taskres", "open_clip", rows="per_class", n_classes=3), inputs("open_clip")
    assert method.residuals["text"].shape == (3, method.backbone.embed_dim)
    assert method.class_features(batch.token_ids.view(3, 2, -1)).shape == (3, method.backbone.embed_dim)
    with pytest.raises(ConfigError, match="bound to its 3 classes, got prompts of 2"):
        method.class_features(batch.token_ids.view(2, 3, -1))
    with pytest.raises(ConfigError, match="rows=per_class .* cannot train on image-text pairs"):
        method.loss(batch)
    cached = SimpleNamespace(
        image_features=torch.randn(2, method.backbone.embed_dim),
        text_features=torch.randn(2, method.backbone.embed_dim),
        labels=None,
    )
    with pytest.raises(ConfigError, match="rows=per_class"):
        method.loss(cached)


@pytest.mark.parametrize(
    "wrong",
    [{"rows": "per_class"}, {"n_classes": 3}, {"rows": "per_class", "n_classes": 0}, {"rows": "each"},
     {"rows": "per_class", "n_classes": 3, "apply_to": "both"}],
)  # fmt: skip
def test_impossible_rows_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="(n_classes|rows|apply_to): expected"):
        build("taskres", "open_clip", **wrong)
