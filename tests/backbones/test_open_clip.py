"""Published models read from folders and from the hub cache: equal to open_clip's own, and refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark.backbones import Backbone, check_backbone, load_backbone
from benchmark.backbones.published import BIOMEDCLIP, OPENAI_MEAN, PUBMED_BERT, build
from benchmark.errors import BenchmarkError, ConfigError, DataError
from benchmark.registry import BACKBONES
from tests.backbones.hub import REVISION, empty_cache, hub, refused
from tests.small import whole_features

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "of", "chest", "x", "-", "ray", "image", "no"),
    *("effusion", "pneumonia", "findings", ".", "##s", "heart"),
]
BERT = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pad_token_id": 0,
}  # fmt: skip
# BiomedCLIP's own description with small sizes: a timm ViT of width 64, a BERT that is not known by name
DESCRIPTION: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "",
                       "timm_proj": "linear", "image_size": 160},
        "text_cfg": {"hf_model_name": "someone/small-bert", "hf_tokenizer_name": "someone/small-bert",
                     "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic",
                       "resize_mode": "shortest"},
}  # fmt: skip
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
BIN, SAFE = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
TEXTS = ["a chest x-ray image of an effusion.", "no findings", "heart " * 60]


def description(**text: Any) -> dict[str, Any]:
    """Return the small description with other text keys."""
    changed: dict[str, Any] = json.loads(json.dumps(DESCRIPTION))
    changed["model_cfg"]["text_cfg"] |= text
    return changed


def weights(config: dict[str, Any], bert: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the state of a random model, moved off its start so that biases count."""
    torch.manual_seed(3)
    model = build(config, bert)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.state_dict()


