"""Targets that do not depend on a machine, at BiomedCLIP's real size: shapes alone, no weights, no arithmetic."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import methods
from benchmark.backbones import Backbone, from_open_clip, load_backbone
from benchmark.backbones.towers.precision import TrainingArithmetic
from benchmark.data.samples import Batch
from benchmark.efficiency.timing import saved_bytes
from benchmark.run.cost import flops
from methods.base import Method
from methods.layers.hypergraph import HypergraphNetwork, refine, refine_all
from tests.plain import build as build_plain

PAIRS, TEXT = 4, 256


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast knows nothing of tensors without values."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@functools.cache
def biomedclip() -> Backbone:
    with torch.device("meta"):
        backbone = load_backbone("random:biomedclip", device="meta")
    backbone.model.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)  # its value is read
    return backbone


def cut(depth: int) -> Backbone:
    """The real widths with fewer blocks, still without values."""
    whole = copy.deepcopy(biomedclip())
    model = whole.model
    model.visual.trunk.blocks = model.visual.trunk.blocks[:depth]
    encoder = model.text.transformer.encoder
    encoder.layer = encoder.layer[:depth]
    return from_open_clip(model, context_length=TEXT, input_spec=whole.input_spec)


def at_full_depth(count: Callable[[int], int]) -> int:
    """Twelve blocks from two and three: blocks beyond the second cost what the third costs."""
    two, three = count(2), count(3)
    return two + 10 * (three - two)


def built(name: str, depth: int, *, plain: bool = False, **options: object) -> Method:
    make = build_plain if plain else methods.build
    return make(name, cut(depth), **options).to("meta").train()


def batch(device: str = "meta", pairs: int = PAIRS) -> Batch:
    ids = torch.ones(pairs, TEXT, dtype=torch.long, device=device)
    ids[1:, 200:] = 0
    return Batch(images=torch.zeros(pairs, 3, 224, 224, device=device), token_ids=ids)


@functools.cache
def step_flops(name: str, plain: bool = False) -> int:
    def count(depth: int) -> int:
        method = built(name, depth, plain=plain)
        return flops(lambda: method.loss(batch()).backward())

    return at_full_depth(count)


@functools.cache
def kept_bytes(plain: bool, dropout: float, precision: str = "fp32", pairs: int = PAIRS) -> int:
    """On the CPU, where the kernels that train decide what is kept; all weights are 0."""

    def count(depth: int) -> int:
        backbone = cut(depth)
        backbone.model.to_empty(device="cpu")
        with torch.no_grad():
            for value in (*backbone.model.parameters(), *backbone.model.buffers()):
                value.zero_()
        make = build_plain if plain else methods.build
        method = make("ace_lora", backbone, lora_dropout=dropout).train()
        arithmetic = TrainingArithmetic(precision, torch.device("cpu"), backbone.model)

        def loss() -> torch.Tensor:
            with arithmetic():
                return method.loss(batch("cpu", pairs))

        return saved_bytes(loss, besides=method, also=arithmetic.copies)

    return at_full_depth(count)


def tokens(count: int) -> tuple[HypergraphNetwork, torch.Tensor, torch.Tensor]:
    with torch.device("meta"):
        values = torch.empty(PAIRS, count, 512, requires_grad=True)
        return HypergraphNetwork(512, 128), values, torch.empty(PAIRS, count - 1, requires_grad=True)


def test_the_step_needs_three_quarters_of_the_plain_forms_flops() -> None:
    assert step_flops("ace_lora") <= 0.75 * step_flops("ace_lora", plain=True)


def test_the_step_needs_less_than_69_percent_of_full_fine_tuning() -> None:
    assert step_flops("ace_lora") <= 0.69 * step_flops("full_ft", plain=True)


def test_the_hypergraph_adds_a_thousandth_at_most() -> None:
    def graphs() -> None:
        for count in (197, TEXT):
            network, values, row = tokens(count)
            refine(network, values, row, topk=5).sum().backward()

    added = flops(graphs)
    assert 0 < added <= 1e-3 * (step_flops("ace_lora") - added)


@contextlib.contextmanager
def all_tokens(method: Method) -> Iterator[None]:
    """Let the last block compute every token with gradient."""
    towers = (method.backbone.image, method.backbone.text)
    for tower in towers:
        whole = functools.partial(type(tower).forward, tower)
        tower.forward = lambda *args, global_only=False, choose=None, whole=whole, **how: whole(*args, **how)
    yield
    for tower in towers:
        del tower.forward


@pytest.mark.parametrize(("name", "saved"), [("clip_lora", 0.065), ("ace_lora", 0.02)])
def test_the_last_block_for_the_tokens_that_reach_the_loss_saves(name: str, saved: float) -> None:
    def count(depth: int) -> int:
        method = built(name, depth)
        with all_tokens(method):
            return flops(lambda: method.loss(batch()).backward())

    assert step_flops(name) <= (1 - saved) * at_full_depth(count)


def test_bytes_kept_for_the_backward_pass() -> None:
    official = kept_bytes(True, 0.1)
    assert kept_bytes(False, 0.1) <= 0.60 * official
    assert kept_bytes(False, 0.0) <= 0.53 * official


@pytest.mark.parametrize(("dropout", "share"), [(0.1, 0.50), (0.0, 0.33)])
def test_bytes_kept_in_bf16(monkeypatch: pytest.MonkeyPatch, dropout: float, share: float) -> None:
    """Of a pair at a time, since few processors are fast at it: each pair keeps as much."""
    monkeypatch.undo()  # autocast is wanted here
    kept = PAIRS * kept_bytes(False, dropout, "bf16", pairs=1)
    assert kept <= share * kept_bytes(True, 0.1)


@pytest.mark.parametrize("count", [197, TEXT])
def test_one_row_of_the_hypergraph_keeps_a_quarter_of_the_bytes_of_all(count: int) -> None:
    network, values, row = tokens(count)
    network.register_buffer("tokens", values)  # are there anyway
    one = saved_bytes(lambda: refine(network, values, row, topk=5), besides=network)
    every = saved_bytes(lambda: refine_all(network, values, row, topk=5)[:, 0], besides=network)
    assert one <= 0.25 * every
