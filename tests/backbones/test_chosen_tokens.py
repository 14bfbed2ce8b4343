"""A last block that carries gradient for a few chosen tokens gives what the whole block gives for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from benchmark.backbones import Backbone, Intervention, TokenSequence, Tower, TowerOutput, tokens_at
from benchmark.conformance.small_models import FAMILIES, small_backbone, small_batch
from benchmark.efficiency.timing import saved_bytes
from methods.layers.lora import LoRA

CASES = [(family, kind) for family in FAMILIES for kind in ("image", "text")]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Backbone, Tower, Tensor]:
    """Return a backbone in fp64, one of its towers with LoRA on q, k and v of the last blocks, and inputs."""
    family, kind = request.param
    backbone = small_backbone(family).double()
    batch, tower = small_batch(backbone), getattr(backbone, kind)
    torch.manual_seed(0)
    for index in (tower.depth - 2, tower.depth - 1):
        for site in "qkv":
            attach(tower, index, site, dropout=0.2)
    return backbone, tower, batch.images.double() if kind == "image" else batch.token_ids


def attach(tower: Tower, index: int, site: str, *, dropout: float) -> LoRA:
    lora = LoRA(*tower.site_shape(index, site), r=2, scale=0.5, dropout=dropout).double()
    nn.init.normal_(lora.B, std=0.3)
    tower.attach(index, site, lora)
    return lora


def some(sequence: TokenSequence, row: Tensor) -> Tensor:
    """Choose the global token and the three that it attends to most."""
    assert not sequence.tokens.requires_grad
    return torch.cat([sequence.global_at()[:, None], row.topk(3).indices], dim=1)


def trained(tower: Tower) -> list[nn.Parameter]:
    sites = tower._deltas.values()
    loras = [lora for parts in sites for deltas in parts.values() for lora in deltas]
    return [value for lora in loras for value in lora.parameters()]


def passed(tower: Tower, inputs: Tensor, weights: Tensor, **how: object) -> tuple[TowerOutput, list[Tensor]]:
    """Run the tower and return its output and the gradients of a function of the chosen tokens and the row."""
    torch.manual_seed(7)
    output = tower.forward(inputs, global_row=True, **how)
    tokens, row, positions = output.sequence.tokens, output.global_row, output.positions
    if positions is None:
        with torch.no_grad():
            positions = some(output.sequence.with_tokens(tokens.detach()), row)
        tokens = tokens_at(tokens, positions)
    loss = (tower.project(tokens).tanh() * weights).sum() + row.tanh().square().sum()
    return output, list(torch.autograd.grad(loss, trained(tower)))


@pytest.mark.parametrize("behind", [False, True], ids=["attention", "behind-attention"])
def test_values_and_gradients_of_the_whole_block(case: tuple[Backbone, Tower, Tensor], behind: bool) -> None:
    backbone, tower, inputs = case
    if behind:
        quiet(tower)
    weights = torch.randn(len(inputs), 4, backbone.embed_dim, dtype=torch.float64)
    whole, expected = passed(tower, inputs, weights)
    few, gradients = passed(tower, inputs, weights, choose=some)
    assert whole.positions is None
    assert few.sequence.tokens.shape[1] == 4
    torch.testing.assert_close(few.global_row, whole.global_row, rtol=0, atol=0)
    at = tokens_at(whole.sequence.tokens, few.positions)
    torch.testing.assert_close(few.sequence.tokens, at, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert behind or theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    if whole.sequence.keep is not None:
        assert torch.equal(few.sequence.keep, tokens_at(whole.sequence.keep, few.positions))


def test_the_choice_sees_every_token_bit_for_bit(case: tuple[Backbone, Tower, Tensor]) -> None:
    _, tower, inputs = case
    seen: list[TokenSequence] = []

    def watch(sequence: TokenSequence, row: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(sequence)
        return some(sequence, row)

    torch.manual_seed(7)
    tower.forward(inputs, global_row=True, choose=watch)
    torch.manual_seed(7)
    whole = tower.forward(inputs)
    assert torch.equal(seen[0].tokens, whole.sequence.tokens)
    assert seen[0].keep is None or torch.equal(seen[0].keep, whole.sequence.keep)


def test_fewer_bytes_are_kept(case: tuple[Backbone, Tower, Tensor]) -> None:
    backbone, tower, inputs = case
    whole, few = (
        saved_bytes(lambda how=how: tower.forward(inputs, global_row=True, **how), besides=backbone)
        for how in ({}, {"choose": some})
    )
    assert few < 0.85 * whole


class Near(Intervention):
    """Per token, after a block."""

    mixes_tokens = False

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        return after


class Ahead(Intervention):
    """Before a block only."""

    def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        return sequence.insert(torch.zeros(2, tower.width)) if index == tower.depth - 1 else sequence


def noisy(tower: Tower) -> None:
    attach(tower, tower.depth - 1, "down", dropout=0.2)


def unknown(tower: Tower) -> None:
    tower.attach(tower.depth - 1, "o", nn.Linear(tower.width, tower.width).double())


def quiet(tower: Tower) -> None:
    attach(tower, tower.depth - 1, "down", dropout=0.0)
    attach(tower, tower.depth - 1, "o", dropout=0.2).eval()


@pytest.mark.parametrize(
    ("prepare", "how", "chosen"),
    [
        (None, {"interventions": (Near(),)}, False),
        (None, {"interventions": (Ahead(),)}, True),
        (None, {"taps": "last"}, False),
        (noisy, {}, False),
        (unknown, {}, False),
        (quiet, {}, True),
        (lambda tower: tower.blocks[-1].train(), {}, False),
    ],
    ids=["after-block", "before-block", "tap", "dropout", "unknown-delta", "deltas", "training"],
)
def test_all_tokens_carry_gradient_where_a_second_pass_could_differ(
    case: tuple[Backbone, Tower, Tensor],
    prepare: Callable[[Tower], None] | None,
    how: dict[str, object],
    chosen: bool,
) -> None:
    _, tower, inputs = case
    if prepare is not None:
        prepare(tower)
    how = {"taps": (tower.depth - 1,)} if "taps" in how else how
    output = tower.forward(inputs, global_row=True, choose=some, **how)
    assert (output.positions is not None) == chosen
    assert (output.sequence.tokens.shape[1] == 4) == chosen


def test_weights_that_autocast_stored_in_the_first_pass_get_their_gradient() -> None:
    backbone = small_backbone("timm+bert")
    tower, ids = backbone.text, small_batch(backbone).token_ids
    delta = nn.Linear(tower.width, tower.width).eval()
    tower.attach(tower.depth - 1, "o", delta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tower.forward(ids, global_row=True, choose=some)
        tower.project(output.sequence.tokens).float().square().sum().backward()
    assert output.positions is not None
    assert delta.weight.grad is not None
    assert delta.weight.grad.any()


class Other(Attention):
    """Attention of another form, as far as anybody knows."""


def test_blocks_of_another_form_are_left_to_the_library() -> None:
    backbone = small_backbone("timm+bert")
    tower, images = backbone.image, small_batch(backbone).images
    plain = [tower.forward(images, global_row=True), tower.forward(images, global_only=True)]
    backbone.model.visual.trunk.blocks[-1].attn.__class__ = Other
    assert not tower.opens(tower.depth - 1)
    row = tower.forward(images, global_row=True, choose=some)
    alone = tower.forward(images, global_only=True)
    assert row.positions is None
    assert torch.equal(row.sequence.tokens, plain[0].sequence.tokens)
    assert torch.equal(row.global_row, plain[0].global_row)
    torch.testing.assert_close(alone.sequence.tokens, plain[1].sequence.tokens, atol=1e-5, rtol=1e-5)
