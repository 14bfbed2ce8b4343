"""What the authors' layouts of the medical models are built of: sizes, words, a ResNet, attention pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck

_WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] . no edema pneumonia effusion there is the lungs clear heart ##s ##y
left sided a of x ray - chest findings ,"""
WORDS = _WORDS.split()


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layout; the defaults are small."""

    planes: tuple[int, ...] = (8, 8, 12, 16)
    blocks: tuple[int, ...] = (1, 1, 2, 1)
    width: int = 128
    layers: int = 4
    words: int = len(WORDS)
    positions: int = 112
    joint: int = 24
    hidden: int = 40
    vit: int = 128
    vit_layers: int = 2
    pmc: int = 8


TINY = Sizes()
FULL = Sizes((64, 128, 256, 512), (3, 4, 6, 3), 768, 12, 28996, 512, 768, 2048, 768, 12, 64)


def tree(**modules: nn.Module) -> Any:
    return nn.ModuleDict(modules)


class ResNet(nn.Module):
    """torchvision's ResNet of bottlenecks, with any widths; ``forward`` returns the maps of the four stages."""

    def __init__(self, sizes: Sizes, channels: int = 3, classes: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for stage, (planes, blocks) in enumerate(zip(sizes.planes, sizes.blocks, strict=True)):
            layers = []
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                short = nn.Sequential(
                    nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
                )
                layers.append(Bottleneck(inputs, planes, stride, None if index else short))
                inputs = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.width = inputs
        if classes:
            self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        parts: Any = self
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in (parts.layer1, parts.layer2, parts.layer3, parts.layer4):
            features = stage(features)
            maps.append(features)
        return maps


class Layout(nn.Module):
    """Base: what all models share."""

    def bert(self, sizes: Sizes, *, layers: int | None = None, pooler: bool = True, words: int = 0) -> Any:
        config = transformers.BertConfig(
            vocab_size=words or sizes.words, hidden_size=sizes.width, num_hidden_layers=layers or sizes.layers,
            num_attention_heads=sizes.width // 64, intermediate_size=4 * sizes.width,
            max_position_embeddings=sizes.positions, pad_token_id=0,
        )  # fmt: skip
        return transformers.BertModel(config, add_pooling_layer=pooler)

    def published(self) -> dict[str, Any]:
        """Return the content of the published file."""
        return {"state_dict": self.state_dict()}


def read(bert: Any, ids: Tensor, **options: Any) -> Any:
    return bert(input_ids=ids, attention_mask=(ids != 0).long(), **options)


def bigger(images: Tensor) -> Tensor:
    return functional.interpolate(images, (299, 299), mode="bilinear", align_corners=True)


def temporal_pooler(width: int) -> nn.Module:
    """Return the tensors of BioViL-T's comparison with an earlier image, which single images do not use."""
    blocks = [
        tree(
            norm1=nn.LayerNorm(width), norm2=nn.LayerNorm(width),
            attn=tree(
                proj_q=nn.Linear(width, width, bias=False), proj_k=nn.Linear(width, width, bias=False),
                proj_v=nn.Linear(width, width, bias=False), proj=nn.Linear(width, width),
            ),
            mlp=tree(fc1=nn.Linear(width, width), fc2=nn.Linear(width, width)),
        )
        for _ in range(3)
    ]  # fmt: skip
    pooler: Any = tree(blocks=nn.ModuleList(blocks), norm_post=nn.LayerNorm(width))
    pooler.type_embed = nn.Parameter(torch.zeros(2, 1, width))
    return pooler


class ClipPool(nn.Module):
    """CLIP's attention pooling by torch's own attention, all tokens asking."""

    def __init__(self, width: int, heads: int, positions: int = 0) -> None:
        super().__init__()
        self.heads = heads
        if positions:
            self.positional_embedding = nn.Parameter(torch.zeros(positions, width))
        for name in ("k_proj", "q_proj", "v_proj", "c_proj"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        parts: Any = self
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        if hasattr(self, "positional_embedding"):
            tokens = tokens + self.positional_embedding
        return attention_pool(tokens, parts.q_proj, parts.k_proj, parts.v_proj, parts.c_proj, self.heads)


def attention_pool(tokens: Tensor, q: Any, k: Any, v: Any, c: Any, heads: int) -> Tensor:
    mixed, _ = functional.multi_head_attention_forward(
        tokens.transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), tokens.shape[-1], heads,
        None, torch.cat([q.bias, k.bias, v.bias]), None, None, False, 0.0, c.weight, c.bias, training=False,
        need_weights=False, use_separate_proj_weight=True, q_proj_weight=q.weight, k_proj_weight=k.weight,
        v_proj_weight=v.weight,
    )  # fmt: skip
    return mixed[0]
