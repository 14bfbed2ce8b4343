"""LoRA: scale, initialisation, placement, gradients, dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import methods
from benchmark.efficiency.timing import saved_bytes
from benchmark.errors import ConfigError
from methods.layers.lora import LoRA, LoRAOptions, blocks_at, drawn_mask, dropped
from tests.parity.ace_reference import golden_backbone


def test_scale_is_alpha_over_root_r() -> None:
    assert LoRAOptions(r=4, lora_alpha=1).scale == 0.5
    assert LoRAOptions(r=2, lora_alpha=1).scale == pytest.approx(0.7071, abs=1e-4)
    assert LoRAOptions(r=4, lora_alpha=1, scaling="linear").scale == 0.25


def test_update_and_input_gradient_are_those_of_a_changed_weight() -> None:
    torch.manual_seed(0)
    lora, base = LoRA(6, 5, r=2, scale=0.5, dropout=0.0), nn.Linear(6, 5)
    nn.init.normal_(lora.B)
    x = torch.randn(3, 6, requires_grad=True)
    (base(x) + lora(x)).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    weight = base.weight + 0.5 * lora.B @ lora.A
    (y @ weight.T + base.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_start_is_zero_with_bounded_independent_a() -> None:
    torch.manual_seed(0)
    method = methods.build("clip_lora", golden_backbone())
    adapters = method.adapters
    values = [adapters[t][b][p] for t in ("text", "image") for b in "012" for p in "qkv"]
    assert all(bool((lora.B == 0).all()) for lora in values)
    assert all(lora.A.abs().max() <= 1 / math.sqrt(64) for lora in values)
    assert all(not torch.equal(values[0].A, other.A) for other in values[1:])


@pytest.mark.parametrize(
    ("position", "blocks"),
    [
        ("all", range(12)),
        ("bottom", range(4)),
        ("mid", range(4, 8)),
        ("up", range(8, 12)),
        ("half-bottom", range(6)),
        ("half-up", range(6, 12)),
        ("top3", range(9, 12)),
    ],
)
def test_positions_at_depth_twelve(position: str, blocks: range) -> None:
    assert blocks_at(position, 12) == blocks


def test_every_block_has_one_third() -> None:
    for depth in range(1, 13):
        thirds = [index for name in ("bottom", "mid", "up") for index in blocks_at(name, depth)]
        assert thirds == list(range(depth))


def test_placement_options() -> None:
    method = methods.build(
        "clip_lora", golden_backbone(), params=("v", "o", "up"), position="top3", encoder="text"
    )
    assert list(method.adapters) == ["text"]
    assert set(method.adapters["text"]["0"]) == {"v", "o", "up"}
    counted = sum(p.numel() for n, p in method.trainable_parameters().items() if n != "logit_scale.value")
    assert counted == method.expected_parameters() == 3 * 4 * (128 + 128 + 64 + 256)


def test_dropout_meets_its_probability_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 401)
    thinned = dropped(values, drawn_mask(values, 0.1), 0.1)
    assert (thinned == 0).float().mean().item() == pytest.approx(0.1, abs=2e-3)
    assert thinned.mean().item() == pytest.approx(1.0, abs=3e-3)
    lanes = [(thinned.flatten()[lane::4] == 0).float().mean().item() for lane in range(4)]
    assert lanes == pytest.approx([0.1] * 4, abs=4e-3)
    assert not torch.equal(dropped(values, drawn_mask(values, 0.1), 0.1), thinned)
    assert dropped(values, None, 0.0) is values


def plain_update(lora: LoRA, x: Tensor) -> Tensor:
    """The formula, left to autograd; it draws the mask as LoRA does."""
    if lora.training and lora.dropout:
        x = x * (drawn_mask(x, lora.dropout).to(x.dtype) * (1 / (1 - lora.dropout)))
    return lora.scale * functional.linear(functional.linear(x, lora.A), lora.B)


def loss_and_gradients(function, lora: LoRA, x: Tensor, needs_input: bool) -> list[Tensor]:
    torch.manual_seed(1)
    lora.zero_grad()
    leaf = x.clone().requires_grad_(needs_input)
    loss = function(lora, leaf * 1.5).float().square().mean()
    loss.backward()
    return [loss.detach(), lora.A.grad, lora.B.grad, *([leaf.grad] if needs_input else [])]


@pytest.mark.parametrize("needs_input", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(2, 7, 16), (3, 1, 64), (5, 32), (2, 65, 192)])
def test_loss_and_gradients_are_those_of_plain_autograd(shape, dropout, bf16, needs_input) -> None:
    torch.manual_seed(0)
    lora, x = LoRA(shape[-1], 24, r=4, scale=0.5, dropout=dropout), torch.randn(shape)
    nn.init.normal_(lora.B)

    def own(lora: LoRA, x: Tensor) -> Tensor:
        kind = torch.bfloat16 if bf16 else torch.float32
        return LoRA.add_all(torch.zeros(*shape[:-1], 24, dtype=kind), x, [(lora, 0, 24)])

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found = loss_and_gradients(own, lora, x, needs_input)
        plain = loss_and_gradients(plain_update, lora, x, needs_input)
    for a, b in zip(found, plain, strict=True):  # bf16 rounds products of another order
        torch.testing.assert_close(
            a, b, rtol=3e-2 if bf16 else 1e-5, atol=float(b.abs().max()) * (1e-2 if bf16 else 1e-6)
        )


def test_updates_of_one_fused_map_draw_the_masks_of_single_ones_and_leave_other_columns() -> None:
    torch.manual_seed(0)
    x, output = torch.randn(2, 5, 16), torch.randn(2, 5, 30)
    q, v = (LoRA(16, 10, r=2, scale=0.7, dropout=0.4) for _ in "qv")
    for lora in (q, v):
        nn.init.normal_(lora.B)
    torch.manual_seed(3)
    expected = output.clone()
    expected[..., :10] += plain_update(q, x)
    expected[..., 20:] += plain_update(v, x)
    torch.manual_seed(3)
    changed = output.clone()
    assert LoRA.add_all(changed, x, [(q, 0, 10), (v, 20, 30)]) is changed  # in place
    torch.testing.assert_close(changed, expected)
    assert torch.equal(changed[..., 10:20], output[..., 10:20])


def test_own_backward_is_the_derivative() -> None:
    torch.manual_seed(0)
    lora = LoRA(5, 4, r=2, scale=0.5, dropout=0.3).double()
    nn.init.normal_(lora.B)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def update(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(2)
        return torch.func.functional_call(lora, {"A": a, "B": b}, (x,))

    assert torch.autograd.gradcheck(update, (x, lora.A, lora.B))


def test_three_updates_of_one_input_keep_it_once_and_their_masks_in_bytes() -> None:
    x = torch.randn(4, 65, 192, requires_grad=True) * 1.0
    updates = [LoRA(192, 192, r=4, scale=0.5, dropout=0.1) for _ in "qkv"]
    placed = [(update, 192 * i, 192 * i + 192) for i, update in enumerate(updates)]
    own = saved_bytes(
        lambda: LoRA.add_all(torch.zeros(4, 65, 576), x, placed), besides=nn.ModuleList(updates)
    )
    plain = saved_bytes(
        lambda: sum(plain_update(update, x) for update in updates), besides=nn.ModuleList(updates)
    )
    tokens = 4 * 65
    assert own == tokens * (192 * 4 + 3 * (192 + 4 * 4))  # x, masks, rank-4 products
    assert plain == tokens * 3 * (2 * 192 * 4 + 4 * 4)


def test_dropout_acts_in_training_only_and_not_while_b_is_zero() -> None:
    torch.manual_seed(0)
    lora, x = LoRA(64, 64, r=4, scale=0.5, dropout=0.5), torch.randn(8, 64)
    assert (lora.train()(x) == 0).all()
    nn.init.normal_(lora.B)
    assert not torch.equal(lora(x), lora(x))
    assert torch.equal(lora.eval()(x), lora(x))


@pytest.mark.parametrize(
    "wrong",
    [{"r": 0}, {"r": 2.5}, {"lora_alpha": -1}, {"lora_dropout": 1.0}, {"params": ()}, {"params": ("z",)},
     {"position": "top"}, {"encoder": "image"}, {"scaling": "none"}],
)  # fmt: skip
def test_impossible_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        methods.build("clip_lora", golden_backbone(), **wrong)
