"""The models of the paper's tables that were trained on histopathology or on articles, one record each."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmark.backbones.medical.load import MedicalBackbone
from benchmark.backbones.medical.records import (
    OPENAI,
    CheckpointFile,
    ImageSide,
    Option,
    Record,
    Rule,
    TextSide,
    bert,
    bert_shapes,
)
from benchmark.backbones.published import Repository
from benchmark.registry import register_backbone

PUBMED_BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"

_PMC_OA = Repository(repo="axiong/pmc_oa", kind="dataset")
PMC_CLIP = Record(
    name="pmc-clip",
    title="PMC-CLIP",
    files=(
        (CheckpointFile(("checkpoint.pt",), _PMC_OA),),
        (
            CheckpointFile(("image_encoder(resnet50).pth",), _PMC_OA, prefix="visual"),
            CheckpointFile(("text_encoder.pth",), _PMC_OA, prefix="text_encoder"),
            CheckpointFile(("text_projection_layer.pth",), _PMC_OA, prefix="text_projection"),
        ),
    ),
    names=(
        ("visual.*", "visual.*"),
        *bert("text_encoder.", pooler=True),
        ("text_projection*", "text.proj.0.weight | transpose"),
        ("logit_scale", "logit_scale"),
        ("fusion_module.*", None),
        ("mlm_projection", None),
        ("img_special_token", None),
        ("positional_embedding", None),
        ("ln_final.*", None),
    ),
    shapes={
        "visual.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.c_proj.weight": (768, 2048),
        **bert_shapes(30522),
    },
    spare=("text.transformer.pooler.*",),
    image=ImageSide("modified_resnet", pool="attention"),
    text=TextSide("cls", ("matrix",), max_length=77, masked=False, vocabulary=PUBMED_BERT),
    preprocess=OPENAI,
    embed_dim=768,
    scale=math.exp(4.4292),
    options={
        "heads": Option(
            {"8": {"image.heads": 8}, "32": {"image.heads": 32}},
            why="its file does not say how many heads its attention pool has, and both load (quick start: 8, "
            "training code: 32)",
        ),
        "text": Option(
            {
                "training": {},
                "quick_start": {"text.pool": "pooler"},
                "biomedcoop": {"text.pool": "pooler", "text.masked": True},
                "masked_cls": {"text.masked": True, "text.max_length": 512},
            }
        ),
    },
    link="https://huggingface.co/datasets/axiong/pmc_oa",
    licence="MIT (code); weights openrail as far as known",
    pretrained_on="PMC-OA",
)
register_backbone(
    "pmc-clip", summary="pmc-clip:heads=8 or pmc-clip:heads=32, PMC-CLIP (its file does not say which)"
)(MedicalBackbone(PMC_CLIP))

_CLIP_BLOCK = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def _clip_blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of the blocks of one tower of transformers' CLIPModel."""
    fused = tuple(
        (f"{theirs}.*.self_attn.{part}_proj.{kind}", f"{ours}.*.attn.in_proj_{kind} | part {index}")
        for kind in ("weight", "bias")
        for index, part in enumerate("qkv")
    )
    plain = tuple((f"{theirs}.*.{old}.*", f"{ours}.*.{new}.*") for old, new in _CLIP_BLOCK)
    return (*fused, *plain)


CLIP_NAMES: tuple[Rule, ...] = (
    # transformers' CLIPModel
    ("vision_model.embeddings.position_ids", None),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.*", "visual.ln_pre.*"),  # their spelling
    *_clip_blocks("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("vision_model.post_layernorm.*", "visual.ln_post.*"),
    ("visual_projection.weight", "visual.proj | transpose"),
    ("text_model.embeddings.position_ids", None),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *_clip_blocks("text_model.encoder.layers", "transformer.resblocks"),
    ("text_model.final_layer_norm.*", "ln_final.*"),
    ("text_projection.weight", "text_projection | transpose"),
    # open_clip's own
    ("attn_mask", None),
    ("*", "*"),
)
_CLIP_SHAPES = {
    "visual.conv1.weight": (768, 3, 32, 32),
    "visual.proj": (768, 512),
    "visual.transformer.resblocks.11.mlp.c_proj.weight": (768, 3072),
    "transformer.resblocks.11.mlp.c_proj.weight": (512, 2048),
    "token_embedding.weight": (49408, 512),
    "positional_embedding": (77, 512),
}
PLIP = Record(
    name="plip",
    title="PLIP",
    files=((CheckpointFile(("model.safetensors", "pytorch_model.bin"), Repository(repo="vinid/plip")),),),
    names=CLIP_NAMES,
    shapes=_CLIP_SHAPES,
    image=ImageSide("clip", quick_gelu=True),
    preprocess=OPENAI,
    embed_dim=512,
    link="https://huggingface.co/vinid/plip",
    licence="none stated; the author speaks of CC BY-NC-SA",
    pretrained_on="OpenPath (Twitter)",
)
register_backbone("plip", summary="PLIP (ViT-B/32), from the hub cache")(MedicalBackbone(PLIP))

_QUILTNET_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
QUILTNET = replace(
    PLIP,
    name="quiltnet",
    title="QuiltNet-B-32",
    files=((CheckpointFile(_QUILTNET_FILES, Repository(repo="wisdomik/QuiltNet-B-32")),),),
    image=ImageSide("clip"),
    options={"quick_gelu": Option({"off": {}, "on": {"image.quick_gelu": True}})},
    link="https://huggingface.co/wisdomik/QuiltNet-B-32",
    licence="MIT",
    pretrained_on="Quilt-1M",
)
register_backbone(
    "quiltnet",
    aliases=("quiltnet-b-32",),
    summary="QuiltNet-B-32, from the hub cache; quiltnet:quick_gelu=on",
)(MedicalBackbone(QUILTNET))
