"""Both tower families: bit-identical to the library when nothing acts, and exact where something does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone, Intervention, TokenSequence, Tower, from_open_clip
from benchmark.backbones.towers.base import SITES
from benchmark.backbones.towers.split import SplitAttention
from benchmark.errors import BenchmarkError
from tests.parity import ace_reference, clip_reference
from tests.small import whole_features

FAMILIES: dict[str, Callable[[], Backbone]] = {
    "timm+bert": ace_reference.golden_backbone,
    "open_clip": clip_reference.clip_backbone,
}
CASES = [(family, kind) for family in FAMILIES for kind in ("image", "text")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[Backbone, Tower, Tensor]:
    """Return a backbone, one of its towers and inputs; texts are of several lengths."""
    family, kind = request.param
    backbone = FAMILIES[family]()
    store = ace_reference.tensors() if family == "timm+bert" else clip_reference.tensors()
    ids = store["input_ids"] if family == "timm+bert" else store["base.ids"]
    return backbone, getattr(backbone, kind), store["images"] if kind == "image" else ids.long()


def library(backbone: Backbone, tower: Tower, inputs: Tensor) -> Tensor:
    """Return the library's own feature."""
    encode = backbone.model.encode_image if tower.kind == "image" else backbone.model.encode_text
    return encode(inputs)


class Recorder(Intervention):
    """Keep what passes; change nothing."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.embedded: Tensor | None = None

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        self.embedded = sequence.tokens
        return sequence

    def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        self.before.append(sequence.tokens)
        return sequence

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        self.after.append(after.tokens)
        return after


@torch.no_grad()
def test_an_unpadded_text_is_bit_identical_too() -> None:
    backbone = ace_reference.golden_backbone()
    ids = ace_reference.tensors()["input_ids"][:1].long()
    assert (ids != 0).all()
    assert torch.equal(whole_features(backbone.text, ids), backbone.model.encode_text(ids))


@torch.no_grad()
def test_watching_changes_no_bit(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, inputs = case
    recorder, expected = Recorder(), library(backbone, tower, inputs)
    assert torch.equal(whole_features(tower, inputs), expected)
    output = tower.forward(inputs, interventions=(recorder,), taps=range(tower.depth), global_row=False)
    assert torch.equal(tower.project(tower.head_norm(tower.pool(output.sequence))), expected)
    assert len(recorder.before) == len(recorder.after) == tower.depth == len(output.taps)
    assert recorder.embedded is not None
    assert recorder.embedded.shape == (*recorder.before[0].shape[:2], tower.width)


@torch.no_grad()
def test_hidden_states_are_the_authors() -> None:
    backbone, stored = clip_reference.clip_backbone(), clip_reference.tensors()
    for tower, inputs, name in (
        (backbone.image, stored["images"], "base.image_hidden_first"),
        (backbone.text, stored["base.ids"].long(), "base.text_hidden_first"),
    ):
        recorder = Recorder()
        tower.forward(inputs, interventions=(recorder,))
        torch.testing.assert_close(
            torch.stack([h[0] for h in recorder.after]), stored[name], atol=5e-5, rtol=0
        )


@torch.no_grad()
def test_image_taps_are_maps_of_the_patch_tokens(case: tuple[Backbone, Tower, Tensor]) -> None:
    _, tower, inputs = case
    if tower.kind == "text":
        pytest.skip("maps are of images")
    recorder = Recorder()
    taps = tower.forward(inputs, interventions=(recorder,), taps=(0, tower.depth - 1)).taps
    rows, cols = tower.grid
    assert taps[0].shape == (len(inputs), tower.width, rows, cols)
    assert torch.equal(taps[tower.depth - 1][:, :, 0, 1], recorder.after[-1][:, 2])


@torch.no_grad()
def test_taps_leave_out_inserted_tokens() -> None:
    backbone = clip_reference.clip_backbone()
    tower, images = backbone.image, clip_reference.tensors()["images"]

    class Insert(Intervention):
        def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
            return sequence.insert(torch.zeros(3, tower.width)) if index == 1 else sequence

    recorder = Recorder()
    taps = tower.forward(images, interventions=(Insert(), recorder), taps=(2,)).taps
    assert torch.equal(taps[2][:, :, 0, 0], recorder.after[2][:, 1 + 3])


@torch.no_grad()
def test_global_row_is_the_attention_of_the_global_token(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, inputs = case
    output = tower.forward(inputs, global_row=True)
    torch.testing.assert_close(
        tower.project(tower.head_norm(tower.pool(output.sequence))),
        library(backbone, tower, inputs),
        atol=1e-5,
        rtol=1e-5,
    )
    row = output.global_row
    assert row is not None
    assert row.shape == output.sequence.tokens.shape[:2]
    if tower.kind == "text":
        keep = output.sequence.keep
        torch.testing.assert_close(row.sum(dim=1), torch.ones(len(row)))
        assert (row[~keep] == 0).all()
        assert (row[keep] > 0).all()
    else:
        assert (row < 0).any()  # scores before softmax, not probabilities


@torch.no_grad()
def test_scores_of_the_row_by_hand() -> None:
    backbone = clip_reference.clip_backbone()
    tower, images = backbone.image, clip_reference.tensors()["images"]
    recorder = Recorder()
    row = tower.forward(images, interventions=(recorder,), global_row=True).global_row
    block = backbone.model.visual.transformer.resblocks[-1]
    hidden = block.ln_1(recorder.before[-1])
    width, heads = tower.width, tower.num_heads
    query = (hidden @ block.attn.in_proj_weight[:width].T + block.attn.in_proj_bias[:width])[:, 0]
    keys = (
        hidden @ block.attn.in_proj_weight[width : 2 * width].T + block.attn.in_proj_bias[width : 2 * width]
    )
    by_head = (query[:, None] * keys).unflatten(-1, (heads, -1)).sum(-1) / (width / heads) ** 0.5
    torch.testing.assert_close(row, by_head.mean(-1), atol=1e-5, rtol=1e-4)


class Gain(nn.Module):
    """A delta that is a plain linear map."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_outputs, num_inputs) * 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


