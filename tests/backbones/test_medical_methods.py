"""PEFT methods on the medical towers: the conformance suite on small models, and clear refusals."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.backbones.medical.convert import rename
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.model import EXTRAS, build
from benchmark.backbones.published import build as build_open_clip
from benchmark.conformance import checks as conformance
from benchmark.conformance import probes, small_models
from benchmark.errors import BenchmarkError
from tests.backbones.medical_files import RECORDS, backbone, ids, images, stirred
from tests.backbones.medical_oracles import BioVil, ConVirt, Gloria, Mgca, PmcClip, Prior
from tests.backbones.medical_parts import Layout, Sizes

SMALL = Sizes(
    planes=(4, 4, 4, 8), blocks=(1, 1, 1, 1), width=64, layers=4, words=80, positions=24, joint=32, vit=64
)
LAYOUTS: dict[str, Callable[[], Layout]] = {
    "convirt": lambda: ConVirt(SMALL, words=80),
    "gloria": lambda: Gloria(SMALL),
    "mgca-vit": lambda: Mgca(SMALL, 32, vit=True, side=32),
    "biovil": lambda: BioVil(SMALL, 32),
    "prior": lambda: Prior(SMALL, channels=3, positions=2),
    "pmc-clip": lambda: PmcClip(SMALL, side=32),
}
BMC_CLIP = "bmc-clip"
"""BMC-CLIP's architecture with less of everything: GELU, patches of 14, a causal text transformer."""


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """A function that makes a medical model a family of the conformance suite, and returns its name."""

    def make(name: str) -> str:
        prototype = small_bmc_clip(monkeypatch, tmp_path) if name == BMC_CLIP else small_medical(name)
        monkeypatch.setattr(small_models, "_prototype", lambda _: prototype)
        return name

    return make


@functools.cache
def small_medical(name: str) -> Backbone:
    """Return a medical model for images of 32 pixels and texts of 24 pieces, its weights spread out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layout = stirred(LAYOUTS[name]())
        state = {key.removeprefix("bert_part."): value for key, value in layout.state_dict().items()}
        record = RECORDS[name].with_options("heads=8" if name == "pmc-clip" else "")
        fitted = replace(
            record.preprocess, size=(32, 32), side=None, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        record = replace(record, shapes={}, preprocess=fitted, image=replace(record.image, upsample=None))
        tensors = rename(record, state, name).state
        small = build(record, Shapes.of(tensors))
        small.model.load_state_dict(
            {key: tensors.get(key, value) for key, value in small.model.state_dict().items()}
        )
        own = {key.removeprefix(EXTRAS): value for key, value in tensors.items() if key.startswith(EXTRAS)}
        small.extras.load_state_dict(own)
        with torch.no_grad():
            for key, parameter in small.model.named_parameters():
                if (
                    parameter.ndim == 2
                ):  # as in benchmark/conformance/small_models.py: else all texts and images look alike
                    parameter.mul_(4.0 if key.startswith("text.transformer") else 2.0)
    return small.requires_grad_(False)


def small_bmc_clip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Backbone:
    """Load a small BMC-CLIP from a file as it is published."""
    config: dict[str, Any] = open_clip.get_model_config("ViT-L-14")
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"image_size": 28, "layers": 3, "width": 64, "head_width": 32}
    config["text_cfg"] |= {"context_length": 24, "vocab_size": 80, "width": 48, "heads": 2, "layers": 3}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14", config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_open_clip(config)
    state = {
        f"module.{key}": value * (2 if value.ndim > 1 else 1) for key, value in model.state_dict().items()
    }
    torch.save(
        {"epoch": 36, "name": "run", "state_dict": state, "optimizer": {"state": {}}},
        folder / "BMC_CLIP_CF.pt",
    )
    loaded = load_backbone("bmc-clip", pretrained=str(folder / "BMC_CLIP_CF.pt"))
    assert not any(type(module).__name__ == "QuickGELU" for module in loaded.model.modules())
    return loaded


def broken(name: str, method: str, checks: list[str] | None = None, **options: Any) -> list[str]:
    """Return the reasons of the checks that a method does not pass."""
    make = functools.partial(methods.build, method, **options)
    found = []
    for check in conformance.CHECKS if checks is None else checks:
        try:
            conformance.CHECKS[check](make, name)
        except Exception as error:
            found.append(f"{check}: {type(error).__name__}: {error}")
    return found


# ---------------------------------------------------------------------------- conformance
@pytest.mark.slow
def test_ace_lora_on_bmc_clip_passes_every_check(family: Callable[[str], str]) -> None:
    assert broken(family(BMC_CLIP), "ace_lora") == []


TOWER_CHECKS = conformance.matching(
    [
        *("frozen tensors", "receive gradients", "identity", "deterministic", "padding", "parts of a batch"),
        *("bf16", "moves with the method", "a copy", "declared merge"),
    ]
)
"""Those that depend on the towers; the others look at the method alone."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("mgca-vit", "ace_lora", {}),
        ("gloria", "clip_lora", {"encoder": "text"}),
        ("prior", "coop", {"n_ctx": 3}),
        ("pmc-clip", "clip_lora", {"encoder": "text"}),
        ("biovil", "full_ft", {}),
    ],
)
def test_methods_pass_the_checks_on_medical_towers(
    family: Callable[[str], str], name: str, method: str, options: dict[str, Any]
) -> None:
    assert broken(family(name), method, TOWER_CHECKS, **options) == []


