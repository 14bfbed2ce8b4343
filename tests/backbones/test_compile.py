"""Compiled blocks: the same features and gradients, with everything that acts on them, and no end of new lengths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from benchmark.backbones import Intervention, TokenSequence, Tower
from benchmark.conformance.small_models import FAMILIES, move, small_backbone, small_batch
from benchmark.run.training.gradients import backward
from methods.base import Method
from tests.small import whole_features

QUICK = "aot_eager"  # traces as inductor does, then runs torch's own kernels: nothing to build

# torch.compile looks at .grad of every input
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1, skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


class Shift(Intervention):
    """Add half of a block's input to its output."""

    mixes_tokens = False

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        return after.with_tokens(after.tokens + 0.5 * before.tokens)


def built(family: str, kind: str, blocks: int, **options: Any) -> tuple[Method, Tower, Tensor]:
    """Return CLIP-LoRA in training, one of its towers, cut short, and inputs."""
    torch.manual_seed(0)
    method = methods.build("clip_lora", small_backbone(family), **options).train()
    move(method)
    batch, tower = small_batch(method.backbone), getattr(method.backbone, kind)
    tower.blocks = tower.blocks[:blocks]
    return method, tower, batch.images if kind == "image" else batch.token_ids


def outcome(method: Method, tower: Tower, inputs: Tensor, **how: Any) -> list[Tensor]:
    """Return features and gradients, the last block whole: one that is cut to the global token is not compiled."""
    method.zero_grad()
    torch.manual_seed(3)
    features = whole_features(tower, inputs, **how)
    features.square().mean().backward()
    gradients = [value.grad for value in method.trainable_parameters().values() if value.grad is not None]
    assert len(gradients) == 2 * 3 * tower.depth
    return [features.detach(), *(gradient.clone() for gradient in gradients)]


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [(FAMILIES[0], "image"), (FAMILIES[1], "text")])
def test_features_and_gradients_with_lora_and_an_intervention(family: str, kind: str) -> None:
    method, tower, inputs = built(family, kind, blocks=1, lora_dropout=0.0)
    acts = {"interventions": (Shift(),)}
    plain, shifted = outcome(method, tower, inputs), outcome(method, tower, inputs, **acts)
    tower.compile_blocks(QUICK)
    torch._dynamo.utils.counters.clear()
    assert_close(outcome(method, tower, inputs), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # nothing breaks it
    assert_close(outcome(method, tower, inputs, **acts), shifted)
    tower.checkpointing = True
    assert_close(outcome(method, tower, inputs), plain)


def test_what_is_attached_or_taken_off_later_counts() -> None:
    method, tower, inputs = built(FAMILIES[0], "text", blocks=1, lora_dropout=0.0)
    tower.compile_blocks(QUICK)
    before = outcome(method, tower, inputs)[0]
    extra = torch.nn.Linear(*tower.site_shape(0, "o"))
    handle = tower.attach(0, "o", extra)
    adapted = whole_features(tower, inputs)
    tower._compiler = None
    torch.testing.assert_close(adapted, whole_features(tower, inputs), atol=1e-5, rtol=1e-5)
    assert (adapted - before).abs().max() > 1e-2
    tower.compile_blocks(QUICK)
    handle.remove()
    torch.testing.assert_close(whole_features(tower, inputs).detach(), before, atol=1e-5, rtol=1e-5)


def test_a_third_length_of_text_and_another_tower_are_not_translated_again() -> None:
    """Although torch.compile would stop after one graph here: the limit is raised with the number of blocks."""
    method, tower, ids = built(FAMILIES[0], "text", blocks=2, lora_dropout=0.0)
    expected = {length: outcome(method, tower, ids[:, :length]) for length in (24, 21, 14)}
    tower.compile_blocks(QUICK)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for length in (24, 21):
            assert_close(outcome(method, tower, ids[:, :length]), expected[length])
    method, tower, ids = built(FAMILIES[0], "text", blocks=2, lora_dropout=0.0)
    tower.compile_blocks(QUICK)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (14, 24):
            assert_close(outcome(method, tower, ids[:, :length]), expected[length])


def test_half_a_batch_is_not_translated_again() -> None:
    """As after a lack of memory: only the length of the last part, of one text, is another program."""
    method, tower, ids = built(FAMILIES[0], "text", blocks=2, lora_dropout=0.0)
    ids = ids.repeat(2, 1)[:8]
    expected = {size: outcome(method, tower, ids[:size]) for size in (8, 4, 2)}
    tower.compile_blocks(QUICK)
    assert_close(outcome(method, tower, ids), expected[8])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (4, 2):
            assert_close(outcome(method, tower, ids[:size]), expected[size])


def test_passes_without_gradient_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    method, tower, images = built(FAMILIES[0], "image", blocks=2)

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("benchmark.backbones.towers.base._compiled", never)
    tower.features(images)
    tower.compile_blocks(QUICK)
    with torch.no_grad():
        tower.features(images)
    with pytest.raises(AssertionError):
        tower.features(images)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_built_kernels_draw_the_same_masks_from_the_same_state() -> None:
    """In two passes, and in both passes over the parts of a batch; others than without compilation."""
    method, tower, ids = built(FAMILIES[0], "text", blocks=2, lora_dropout=0.2)
    plain = outcome(method, tower, ids)
    tower.compile_blocks()
    first = outcome(method, tower, ids)
    assert all(torch.equal(one, other) for one, other in zip(first, outcome(method, tower, ids), strict=True))
    assert not torch.allclose(first[0], plain[0], atol=1e-3)

    batch, passed = small_batch(method.backbone, 8), []
    encode = method.encode_text

    def recorded(ids: Tensor) -> Tensor:
        passed.append(encode(ids))
        return passed[-1]

    method.encode_text = recorded  # type: ignore[method-assign]
    torch.manual_seed(3)
    backward(method, batch, 4, torch.amp.GradScaler("cpu", enabled=False))
    assert len(passed) == 4
    assert torch.equal(passed[0], passed[2])
    assert torch.equal(passed[1], passed[3])
