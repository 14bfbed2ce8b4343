"""Image tower over a ResNet: open_clip's ModifiedResNet with attention pooling, a timm ResNet, or a medical model's.

A ResNet has feature maps of four stages and no tokens. It serves zero-shot classification, dense tasks (taps are the
outputs of the stages) and methods that do not change the image tower or train all of it. Methods that need tokens or
attention are refused with one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor, nn

from benchmark.backbones.towers.base import ImageTower, Intervention, TokenSequence, TowerOutput
from benchmark.backbones.towers.tokens import Choose
from benchmark.errors import BenchmarkError

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNetTower(ImageTower):
    """View of open_clip's ModifiedResNet, of a TimmModel whose trunk is a ResNet, or of ``medical.visual.Visual``.

    Args:
        visual: the module; it is neither copied nor changed.

    Attributes:
        width: channels of the last stage. depth: number of stages.
        grid: cells of :meth:`patch_features`. Where the model stretches its images first (GLoRIA, MGCA), these are more
            than those of :meth:`forward`, which leaves that out: dense tasks take the map at the image's own size.
    """

    num_heads = 1

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        module: Any = visual
        self._visual, self._trunk = module, getattr(module, "trunk", module)
        self.blocks = [getattr(self._trunk, name) for name in _STAGES]
        size = module.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.width = _channels(self.blocks[-1])
        height, width = self.image_size
        self._cells = (-(-height // 32), -(-width // 32))
        self.grid = tuple(getattr(module, "grid", self._cells))
        if hasattr(module, "embed_dim"):
            self.embed_dim = int(module.embed_dim)
        elif self._trunk is module:
            self.embed_dim = int(module.output_dim)
        else:
            linears = [layer for layer in module.head.modules() if isinstance(layer, nn.Linear)]
            self.embed_dim = int(linears[-1].out_features) if linears else self.width

    def features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return pooled, projected features ``[B, E]``, not normalised: the library's own forward pass."""
        if tuple(interventions):
            self._refuse()
        return self._visual(inputs)

    def forward(
        self,
        inputs: Tensor,
        *,
        interventions: Iterable[Intervention] = (),
        taps: Iterable[int] = (),
        global_row: bool = False,
        global_only: bool = False,
        choose: Choose | None = None,
    ) -> TowerOutput:
        """Run the stages; the returned sequence holds the cells of the last map, there is no global token.

        Raises:
            BenchmarkError: if something acts on tokens, or the global token's attention is wanted.
        """
        if tuple(interventions) or global_row:
            self._refuse()
        wanted, tapped = frozenset(taps), {}
        features = self._stem(inputs)
        for index, stage in enumerate(self.blocks):
            features = stage(features)
            if index in wanted:
                tapped[index] = features
        sequence = TokenSequence(features.flatten(2).transpose(1, 2), None, pooled_at=0, content_at=0)
        return TowerOutput(sequence, tapped, None)

    def tap(self, sequence: TokenSequence) -> Tensor:
        """Return the cells of :meth:`forward` as a map ``[B, D, h, w]``."""
        return sequence.tokens.transpose(1, 2).unflatten(2, self._cells)

    def patch_features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return projected features ``[B, h w, E]`` of the cells of the last map, not normalised.

        Attention pooling gives each cell what it would add to the pooled feature if it were looked at alone: its value,
        through the output projection (MaskCLIP, arXiv 2112.01071). Average pooling gives it the projection.

        Raises:
            BenchmarkError: if something acts on tokens, or pooling is of another kind.
        """
        if hasattr(self._visual, "cell_features") and not tuple(interventions):
            return self._visual.cell_features(inputs)
        cells = self.forward(inputs, interventions=interventions).sequence.tokens
        pool = getattr(self._visual, "attnpool", None)
        if pool is not None:
            return pool.c_proj(pool.v_proj(cells + pool.positional_embedding[1:].to(cells.dtype)))
        if self._trunk.global_pool.pool_type != "avg":
            raise BenchmarkError(
                "the image tower of this backbone is a ResNet with a pooling of its own: its cells have no features "
                "in the shared space; take a backbone with a ViT"
            )
        return self._visual.head(self._trunk.get_classifier()(cells))

    def _stem(self, inputs: Tensor) -> Tensor:
        trunk = self._trunk
        if trunk is self._visual:
            return trunk.stem(inputs)
        return trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(inputs))))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise BenchmarkError(
            "the image tower of this backbone is a ResNet, which has no tokens: take a backbone with a ViT, a method "
            "that leaves the image tower alone, or one that adapts the text tower only (encoder=text)"
        )

    # what only towers of tokens have
    embed = enter = attention_mask = run_block = project = block_norm = linears = attach = _refuse


def is_resnet(visual: nn.Module) -> bool:
    """Return whether an open_clip image module is a ResNet of four stages."""
    return all(hasattr(getattr(visual, "trunk", visual), name) for name in _STAGES)


def _channels(stage: nn.Module) -> int:
    """Return the channels that a stage of bottleneck blocks ends in."""
    convolutions = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    return max(int(layer.out_channels) for layer in convolutions)
