"""Adapters in peft's layout: what is written is what `PeftModel` reads, and what comes back is the method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import methods
from benchmark.backbones import Backbone, load_backbone
from benchmark.config.load import load_config
from benchmark.conformance.small_models import move, small_backbone, small_batch
from benchmark.errors import StoreError
from benchmark.plan import CellSpec, make_plan
from benchmark.run import adapters
from benchmark.run.adapters import (
    FOLDER,
    export_adapter,
    load_checkpoint,
    options_of,
    read_checkpoint,
    write_adapter,
)
from benchmark.store.cells import Store
from methods.base import Method
from tests.methods.test_peft import NAMED
from tests.parity.ace_reference import GOLDEN, golden_backbone, tensors


def build(name: str, backbone: Backbone | None = None, seed: int = 0, **options: object) -> Method:
    torch.manual_seed(seed)
    return methods.build(name, backbone or load_backbone("tiny"), **options).eval()


def spec_of(name: str, folder: Path, *overrides: str) -> CellSpec:
    config = load_config({"methods": [name], "device": "cpu", "output_dir": str(folder)}, overrides)
    return make_plan(config, Store(folder)).cells[0].spec


def features(method: Method, count: int = 3) -> tuple[Tensor, Tensor]:
    batch = small_batch(method.backbone, count)
    with torch.no_grad():
        return method.encode_image(batch.images), method.encode_text(batch.token_ids)


def plain_features(backbone: Backbone, count: int = 3) -> tuple[Tensor, Tensor]:
    batch = small_batch(backbone, count)
    with torch.no_grad():
        both = backbone.image.features(batch.images), backbone.text.features(batch.token_ids)
    return tuple(torch.nn.functional.normalize(value, dim=-1) for value in both)


def check_peft_reads(method: Method, fresh: Backbone, folder: Path, name: str) -> None:
    """Hold `PeftModel.from_pretrained` on a fresh backbone to the method's own features."""
    move(method)
    assert write_adapter(method, replace(spec_of("clip_lora", folder), method=name), folder / "made")
    before = plain_features(fresh)
    fresh.split_qkv()
    PeftModel.from_pretrained(fresh.model, str(folder / "made")).eval()
    for ours, theirs, frozen in zip(features(method), plain_features(fresh), before, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=0)
        assert (theirs - frozen).abs().max() > 1e-5


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft_n_butterfly")
@pytest.mark.parametrize("name", [*(f"peft:{tuner}" for tuner in NAMED), "clip_lora"])
def test_peft_loads_what_we_write(name: str, tmp_path: Path) -> None:
    check_peft_reads(build(name), load_backbone("tiny"), tmp_path, name)


@pytest.mark.parametrize("name", ["peft:dora", "peft:vera", "peft:ia3", "clip_lora"])
def test_peft_loads_what_we_write_on_open_clips_own_towers(name: str, tmp_path: Path) -> None:
    check_peft_reads(build(name, small_backbone("open_clip")), small_backbone("open_clip"), tmp_path, name)


@pytest.mark.parametrize("scaling", ["sqrt", "linear"])
def test_clip_loras_scale_is_written_as_peft_reads_it(scaling: str) -> None:
    form = build("clip_lora", r=2, lora_alpha=3.0, scaling=scaling, params=("q",), position="top3").as_peft()
    assert form is not None
    config = LoraConfig(
        **{key: value for key, value in form.config.items() if key not in ("peft_type", "task_type")}
    )
    backbone = load_backbone("tiny")
    backbone.split_qkv()
    layer = get_peft_model(backbone.model, config).get_submodule(
        "base_model.model.visual.trunk.blocks.3.attn.qkv.q"
    )
    assert layer.scaling["default"] == pytest.approx(3 / 2**0.5 if scaling == "sqrt" else 1.5)
    assert len(form.tensors) == 2 * (3 + 2)  # A and B in three image blocks and in both text blocks


