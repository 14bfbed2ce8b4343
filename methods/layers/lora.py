"""Low-rank updates of frozen linear maps, and where they sit on a backbone's towers.

LoRA: Hu et al., ICLR 2022, arXiv 2106.09685: y = W x + b + s B A drop(x). Both repositories that use it on CLIP
(`CLIP-LoRA: loralib/layers.py`, `ACE-LoRA: loralib/layers.py`) scale by alpha / sqrt(r), not by alpha / r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmark.backbones import Backbone, Tower
from benchmark.errors import ConfigError
from benchmark.settings import setting
from methods.base import SIDES, Sides

Position = Literal["all", "bottom", "mid", "up", "half-bottom", "half-up", "top3"]
Site = Literal["q", "k", "v", "o", "up", "down"]
Place = tuple[int, int, float, float]
"""Where an update is added and how: columns start and stop, scale, probability of dropout."""


@dataclass(frozen=True)
class LoRAOptions:
    """Where LoRA sits and how strong it is; spelling of the authors' repositories.

    Thirds and halves are of the tower's depth (`ACE-LoRA: loralib/utils.py`).

    Raises:
        ConfigError: no map is adapted.
    """

    r: int = setting(4, "rank", low=1)
    lora_alpha: float = setting(1.0, "numerator of the scale", above=0)
    lora_dropout: float = setting(
        0.1, "dropout on the adapter's input, each of q, k and v with its own mask", low=0, below=1
    )
    scaling: Literal["sqrt", "linear"] = setting(
        "sqrt", "sqrt: alpha/sqrt(r) (both repositories); linear: alpha/r (the LoRA paper)"
    )
    params: tuple[Site, ...] = setting(("q", "k", "v"), "adapted maps of a block")
    position: Position = setting("all", "adapted blocks of a tower")
    encoder: Sides = setting("both", "adapted towers")

    def __post_init__(self) -> None:
        if not self.params:
            raise ConfigError(f"params: expected at least one of {', '.join(get_args(Site))}")

    @property
    def scale(self) -> float:
        """The factor on B A x."""
        return self.lora_alpha / (math.sqrt(self.r) if self.scaling == "sqrt" else self.r)


class LoRA(nn.Module):
    """One low-rank update: x ``[..., in]`` -> s B A drop(x) ``[..., out]``, as two thin products.

    A starts uniform in +-1/sqrt(in) (Kaiming uniform with a = sqrt 5), B at zero, so that the update starts at zero.

    Class attributes:
        foldable: s B A can be added to the frozen weight once it is trained.

    Args:
        num_inputs: width of x. num_outputs: width of the update. r: rank. scale: factor s. dropout: on x.
    """

    foldable: ClassVar[bool] = True

    def __init__(self, num_inputs: int, num_outputs: int, *, r: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, num_inputs))
        self.B = nn.Parameter(torch.zeros(num_outputs, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale, self.dropout = scale, dropout

    @property
    def draws(self) -> bool:
        """Whether a pass draws random numbers."""
        return self.training and self.dropout > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the update of ``inputs``."""
        nothing = inputs.new_zeros(*inputs.shape[:-1], len(self.B))
        return self.add_all(nothing, inputs, [(self, 0, len(self.B))])

    @staticmethod
    def add_all(output: Tensor, inputs: Tensor, placed: Sequence[tuple[LoRA, int, int]]) -> Tensor:
        """Add updates to ``output`` ``[..., D]`` in place, each to its columns [start, stop); they share ``inputs``.

        Each draws its own mask. All is computed in the type of ``output``.
        """
        places = tuple(
            (start, stop, lora.scale, lora.dropout if lora.draws else 0.0) for lora, start, stop in placed
        )
        weights = [weight for lora, _, _ in placed for weight in (lora.A, lora.B)]
        added: Tensor = _AddUpdates.apply(output, inputs, places, *weights)
        return added


