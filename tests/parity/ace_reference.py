"""The tiny BiomedCLIP-shaped model of ``tests/golden/ace_lora_tiny_a`` and its stored numbers."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmark.backbones import Backbone, from_open_clip

GOLDEN = Path(__file__).parents[1] / "golden"


def stored(name: str) -> tuple[Callable[[], Any], Callable[[], dict[str, Tensor]], Callable[..., Any]]:
    """Return functions for what is stored under a name: its JSON, its tensors, and those below a prefix, without it."""

    @functools.cache
    def facts() -> dict[str, Any]:
        return json.loads((GOLDEN / f"{name}.json").read_text())

    @functools.cache
    def tensors() -> dict[str, Tensor]:
        return load_file(GOLDEN / f"{name}.safetensors")

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors().items() if k.startswith(prefix)}

    return facts, tensors, under


facts, tensors, under = stored("ace_lora_tiny_a")


@register_model
def vit_golden_patch8_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the golden image trunk; open_clip makes timm towers by name."""
    config = facts()["config"]
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)
    sizes = {
        "img_size": config["image"],
        "patch_size": config["patch"],
        "embed_dim": config["v_width"],
        "depth": config["v_depth"],
        "num_heads": config["v_heads"],
        "mlp_ratio": config["v_mlp_ratio"],
    }
    trunk = VisionTransformer(**{**sizes, **kwargs})
    trunk.default_cfg = {"pool_size": None, "input_size": (3, config["image"], config["image"])}
    return trunk


def golden_clip() -> CustomTextCLIP:
    """Build the model and load its weights strictly."""
    config = facts()["config"]
    bert = {
        "model_type": "bert",
        "vocab_size": config["vocab"],
        "hidden_size": config["t_width"],
        "num_hidden_layers": config["t_depth"],
        "num_attention_heads": config["t_heads"],
        "intermediate_size": config["t_inter"],
        "max_position_embeddings": config["max_pos"],
        "hidden_dropout_prob": config["hidden_dropout"],
        "attention_probs_dropout_prob": config["attn_dropout"],
        "pad_token_id": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(bert))
        model = CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg={
                "timm_model_name": "vit_golden_patch8_32",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": config["image"],
            },
            text_cfg={
                "hf_model_name": folder,
                "hf_tokenizer_name": folder,
                "hf_model_pretrained": False,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
            },
        )
    model.load_state_dict(under("backbone."), strict=True)
    return model.eval()


def golden_backbone() -> Backbone:
    """Return the wrapped model."""
    return from_open_clip(golden_clip(), context_length=facts()["context_length"])
