"""The tiny model of CT volumes: CT-CLIP's plan in small, 24 x 48 x 48 voxels, pretrained on drawn volumes.

Its weights are in the package; ``benchmark/phantom/pretraining/volumes.py`` makes them. It has no quantiser.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from benchmark.backbones.ct import CT_CLIP
from benchmark.backbones.embedded import TinyModel, refuse_weights
from benchmark.backbones.medical.records import WORD_TABLE, ImageSide, TextSide
from benchmark.backbones.volumes import VolumePreprocess
from benchmark.registry import register_backbone

if TYPE_CHECKING:
    from benchmark.backbones.backbone import Backbone
    from benchmark.backbones.tiny import WordPieceTokenizer

WEIGHTS = Path(__file__).parent / "weights_ct"
SIZE, SPACING, AXES = (24, 48, 48), (15.0, 7.5, 7.5), "SPL"
WIDTH, HEAD_WIDTH, HIDDEN, EMBED_DIM = 64, 32, 128, 64
TEXT_WIDTH, CONTEXT_LENGTH = 96, 128
_BOX = (4, 8, 8)
_LAYER = "visual.enc_{}_transformer.layers.1"

RECORD = replace(
    CT_CLIP,
    name="tiny_ct",
    title="tiny CT-CLIP",
    files=(),
    shapes={
        "text.transformer.embeddings.position_embeddings.weight": (CONTEXT_LENGTH, TEXT_WIDTH),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, TEXT_WIDTH),
        "text.transformer.encoder.layer.0.intermediate.dense.weight": (4 * TEXT_WIDTH, TEXT_WIDTH),
        "text.transformer.encoder.layer.1.intermediate.dense.weight": (4 * TEXT_WIDTH, TEXT_WIDTH),
        "text.proj.0.weight": (EMBED_DIM, TEXT_WIDTH),
        "visual.to_patch_emb.2.weight": (WIDTH, _BOX[0] * _BOX[1] * _BOX[2]),
        "visual.spatial_rel_pos_bias.net.2.weight": (WIDTH // HEAD_WIDTH, WIDTH),
        "visual.enc_spatial_transformer.layers.0.attention.q_scale": (HEAD_WIDTH,),
        "visual.enc_spatial_transformer.layers.0.attention.to_q.weight": (WIDTH, WIDTH),
        "visual.enc_spatial_transformer.layers.0.mlp.4.weight": (WIDTH, HIDDEN),
        **{f"{_LAYER.format(stage)}.mlp.4.weight": (WIDTH, HIDDEN) for stage in ("spatial", "temporal")},
        "visual.proj.weight": (EMBED_DIM, SIZE[1] // _BOX[1] * (SIZE[2] // _BOX[2]) * WIDTH),
    },
    image=ImageSide("ctvit", box=_BOX, quantiser="off"),
    text=TextSide("cls", ("matrix",), max_length=CONTEXT_LENGTH, head_width=HEAD_WIDTH),
    preprocess=VolumePreprocess(SIZE, (0.5,), (0.5,), spacing=SPACING, axes=AXES, window=(-1000, 1000)),
    embed_dim=EMBED_DIM,
    options={},
)


@dataclass(frozen=True)
class TinyVolumes(TinyModel):
    """The tiny model of volumes, not loaded yet."""

    image_size: ClassVar[tuple[int, ...]] = SIZE
    config = MappingProxyType({"embed_dim": EMBED_DIM})
    preprocess = RECORD.preprocess


class TinyVolumeBackbone:
    """The registered tiny model of volumes."""

    def find(self, name: str, *, pretrained: str | None = None) -> TinyVolumes:
        """Return what is known of the model without loading it.

        Raises:
            ConfigError: weights are asked for.
        """
        refuse_weights(name, pretrained)
        about = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        return TinyVolumes(about["parameters"], about["fingerprint"])

    def __call__(self, name: str, *, pretrained: str | None = None) -> Backbone:
        """Load the model; raises as :meth:`find`."""
        from benchmark.backbones.checkpoints import load_weights
        from benchmark.backbones.tiny import WordPieceTokenizer

        refuse_weights(name, pretrained)
        tokenizer = WordPieceTokenizer.from_file(WEIGHTS / f"{name}.tokenizer.json", CONTEXT_LENGTH)
        backbone = build_tiny_ct(tokenizer)
        load_weights(backbone.model, WEIGHTS / f"{name}.safetensors", f"'{name}'")
        return backbone


def build_tiny_ct(tokenizer: WordPieceTokenizer, seed: int = 0) -> Backbone:
    """Build the model with random weights; the global random state is left as it was.

    Args:
        tokenizer: of its text tower.
        seed: of the weights.
    """
    import torch

    from benchmark.backbones.medical.heads import Shapes
    from benchmark.backbones.medical.model import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build(RECORD, Shapes({**RECORD.shapes, WORD_TABLE: (tokenizer.vocab_size, TEXT_WIDTH)}))
    backbone.tokenizer = tokenizer
    return backbone


register_backbone(
    "tiny_ct", summary="CT-CLIP's plan in small, 24 x 48 x 48 voxels, pretrained on drawn CT volumes"
)(TinyVolumeBackbone())
