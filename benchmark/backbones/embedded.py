"""Backbones that need no download: the tiny pretrained ones, and architectures with random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from benchmark.backbones.backbone import Backbone, InputSpec, from_open_clip
from benchmark.errors import ConfigError, unknown
from benchmark.registry import register_backbone

# PubMedBERT's published configuration (BiomedBERT-base-uncased-abstract); sizes as in the sheet of BiomedCLIP's facts
_PUBMED_BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def _refuse_weights(name: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise ConfigError(f"--pretrained: backbone '{name}' brings its own weights, got '{pretrained}'")


def _tiny(name: str, pretrained: str | None) -> Backbone:
    from benchmark.backbones import tiny

    _refuse_weights(name, pretrained)
    model, tokenizer = tiny.load_tiny(name)
    spec = InputSpec((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), (tiny.MEAN,) * 3, (tiny.STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


@register_backbone("tiny")
def tiny(name: str, *, pretrained: str | None = None) -> Backbone:
    """1.3 M parameters, 64 px, pretrained on phantoms as a weak generalist (docs/phantom.md)."""
    return _tiny("tiny", pretrained)


@register_backbone("tiny_b")
def tiny_b(name: str, *, pretrained: str | None = None) -> Backbone:
    """The same as ``tiny`` from another pretraining seed: how much of a ranking is the backbone's draw?"""
    return _tiny("tiny_b", pretrained)


@register_backbone("random")
def random(name: str, *, pretrained: str | None = None) -> Backbone:
    """``random:biomedclip``, ``random:tiny`` or ``random:<open_clip name>``: the architecture, untrained.

    For efficiency figures and tests; no tokenizer for ``biomedclip`` (its vocabulary is a download).
    """
    _refuse_weights(name, pretrained)
    _, _, architecture = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture == "biomedclip":
            return from_open_clip(_biomedclip(), context_length=256, name=name)
        if architecture == "tiny":
            return _random_tiny(name)
        return _random_open_clip(architecture, name)


def _biomedclip() -> torch.nn.Module:
    from open_clip.model import CustomTextCLIP

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_PUBMED_BERT))
        return CustomTextCLIP(
            embed_dim=512,
            vision_cfg={
                "timm_model_name": "vit_base_patch16_224",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 224,
            },
            text_cfg={
                "hf_model_name": folder,
                "hf_tokenizer_name": folder,
                "hf_model_pretrained": False,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        )


def _random_tiny(name: str) -> Backbone:
    from benchmark.backbones import tiny

    _, tokenizer = tiny.load_tiny("tiny")
    model = tiny.build_tiny(tokenizer.vocab_size)
    spec = InputSpec((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), (tiny.MEAN,) * 3, (tiny.STD,) * 3)
    return from_open_clip(model, tokenizer, input_spec=spec, name=name)


def _random_open_clip(architecture: str, name: str) -> Backbone:
    import open_clip

    known = open_clip.list_models()
    if architecture not in known:
        raise ConfigError(f"--backbone {name}: " + unknown("open_clip model", architecture, known))
    model = open_clip.create_model(architecture, pretrained=None)
    return from_open_clip(model, open_clip.get_tokenizer(architecture), name=name)