def write_words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 10**30})
    )
    special = {name: f"[{name[:3].upper()}]" for name in ("cls_token", "sep_token", "pad_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "mask_token": "[MASK]"}))


def write_bert(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BERT))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return weights(DESCRIPTION["model_cfg"], BERT)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    """Return a folder like a repository of the hub, its text tower's configuration beside it."""
    folder = tmp_path_factory.mktemp("model")
    write_bert(folder / "text")
    (folder / "open_clip_config.json").write_text(json.dumps(description(hf_model_name=str(folder / "text"))))
    write_words(folder)
    torch.save(state, folder / BIN)
    return folder


@pytest.fixture
def copy(snapshot: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder that a test may change."""
    shutil.copytree(snapshot, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a network that must not be asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return empty_cache(monkeypatch, tmp_path)


@torch.no_grad()
def assert_same(backbone: Backbone, folder: Path) -> None:
    """Compare features, words and scale with open_clip's own reading of a folder, bit for bit."""
    theirs, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    words = open_clip.get_tokenizer(f"local-dir:{folder}")
    theirs.eval().requires_grad_(False)  # torch's attention rounds otherwise where gradients are wanted
    ids = backbone.tokenize(TEXTS)
    assert torch.equal(ids, words(TEXTS))
    assert torch.equal(whole_features(backbone.text, ids), theirs.encode_text(ids))
    images = torch.randn(2, 3, *backbone.input_spec.size)
    assert torch.equal(whole_features(backbone.image, images), theirs.encode_image(images))
    assert torch.equal(backbone.logit_scale, theirs.logit_scale.exp())
    assert backbone.input_spec.mean == tuple(transform.transforms[-1].mean)
    assert backbone.input_spec.std == tuple(transform.transforms[-1].std)


# ---------------------------------------------------------------------------- what is read
def test_a_folder_gives_open_clips_features_bit_for_bit(snapshot: Path) -> None:
    backbone = load_backbone(f"local-dir:{snapshot}")
    assert_same(backbone, snapshot)
    assert backbone.input_spec.size == (160, 160)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_text_length_is_the_descriptions_not_the_position_tables(snapshot: Path) -> None:
    backbone = load_backbone(f"local-dir:{snapshot}")
    assert backbone.text.context_length == 24
    assert backbone.tokenize(TEXTS).shape == (3, 24)
    assert backbone.tokenize(TEXTS)[2, -1] == WORDS.index("[SEP]")


def test_safetensors_come_before_pickles(copy: Path, state: dict[str, Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, copy / SAFE)
    (copy / BIN).write_bytes(b"broken")
    backbone = load_backbone(f"local-dir:{copy}")
    assert backbone.origin["file"] == SAFE
    assert_same(backbone, copy)


def test_wrappers_and_harmless_extras_of_other_releases_are_taken_off(
    copy: Path, state: dict[str, Tensor]
) -> None:
    extra = {"text.transformer.embeddings.position_ids": torch.arange(40)[None]}
    scale = {"logit_scale": state["logit_scale"].reshape(1)}
    wrapped = {f"module.{name}": value for name, value in {**state, **extra, **scale}.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, copy / BIN)
    assert_same(load_backbone(f"local-dir:{copy}"), copy)


def test_a_repository_in_the_cache_is_found_offline(snapshot: Path, home: Path, copy: Path) -> None:
    (copy / "open_clip_config.json").write_text(json.dumps(description()))
    names = ("open_clip_config.json", BIN, "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
    hub(home, "someone/small-clip", *(copy / name for name in names))
    hub(home, "someone/small-bert", snapshot / "text" / "config.json")
    backbone = load_backbone("hf-hub:someone/small-clip")
    assert_same(backbone, snapshot)
    assert backbone.origin["repo"] == "someone/small-clip"
    assert backbone.origin["revision"] == REVISION
    assert len(backbone.origin["sha256"]) == 64


def test_a_tokenizer_may_lie_in_the_repository_that_the_description_names(
    snapshot: Path, home: Path, copy: Path
) -> None:
    (copy / "open_clip_config.json").write_text(json.dumps(description()))
    hub(home, "someone/small-clip", copy / "open_clip_config.json", copy / BIN)
    words = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
    hub(home, "someone/small-bert", *(snapshot / name for name in words), snapshot / "text" / "config.json")
    assert_same(load_backbone("hf-hub:someone/small-clip"), snapshot)


def test_biomedclip_reads_a_copy_of_its_repository(snapshot: Path, copy: Path) -> None:
    changed = json.loads((copy / "open_clip_config.json").read_text())
    del changed["model_cfg"]["text_cfg"]["context_length"]
    (copy / "open_clip_config.json").write_text(json.dumps(changed))
    found = BACKBONES.get("biomedclip").find("biomedclip", pretrained=str(copy))
    assert found.context_length == 256  # BiomedCLIP's own, where the description is silent
    assert_same(load_backbone("biomedclip", pretrained=str(snapshot)), snapshot)


def test_biomedclip_needs_no_download_of_pubmedbert(home: Path, tmp_path: Path, snapshot: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": BIOMEDCLIP, "preprocess_cfg": {}})
    )
    (tmp_path / BIN).write_bytes(b"")
    names = ("vocab.txt", "tokenizer_config.json")
    repo = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    hub(home, repo, tmp_path / "open_clip_config.json", tmp_path / BIN, *(snapshot / name for name in names))
    found = check_backbone("BiomedCLIP")
    assert found.bert == PUBMED_BERT
    assert (found.context_length, found.image_size) == (256, (224, 224))


def test_an_architecture_of_open_clip_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "ViT-S-32", CLIP
    )  # the name is real, the size is not
    state = weights(CLIP)
    torch.save({"state_dict": state}, tmp_path / "mine.pt")
    backbone = load_backbone("vit_s_32", pretrained=str(tmp_path / "mine.pt"))
    model = build(CLIP)
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    ids = backbone.tokenize(TEXTS)
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-S-32")(TEXTS))
    assert torch.equal(whole_features(backbone.text, ids), model.encode_text(ids))
    assert backbone.name == "ViT-S-32"
    assert backbone.origin["file"] == "mine.pt"
    assert backbone.origin["repo"] is None


def test_the_activation_belongs_to_the_weights(home: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    hub(home, "timm/vit_base_patch16_clip_224.openai", tmp_path / "open_clip_model.safetensors")
    found = check_backbone("ViT-B-16", pretrained="openai")
    assert found.config["quick_gelu"] is True
    assert found.preprocess["mean"] == OPENAI_MEAN


def test_a_bare_clip_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    torch.save(weights(CLIP), tmp_path / "only.pth")
    backbone = load_backbone(f"local-dir:{tmp_path}")
    assert backbone.input_spec.mean == OPENAI_MEAN
    torch.save(weights(CLIP), tmp_path / BIN)
    (tmp_path / "only.pth").unlink()
    assert_same(backbone, tmp_path)


# ---------------------------------------------------------------------------- what is refused; tests/bad_input has more
def test_open_clip_is_no_architecture() -> None:
    assert "name one of open_clip's architectures" in refused(ConfigError, "open_clip")


def test_missing_downloads_are_named_with_the_command(home: Path) -> None:
    line = refused(DataError, "biomedclip")
    assert "hf download microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224" in line
    assert str(home / "hub") in line
    assert "hf download BIOMEDICA/BMC_CLIP_CF BMC_CLIP_CF.pt" in refused(DataError, "bmc-clip")
    assert line.endswith("patch16_224")
    assert "hf download timm/vit_base_patch16_clip_224.openai" in refused(DataError, "ViT-B-16", "openai")


def test_all_that_is_missing_is_told_at_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": BIOMEDCLIP}))
    hub(home, "someone/half", tmp_path / "open_clip_config.json")
    line = refused(DataError, "hf-hub:someone/half")
    assert "the weights file is not in the cache" in line
    assert "its tokenizer is not in the cache" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-16-SigLIP", "pooling 'map'"),
        ("EVA02-B-16", "Eva"),
        ("convnext_base", "ConvNeXt"),
        ("coca_ViT-B-32", "CoCa"),
        ("roberta-ViT-B-32", "roberta-base"),
    ],
)
def test_towers_without_a_view_are_refused_before_anything_is_fetched(name: str, words: str) -> None:
    tag = next(iter(open_clip.list_pretrained_tags_by_model(name)), "any")
    assert words in refused(BenchmarkError, name, tag)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (BIN, lambda state: dict(state, other=torch.zeros(2)), "1 unknown ('other')"),
        (BIN, lambda state: {"x": Payload()}, "could run code (posix.system)"),
        (BIN, lambda state: pickle.dumps(Payload()), "not a file of tensors, or damaged"),
        (SAFE, lambda state: b"\0" * 40, "cannot be read as weights"),
    ],
)
def test_unknown_tensors_and_code_are_refused(
    copy: Path, state: dict[str, Tensor], name: str, spoil: Callable[[Any], Any], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(copy)
    content = spoil(state)
    (copy / name).write_bytes(content) if isinstance(content, bytes) else torch.save(content, copy / name)
    assert words in refused(DataError, f"local-dir:{copy}")
    assert not (copy / "executed").exists()


class Payload:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_weights_of_another_architecture(tmp_path: Path, snapshot: Path) -> None:
    torch.save(weights(CLIP), tmp_path / "clip.pt")
    line = refused(DataError, f"local-dir:{snapshot}", tmp_path / "clip.pt")
    assert "clip.pt: not the weights of" in line
    assert len(line) < 600


def test_one_of_several_weights_files_can_be_named(copy: Path, state: dict[str, Tensor]) -> None:
    (copy / BIN).rename(copy / "one.bin")
    torch.save(state, copy / "two.bin")
    named = load_backbone(f"local-dir:{copy}", pretrained=str(copy / "two.bin"))
    assert named.origin["file"] == "two.bin"


# ---------------------------------------------------------------------------- names
def test_names_of_open_clip_resolve_without_being_listed() -> None:
    assert BACKBONES.resolve("vit-b-16") == "ViT-B-16"
    assert BACKBONES.entry("ViT-B-16").name == "open_clip"
    assert "open_clip" in BACKBONES.names()
    assert "ViT-B-16" not in BACKBONES.names()
    assert BACKBONES.resolve("hf_hub:a/B-c_d") == "hf-hub:a/B-c_d"


@pytest.mark.parametrize(
    ("wrong", "near"), [("tinyy", "tiny"), ("vit-b-16x", "ViT-B-16"), ("biomed-clp", "biomedclip")]
)
def test_a_wrong_name_is_one_line_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(BenchmarkError, match=f"Did you mean '{near}'.* and [0-9]+ names of open_clip$"):
        BACKBONES.resolve(wrong)
