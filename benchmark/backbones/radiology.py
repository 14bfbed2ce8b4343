"""The chest X-ray models of the paper's tables, one record each; ``docs/backbones.md`` describes them."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmark.backbones.medical.load import MedicalBackbone
from benchmark.backbones.medical.records import (
    GREY_SQUARE,
    RESNET_SHAPES,
    CheckpointFile,
    ImageSide,
    Option,
    Record,
    Rule,
    TextSide,
    bert,
    bert_shapes,
    resnet,
)
from benchmark.backbones.published import Repository
from benchmark.preprocess import Preprocess
from benchmark.registry import register_backbone

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT = ((0.0,) * 3, (1.0,) * 3)
BIO_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
CXR_BERT = "microsoft/BiomedVLP-CXR-BERT-specialized"
BIOVIL_T = "microsoft/BiomedVLP-BioViL-T"
BATCHNORM_HEAD = ("linear", "batchnorm", "relu", "linear", "plain_batchnorm")

CONVIRT = Record(
    name="convirt",
    title="ConVIRT",
    files=((CheckpointFile(("ConVIRT.pth",), Repository(repo="youngzhou12/ConVIRT")),),),
    unwrap=("model", "state_dict"),
    names=(
        *resnet("visual.model."),
        ("vis_proj.*", "visual.head.*"),
        *bert("linguistic.encoder.", pooler=True),
        ("linguistic.pooler.*", "text.transformer.pooler.*"),
        ("lin_proj.*", "text.proj.*"),
        ("loss_fn.*", None),
    ),
    shapes={**RESNET_SHAPES, "visual.head.2.weight": (768, 768)},
    image=ImageSide(head=("linear", "relu", "linear")),
    text=TextSide("pooler", ("linear", "relu", "linear"), max_length=128),
    preprocess=Preprocess((224, 224), *IMAGENET, "squash", interpolation="bilinear"),
    embed_dim=768,
    scale=10.0,
    link="https://huggingface.co/youngzhou12/ConVIRT, or the selfsup/convirt-mimic model of ViLMedic",
    licence="weights: not stated; code of BenchX and ViLMedic: MIT",
    pretrained_on="MIMIC-CXR",
    note="re-implementation: the authors published no weights",
)
register_backbone("convirt", summary="ConVIRT as re-implemented in BenchX or ViLMedic; --pretrained FILE")(
    MedicalBackbone(CONVIRT)
)

GLORIA = Record(
    name="gloria",
    title="GLoRIA",
    files=((CheckpointFile(("chexpert_resnet50.ckpt",)),),),
    names=(
        *resnet("gloria.img_encoder.model."),
        ("gloria.img_encoder.global_embedder.*", "visual.head.0.*"),
        ("gloria.img_encoder.local_embedder.weight", "extras.image_tokens.embedder.weight | squeeze"),
        *bert("gloria.text_encoder.model."),
    ),
    shapes={
        **RESNET_SHAPES,
        **bert_shapes(28996),
        "visual.head.0.weight": (768, 2048),
        "extras.image_tokens.embedder.weight": (768, 1024),
    },
    image=ImageSide(upsample=299, head=("linear",)),
    text=TextSide("sum4_mean", max_length=97, vocabulary=BIO_CLINICAL_BERT, clean="words"),
    preprocess=GREY_SQUARE,
    embed_dim=768,
    scale=10.0,
    rules=("global", "gloria"),
    extras={"image_tokens": "regions", "text_tokens": "pieces", "continues": "continues"},
    link="the Stanford Box folder linked in the README of https://github.com/marshuang80/gloria",
    licence="Apache-2.0 (code)",
    pretrained_on="CheXpert, of which CheXpert 5x200 is a part",
)
register_backbone("gloria", summary="GLoRIA (ResNet-50, Bio_ClinicalBERT); --pretrained FILE")(
    MedicalBackbone(GLORIA)
)

_MGCA_NAMES: tuple[Rule, ...] = (
    ("img_encoder_q.local_embed.*", None),
    ("text_encoder_q.local_embed.*", None),
    ("patch_local_atten_layer.*", None),
    ("word_local_atten_layer.*", None),
    ("prototype_layer.*", None),
    *resnet("img_encoder_q.model."),
    ("img_encoder_q.global_embed.head.*", "visual.head.*"),
    ("text_encoder_q.model.encoder.layer.*.crossattention.*", None),
    *bert("text_encoder_q.model."),
    ("text_encoder_q.global_embed.head.*", "text.proj.*"),
)
MGCA_R50 = Record(
    name="mgca-r50",
    title="MGCA (ResNet-50)",
    files=((CheckpointFile(("resnet_50.ckpt",)),),),
    names=_MGCA_NAMES,
    shapes={**RESNET_SHAPES, **bert_shapes(28996, 6), "visual.head.3.weight": (128, 2048)},
    image=ImageSide(upsample=299, head=BATCHNORM_HEAD),
    text=TextSide("cls", BATCHNORM_HEAD, max_length=112, vocabulary=BIO_CLINICAL_BERT, clean="words"),
    preprocess=GREY_SQUARE,
    embed_dim=128,
    scale=1 / 0.07,
    link="the Google Drive folder linked in the README of https://github.com/HKU-MedAI/MGCA",
    licence="none stated",
    pretrained_on="MIMIC-CXR",
)
register_backbone(
    "mgca-r50", aliases=("mgca", "mgca-resnet50"), summary="MGCA with ResNet-50; --pretrained FILE"
)(MedicalBackbone(MGCA_R50))

MGCA_VIT = replace(
    MGCA_R50,
    name="mgca-vit",
    title="MGCA (ViT-B/16)",
    files=((CheckpointFile(("vit_base.ckpt",)),),),
    shapes={
        "visual.trunk.pos_embed": (1, 197, 768),
        "visual.trunk.blocks.11.mlp.fc2.weight": (768, 3072),
        **bert_shapes(28996, 6),
        "visual.head.3.weight": (128, 2048),
    },
    image=ImageSide("vit", pool="token", head=BATCHNORM_HEAD),
)
register_backbone("mgca-vit", summary="MGCA with ViT-B/16; --pretrained FILE")(MedicalBackbone(MGCA_VIT))

_BIOVIL_TEXT_NAMES: tuple[Rule, ...] = (
    ("cls.predictions.*", None),
    *bert("bert."),
    ("cls_projection_head.dense_to_hidden.*", "text.proj.0.*"),
    ("cls_projection_head.LayerNorm.*", "text.proj.2.*"),
    ("cls_projection_head.dense_to_output.*", "text.proj.3.*"),
)


def _biovil_files(repo: str, tag: str, image: str, md5: str) -> tuple[tuple[CheckpointFile, ...], ...]:
    home = Repository(repo=repo, branch=tag)
    return ((CheckpointFile((image,), home, md5=md5), CheckpointFile(("pytorch_model.bin",), home)),)


BIOVIL = Record(
    name="biovil",
    title="BioViL",
    files=_biovil_files(
        CXR_BERT, "v1.1", "biovil_image_resnet50_proj_size_128.pt", "02ce6ee460f72efd599295f440dbb453"
    ),
    names=(
        *resnet("encoder.encoder."),
        ("classifier.*", None),
        ("projector.model.0.weight", "visual.cells.0.weight | squeeze"),
        ("projector.model.1.*", "visual.cells.1.*"),
        ("projector.model.3.weight", "visual.cells.3.weight | squeeze"),
        ("projector.model.3.bias", "visual.cells.3.bias"),
        *_BIOVIL_TEXT_NAMES,
    ),
    shapes={**RESNET_SHAPES, **bert_shapes(30522), "visual.cells.0.weight": (128, 2048)},
    image=ImageSide(cells=("matrix", "batchnorm", "relu", "linear")),
    text=TextSide("cls", ("linear", "gelu", "layernorm", "linear"), max_length=512, vocabulary=CXR_BERT),
    preprocess=Preprocess(
        (480, 480), *UNIT, "shortest_crop", side=512, interpolation="bilinear", channels="grey", minmax=True
    ),
    embed_dim=128,
    scale=2.0,
    rules=("global", "mean_then_normalise"),
    link=f"https://huggingface.co/{CXR_BERT}, tag v1.1",
    licence="MIT",
    pretrained_on="MIMIC-CXR",
)
register_backbone("biovil", summary="BioViL (ResNet-50, CXR-BERT), from the hub cache")(
    MedicalBackbone(BIOVIL)
)

_EARLIER = "encoder.vit_pooler.*"
"""Compares with an earlier image, which a benchmark of single images does not have."""
BIOVIL_TEMPORAL = replace(
    BIOVIL,
    name="biovil-t",
    title="BioViL-T",
    files=_biovil_files(
        BIOVIL_T, "v1.0", "biovil_t_image_model_proj_size_128.pt", "a83080e2f23aa584a4f2b24c39b1bb64"
    ),
    names=(
        *resnet("encoder.encoder."),
        (_EARLIER, None),
        ("classifier.*", None),
        ("encoder.backbone_to_vit.weight", "visual.cells.0.weight | squeeze"),
        ("encoder.missing_previous_emb", "visual.cells.1.value | squeeze"),
        ("projector.model.0.weight", "visual.cells.2.weight | squeeze"),
        ("projector.model.1.*", "visual.cells.3.*"),
        ("projector.model.3.weight", "visual.cells.5.weight | squeeze"),
        ("projector.model.3.bias", "visual.cells.5.bias"),
        *_BIOVIL_TEXT_NAMES,
    ),
    shapes={**RESNET_SHAPES, **bert_shapes(30522), "visual.cells.2.weight": (128, 512)},
    image=ImageSide(cells=("matrix", "constant", "matrix", "batchnorm", "relu", "linear")),
    text=replace(BIOVIL.text, vocabulary=BIOVIL_T),
    preprocess=replace(BIOVIL.preprocess, size=(448, 448)),
    link=f"https://huggingface.co/{BIOVIL_T}, tag v1.0",
    note="without a prior image",
)
register_backbone("biovil-t", summary="BioViL-T on single images, from the hub cache")(
    MedicalBackbone(BIOVIL_TEMPORAL)
)

_PRIOR_MIMIC = Preprocess(
    (224, 224), (0.4755,), (0.3011,), "squash", interpolation="bilinear", channels="grey"
)
PRIOR = Record(
    name="prior",
    title="PRIOR",
    files=((CheckpointFile(("prior.pt", "prior.pth", "prior.ckpt")),),),
    names=(
        *resnet("image_encoder.encoder."),
        ("image_encoder.atten_pool.*", "visual.pool.*"),
        ("global_image_projection.*", "visual.head.0.*"),
        *bert("text_encoder.encoder."),
        ("local_text_projection.*", "text.proj.0.*"),
        ("sentence_bank.embed.weight", "text.bank.weight"),
        ("global_text_attention.*", "text.pool.*"),
        ("local_image_projection.*", "extras.image_tokens.projection.*"),
        ("local_cross_attention.*", "extras.local_attention.*"),
        ("logit_scale", "logit_scale | log"),  # it multiplies cosines as it is, not as its exponential
        ("local_logit_scale", None),
        ("sentence_decoder.*", None),
        ("image_decoder.*", None),
        ("prototype_queries", None),
        ("predictor.*", None),
        ("global_text_projection.*", None),
    ),
    shapes={
        **RESNET_SHAPES,
        "visual.trunk.conv1.weight": (64, 1, 7, 7),
        "visual.pool.positional_embedding": (50, 2048),
        **bert_shapes(28996),
        "text.bank.weight": (512, 768),
    },
    image=ImageSide(pool="attention", heads=8, head=("linear",)),
    text=TextSide("sentences", ("linear",), max_length=256, vocabulary=BIO_CLINICAL_BERT),
    preprocess=_PRIOR_MIMIC,
    embed_dim=768,
    rules=("global", "prior"),
    extras={"image_tokens": "mixed_cells", "text_tokens": "pieces", "local_attention": "local_attention"},
    options={
        "bank": Option({"softmax": {"text.bank": "softmax"}, "gumbel": {"text.bank": "gumbel"}}),
        "statistics": Option(
            {"mimic": {}, "chexpert": {"preprocess": replace(_PRIOR_MIMIC, mean=(0.5063,), std=(0.2895,))}}
        ),
    },
    link="the Google Drive file linked in the README of https://github.com/QtacierP/PRIOR (not prior_resnet50.pt)",
    licence="Apache-2.0",
    pretrained_on="MIMIC-CXR",
)
register_backbone("prior", summary="PRIOR (ResNet-50, Bio_ClinicalBERT); --pretrained FILE")(
    MedicalBackbone(PRIOR)
)

KAD = Record(
    name="kad",
    title="KAD-512",
    files=((CheckpointFile(("best_valid.pt",)),),),
    unwrap=(),
    names=(
        *resnet("image_encoder.resnet."),
        # the same trunk a second time, as nn.Sequential numbers it
        ("image_encoder.res_features.0.*", "visual.trunk.conv1.*"),
        ("image_encoder.res_features.1.*", "visual.trunk.bn1.*"),
        *(
            (f"image_encoder.res_features.{3 + stage}.*", f"visual.trunk.layer{stage}.*")
            for stage in (1, 2, 3, 4)
        ),
        ("image_encoder.res_l1.*", "visual.cells.0.*"),
        ("image_encoder.res_l2.*", "visual.cells.2.*"),
        *bert("text_encoder.bert_model.", pooler=True),
        ("text_encoder.mlp_embed.*", "text.proj.*"),
        ("text_encoder.logit_scale", None),
        ("model.decoder.layers.*", "extras.tqn.decoder.layers.*"),
        ("model.decoder.norm.*", "extras.tqn.decoder.norm.*"),
        ("model.decoder_norm.*", "extras.tqn.decoder.norm.*"),
        ("model.mlp_head.0.*", "extras.tqn.head.*"),
        ("model.logit_scale", None),
        ("optimizer.*", None),
        ("lr_scheduler.*", None),
        ("config.*", None),
    ),
    shapes={**RESNET_SHAPES, **bert_shapes(30522), "visual.cells.2.weight": (768, 2048)},
    image=ImageSide(cells=("linear", "relu", "linear")),
    text=TextSide("pooler", ("linear", "gelu", "linear"), max_length=256, vocabulary="xmcmic/Med-KEBERT"),
    preprocess=Preprocess((512, 512), *IMAGENET, "squash"),
    embed_dim=768,
    scale=math.log(1 / 0.07),  # never exponentiated in its training
    rules=("global", "dot", "tqn"),
    extras={"image_tokens": "cells", "tqn": "queries"},
    link="the Google Drive folder KAD_512 linked in the README of https://github.com/xiaoman-zhang/KAD",
    licence="MIT (code)",
    pretrained_on="MIMIC-CXR",
)
register_backbone("kad", aliases=("kad-512",), summary="KAD-512 (ResNet-50, Med-KEBERT); --pretrained FILE")(
    MedicalBackbone(KAD)
)