def merge(tower: Tower, index: int, site: str, delta: Gain) -> None:
    """Add the delta to the frozen weight itself."""
    module, _, start, stop = tower.linear_of(index, site)
    weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
    with torch.no_grad():
        weight[start:stop] += delta.weight


@pytest.mark.parametrize("site", SITES)
def test_a_delta_equals_a_changed_weight(case: tuple[Backbone, Tower, Tensor], site: str) -> None:
    backbone, tower, inputs = case
    torch.manual_seed(0)
    deltas = [Gain(*tower.site_shape(index, site)) for index in range(tower.depth)]
    plain, names = tower.features(inputs), set(backbone.model.state_dict())
    handles = [tower.attach(index, site, delta) for index, delta in enumerate(deltas)]
    adapted = tower.features(inputs)
    assert set(backbone.model.state_dict()) == names
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        assert torch.equal(tower.features(inputs), plain), "removed deltas leave no trace"
    for index, delta in enumerate(deltas):
        merge(tower, index, site, delta)
    torch.testing.assert_close(adapted, library(backbone, tower, inputs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, plain, atol=1e-4)


def test_deltas_of_one_fused_map_compose(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, inputs = case
    torch.manual_seed(0)
    deltas = {site: Gain(*tower.site_shape(1, site)) for site in ("v", "q", "k")}
    for site, delta in deltas.items():
        tower.attach(1, site, delta)
        tower.attach(1, site, delta)
    adapted = tower.features(inputs)
    fresh = copy.deepcopy(backbone)
    torch.testing.assert_close(getattr(fresh, tower.kind).features(inputs), adapted, atol=0, rtol=0)
    for site, delta in deltas.items():
        tower._deltas.clear()
        merge(tower, 1, site, delta)
        merge(tower, 1, site, delta)
    torch.testing.assert_close(adapted, library(backbone, tower, inputs), atol=1e-4, rtol=1e-4)


def test_attach_refuses_what_is_not_there(case: tuple[Backbone, Tower, Tensor]) -> None:
    _, tower, _ = case
    with pytest.raises(ValueError, match="no site 'x'"):
        tower.attach(0, "x", nn.Identity())
    with pytest.raises(ValueError, match="block 3"):
        tower.attach(3, "q", nn.Identity())


@torch.no_grad()
def test_inserted_words_equal_a_longer_text() -> None:
    """Word rows inserted after the start token give the text that literally begins with these words."""
    for family, ids in (
        (ace_reference.golden_backbone, [2, 11, 12, 13, 3]),
        (clip_reference.clip_backbone, [118, 20, 21, 22, 119]),
    ):
        tower = family().text
        long = torch.tensor([ids])
        short = torch.tensor([[ids[0], *ids[3:]]])
        vectors = tower.word_embeddings(long[0, 1:3])

        class Insert(Intervention):
            def __init__(self, vectors: Tensor) -> None:
                self.vectors = vectors

            def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
                return sequence.insert(self.vectors)

        inserted = tower.features(short, interventions=(Insert(vectors),))
        torch.testing.assert_close(inserted, tower.features(long), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_padding_and_batch_mates_do_not_move_a_text_feature() -> None:
    for backbone, ids in (
        (ace_reference.golden_backbone(), ace_reference.tensors()["input_ids"].long()),
        (clip_reference.clip_backbone(), clip_reference.tensors()["base.ids"].long()),
    ):
        together = backbone.text.features(ids)
        for row, token_ids in enumerate(ids):
            alone = backbone.text.features(backbone.trim(token_ids[None]))
            torch.testing.assert_close(alone[0], together[row], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_make_room_keeps_the_end_token(count: int) -> None:
    tower = ace_reference.golden_backbone().text  # context 16
    ids = torch.zeros(2, 16, dtype=torch.long)
    ids[0] = torch.tensor([2, *range(10, 24), 3])
    ids[1, :5] = torch.tensor([2, 50, 51, 52, 3])
    short = tower.make_room(ids, count)
    assert short.shape[1] == 16 - count
    assert short[0, -1] == 3
    assert tower.lengths(short)[0] == 16 - count
    assert torch.equal(short[0, :-1], ids[0, : 15 - count])
    assert torch.equal(short[1], ids[1, : 16 - count])


def test_sequence_edits() -> None:
    tokens = torch.arange(12.0).view(1, 4, 3)
    sequence = TokenSequence(tokens, torch.tensor([[True, True, True, False]]), pooled_at=torch.tensor([2]))
    vectors = -torch.ones(2, 3)
    longer = sequence.insert(vectors, at=1)
    assert longer.tokens.shape == (1, 6, 3)
    assert longer.pooled_at.tolist() == [4]
    assert longer.content_at == 3
    assert longer.keep.tolist() == [[True, True, True, True, True, False]]
    assert torch.equal(longer.tokens[0, 1:3], vectors)
    back = longer.overwrite(torch.zeros(2, 3), at=1)
    assert torch.equal(back.tokens[0, 1:3], torch.zeros(2, 3))
    assert torch.equal(back.tokens[:, 3:], longer.tokens[:, 3:])
    end = sequence.append(vectors)
    assert end.pooled_at.tolist() == [2]
    assert end.content_at == 1
    assert torch.equal(end.tokens[0, 4:], vectors)
    assert torch.equal(end.overwrite(torch.zeros(2, 3), at=-2).tokens[0, 4:], torch.zeros(2, 3))


class Shift(Intervention):
    """Add half the input to the output of every block, token by token."""

    mixes_tokens = False

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        return after.with_tokens(after.tokens + 0.5 * before.tokens)


class Mix(Shift):
    """The same, but entitled to see all tokens."""

    mixes_tokens = True


@pytest.mark.parametrize("acts", [(), (Shift(),), (Mix(),)], ids=["plain", "per-token", "mixing"])
@pytest.mark.parametrize("adapted", [False, True], ids=["frozen", "deltas"])
def test_the_global_token_alone_gives_the_same_features_and_gradients(
    case: tuple[Backbone, Tower, Tensor], acts: tuple[Intervention, ...], adapted: bool
) -> None:
    backbone, tower, inputs = case
    torch.manual_seed(0)
    deltas = [Gain(*tower.site_shape(index, site)) for index in range(tower.depth) for site in SITES]
    if adapted:
        for number, delta in enumerate(deltas):
            tower.attach(number // len(SITES), SITES[number % len(SITES)], delta)
    mixes = any(act.mixes_tokens for act in acts)
    for needs in ({}, {"taps": (tower.depth - 1,)}, {"global_row": True}):
        tokens = tower.forward(inputs, global_only=True, interventions=acts, **needs).sequence.tokens
        assert (tokens.shape[1] == 1) == (not mixes and not needs)
    results = []
    for features_of in (whole_features, type(tower).features):
        backbone.model.zero_grad(set_to_none=True)
        features = features_of(tower, inputs, interventions=acts)
        features.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in backbone.model.named_parameters() if p.grad is not None}
        results.append((features.detach(), gradients))
    (whole, all_gradients), (short, few_gradients) = results
    torch.testing.assert_close(short, whole, atol=2e-5, rtol=1e-4)
    assert all_gradients.keys() == few_gradients.keys()
    for name, gradient in all_gradients.items():
        assert (few_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp(min=0.1), name


# ---------------------------------------------------------------------------------------------- split q, k, v
@pytest.mark.parametrize("grad", [False, True])
def test_splitting_changes_no_bit(case: tuple[Backbone, Tower, Tensor], grad: bool) -> None:
    backbone, tower, inputs = case
    split = copy.deepcopy(backbone)
    split.split_qkv()
    split.split_qkv()
    other: Tower = getattr(split, tower.kind)
    with torch.set_grad_enabled(grad):
        assert torch.equal(whole_features(other, inputs), library(backbone, tower, inputs))
        assert torch.equal(library(split, other, inputs), library(backbone, tower, inputs))
        assert torch.equal(other.features(inputs), tower.features(inputs))
        rows = [each.forward(inputs, global_row=True).global_row for each in (other, tower)]
    assert torch.equal(rows[0], rows[1])
    again = from_open_clip(split.model, context_length=backbone.text.context_length)
    assert torch.equal(getattr(again, tower.kind).features(inputs), other.features(inputs))


def test_each_of_q_k_and_v_has_a_linear_of_its_own(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, _ = case
    before = [backbone.linear_name(tower.kind, 1, site) for site in SITES]
    backbone.split_qkv()
    assert [backbone.linear_name(tower.kind, 1, site) for site in SITES] == before
    modules = [backbone.model.get_submodule(name) for name in before]
    assert len(set(map(id, modules))) == len(SITES)
    for site, module in zip(SITES, modules, strict=True):
        assert isinstance(module, nn.Linear)
        assert (module.in_features, module.out_features) == tower.site_shape(1, site)
        assert not module.training


def test_splitting_keeps_what_is_attached_and_takes_more(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, inputs = case
    torch.manual_seed(0)
    delta, later = Gain(*tower.site_shape(0, "k")), Gain(*tower.site_shape(2, "q"))
    reference: Tower = getattr(copy.deepcopy(backbone), tower.kind)
    plain = tower.features(inputs)
    for each in (reference, tower):
        each.attach(0, "k", delta)
        if each is tower:
            each.split_qkv()
        each.attach(2, "q", later)
    assert torch.equal(reference.features(inputs), tower.features(inputs))
    assert not torch.allclose(tower.features(inputs), plain, atol=1e-4)


def test_a_module_put_in_the_place_of_a_linear_is_used_everywhere(
    case: tuple[Backbone, Tower, Tensor],
) -> None:
    backbone, tower, inputs = case
    backbone.split_qkv()

    class Wrapped(nn.Module):
        """As an adapter library does it: the old Linear inside, no sizes outside."""

        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return 1.5 * self.base_layer(inputs)

    plain = whole_features(tower, inputs)
    shapes = [tower.site_shape(tower.depth - 1, site) for site in SITES]
    for site in SITES:
        moved = copy.deepcopy(backbone)
        name = moved.linear_name(tower.kind, tower.depth - 1, site)
        owner, _, last = name.rpartition(".")
        setattr(moved.model.get_submodule(owner), last, Wrapped(moved.model.get_submodule(name)))
        other: Tower = getattr(moved, tower.kind)
        assert [other.site_shape(tower.depth - 1, site) for site in SITES] == shapes
        whole = whole_features(other, inputs)
        assert not torch.allclose(whole, plain, atol=1e-5), site
        torch.testing.assert_close(other.features(inputs), whole, atol=2e-5, rtol=1e-4)
        assert moved.linear_name(tower.kind, tower.depth - 1, site) == name


def test_attention_that_cannot_be_split_says_so() -> None:
    backbone = ace_reference.golden_backbone()
    backbone.model.visual.trunk.blocks[0].attn.qkv = nn.Identity()
    with pytest.raises(BenchmarkError, match="Identity as qkv cannot be split"):
        backbone.split_qkv()
    for unusual in ({"batch_first": False}, {"dropout": 0.1}, {"add_zero_attn": True}, {"kdim": 4}):
        with pytest.raises(ValueError, match="cannot be split"):
            SplitAttention(nn.MultiheadAttention(8, 2, **{"batch_first": True, **unusual}))
    whole = SplitAttention(nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(ValueError, match="no attention weights"):
        whole(torch.ones(1, 2, 8), torch.ones(1, 2, 8), torch.ones(1, 2, 8), need_weights=True)
