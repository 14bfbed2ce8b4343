"""A small CT-CLIP with random weights, and its file in the published layout."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones import Backbone
from benchmark.backbones.ct import CT_CLIP
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.model import build
from benchmark.backbones.medical.records import Record
from tests.backbones.medical_parts import WORDS

WIDTH, HEADS, HEAD_WIDTH, DEPTH = 32, 2, 8, 2
GRID, BOX = (3, 3, 3), (2, 4, 4)
SIZE = tuple(n * step for n, step in zip(GRID, BOX, strict=True))
TEXT_WIDTH, JOINT = 24, 16


def shapes(words: int = 80, positions: int = 24) -> Shapes:
    """Return the sizes from which a small model is built."""
    text, stage = "text.transformer", "visual.enc_spatial_transformer.layers"
    return Shapes(
        {
            f"{text}.embeddings.word_embeddings.weight": (words, TEXT_WIDTH),
            f"{text}.embeddings.position_embeddings.weight": (positions, TEXT_WIDTH),
            f"{text}.embeddings.token_type_embeddings.weight": (2, TEXT_WIDTH),
            f"{text}.encoder.layer.{DEPTH - 1}.intermediate.dense.weight": (40, TEXT_WIDTH),
            f"{text}.encoder.layer.0.intermediate.dense.weight": (40, TEXT_WIDTH),
            "text.proj.0.weight": (JOINT, TEXT_WIDTH),
            "visual.to_patch_emb.2.weight": (WIDTH, 32),
            "visual.spatial_rel_pos_bias.net.2.weight": (HEADS, WIDTH),
            f"{stage}.0.attention.q_scale": (HEAD_WIDTH,),
            f"{stage}.0.attention.to_q.weight": (HEADS * HEAD_WIDTH, WIDTH),
            f"{stage}.0.mlp.4.weight": (WIDTH, 48),
            f"{stage}.{DEPTH - 1}.mlp.4.weight": (WIDTH, 48),
            f"visual.enc_temporal_transformer.layers.{DEPTH - 1}.mlp.4.weight": (WIDTH, 48),
            "visual.quantiser.codebook": (1, 20, WIDTH),
            "visual.proj.weight": (JOINT, GRID[1] * GRID[2] * WIDTH),
        }
    )


def record(quantiser: str = "straight_through") -> Record:
    """Return the record of the small model."""
    image = replace(CT_CLIP.image, box=BOX, quantiser=quantiser)  # type: ignore[arg-type]
    return replace(
        CT_CLIP,
        shapes={},
        embed_dim=JOINT,
        image=image,
        text=replace(CT_CLIP.text, head_width=8),
        preprocess=replace(CT_CLIP.preprocess, size=SIZE),
    )


def small(quantiser: str = "straight_through") -> Backbone:
    """Return a small model, always with the same weights; every tensor has been moved off its start."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        backbone = build(record(quantiser), shapes())
        for value in backbone.model.state_dict().values():
            value.add_(0.1 * torch.randn_like(value)).mul_(2.0 if value.ndim == 2 else 1.0)
        backbone.model.logit_scale.fill_(1.0)
    return backbone.requires_grad_(False).eval()


def volumes(count: int = 2) -> Tensor:
    """Return model inputs."""
    return torch.randn(count, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def published(backbone: Backbone) -> dict[str, Tensor]:
    """Return a model's weights under their published names, with all that the released file holds beside them."""
    swaps = {
        ".peg.": ".0.", ".attention.": ".1.", ".mlp.": ".3.", "visual.proj.": "to_visual_latent.",
        "text.proj.0.": "to_text_latent.", "visual.quantiser.codebook": "visual_transformer.vq._codebook.embed",
        "text.transformer.": "text_transformer.", "logit_scale": "temperature",
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for name, value in backbone.model.state_dict().items():
        for here, theirs in swaps.items():
            inside = here.startswith(".") and not name.startswith("visual.")
            name = name if inside else name.replace(here, theirs)
        state[name.replace("visual.", "visual_transformer.")] = value.clone()
    for name in [name for name in state if name.endswith(".norm.gamma")]:
        for letter in ("gamma", "beta"):
            state[name.replace("norm.gamma", f"context_norm.{letter}")] = torch.ones(WIDTH)
    codes = state["visual_transformer.vq._codebook.embed"].shape[1]
    dead: dict[str, Any] = {
        "text_transformer.embeddings.position_ids": torch.arange(24)[None],
        "text_transformer.pooler.dense.weight": torch.ones(TEXT_WIDTH, TEXT_WIDTH),
        "text_transformer.pooler.dense.bias": torch.ones(TEXT_WIDTH),
        "visual_transformer.to_patch_emb_first_frame.1.weight": torch.ones(16),
        "visual_transformer.to_pixels_first_frame.0.bias": torch.ones(16),
        "visual_transformer.to_pixels.0.weight": torch.ones(32, WIDTH),
        "visual_transformer.vq._codebook.initted": torch.ones(1),
        "visual_transformer.vq._codebook.cluster_size": torch.ones(1, codes),
        "to_text_latent_extra.weight": torch.ones(JOINT, TEXT_WIDTH),
        "to_visual_latent_extra.weight": torch.ones_like(state["to_visual_latent.weight"]),
    }
    return state | dead


def write(folder: Path, state: dict[str, Tensor]) -> Path:
    """Write a file as it is published, and a word list beside it."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save(state, folder / "CT-CLIP_v2.pt")
    return folder / "CT-CLIP_v2.pt"


@functools.cache
def shared() -> Backbone:
    """Return the small model for tests that change nothing."""
    return small()
