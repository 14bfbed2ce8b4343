"""CT-CLIP's tower for volumes: its loader, its quantiser, and what methods do on it."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import methods
from benchmark.backbones import load_backbone
from benchmark.backbones.ct import CT_CLIP
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.model import build
from benchmark.conformance import checks as conformance
from benchmark.conformance import small_models
from benchmark.data.samples import Batch
from benchmark.efficiency import volumes as costs
from benchmark.errors import BenchmarkError, DataError
from benchmark.files import ROOT
from benchmark.registry import BACKBONES, METHODS
from methods.layers.lora import LoRAOptions, count_lora
from tests.backbones.ct_small import (
    GRID,
    HEAD_WIDTH,
    HEADS,
    WIDTH,
    published,
    record,
    shapes,
    shared,
    small,
    volumes,
)
from tests.backbones.ct_small import write as write_published
from tests.backbones.medical_parts import WORDS
from tests.golden import ct as golden

GOLDEN = Path(os.environ.get("MEDPEFT_GOLDEN", ROOT.parent / "shared" / "golden")) / "ct_a.json"
TOKENS = math.prod(GRID)


# ---------------------------------------------------------------------------- the authors' numbers
@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden vectors: {GOLDEN} is not there")
def test_golden_vectors_agree_and_a_difference_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(GOLDEN.with_suffix(suffix), tmp_path / f"copied{suffix}")
    assert golden.main([str(tmp_path / "copied.safetensors")]) == 0
    assert "0 differ" in capsys.readouterr().out
    monkeypatch.setattr(golden, "STAGES", (golden.towers,))
    read = golden.read

    def damaged(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        facts, stored = read(file)
        stored["ctclip.out/pos_bias"] = stored["ctclip.out/pos_bias"].mT.contiguous()
        return facts, stored

    monkeypatch.setattr(golden, "read", damaged)
    assert golden.main([str(tmp_path / "copied.json")]) == 1
    assert "differs: ctclip.out/pos_bias" in capsys.readouterr().out


# ---------------------------------------------------------------------------- size
def test_counts_at_the_published_size() -> None:
    with torch.device("meta"):
        backbone = build(CT_CLIP, Shapes(CT_CLIP.shapes))
    used = sum(value.numel() for value in backbone.model.parameters())
    assert used == 283_701_577
    dead = 207_136 + 205_200 + 2_052_000 + 590_592 + 151_388_160 + 8 * 512  # what the loader drops
    assert used + dead == 438_148_761
    for rank, count in ((16, 1_114_112), (24, 1_671_168), (8, 557_056)):
        assert count_lora(backbone, LoRAOptions(r=rank)) == count
    assert count_lora(backbone, LoRAOptions(r=1, params=("k",), encoder="vision")) == 8 * (512 + 256)
    assert count_lora(backbone, LoRAOptions(r=1, params=("v", "k"), encoder="vision")) == 8 * (512 + 512)


def test_costs_at_the_published_size_are_counted_without_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert costs.main(["--methods", "clip_lora"]) == 0
    said = capsys.readouterr().out
    assert "a volume forward: 791 GFLOP" in said  # 0.395 T multiply-adds, as derived by hand
    assert "by the published loop 17,468: 22.1 times" in said
    assert "clip_lora: 1,435 GFLOP" in said


def test_the_random_form_has_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.backbones.ct.CT_CLIP", replace(record(), shapes=dict(shapes())))
    backbone = load_backbone("random:ct_clip:quantiser=off")
    assert backbone.name == "random:ct_clip:quantiser=off"
    assert backbone.tokenizer is None
    assert backbone.image.features(volumes(1)).shape == (1, backbone.embed_dim)
    model: Any = backbone.model
    assert model.visual.quantiser.mode == "off"


# ---------------------------------------------------------------------------- loading
def load(
    folder: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, name: str = "ct_clip"
) -> Any:
    monkeypatch.setattr(BACKBONES.get("ct_clip"), "record", record())
    return load_backbone(name, pretrained=str(write_published(folder, state)))


def test_the_published_layout_loads_and_says_what_it_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small()
    model: Any = source.model
    with torch.no_grad():
        text = model.text.transformer.embeddings.word_embeddings
        text.weight = nn.Parameter(text.weight.repeat(3, 1)[: len(WORDS)])
    loaded = load(tmp_path, published(source), monkeypatch, "ct_clip:quantiser=off")
    state, own = loaded.model.state_dict(), source.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    assert state["visual.enc_spatial_transformer.layers.0.attention.null_kv"].shape == (HEADS, 0, HEAD_WIDTH)
    about = json.loads((tmp_path / "CT-CLIP_v2.ct_clip.json").read_text())
    expected = {"to_text_latent_extra.weight", "visual_transformer.vq._codebook.cluster_size"}
    assert expected < set(about["dropped"])
    assert len(about["dropped"]) == 10 + 4 * 2
    assert loaded.image.features(volumes()).shape == (2, loaded.embed_dim)
    source.settings = loaded.settings
    assert loaded.fingerprint("image") == source.fingerprint("image")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("temperature"), "1 missing ('temperature')"),
        (
            lambda state: state.pop("visual_transformer.enc_temporal_transformer.layers.1.1.norm.beta"),
            "1 missing ('visual_transformer.enc_temporal_transformer.layers.1.1.norm.beta')",
        ),
        (
            lambda state: state.update({"visual_transformer.cls": torch.ones(2)}),
            "1 unknown ('visual_transformer.cls')",
        ),
        (lambda state: state.update(stranger=torch.ones(2)), "1 unknown ('stranger')"),
        (
            lambda state: state.update(
                {
                    "visual_transformer.enc_spatial_transformer.layers.0.1.null_kv": torch.ones(
                        HEADS, 2, HEAD_WIDTH
                    )
                }
            ),
            "layers.0.1.null_kv' is [2, 2, 8], expected [2, 0, 8]",
        ),
        (lambda state: state["to_visual_latent.weight"].fill_(math.nan), "with values that are not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    state = published(shared())
    change(state)
    with pytest.raises(DataError) as caught:
        load(tmp_path, state, monkeypatch)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- the tower
@torch.no_grad()
def test_features_do_not_depend_on_the_batch_and_boxes_add_up_to_them() -> None:
    tower = shared().image
    inputs = volumes(4)
    together = tower.features(inputs)
    torch.testing.assert_close(together[:2], tower.features(inputs[:2]), rtol=1e-5, atol=1e-5)
    parts = tower.patch_features(inputs)
    assert parts.shape == (4, TOKENS, shared().embed_dim)
    torch.testing.assert_close(parts.sum(dim=1), together, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_taps_are_grids_of_volumes() -> None:
    output = shared().image.forward(volumes(), taps=(0, 3))
    assert {index: tuple(tap.shape) for index, tap in output.taps.items()} == {
        0: (2, WIDTH, *GRID),
        3: (2, WIDTH, *GRID),
    }


def test_boxes_lie_where_the_volume_has_them() -> None:
    tower, model = shared().image, shared().model
    visual: Any = model.visual
    marked = torch.zeros(1, 1, *tower.image_size)
    marked[0, 0, 3, 9, 6] = 1.0  # slice 3 of boxes of 2, row 9 and column 6 of boxes of 4
    boxes = visual.to_patch_emb[0](marked)
    assert boxes.nonzero().tolist() == [[0, 1, 2, 1, 1 * 16 + 1 * 4 + 2]]


def test_volumes_of_another_size_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="takes volumes of one channel and 6 x 12 x 12 voxels, got"):
        shared().image.features(torch.zeros(1, 1, 6, 12, 13))


def test_input_is_scaled_over_the_window() -> None:
    spec = shared().input_spec
    hounsfield = torch.tensor([-2000, -1000, -500, 0, 40, 1000, 3000], dtype=torch.int16).view(1, 1, 1, 7)
    scaled = spec.to_input(hounsfield)
    assert scaled.shape == (1, 1, 1, 1, 7)
    assert scaled.dtype == torch.float32
    expected = torch.tensor([-1.0, -1.0, -0.5, 0.0, 0.04, 1.0, 1.0])
    torch.testing.assert_close(scaled.flatten(), expected, atol=1e-6, rtol=0)
    assert torch.equal(spec.to_input(hounsfield.numpy()), scaled)
    assert hounsfield[0, 0, 0, 0] == -2000  # the data stay as they are


@torch.no_grad()
def test_volumes_encoded_once_give_the_scores_of_the_published_loop() -> None:
    """That loop encodes a volume anew for each finding, with both of its prompts padded to the whole context."""
    backbone = shared()
    method = methods.build("zero_shot", backbone)
    batch: Any = small_models.small_batch(backbone)
    affirmed, denied = batch.token_ids[:3], batch.token_ids[3:]
    prompts = method.prepare_classes(backbone.trim(torch.cat([affirmed, denied]))[:, None])
    cosines = method.classify(Batch(images=batch.images), prompts)
    scale = backbone.logit_scale
    once = torch.sigmoid(scale * (cosines[:, :3] - cosines[:, 3:]))
    for row, image in enumerate(batch.images):
        for finding, pair in enumerate(zip(affirmed, denied, strict=True)):
            one = functional.normalize(backbone.image.features(image[None]), dim=-1)
            texts = functional.normalize(backbone.text.features(torch.stack(pair)), dim=-1)
            score = (scale * one @ texts.T).softmax(dim=-1)[0, 0]
            torch.testing.assert_close(once[row, finding], score, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- the quantiser
def test_values_are_rows_of_the_codebook_and_gradients_those_of_the_tokens() -> None:
    visual: Any = shared().model.visual
    tokens = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    output = visual.quantiser(tokens)
    codes = visual.quantiser.codebook[0]
    cosines = functional.normalize(tokens, dim=-1) @ functional.normalize(codes, dim=-1).T
    assert torch.equal(output, codes[cosines.argmax(dim=-1)])
    weights = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), tokens)
    assert torch.equal(gradient, weights)


def test_all_modes_give_the_same_value_but_off() -> None:
    modes = {mode: small(mode).image.features(volumes()) for mode in ("straight_through", "published", "off")}
    assert torch.equal(modes["straight_through"], modes["published"])
    assert not torch.allclose(modes["off"], modes["published"], atol=1e-3)


def test_training_reaches_the_first_block_and_leaves_the_codebook_as_it_is() -> None:
    backbone = small()
    before = backbone.model.get_buffer("visual.quantiser.codebook").clone()
    method = methods.build("full_ft", backbone).train()
    batch: Any = small_models.small_batch(backbone)
    optimiser = torch.optim.SGD(method.trainable_parameters().values(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        method.loss(batch).backward()
        optimiser.step()
    first = backbone.model.get_parameter("visual.enc_spatial_transformer.layers.0.attention.to_q.weight").grad
    assert first is not None
    assert float(first.abs().max()) > 0
    assert torch.equal(backbone.model.get_buffer("visual.quantiser.codebook"), before)


@pytest.mark.parametrize("name", ["clip_lora", "full_ft", "mma", "peft:lora"])
def test_the_published_quantiser_refuses_to_train_what_stands_in_front_of_it(name: str) -> None:
    backbone = small("published")
    method = methods.build(name, backbone).train()
    with pytest.raises(BenchmarkError, match="passes no gradient in its published form") as caught:
        method.loss(small_models.small_batch(backbone))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip_adapter", {}), ("coop", {}), ("taskres", {}), ("clip_lora", {"encoder": "text"})],
)
def test_what_leaves_the_image_tower_alone_trains_in_front_of_the_published_quantiser(
    name: str, options: dict[str, Any]
) -> None:
    backbone = small("published")
    method = methods.build(name, backbone, **options).train()
    method.loss(small_models.small_batch(backbone)).backward()
    assert all(value.grad is not None for value in method.trainable_parameters().values())


# ---------------------------------------------------------------------------- methods
WORK = (
    "zero_shot",
    "clip_adapter",
    "taskres",
    "coop",
    "cocoop",
    "kgcoop",
    "prograd",
    "biomedcoop",
    "full_ft",
    "clip_lora",
    "clip_svd",
    "mma",
    "molre",
    "peft:lora",
    "peft:dora",
    "linear_probe",
    "tip_adapter",
    "tip_adapter_f",
    "clap",
    "lpp",
    "zs_lp",
    "ss_text",
)


@pytest.mark.parametrize("name", WORK)
def test_methods_learn_on_volumes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pairs, or from class labels where that is what they take; all that trains gets a gradient."""
    backbone, prototype = small(), small()
    monkeypatch.setattr(small_models, "_prototype", lambda _: prototype)
    method = methods.build(name, backbone).train()
    batch = small_models.small_batch(backbone)
    if method.needs_classes:
        batch = small_models.with_classes(method, batch)
        small_models.bound(method, small_models.small_batch(backbone))
    if method.fits:
        assert small_models.class_scores(method, batch).isfinite().all()
        return
    loss = small_models.loss_of(method, batch)
    assert loss.isfinite()
    if method.deterministic:
        return
    loss.backward()
    assert [key for key, value in method.trainable_parameters().items() if value.grad is None] == []


