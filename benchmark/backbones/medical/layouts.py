"""Names, sizes and preprocessing that several published medical models share."""

from __future__ import annotations

from benchmark.backbones.backbone import OPENAI_MEAN, OPENAI_STD
from benchmark.backbones.medical.records import Rule
from benchmark.backbones.preprocess import Preprocess

GREY_SQUARE = Preprocess(
    (224, 224), (0.5,) * 3, (0.5,) * 3, "longest_pad", side=256, interpolation="area", channels="grey"
)
OPENAI = Preprocess((224, 224), OPENAI_MEAN, OPENAI_STD)
WORD_TABLE = "text.transformer.embeddings.word_embeddings.weight"

RESNET_SHAPES = {
    "visual.trunk.conv1.weight": (64, 3, 7, 7),
    "visual.trunk.layer3.5.conv3.weight": (1024, 256, 1, 1),
    "visual.trunk.layer4.2.conv3.weight": (2048, 512, 1, 1),
}


def bert(prefix: str, *, pooler: bool = False) -> tuple[Rule, ...]:
    """Return the rules of a Hugging Face BERT below ``prefix``."""
    kept: tuple[Rule, ...] = () if pooler else ((f"{prefix}pooler.*", None),)
    return (
        (f"{prefix}embeddings.position_ids", None),
        *kept,
        (f"{prefix}*", "text.transformer.*"),
    )


def bert_shapes(words: int, layers: int = 12) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a BERT-base with so many words and layers."""
    return {
        WORD_TABLE: (words, 768),
        f"text.transformer.encoder.layer.{layers - 1}.output.dense.weight": (768, 3072),
    }


def resnet(prefix: str) -> tuple[Rule, ...]:
    """Return the rules of a torchvision ResNet below ``prefix``, its classifier left out."""
    return ((f"{prefix}fc.*", None), (f"{prefix}*", "visual.trunk.*"))
