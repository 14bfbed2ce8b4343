"""Image towers of the medical models: a trunk, layers for each cell, pooling, a head."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.medical.ctvit import CTViT
from benchmark.backbones.medical.heads import AttentionPool, Shapes, head, width_behind
from benchmark.backbones.medical.records import HEAD_WIDTH, ImageSide
from benchmark.errors import BenchmarkError


def heads_of(width: int, head_width: int = HEAD_WIDTH) -> int:
    """Return the attention heads of a transformer of this width."""
    return max(1, width // head_width)


class Visual(nn.Module):
    """An image encoder with a ResNet or a ViT as trunk; ``forward`` returns ``[B, E]``, not normalised.

    Attributes:
        trunk: timm's; names of its tensors are torchvision's, or timm's ViT names.
        cells: layers on each cell ``[B, N, C]`` of the last map, before pooling. head: layers after it.
        image_size: (h, w) that the model was trained with. grid: cells of the last map at that size.
        embed_dim: E.
    """

    def __init__(self, trunk: Any, side: ImageSide, shapes: Shapes, size: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.upsample = side.upsample
        self.image_size = size
        self.grid = tuple(-(-pixels // 32) for pixels in self._inner_size(size))
        self.cells = head(side.cells, "visual.cells", shapes)
        if side.pool == "attention":
            positions, width = shapes["visual.pool.positional_embedding"]
            self.pool = AttentionPool(width, side.heads or 1, positions)
        self.head = head(side.head, "visual.head", shapes)
        self.embed_dim = width_behind(self.head, width_behind(self.cells, self.trunk.num_features))

    def forward(self, images: Tensor) -> Tensor:
        """Return features of images ``[B, C, h, w]``."""
        if isinstance(self.trunk, VisionTransformer):
            return self.head(self.trunk(images))
        cells = self.cells(self.last_cells(images))
        pooled = self.pool(cells) if hasattr(self, "pool") else cells.mean(dim=1)
        return self.head(pooled)

    def last_map(self, images: Tensor, stages: int = 4) -> Tensor:
        """Return the map ``[B, C, h, w]`` of a stage of the ResNet, of images stretched as in training."""
        if self.upsample is not None:
            size = self._inner_size(tuple(images.shape[-2:]))
            images = functional.interpolate(images, size, mode="bilinear", align_corners=True)
        trunk = self.trunk
        features = trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images))))
        for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)[:stages]:
            features = stage(features)
        return features

    def last_cells(self, images: Tensor) -> Tensor:
        """Return the cells ``[B, N, C]`` of the last map.

        Raises:
            BenchmarkError: positions of the attention pool are learnt for another number of cells.
        """
        cells = self.last_map(images).flatten(2).transpose(1, 2)
        if hasattr(self, "pool") and cells.shape[1] != len(self.pool.positional_embedding) - 1:
            wanted = "x".join(str(pixels) for pixels in self.image_size)
            raise BenchmarkError(
                f"attention pooling of this backbone needs images of {wanted} pixels, got "
                f"{images.shape[-2]}x{images.shape[-1]}"
            )
        return cells

    def cell_features(self, images: Tensor) -> Tensor:
        """Return what each cell ``[B, N, E]`` would give if only it were looked at, not normalised."""
        cells = self.cells(self.last_cells(images))
        return self.head(self.pool.alone(cells) if hasattr(self, "pool") else cells)

    def _inner_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size if self.upsample is None else (self.upsample,) * len(size)


def build_visual(side: ImageSide, shapes: Shapes, size: tuple[int, ...]) -> nn.Module:
    """Build an image encoder of the sizes that its tensors have, with random weights.

    Raises:
        MissingTensor: a tensor that determines a size is missing.
    """
    if side.trunk == "ctvit":
        return CTViT(side, shapes, size)
    if side.trunk == "modified_resnet":
        return _modified_resnet(side, shapes, size)
    trunk = _vit(shapes, size) if side.trunk == "vit" else _resnet(shapes)
    return Visual(trunk, side, shapes, size)


def _resnet(shapes: Shapes) -> nn.Module:
    prefix = "visual.trunk"
    stages = [shapes.count(f"{prefix}.layer{stage}") for stage in (1, 2, 3, 4)]
    widths = [shapes[f"{prefix}.layer{stage}.0.conv2.weight"][0] for stage in (1, 2, 3, 4)]
    channels = shapes[f"{prefix}.conv1.weight"][1]
    block: Any = Bottleneck  # timm's types ask for an instance
    return ResNet(
        block, tuple(stages), num_classes=0, in_chans=channels, channels=tuple(widths), global_pool=""
    )


def _vit(shapes: Shapes, size: tuple[int, ...]) -> nn.Module:
    prefix = "visual.trunk"
    width, channels, patch, _ = shapes[f"{prefix}.patch_embed.proj.weight"]
    hidden = shapes[f"{prefix}.blocks.0.mlp.fc1.weight"][0]
    return VisionTransformer(
        img_size=(size[0], size[1]), patch_size=patch, in_chans=channels, embed_dim=width, num_heads=heads_of(width),
        depth=shapes.count(f"{prefix}.blocks"), mlp_ratio=hidden / width, num_classes=0,
    )  # fmt: skip


def _modified_resnet(side: ImageSide, shapes: Shapes, size: tuple[int, ...]) -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    stages = [shapes.count(f"visual.layer{stage}") for stage in (1, 2, 3, 4)]
    return ModifiedResNet(
        stages,
        output_dim=shapes["visual.attnpool.c_proj.weight"][0],
        heads=side.heads,
        image_size=size[0],
        width=shapes["visual.layer1.0.conv1.weight"][0],
    )


def freeze_statistics(model: nn.Module) -> None:
    """Put batch normalisation into evaluation: its statistics stay those of pretraining, whatever else trains."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
