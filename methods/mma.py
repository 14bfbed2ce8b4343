"""MMA: a small adapter beside each upper block, with a shared middle layer between the towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.backbones import Intervention, TokenSequence, Tower
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from methods.base import Method, MethodCard
from methods.layers.official import OfficialTensors


@dataclass(frozen=True)
class MMAOptions:
    """Options in the authors' spelling; layers count from 1 on the shallower tower, a deeper one is aligned on top."""

    adapter_start: int | None = setting(
        None, "first adapted layer; none takes the upper two thirds (the authors' 5..12)", low=1
    )
    adapter_end: int | None = setting(None, "last adapted layer", low=1)
    adapter_dim: int = setting(32, "width of the branch", low=1)
    adapter_scale: float = setting(0.1, "factor s on the branch", above=0)
    scale_gradients: bool = setting(
        False, "the authors' trick for SGD: gradients of the adapters times 1/s, everything else as it is"
    )


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.factor * gradients[0], None


class Branch(nn.Module):
    """One tower's part of a layer: down and up around the shared middle.

    Weights start Kaiming normal (fan-out, ReLU gain), biases at zero; ``up`` is not zero at the start.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down, self.up = _linear(width, dim), _linear(dim, width)

    def forward(self, inputs: Tensor, shared: nn.Module) -> Tensor:
        """Return up(relu(shared(relu(down x)))) of ``[..., width]``."""
        return self.up(shared(self.down(inputs).relu()).relu())


def _linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class ParallelBranches(Intervention):
    """Add ``s branch(norm(x))`` to the output of blocks, x being the block's input and norm the block's own.

    Args:
        branches: block index -> function of the normalised input ``[B, N, D]``, token by token.
    """

    mixes_tokens = False

    def __init__(self, branches: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        self._branches = branches

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        """Add the branch of this block."""
        if index not in self._branches:
            return after
        return after.with_tokens(after.tokens + self._branches[index](tower.block_norm(index, before.tokens)))


@register_method("mma")
class MMA(Method):
    """Parallel branches over whole blocks of both towers, tied by one shared layer per block."""

    card = MethodCard(
        title="MMA",
        paper="Yang et al., CVPR 2024",
        repository="ZjjConan/VLM-MultiModalAdapter",
        equation="block'(x) = block(x) + s up(relu(shared(relu(down(norm(x))))))",
        trains="per adapted layer: down and up of each tower, one shared layer",
        count="layers (2 v d + d + v + 2 w d + d + w + d^2 + d): 807,680 at BiomedCLIP's size",
        deviations=(
            "post-norm BERT: its input is normalised already, the branch is added after the layer's last LayerNorm",
            "s = 0.1 with AdamW (the authors: 0.001 with SGD and scaled gradients)",
        ),
    )
    Options = MMAOptions
    adapts = frozenset({"image", "text"})
    cost_hint = 1.0

    def setup(self) -> None:
        """Create the branches."""
        image, text, dim = self.backbone.image, self.backbone.text, self.options.adapter_dim
        shallower = min(image.depth, text.depth)
        start = self.options.adapter_start or shallower // 3 + 1
        end = self.options.adapter_end or shallower
        if not start <= end <= shallower:
            raise ConfigError(
                f"adapter_start, adapter_end: expected 1 <= start <= end <= {shallower}, got {start}, {end}"
            )
        self.layers = range(start, end + 1)
        self.image = nn.ModuleDict({str(layer): Branch(image.width, dim) for layer in self.layers})
        self.text = nn.ModuleDict({str(layer): Branch(text.width, dim) for layer in self.layers})
        self.shared = nn.ModuleDict({str(layer): _linear(dim, dim) for layer in self.layers})

    def image_interventions(self) -> Iterable[Intervention]:
        """Add the image branches."""
        return (self._beside(self.image, self.backbone.image),)

    def text_interventions(self) -> Iterable[Intervention]:
        """Add the text branches."""
        return (self._beside(self.text, self.backbone.text),)

    def _beside(self, branches: nn.ModuleDict, tower: Tower) -> ParallelBranches:
        offset = tower.depth - min(self.backbone.image.depth, self.backbone.text.depth) - 1
        return ParallelBranches({layer + offset: self._branch(branches, str(layer)) for layer in self.layers})

    def _branch(self, branches: nn.ModuleDict, layer: str) -> Callable[[Tensor], Tensor]:
        scale = self.options.adapter_scale

        def run(inputs: Tensor) -> Tensor:
            if not self.options.scale_gradients:
                return scale * branches[layer](inputs, self.shared[layer])
            inputs = _ScaledGradient.apply(inputs, scale)
            return _ScaledGradient.apply(scale * branches[layer](inputs, self.shared[layer]), 1 / scale)

        return run

    def expected_parameters(self) -> int:
        """Return layers (2 v d + d + v + 2 w d + d + w + d^2 + d)."""
        dim = self.options.adapter_dim
        widths = (self.backbone.image.width, self.backbone.text.width)
        return len(self.layers) * (sum(2 * width * dim + dim + width for width in widths) + dim * dim + dim)


def load_official(method: MMA, state: Mapping[str, Any]) -> None:
    """Load ``visual_adapter|text_adapter.l.down.0|up`` and ``shared_adapter.l.0`` (l counts layers from 1).

    Raises:
        StoreError: if a tensor is missing or of another shape.
    """
    tensors = OfficialTensors(method, state, "adapter_learner.")
    for layer in map(str, method.layers):
        for kind, branches in (("visual", method.image), ("text", method.text)):
            branch: Any = branches[layer]
            tensors.copy_all(f"{kind}_adapter.{layer}.down.0", branch.down)
            tensors.copy_all(f"{kind}_adapter.{layer}.up", branch.up)
        tensors.copy_all(f"shared_adapter.{layer}.0", method.shared[layer])
