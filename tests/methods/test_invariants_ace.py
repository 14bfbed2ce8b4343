"""ACE-LoRA (arXiv 2603.17079): what must hold of the whole method, and the options of its ablations.

* Graph: what enters it (unit tokens, the attention row), padding, batch mates, neighbours of short texts.
* Options: one-sided variants, incidence (GAT, GATv2, GNN), without LoRA, one A for all blocks, the loss.
* Evaluation: templates averaged token by token before the hypergraph.

The module's mathematics is in test_hypergraph.py, the authors' numbers are in tests/parity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

import methods
from benchmark.conformance.small_models import small_backbone
from benchmark.errors import ConfigError
from methods import ace_lora
from methods.base import Method
from methods.layers.hypergraph import Incidence, refine_all
from methods.losses import clip_loss
from tests.methods.watch import END, both_families, both_towers, build, frozen, given, inputs, move
from tests.parity.ace_reference import golden_backbone, under


# ------------------------------------------------------------------------------------------------- graph
@both_families
@both_towers
@torch.no_grad()
def test_before_training_the_graph_sees_the_frozen_towers_unit_tokens(family: str, kind: str) -> None:
    method, batch = build("ace_lora", family), inputs(family)
    plain = getattr(small_backbone(family), kind).forward(given(batch, kind), global_row=True)
    tower = getattr(method.backbone, kind)
    graph = method.graph_of(tower, given(batch, kind))
    assert (graph.tokens.norm(dim=-1) - 1).abs().max() < 1e-5
    tokens = functional.normalize(tower.project(plain.sequence.tokens), dim=-1)
    pooled = plain.sequence.pooled_at
    if isinstance(
        pooled, torch.Tensor
    ):  # a causal text's global token comes first, the others keep their order
        rows = [[end, *(i for i in range(tokens.shape[1]) if i != end)] for end in pooled.tolist()]
        tokens = torch.stack([row[order] for row, order in zip(tokens, rows, strict=True)])
        expected = torch.stack([row[order][1:] for row, order in zip(plain.global_row, rows, strict=True)])
    else:
        expected = plain.global_row[:, 1:]
    torch.testing.assert_close(graph.tokens, tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(graph.row, expected, atol=1e-5, rtol=1e-5)


@both_families
@torch.no_grad()
def test_padding_moves_no_real_token_and_not_their_attention(family: str) -> None:
    method, ids = move(build("ace_lora", family)), inputs(family).token_ids[:1]
    tower, length = method.backbone.text, int(method.backbone.text.lengths(ids))
    padded, trimmed = method.graph_of(tower, ids), method.graph_of(tower, ids[:, :length])
    assert length < ids.shape[1]
    torch.testing.assert_close(padded.tokens[:, :length], trimmed.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.row[:, : length - 1], trimmed.row, atol=1e-6, rtol=0)
    assert not padded.row[:, length - 1 :].any()
    assert padded.keep.sum() == length


@both_families
@torch.no_grad()
def test_the_masked_graph_ignores_padding_and_short_texts_are_finite(family: str) -> None:
    method, ids = move(build("ace_lora", family, text_graph="masked")), inputs(family).token_ids
    lengths = method.backbone.text.lengths(ids)
    together = method.encode_text(ids)
    for row, length in enumerate(lengths.tolist()):
        alone = method.encode_text(ids[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    for words in (0, 1, 2, 4):  # fewer real tokens than neighbours
        short = torch.zeros(1, 24, dtype=torch.long)
        short[0, : words + 2] = torch.tensor([2, *range(30, 30 + words), END])
        for graph in ("official", "masked"):
            assert build("ace_lora", family, text_graph=graph).encode_text(short).isfinite().all()


@both_families
def test_gradients_reach_lora_through_tokens_and_attention(family: str) -> None:
    """The choice of neighbours is constant, the attention row is not: q and k of the last block get a gradient."""
    method, batch = build("ace_lora", family), inputs(family)
    for kind in ("image", "text"):
        tower = getattr(method.backbone, kind)
        graph = method.graph_of(tower, given(batch, kind))
        last = method.adapters[kind][str(tower.depth - 1)]
        maps = [last[part].B for part in "qk"]
        by_row = torch.autograd.grad(graph.row.square().sum(), maps, retain_graph=True)
        assert all(bool(gradient.any()) for gradient in by_row)
        through = torch.autograd.grad(
            method.refined(kind, ace_lora.Graph(graph.tokens.detach(), graph.row, None)).sum(), maps
        )
        assert all(bool(gradient.any()) for gradient in through)


# ------------------------------------------------------------------------------------------------ options
@pytest.mark.parametrize(("apply_to", "refined"), [("vision", "image"), ("text", "text")])
@torch.no_grad()
def test_one_sided_variants_leave_the_other_side_plain(apply_to: str, refined: str) -> None:
    method, batch = build("ace_lora", "timm+bert", apply_to=apply_to), inputs("timm+bert")
    other = {"image": "text", "text": "image"}[refined]
    assert list(method.graphs) == [refined]
    encode = {kind: getattr(method, f"encode_{kind}")(given(batch, kind)) for kind in ("image", "text")}
    plain = {kind: getattr(frozen("timm+bert"), f"encode_{kind}")(given(batch, kind)) for kind in encode}
    assert torch.equal(encode[other], plain[other])
    assert (encode[refined] - plain[refined]).abs().max() > 0.01


INCIDENCES: tuple[Incidence, ...] = get_args(Incidence)


@both_families
@pytest.mark.parametrize("incidence", INCIDENCES)
def test_every_incidence_trains_counts_and_encodes_with_its_own_networks(
    family: str, incidence: Incidence
) -> None:
    method, batch = build("ace_lora", family, incidence=incidence), inputs(family)
    width, hidden = method.backbone.embed_dim, 128
    added = {"gat": width * hidden + 2 * hidden, "gatv2": 2 * width * hidden + hidden}.get(incidence, 0)
    assert method.expected_parameters() == build("ace_lora", family).expected_parameters() + 2 * added
    trained = method.trainable_parameters()
    assert sum(value.numel() for value in trained.values()) == method.expected_parameters() + 1
    method.train().loss(batch).backward()
    graphs = {name: value.grad for name, value in trained.items() if name.startswith("graphs.")}
    assert all(gradient is not None and bool(gradient.any()) for gradient in graphs.values())
    if added:
        assert not torch.equal(method.graphs["image"].score.P.weight, method.graphs["text"].score.P.weight)


def test_variants_start_from_the_same_draws_where_they_share_tensors() -> None:
    plain = build("ace_lora", "open_clip", apply_to="vision").trainable_state()
    for options in ({"incidence": "gat"}, {"incidence": "gnn"}, {"incidence": "gnn_one_stage"}):
        state = build("ace_lora", "open_clip", apply_to="vision", **options).trainable_state()
        assert all(torch.equal(state[name], value) for name, value in plain.items())


@torch.no_grad()
def test_gnn_is_one_neighbour_and_all_incidences_differ() -> None:
    batch = inputs("timm+bert")
    features = {}
    for incidence in INCIDENCES:
        features[incidence] = build("ace_lora", "timm+bert", incidence=incidence).encode_image(batch.images)
    one = build("ace_lora", "timm+bert", topk=1).encode_image(batch.images)
    assert torch.equal(features["gnn"], one)
    names = list(features)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert (features[first] - features[second]).abs().max() > 1e-4, (first, second)


@both_families
def test_without_lora_the_hypergraph_alone_trains(family: str) -> None:
    method, batch = build("ace_lora", family, use_lora=False), inputs(family)
    names = set(method.trainable_parameters())
    assert {name.split(".")[0] for name in names} == {"graphs", "logit_scale"}
    network = 2 * (2 * method.backbone.embed_dim * 128 + 128 + method.backbone.embed_dim)
    assert method.expected_parameters() == 2 * network
    graph = method.graph_of(method.backbone.image, batch.images)
    assert not graph.tokens.requires_grad
    method.loss(batch).backward()
    assert all(value.grad is not None for value in method.trainable_parameters().values())
    assert method.as_peft() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"use_lora": False, "same_A": True}, "use_lora: without LoRA same_A means nothing"),
        ({"use_lora": False, "r": 8, "position": "up"}, "use_lora: without LoRA r, position means nothing"),
        ({"incidence": "gnn", "topk": 3}, "topk: incidence=gnn has one neighbour, got topk=3"),
        ({"incidence": "gcn"}, "incidence: .*'gcn'"),
        ({"topk": 0}, "topk"),
        ({"apply_to": "image"}, "apply_to"),
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        methods.build("ace_lora", small_backbone("open_clip"), **wrong)
    assert "\n" not in str(caught.value)
    methods.build("ace_lora", small_backbone("open_clip"), incidence="gnn", topk=1)


def test_an_official_checkpoint_has_no_learned_scores() -> None:
    method = methods.build("ace_lora", golden_backbone(), hidden_features=16, incidence="gat")
    with pytest.raises(ConfigError, match="no scores of neighbours"):
        ace_lora.load_official(method, under("adapter."))


def first_matrices(method: Method) -> dict[str, list[torch.Tensor]]:
    """Return every A by map, text blocks first."""
    towers: Iterable[Any] = method.adapters.values()
    blocks = [block for tower in towers for block in tower.values()]
    return {part: [block[part].A.detach() for block in blocks] for part in "qkv"}


def test_same_a_is_one_draw_for_each_of_q_k_and_v() -> None:
    method = methods_with_seed(same_A=True)
    shared = first_matrices(method)
    for matrices in shared.values():  # both golden towers are 64 wide
        assert len(matrices) == 6
        assert all(torch.equal(matrices[0], other) for other in matrices)
        assert matrices[0].abs().max() <= 64**-0.5
    assert not torch.equal(shared["q"][0], shared["k"][0])
    assert not torch.equal(shared["k"][0], shared["v"][0])
    assert not torch.equal(shared["q"][0], shared["v"][0])
    again, other = (first_matrices(methods_with_seed(seed, same_A=True)) for seed in (0, 1))
    assert torch.equal(again["q"][3], shared["q"][0])
    assert not torch.equal(other["q"][3], shared["q"][0])
    free = methods_with_seed()
    matrices = first_matrices(free)
    assert not any(torch.equal(matrices["q"][0], other) for other in matrices["q"][1:])
    assert torch.equal(matrices["q"][0], shared["q"][0])  # nothing is drawn in addition
    for name, value in free.graphs.state_dict().items():
        assert torch.equal(method.graphs.state_dict()[name], value), name


def methods_with_seed(seed: int = 0, **options: Any) -> Any:
    """Build ACE-LoRA on the golden model from a seed."""
    torch.manual_seed(seed)
    return methods.build("ace_lora", golden_backbone(), hidden_features=16, **options)


def test_same_a_is_copied_not_tied_and_only_where_shapes_agree() -> None:
    method, batch = build("ace_lora", "open_clip", same_A=True), inputs("open_clip")
    matrices = first_matrices(method)["q"]
    assert {matrix.shape[1] for matrix in matrices} == {48, 64}
    assert torch.equal(matrices[0], matrices[2])
    assert torch.equal(matrices[3], matrices[5])
    optimiser = torch.optim.AdamW(method.trainable_parameters().values(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        method.loss(batch).backward()
        optimiser.step()
    matrices = first_matrices(method)["q"]
    assert not torch.equal(matrices[0], matrices[2])


def test_the_label_loss_can_be_switched_off() -> None:
    batch = inputs("open_clip")
    batch.labels = torch.ones(6, 2)
    guided, plain = (build("ace_lora", "open_clip", loss=loss) for loss in ("label_guided", "clip"))
    assert guided.loss(batch) == 0
    expected = clip_loss(plain.similarity(batch.images, batch.token_ids))
    torch.testing.assert_close(plain.loss(batch), expected)


# --------------------------------------------------------------------------------------------- evaluation
@both_families
@torch.no_grad()
def test_templates_are_averaged_before_or_after_the_hypergraph(family: str) -> None:
    prompts = inputs(family).token_ids.view(3, 2, -1)
    tokens, features = (
        move(build("ace_lora", family, prompt_ensemble=which)) for which in ("tokens", "features")
    )
    encoded = features.encode_text(prompts.flatten(0, 1)).view(3, 2, -1)
    usual = functional.normalize(encoded.mean(dim=1), dim=-1)
    torch.testing.assert_close(features.class_features(prompts), usual, atol=1e-6, rtol=0)
    graph = tokens.graph_of(tokens.backbone.text, prompts.flatten(0, 1))
    mean = (graph.tokens[0] + graph.tokens[1]) / 2
    row = (graph.row[0] + graph.row[1]) / 2
    first = refine_all(tokens.graphs["text"], mean[None], row[None], topk=5)[0, 0]
    ours = tokens.class_features(prompts)
    torch.testing.assert_close(ours[0], first / first.norm(), atol=1e-5, rtol=0)
    assert (ours - usual).abs().max() > 1e-4
    vision = build("ace_lora", family, apply_to="vision")
    plain = frozen(family).class_features(prompts)
    torch.testing.assert_close(vision.class_features(prompts), plain, atol=1e-5, rtol=0)


def test_the_released_scale_is_a_number_that_trains_as_it_is() -> None:
    method = build("ace_lora", "open_clip", logit_scale="linear")
    method.logit_scale.set(78.3486)
    assert method.logit_scale.value.item() == pytest.approx(78.3486)
    assert method.logit_scale().item() == pytest.approx(78.3486)
    method.logit_scale.set(150.0)
    method.logit_scale.clamp()
    assert method.logit_scale().item() == 150.0  # the authors' is not clamped
    assert method.options.scale == 0.5  # alpha / sqrt(4)