def test_adalora_is_written_with_all_its_directions(tmp_path: Path) -> None:
    method = build("peft:adalora", init_r=4, target_r=2)
    for step in (1, 2):
        method.train().loss(small_batch(method.backbone)).backward()
        method.after_step(step, 2)
    method.eval()
    chosen = method.training_state()["rank_pattern"]
    assert chosen is not None
    form = method.as_peft()
    assert form is not None
    assert {tuple(value.shape) for name, value in form.tensors.items() if name.endswith("lora_E")} == {(4, 1)}
    assert method.training_state()["rank_pattern"] == chosen
    with torch.no_grad():
        before = features(method)
        write_adapter(method, spec_of("peft:adalora", tmp_path), tmp_path / "made")
    fresh = load_backbone("tiny")
    fresh.split_qkv()
    PeftModel.from_pretrained(fresh.model, str(tmp_path / "made")).eval()
    for ours, theirs in zip(before, plain_features(fresh), strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- coming back
@pytest.mark.parametrize(
    "name", ["peft:dora", "peft:pissa", "peft:vera", "peft:ia3", "clip_lora", "ace_lora"]
)
def test_our_folder_brings_everything_back(name: str, tmp_path: Path) -> None:
    own = {"hidden_features": 8, "topk": 3} if name == "ace_lora" else {}
    method = build(name, encoder="text", **own)
    move(method)
    method.logit_scale.set(42.0)
    spec = replace(
        spec_of(name, tmp_path), options={**spec_of(name, tmp_path).options, **own, "encoder": "text"}
    )
    write_adapter(method, spec, tmp_path / "made")
    checkpoint, backbone = read_checkpoint(tmp_path / "made"), load_backbone("tiny")
    told = options_of(checkpoint, name, type(method), backbone)
    assert told["encoder"] == "text"
    again = build(name, backbone, seed=7, **told)
    assert load_checkpoint(again, checkpoint) == []
    for key, value in method.trainable_state().items():
        torch.testing.assert_close(again.trainable_state()[key], value, atol=1e-5, rtol=1e-6)
    for ours, theirs in zip(features(method), features(again), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)


def test_a_strangers_folder_brings_the_lora_part(tmp_path: Path) -> None:
    backbone = load_backbone("tiny")
    backbone.split_qkv()
    config = LoraConfig(
        r=3, lora_alpha=6, use_rslora=True, target_modules=["query", "value"], init_lora_weights=False
    )
    get_peft_model(backbone.model, config).save_pretrained(str(tmp_path / "theirs"))
    checkpoint, fresh = read_checkpoint(tmp_path / "theirs"), load_backbone("tiny")
    cls = type(build("clip_lora"))
    told = options_of(checkpoint, "clip_lora", cls, fresh)
    assert (told["r"], told["lora_alpha"], told["scaling"], told["lora_dropout"]) == (3, 6, "sqrt", 0.0)
    assert (told["params"], told["encoder"], told["position"]) == (["q", "v"], "text", "all")
    method = build("clip_lora", fresh, **told)
    assert load_checkpoint(method, checkpoint) == ["logit_scale"]
    for ours, theirs in zip(features(method), plain_features(backbone), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
    told = options_of(checkpoint, "ace_lora", type(build("ace_lora")), load_backbone("tiny"))
    refined = build("ace_lora", hidden_features=8, **told)
    missing = load_checkpoint(refined, checkpoint)
    assert len(missing) == 2 * 8 + 1
    assert all(name.startswith("graphs.") for name in missing[:-1])


def test_the_authors_file_tells_its_options() -> None:
    checkpoint = read_checkpoint(GOLDEN / "ace_lora_tiny_a_official.pt")
    backbone = golden_backbone()
    told = options_of(checkpoint, "ace_lora", type(build("ace_lora")), backbone)
    assert told == {"r": 4, "topk": 5, "params": ["q", "k", "v"], "position": "all", "hidden_features": 16}
    method = build("ace_lora", backbone, **told)
    assert load_checkpoint(method, checkpoint) == []
    stored = tensors()
    with torch.no_grad():
        final = method.encode_image(stored["images"])
    torch.testing.assert_close(final, stored["eval.image_final"][:, 0], atol=2e-5, rtol=0)


def test_a_frozen_scale_cannot_take_the_files() -> None:
    checkpoint = read_checkpoint(GOLDEN / "ace_lora_tiny_a_official.pt")
    checkpoint.official["weights"]["logit_scale"].mul_(2.0)
    method = build("ace_lora", golden_backbone(), hidden_features=16, logit_scale="frozen")
    with pytest.raises(
        StoreError, match="brings its own logit scale: recipe.logit_scale=frozen cannot hold it"
    ):
        load_checkpoint(method, checkpoint)


# ---------------------------------------------------------------------------------------------- refusals
@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder of CLIP-LoRA, r = 2."""
    method = build("clip_lora", r=2)
    write_adapter(method, spec_of("clip_lora", tmp_path, "methods.clip_lora.r=2"), tmp_path / "made")
    return tmp_path / "made"


def damage(folder: Path, what: str) -> None:
    path = folder / adapters.TENSORS
    state = load_file(path)
    first = min(state)
    if what == "missing":
        del state[first]
    if what == "more":
        state[f"{first}.more"] = torch.ones(1)
    if what == "shape":
        state[first] = torch.ones(5, 5)
    if what == "elsewhere":
        state = {name.replace("blocks.0", "blocks.77"): value for name, value in state.items()}
    save_file(state, path)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "is missing"),
        ("more", "has no place"),
        ("shape", r"has shape \(5, 5\), expected \(2, 64\)"),
        ("elsewhere", "blocks.77.* belongs to no linear map"),
    ],
)
def test_folders_that_do_not_fit_name_the_first_tensor(made: Path, what: str, says: str) -> None:
    damage(made, what)
    checkpoint, backbone = read_checkpoint(made), load_backbone("tiny")

    def load() -> None:
        options = options_of(checkpoint, "clip_lora", type(build("clip_lora")), backbone)
        load_checkpoint(build("clip_lora", backbone, **options), checkpoint)

    with pytest.raises(StoreError, match=says):
        load()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("peft:dora", "the adapter is not dora: its use_dora is None. Import it as --method peft:lora"),
        ("peft:vera", "the adapter is not vera: it is lora"),
        ("taskres", "TaskRes has no form in peft's layout"),
    ],
)
def test_other_methods_refuse_the_folder(made: Path, name: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        options_of(read_checkpoint(made), name, type(build(name)), load_backbone("tiny"))


def test_plain_lora_refuses_what_it_cannot_be(made: Path) -> None:
    config = json.loads((made / adapters.CONFIG).read_text())
    (made / adapters.CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(
        StoreError, match="expected plain LoRA without biases, the adapter is LORA with use_dora"
    ):
        options_of(read_checkpoint(made), "clip_lora", type(build("clip_lora")), load_backbone("tiny"))


def test_other_frozen_tensors_are_refused(tmp_path: Path) -> None:
    method = build("peft:vera", r=4)
    write_adapter(method, spec_of("peft:vera", tmp_path), tmp_path / "made")
    state = load_file(tmp_path / "made" / adapters.TENSORS)
    name = next(key for key in state if key.endswith("vera_A"))
    save_file({**state, name: state[name] + 1}, tmp_path / "made" / adapters.TENSORS)
    with pytest.raises(StoreError, match="the frozen tensor '.*vera_A' differs"):
        load_checkpoint(build("peft:vera", r=4), read_checkpoint(tmp_path / "made"))


def test_a_method_without_a_form_writes_nothing(tmp_path: Path) -> None:
    assert not write_adapter(build("taskres"), spec_of("taskres", tmp_path), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_export_is_whole_or_not_at_all(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = tmp_path / "cell"
    with pytest.raises(StoreError, match="is not the folder of a cell"):
        export_adapter(cell, tmp_path / "to")
    cell.mkdir()
    (cell / "config.yaml").write_text("")
    with pytest.raises(StoreError, match="no adapter to export: it is unfinished"):
        export_adapter(cell, tmp_path / "to")
    (cell / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="its method has no form in peft's layout"):
        export_adapter(cell, tmp_path / "to")
    made.rename(cell / FOLDER)
    monkeypatch.setattr(adapters, "model_card", lambda _: "a card\n")
    monkeypatch.setattr(
        adapters.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(StoreError, match="cannot be written"):
        export_adapter(cell, tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell"]
    monkeypatch.undo()
    monkeypatch.setattr(adapters, "model_card", lambda _: "a card\n")
    export_adapter(cell, tmp_path / "to")
    names = {path.name for path in (tmp_path / "to").iterdir()}
    assert names == {adapters.CONFIG, adapters.TENSORS, adapters.REST, adapters.ABOUT, adapters.CARD}
    with pytest.raises(StoreError, match="is not empty"):
        export_adapter(cell, tmp_path / "to")