def test_every_method_is_tried_on_volumes() -> None:
    refused = {"ace_lora", "maple", "mmrl"}
    bare = {name.partition(":")[0] for name in WORK} | refused
    assert bare | {"ss_text_u"} == set(METHODS.names())


@pytest.mark.parametrize("name", ["maple", "mmrl", "ace_lora"])
def test_methods_that_need_tokens_of_their_own_end_in_one_line(name: str) -> None:
    backbone = small()
    with pytest.raises(BenchmarkError, match="is a CTViT: it has no class token") as caught:
        methods.build(name, backbone).loss(small_models.small_batch(backbone))
    assert "\n" not in str(caught.value)


CHECKS = conformance.matching(
    [
        "frozen tensors",
        "receive gradients",
        "identity",
        "deterministic",
        "parts of a batch",
        "a copy",
        "declared merge",
    ]
)


@pytest.mark.parametrize("name", ["clip_lora", "peft:lora"])
@pytest.mark.parametrize("check", CHECKS)
def test_lora_keeps_its_promises_on_volumes(name: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prototype = small()
    monkeypatch.setattr(small_models, "_prototype", lambda _: prototype)
    conformance.CHECKS[check](lambda backbone: methods.build(name, backbone), "ct_clip")


# ---------------------------------------------------------------------------- the fused map of keys and values
def test_one_adapter_serves_keys_and_values_and_half_a_map_can_be_adapted() -> None:
    tower = small().image
    assert tower.sites_of(("q", "k", "v", "o")) == ("q", "kv", "o")
    assert tower.sites_of(("q", "v")) == ("q", "v")
    assert shared().text.sites_of(("q", "k", "v")) == (
        "q",
        "k",
        "v",
    )
    assert tower.site_shape(0, "kv") == (WIDTH, 32)
    assert tower.site_shape(0, "v") == (WIDTH, 16)
    linears: Any = tower.linears(1)
    inputs = torch.randn(2, 9, WIDTH)
    before = linears["kv"](inputs)
    delta = nn.Linear(WIDTH, 16, bias=False)
    handle = tower.attach(1, "v", delta)
    after = linears["kv"](inputs)
    assert torch.equal(after[..., :16], before[..., :16])
    torch.testing.assert_close(after[..., 16:], before[..., 16:] + delta(inputs))
    handle.remove()
    assert torch.equal(linears["kv"](inputs), before)


def test_half_of_a_map_has_no_name_for_peft() -> None:
    with pytest.raises(BenchmarkError, match="one map makes keys and values in its image tower: adapt both"):
        methods.build("peft:lora", small(), sites=("k",))


def test_an_adapter_on_keys_and_values_goes_through_peft_and_back() -> None:
    method = methods.build("clip_lora", small(), r=2)
    small_models.move(method, size=0.3)
    adapter = method.as_peft()
    assert adapter is not None
    again = type(method).options_from_peft(adapter.config, adapter.tensors, small())
    assert (again["params"], again["encoder"], again["position"]) == (("q", "k", "v"), "both", "all")
