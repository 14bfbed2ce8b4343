"""Models of CT volumes and their reports, one record each; ``docs/volumes.md`` describes them."""

from __future__ import annotations

from benchmark.backbones.medical.load import MedicalBackbone
from benchmark.backbones.medical.records import (
    CheckpointFile,
    ImageSide,
    Option,
    Record,
    TextSide,
    bert,
    bert_shapes,
)
from benchmark.backbones.published import Repository
from benchmark.backbones.radiology import CXR_BERT
from benchmark.backbones.volumes import VolumePreprocess
from benchmark.registry import register_backbone

CT_RATE = Repository(repo="ibrahimhamamci/CT-RATE", kind="dataset")
_LAYER, _STAGE = "visual_transformer.enc_*_transformer.layers.*", "visual.enc_*_transformer"

CT_CLIP = Record(
    name="ct_clip",
    title="CT-CLIP",
    files=((CheckpointFile(("CT-CLIP_v2.pt", "models/CT-CLIP-Related/CT-CLIP_v2.pt"), CT_RATE),),),
    unwrap=("state_dict", "model"),
    names=(
        *bert("text_transformer."),
        # of training: first slices apart, pixels back from tokens, counters of the codebook
        ("visual_transformer.to_patch_emb_first_frame.*", None),
        ("visual_transformer.to_pixels.*", None),
        ("visual_transformer.to_pixels_first_frame.*", None),
        ("visual_transformer.vq._codebook.initted", None),
        ("visual_transformer.vq._codebook.cluster_size", None),
        # never called: the norm of an input from elsewhere, and copies of both projections
        (f"{_LAYER}.1.context_norm.*", None),
        ("to_text_latent_extra.*", None),
        ("to_visual_latent_extra.*", None),
        (f"{_LAYER}.0.dsconv.*", f"{_STAGE}.layers.*.peg.dsconv.*"),
        (f"{_LAYER}.3.*", f"{_STAGE}.layers.*.mlp.*"),
        (f"{_LAYER}.1.*", f"{_STAGE}.layers.*.attention.*"),
        ("visual_transformer.vq._codebook.embed", "visual.quantiser.codebook"),
        ("visual_transformer.*", "visual.*"),
        ("to_visual_latent.*", "visual.proj.*"),
        ("to_text_latent.*", "text.proj.0.*"),
        ("temperature", "logit_scale"),
    ),
    shapes={
        **bert_shapes(30522),
        "text.transformer.embeddings.position_embeddings.weight": (512, 768),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, 768),
        "text.transformer.encoder.layer.0.intermediate.dense.weight": (3072, 768),
        "text.proj.0.weight": (512, 768),
        "visual.to_patch_emb.2.weight": (512, 4000),
        "visual.spatial_rel_pos_bias.net.2.weight": (8, 512),
        "visual.enc_spatial_transformer.layers.0.attention.q_scale": (32,),
        "visual.enc_spatial_transformer.layers.0.attention.to_q.weight": (256, 512),
        "visual.enc_spatial_transformer.layers.0.mlp.4.weight": (512, 1365),
        "visual.enc_spatial_transformer.layers.3.mlp.4.weight": (512, 1365),
        "visual.enc_temporal_transformer.layers.3.mlp.4.weight": (512, 1365),
        "visual.quantiser.codebook": (1, 8192, 512),
        "visual.proj.weight": (512, 294912),
    },
    image=ImageSide("ctvit", box=(10, 20, 20)),
    text=TextSide("cls", ("matrix",), max_length=512, vocabulary=CXR_BERT),
    preprocess=VolumePreprocess(
        (240, 480, 480), (0.5,), (0.5,), spacing=(1.5, 0.75, 0.75), axes="SLP", window=(-1000, 1000),
        rule="ct_clip",
    ),
    embed_dim=512,
    options={
        "quantiser": Option(
            {mode: {"image.quantiser": mode} for mode in ("straight_through", "published", "off")}
        )
    },
    link="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE, models/CT-CLIP-Related",
    licence="CC BY-NC-SA",
    pretrained_on="CT-RATE",
)  # fmt: skip
register_backbone(
    "ct_clip",
    aliases=("ct-clip",),
    summary="CT-CLIP on chest CT volumes; quantiser=straight_through|published|off",
)(MedicalBackbone(CT_CLIP))
