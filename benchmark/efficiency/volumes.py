"""What a CT model costs at its real size, counted on tensors without values: no weights, no data, no GPU.

    python -m benchmark.efficiency.volumes --methods clip_lora,full_ft,molre

FLOPs (multiply-add = 2) of one volume and of one text that fills the context; of a training step of the image tower by
each method, forward and back; of the zero-shot scores of a volume, encoded once and as the published loop does it, anew
for each finding with both of its prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import methods
from benchmark.backbones.backbone import Backbone
from benchmark.backbones.ct import CT_CLIP
from benchmark.backbones.medical.heads import Shapes
from benchmark.backbones.medical.model import build

FINDINGS = 18


@dataclass(frozen=True)
class ZeroShot:
    """FLOPs of a volume, and of a text of the full context.

    The prompts of a dataset are encoded once, which is little beside its volumes.
    """

    image: int
    text: int

    @property
    def loop(self) -> int:
        """FLOPs of a volume's scores as the published loop computes them."""
        return FINDINGS * (self.image + 2 * self.text)


def flops_of(run: Callable[[], object]) -> int:
    """Return the FLOPs of what a function computes, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def without_values() -> Backbone:
    """Return CT-CLIP at its published size; its tensors have shapes and no values."""
    with torch.device("meta"):
        backbone = build(CT_CLIP, Shapes(CT_CLIP.shapes)).requires_grad_(False)
    model: Any = backbone.model
    model.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)  # methods read its value
    return backbone


def volume(backbone: Backbone) -> torch.Tensor:
    """Return one volume ``[1, 1, D, H, W]`` without values."""
    return torch.empty(1, 1, *backbone.input_spec.size, device="meta")


@torch.no_grad()
def zero_shot(backbone: Backbone) -> ZeroShot:
    """Count what zero-shot scores cost."""
    ids = torch.ones(1, backbone.text.context_length, dtype=torch.long, device="meta")
    image = flops_of(lambda: backbone.image.features(volume(backbone)))
    return ZeroShot(image, flops_of(lambda: backbone.text.features(ids)))


def step(name: str) -> int:
    """Count a training step of a method's image side for one volume: forward, and back as far as it trains."""
    method = methods.build(name, without_values()).to("meta").train()

    def run() -> None:
        features = method.encode_image(volume(method.backbone))
        if features.requires_grad:
            features.sum().backward()

    return flops_of(run)


def main(arguments: list[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.efficiency.volumes", description=__doc__)
    parser.add_argument("--methods", default="clip_lora,full_ft,molre", help="names, with commas")
    parser.add_argument("--volumes", type=int, default=24_128, help="of an epoch (default: CT-RATE's scans)")
    parser.add_argument(
        "--rate", type=float, default=100.0, help="TFLOP/s that a GPU keeps up (default: 100)"
    )
    options = parser.parse_args(arguments)
    backbone, hour = without_values(), 3600 * options.rate * 1e12
    found, weights = zero_shot(backbone), sum(value.numel() for value in backbone.model.parameters())
    lines = [
        f"weights in fp32: {4 * weights / 1e9:.2f} GB; a volume as input: {4 * volume(backbone).numel() / 1e6:.0f} MB, "
        f"stored {2 * volume(backbone).numel() / 1e6:.0f} MB",
        f"a volume forward: {found.image / 1e9:,.0f} GFLOP; a text of 512 tokens: {found.text / 1e9:,.1f}",
        f"zero-shot scores of a volume: encoded once {found.image / 1e9:,.0f} GFLOP, by the published loop "
        f"{found.loop / 1e9:,.0f}: {found.loop / found.image:.1f} times",
    ]
    for name in options.methods.split(","):
        flops = step(name)
        hours = options.volumes * flops / hour
        lines.append(
            f"{name}: {flops / 1e9:,.0f} GFLOP a volume and step; {options.volumes:,} volumes take {hours:.2f} h "
            f"at {options.rate:g} TFLOP/s"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
