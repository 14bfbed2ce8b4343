"""The names of the medical models in the paper's Tables 2 to 4; other groups publish their weights."""

from __future__ import annotations

from benchmark.backbones.medical.load import MedicalBackbone
from benchmark.registry import register_backbone

convirt = register_backbone(
    "convirt", summary="ConVIRT as re-implemented in BenchX or ViLMedic; --pretrained FILE"
)(MedicalBackbone())
gloria = register_backbone("gloria", summary="GLoRIA (ResNet-50, Bio_ClinicalBERT); --pretrained FILE")(
    MedicalBackbone()
)
mgca_r50 = register_backbone(
    "mgca-r50", aliases=("mgca", "mgca-resnet50"), summary="MGCA with ResNet-50; --pretrained FILE"
)(MedicalBackbone())
mgca_vit = register_backbone("mgca-vit", summary="MGCA with ViT-B/16; --pretrained FILE")(MedicalBackbone())
biovil = register_backbone("biovil", summary="BioViL (ResNet-50, CXR-BERT), from the hub cache")(
    MedicalBackbone()
)
biovil_t = register_backbone("biovil-t", summary="BioViL-T on single images, from the hub cache")(
    MedicalBackbone()
)
prior = register_backbone("prior", summary="PRIOR (ResNet-50, Bio_ClinicalBERT); --pretrained FILE")(
    MedicalBackbone()
)
kad = register_backbone(
    "kad", aliases=("kad-512",), summary="KAD-512 (ResNet-50, Med-KEBERT); --pretrained FILE"
)(MedicalBackbone())
pmc_clip = register_backbone(
    "pmc-clip", summary="pmc-clip:heads=8 or pmc-clip:heads=32, PMC-CLIP (its file does not say which)"
)(MedicalBackbone())
plip = register_backbone("plip", summary="PLIP (ViT-B/32), from the hub cache")(MedicalBackbone())
quiltnet = register_backbone(
    "quiltnet",
    aliases=("quiltnet-b-32",),
    summary="QuiltNet-B-32, from the hub cache; quiltnet:quick_gelu=on",
)(MedicalBackbone())