class _AddUpdates(torch.autograd.Function):
    """output[start:stop] += s B A drop(x) for several updates of one x, in place.

    Kept for the backward pass: x once, in the type of the output; per update the mask in single bytes and A drop(x).
    Plain autograd would keep a dropped copy and a mask as wide as x for each of them, and cast, scale and concatenate
    tensors as wide as the output.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, places: tuple[Place, ...], *weights: Tensor
    ) -> Tensor:
        kind = output.dtype  # coarser than the weights under autocast
        rows, wide = inputs.to(kind), output.view(-1, output.shape[-1])
        kept: list[Tensor | None] = [rows]
        for (start, stop, scale, probability), a, b in zip(places, weights[::2], weights[1::2], strict=True):
            thinned, keep = dropout(rows, probability)
            a, b = a.to(kind), b.to(kind)
            low = thinned.flatten(0, -2) @ a.T
            wide[:, start:stop].addmm_(low, b.T, alpha=scale)
            kept += [a, b, low, keep]
        ctx.save_for_backward(*kept)
        ctx.places, ctx.kinds = places, (inputs.dtype, [weight.dtype for weight in weights])
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *kept = ctx.saved_tensors
        input_kind, weight_kinds = ctx.kinds
        gradient = gradient.to(rows.dtype)
        wide, for_inputs = gradient.flatten(0, -2), None
        for_weights = []
        for number, (start, stop, scale, probability) in enumerate(ctx.places):
            a, b, low, keep = kept[4 * number : 4 * number + 4]
            own = wide[:, start:stop]
            inner = (own @ b).mul_(scale)
            thinned = dropped(rows, keep, probability).flatten(0, -2)
            for_weights += [inner.T @ thinned, (own.T @ low).mul_(scale)]
            if ctx.needs_input_grad[1]:
                back = dropped((inner @ a).view_as(rows), keep, probability)
                for_inputs = back if for_inputs is None else for_inputs.add_(back)
        return (
            gradient,
            None if for_inputs is None else for_inputs.to(input_kind),
            None,
            *(value.to(kind) for value, kind in zip(for_weights, weight_kinds, strict=True)),
        )


def dropout(inputs: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
    """Return ``inputs`` after dropout, and which values it kept: bool, of their shape; None where all are kept."""
    if not probability:
        return inputs, None
    if inputs.device.type != "cpu":
        thinned, keep = torch.native_dropout(inputs, probability, True)
        return thinned, keep
    keep = drawn_mask(inputs, probability)
    return dropped(inputs, keep, probability), keep


def drawn_mask(inputs: Tensor, probability: float) -> Tensor:
    """Return which values of ``inputs`` dropout keeps, each drawn independently: bool, of its shape.

    On a CPU, torch draws one random number per value, a seventh of a LoRA step on the embedded backbone; here four
    values share one 64-bit draw, 16 bits each, so that the probability is met to 1 in 65,536.
    """
    if torch.compiler.is_compiling():  # which draws within the kernel that uses the mask
        return torch.rand_like(inputs, dtype=torch.float32) >= probability
    count = inputs.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    threshold = round(probability * 2**16) - 2**15
    return draws.view(torch.int16)[:count].view(inputs.shape) >= threshold


def dropped(inputs: Tensor, keep: Tensor | None, probability: float) -> Tensor:
    """Return ``inputs`` with what is not kept set to 0 and the rest scaled up; unchanged without a mask."""
    if keep is None:
        return inputs
    if inputs.device.type != "cpu":
        return torch.ops.aten.native_dropout_backward(inputs, keep, 1 / (1 - probability))  # one kernel
    # as bytes: a product with bool takes twice the time on a CPU
    return (inputs * (1 / (1 - probability))).mul_(keep.view(torch.uint8))


def blocks_at(position: str, depth: int) -> range:
    """Return the 0-based blocks of a named position in a tower of ``depth`` blocks."""
    third, half = depth // 3, depth // 2
    return {
        "all": range(depth),
        "bottom": range(third),
        "mid": range(third, depth - third),
        "up": range(depth - third, depth),
        "half-bottom": range(half),
        "half-up": range(half, depth),
        "top3": range(max(0, depth - 3), depth),
    }[position]


def towers_of(backbone: Backbone, encoder: str) -> dict[str, Tower]:
    """Return the towers that ``both``, ``vision`` or ``text`` names, text first as in the official checkpoints."""
    towers: dict[str, Tower] = {"text": backbone.text, "image": backbone.image}
    return {kind: tower for kind, tower in towers.items() if kind in SIDES[encoder]}


def place_lora(backbone: Backbone, options: LoRAOptions) -> nn.ModuleDict:
    """Attach LoRA to a backbone's towers.

    Returns:
        modules by tower ("text", "image"), block and map: ``adapters["text"]["0"]["q"]``.
    """
    adapters = nn.ModuleDict()
    for kind, tower in towers_of(backbone, options.encoder).items():
        blocks = nn.ModuleDict()
        for index in blocks_at(options.position, tower.depth):
            placed = nn.ModuleDict()
            for part in tower.sites_of(options.params):
                num_inputs, num_outputs = tower.site_shape(index, part)
                placed[part] = LoRA(
                    num_inputs, num_outputs, r=options.r, scale=options.scale, dropout=options.lora_dropout
                )
                tower.attach(index, part, placed[part])
            blocks[str(index)] = placed
        adapters[kind] = blocks
    return adapters


@torch.no_grad()
def share_first_a(adapters: nn.ModuleDict) -> None:
    """Start every map from the A of the first placed one of its name and shape (q from q, k from k ...).

    `ACE-LoRA: loralib/layers.py` re-seeds in every block: one A for each of q, k and v, the same in all blocks of
    both towers where their widths agree.
    """
    first: dict[tuple[str, torch.Size], Tensor] = {}
    towers: Any = adapters.values()
    for block in (block for tower in towers for block in tower.values()):
        for part, lora in block.items():
            lora.A.copy_(first.setdefault((part, lora.A.shape), lora.A))


def count_lora(backbone: Backbone, options: LoRAOptions) -> int:
    """Return the number of LoRA values: r (in + out) for every adapted map."""
    return sum(
        options.r * sum(tower.site_shape(index, part))
        for tower in towers_of(backbone, options.encoder).values()
        for index in blocks_at(options.position, tower.depth)
        for part in tower.sites_of(options.params)
    )
