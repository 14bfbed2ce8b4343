"""peft's tuners as methods: what they train, how they sit on the towers, AdaLoRA's budget, clear errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import methods
from benchmark.backbones import load_backbone
from benchmark.config.load import load_config
from benchmark.config.run_config import RunConfig
from benchmark.conformance.small_models import small_backbone
from benchmark.errors import ConfigError, PluginError
from benchmark.registry import METHODS
from benchmark.run.training.checkpoint import Checkpoint
from methods.base import Method
from methods.peft_tuner import PeftTuner, tuners
from tests.run.training.test_trainer import StoppedError, constant, trainer
from tests.small import RECIPE

NAMED = ("lora", "dora", "rslora", "pissa", "vera", "adalora", "loha", "lokr", "oft", "boft", "ia3", "hra")
WIDTH, SITES = 64, 6 * 3  # tiny: four image and two text blocks of width 64, q, k and v in each
# trained values of one Linear 64 -> 64, worked out by hand from each paper's shapes
PER_SITE = {
    "lora": 8 * (64 + 64),
    "dora": 8 * (64 + 64) + 64,  # + one magnitude per output
    "rslora": 8 * (64 + 64),
    "pissa": 8 * (64 + 64),
    "vera": 256 + 64,  # a scale per direction and per output; A and B are frozen and shared
    "adalora": 12 * (64 + 64 + 1),  # init_r = 12 triples of P, e, Q
    "loha": 2 * 8 * (64 + 64),  # two low-rank products, multiplied value by value
    "lokr": 8 * 8 + 8 * 8,  # 64 = 8 * 8; r = 8 is no saving on 8 x 8, so that factor is full
    "oft": 2 * (32 * 31 // 2),  # two rotations of 32 inputs, skew-symmetric
    "boft": 16 * 4 * 4 + 64,  # 16 blocks of 4 x 4, and a scale per output
    "hra": 8 * 64,  # eight reflections
}


def build(name: str, **options: object) -> PeftTuner:
    torch.manual_seed(0)
    method = methods.build(f"peft:{name}", load_backbone("tiny"), **options)
    assert isinstance(method, PeftTuner)
    return method


def count(method: Method) -> int:
    return sum(value.numel() for name, value in method.trainable_parameters().items() if "logit" not in name)


@pytest.mark.parametrize("name", NAMED)
def test_the_named_tuners_train_what_their_papers_say(name: str) -> None:
    method = build(name)
    # (IA)3 scales keys, values and the inputs (4 x 64) of the second MLP layer
    expected = 6 * (64 + 64 + 4 * 64) if name == "ia3" else SITES * PER_SITE[name]
    assert count(method) == expected == method.expected_parameters()
    groups = {method.parameter_group(key) for key in method.trainable_parameters()}
    assert groups == {"image", "text", "scale"}


def test_every_tuner_is_usable_or_says_why() -> None:
    found = tuners()
    assert all(found[name] == "" for name in NAMED)
    assert "prompts" in found["prompt_tuning"]
    assert found["poly"]
    assert "LayerNorm" in found["ln_tuning"]
    assert METHODS.get("peft:dora") is METHODS.get("peft:dora")
    assert METHODS.get("peft:dora").identity_at_init
    assert METHODS.get("peft:oft").mergeable
    assert not METHODS.get("peft:lily").mergeable
    assert not METHODS.get("peft:unilora").identity_at_init


@pytest.mark.slow
def test_counts_at_biomedclips_size() -> None:
    backbone = load_backbone("random:biomedclip")
    for name, options, expected in (
        ("lora", {"r": 4}, 442_368),
        ("dora", {"r": 4}, 497_664),
        ("vera", {"r": 256}, 73_728),
    ):
        method = methods.build(f"peft:{name}", backbone, **options)
        assert isinstance(method, PeftTuner)
        assert count(method) == expected
        method.peft_model.unload()
        backbone.requires_grad_(False)


def test_where_it_sits_is_chosen_by_site_position_and_encoder() -> None:
    method = build("lora", r=2, sites=("v", "up"), position="top3", encoder="vision")
    modules = {name.split(".lora_")[0] for name in method.trainable_parameters() if "lora" in name}
    layers = "backbone.model.visual.trunk.blocks."
    assert modules == {f"{layers}{index}.{part}" for index in (1, 2, 3) for part in ("attn.qkv.v", "mlp.fc1")}
    assert count(method) == 3 * (2 * (64 + 64) + 2 * (64 + 4 * 64))


@pytest.mark.parametrize("encoder", ["vision", "text"])
def test_one_tower_alone_where_both_have_modules_of_one_name(encoder: str) -> None:
    method = methods.build("peft:lora", small_backbone("open_clip"), encoder=encoder)
    groups = {method.parameter_group(name) for name in method.trainable_parameters()}
    assert groups == {"scale", "image" if encoder == "vision" else "text"}


def test_only_the_tuners_dropout_follows_the_mode() -> None:
    method = build("lora", lora_dropout=0.5)
    modes = {}
    for mode in (True, False):
        method.train(mode)
        layers = [module for module in method.backbone.model.modules() if isinstance(module, BaseTunerLayer)]
        inside = {id(module) for layer in layers for module in layer.modules()}
        frozen = [module for module in method.backbone.model.modules() if id(module) not in inside]
        modes[mode] = {module.training for module in layers}
        assert not any(module.training for module in frozen)
        assert not any(layer.get_base_layer().training for layer in layers)
    assert modes == {True: {True}, False: {False}}


def test_peft_lora_computes_what_clip_lora_computes() -> None:
    ours = methods.build(
        "clip_lora", load_backbone("tiny"), lora_dropout=0.0, lora_alpha=2.0, scaling="linear"
    ).eval()
    theirs = build("lora", r=4, lora_alpha=2).eval()
    form, own = ours.as_peft(), theirs.as_peft()
    assert form is not None
    assert form.tensors.keys() == own.tensors.keys()
    state, values = theirs.trainable_state(), ours.trainable_parameters()
    with torch.no_grad():
        for name, key in form.names.items():
            values[key].add_(0.05 * torch.randn_like(values[key]))
            state[own.names[name]] = values[key].clone()
        theirs.load_trainable_state(state)
        images = torch.randn(2, 3, 64, 64)
        ids = ours.backbone.tokenize(["edema .", "a large pleural effusion on the left ."])
        torch.testing.assert_close(theirs.encode_image(images), ours.encode_image(images), atol=1e-6, rtol=0)
        torch.testing.assert_close(theirs.encode_text(ids), ours.encode_text(ids), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- AdaLoRA
SMALL = {"init_r": 4, "target_r": 2, "sites": ("q",), "encoder": "text"}


def test_adalora_reaches_its_budget_at_the_last_step(tmp_path: Path) -> None:
    wrapped = build("adalora", **SMALL)
    trainer(wrapped, tmp_path, constant, dataclasses.replace(RECIPE, select="last")).run()
    kept = sum(int((v != 0).sum()) for n, v in wrapped.trainable_parameters().items() if ".lora_E." in n)
    assert kept == 2 * 2  # q of two text blocks
    assert wrapped.peft_model.peft_config["default"].total_step == 6


def test_adalora_goes_on_bit_identically(tmp_path: Path) -> None:
    whole = build("adalora", **SMALL)
    trainer(whole, tmp_path / "whole", constant).run()
    calls = []

    def stops(_: Method) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:  # after the second epoch's steps, before its checkpoint
            raise StoppedError
        return {"auroc": 0.5}

    with pytest.raises(StoppedError):
        trainer(build("adalora", **SMALL), tmp_path / "parts", stops).run()
    assert Checkpoint(tmp_path / "parts" / "state.pt", "k").load()["method"]["ipt"]
    second = build("adalora", **SMALL)
    torch.manual_seed(99)
    trainer(second, tmp_path / "parts", constant).run()
    for name, value in whole.trainable_state().items():
        assert torch.equal(second.trainable_state()[name], value), name


def test_adaloras_penalty_by_hand() -> None:
    method: Method = build("adalora", init_r=1, sites=("q",), encoder="text", orth_reg_weight=2.0)
    with torch.no_grad():
        for name, value in method.trainable_parameters().items():
            if ".lora_A." in name or ".lora_B." in name:  # rows of length sqrt(64) / 4: |4 - 1| = 3
                value.fill_(0.25)
    ones = {"image": torch.eye(2), "text": torch.eye(2)}
    with torch.no_grad():
        plain = torch.log1p(torch.exp(-method.logit_scale()))
        assert float(method.loss_of(ones, None)) == pytest.approx(float(plain) + 2.0 * 3.0, rel=1e-5)


def test_adalora_needs_steps_for_its_budget() -> None:
    method = build("adalora", tinit=3, tfinal=3)
    with pytest.raises(ConfigError, match=r"tinit=3 and tfinal=3 leave none of the run's 6 steps"):
        method.after_step(1, 6)


def test_other_methods_keep_nothing_beside_their_weights() -> None:
    method = methods.build("taskres", load_backbone("tiny"))
    assert method.training_state() == {}
    with torch.no_grad():
        method.logit_scale.value.fill_(9.0)
    method.after_step(1, 1)
    assert float(method.logit_scale().detach()) == pytest.approx(100.0, rel=1e-5)
    assert math.isclose(float(method.logit_scale.value.detach()), math.log(100), rel_tol=1e-6)


# ---------------------------------------------------------------------------------------------- requests
def configured(*overrides: str, method: str = "peft:lora") -> RunConfig:
    return load_config({"methods": [method], "device": "cpu"}, overrides)


def test_options_are_pefts_fields_and_ours() -> None:
    config = configured(
        "methods.peft:lora.r=2", "methods.peft:lora.sites=[q, v]", "methods.peft:lora.lora_dropout=0.1"
    )
    options = config.options["peft:lora"]
    assert (options["r"], options["sites"], options["lora_dropout"]) == (2, ["q", "v"], 0.1)
    assert options["lora_alpha"] == 8  # peft's own default
    assert "target_modules" not in options
    assert "use_dora" not in configured(method="peft:dora").options["peft:dora"]
    assert configured(method="peft:ia3").options["peft:ia3"]["sites"] == ["k", "v", "down"]


@pytest.mark.parametrize(
    ("method", "override", "says"),
    [
        (
            "peft:lora",
            "rr=2",
            r"methods.peft:lora.rr: unknown option of method 'peft:lora' 'rr'. Did you mean 'r'",
        ),
        ("peft:lora", "r=two", "methods.peft:lora.r: expected a whole number, got 'two'"),
        ("peft:lora", "sites=[x]", "sites: expected one of q, k, v"),
        ("peft:lora", "init_lora_weights=eva", "init_lora_weights: 'eva' looks at data"),
        ("peft:lora", "target_modules=[a]", "unknown option of method 'peft:lora' 'target_modules'"),
        ("peft:adalora", "orth_reg_weight=-1", "peft:adalora: `orth_reg_weight` should be greater"),
        ("peft:adalora", "r=4", "unknown option of method 'peft:adalora' 'r'"),
    ],
)
def test_wrong_options_are_one_line(method: str, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        configured(f"methods.{method}.{override}", method=method)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("peft", r"say which tuner, for example peft:dora. Known: adalora, .*vera"),
        ("peft:doro", r"unknown tuner of peft 'doro'. Did you mean 'dora'\? Known: adalora"),
        ("peft:prompt_tuning", r"prompt_tuning cannot be used here: acts on prompts"),
    ],
)
def test_a_tuner_that_is_not_there_is_one_line(name: str, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        METHODS.get(name)


def test_sizes_that_do_not_fit_are_pefts_words_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^peft:c3a: The block size should be a factor of the input size"):
        build("c3a")


def test_a_backbone_takes_one_tuner() -> None:
    method = build("ia3")
    with pytest.raises(ConfigError, match="already carries a tuner"):
        methods.build("peft:lora", method.backbone)


def test_unloading_gives_the_split_backbone_back() -> None:
    fresh = load_backbone("tiny")
    fresh.split_qkv()
    state = build("lora").peft_model.unload().state_dict()
    assert state.keys() == fresh.model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in fresh.model.state_dict().items())


def test_trying_a_tuner_leaves_the_random_state_alone() -> None:
    from methods.layers.peft_tuners import tried

    tried.cache_clear()
    before = torch.get_rng_state()
    assert tried("lora").problem == ""
    assert torch.equal(torch.get_rng_state(), before)