# ---------------------------------------------------------------------------- what works where
ON_ALL = ("zero_shot", "clip_adapter", "taskres", "coop", "cocoop", "full_ft")
NEED_TOKENS = ("clip_lora", "ace_lora", "maple", "mma", "mmrl", "peft:lora")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("method", ON_ALL)
def test_adapters_residuals_and_prompts_work_on_all(name: str, method: str) -> None:
    batch: Any = small_models.small_batch(small := copy.deepcopy(small_medical(name)))
    wrapped = methods.build(method, small)
    loss = wrapped.train().loss(batch)
    trained = wrapped.trainable_parameters()
    assert loss.isfinite()
    if method != "zero_shot":
        loss.backward()
    assert [key for key, value in trained.items() if value.grad is None and method != "zero_shot"] == []


@pytest.mark.parametrize("method", NEED_TOKENS)
def test_methods_that_need_tokens_work_on_a_vit_and_end_in_one_line_on_a_resnet(method: str) -> None:
    small = copy.deepcopy(small_medical("mgca-vit"))
    assert methods.build(method, small).loss(small_models.small_batch(small)).isfinite()
    with pytest.raises(BenchmarkError, match=re.escape("is a ResNet, which has no tokens: take")) as caught:
        methods.build(method, copy.deepcopy(small_medical("gloria"))).encode_image(torch.zeros(1, 3, 32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["clip_lora", "peft:dora"])
@pytest.mark.parametrize("name", ["gloria", "prior", "pmc-clip"])
def test_adapters_of_linear_maps_may_act_on_the_text_alone(name: str, method: str) -> None:
    small = copy.deepcopy(small_medical(name))
    before = small.text.features(ids("any"))
    wrapped = methods.build(method, small, encoder="text")
    small_models.move(wrapped, size=0.5)
    with torch.no_grad():
        assert not torch.allclose(wrapped.eval().backbone.text.features(ids("any")), before, atol=1e-4)


def test_lora_acts_on_plip() -> None:
    small = copy.deepcopy(backbone("plip"))
    wrapped = methods.build("clip_lora", small)
    pixels = images("plip", 1)
    with torch.no_grad():
        plain = wrapped.eval().encode_image(pixels)
        small_models.move(wrapped, size=0.5)
        assert not torch.allclose(wrapped.encode_image(pixels), plain, atol=1e-4)


def test_the_matrix_says_what_works_with_a_resnet() -> None:
    found = probes.capabilities(functools.partial(methods.build, "clip_lora"))
    assert "is a ResNet, which has no tokens" in found.resnet
    assert found.notes == ()
