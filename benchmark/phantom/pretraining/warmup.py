"""Pretraining, stage 1: the image trunk learns coarse anatomy on an endless stream of pictures.

Patch tokens regress 8x8 maps (lung, heart, opacity, fluid, free air, mediastinum), the class token predicts a
4x4 summary of each map, three coarse groups of chest findings, and the class of the other modalities. No fine
chest label is used, but the maps do show where opacity, fluid and free air are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.backbones.tiny import to_input
from benchmark.phantom.chest.domains import FIGURE
from benchmark.phantom.chest.grammar import COARSE
from benchmark.phantom.chest.render import IMAGE_SIZE, MAP_NAMES, MAP_SIDE, render
from benchmark.phantom.chest.studies import (
    BLOCK,
    INDEX,
    block_rng,
    chexpert_truth,
    sample_present,
    sample_studies,
)
from benchmark.phantom.pretraining.modalities import MODALITIES
from benchmark.phantom.shapes import Array

CHEST_PER_STEP = BLOCK
OTHER_PER_STEP = 5  # of each modality
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1.5e-3, 0.05, (0.9, 0.98)
RAMP_STEPS = 50
_MAP_SCALE = 4.0  # the maps are mostly near zero; this brings their errors to the size of the other losses
_CLASSES = [len(modality.classes) for modality in MODALITIES.values()]


@dataclass(frozen=True)
class WarmupBatch:
    """Chest pictures first, then the other modalities."""

    images: torch.Tensor  # [chest + other, 3, S, S]
    maps: torch.Tensor  # [chest, 6, 8, 8]
    groups: torch.Tensor  # [chest, groups + 1], the last one is No Finding
    other: torch.Tensor  # [other] class among all classes of all modalities


def batches(seed: int) -> Iterator[WarmupBatch]:
    """Yield warm-up batches without end."""
    step = 0
    while True:
        rng = block_rng(seed, "warmup", step)
        yield _batch(rng)
        step += 1


def _batch(rng: np.random.Generator) -> WarmupBatch:
    studies = sample_studies(rng, sample_present(rng, CHEST_PER_STEP, FIGURE), FIGURE)
    films = render(rng, studies, FIGURE)
    groups = [studies.present[:, [INDEX[name] for name in members]].any(1) for members in COARSE.values()]
    groups.append(chexpert_truth(studies)[:, 0])
    images, classes, first = [np.repeat(films.images[..., None], 3, -1)], [], 0
    for modality, number in zip(MODALITIES.values(), _CLASSES, strict=True):
        drawn, labels = modality.draw(rng, OTHER_PER_STEP, IMAGE_SIZE)
        images.append(drawn)
        classes.append(first + labels)
        first += number
    return WarmupBatch(
        to_input(np.concatenate(images)),
        torch.from_numpy(films.maps),
        torch.from_numpy(np.stack(groups, 1)).float(),
        torch.from_numpy(np.concatenate(classes)),
    )


class Heads(nn.Module):
    """The four linear heads of the warm-up; they are thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, len(MAP_NAMES))
        self.region = nn.Linear(width, len(MAP_NAMES) * (MAP_SIDE // 2) ** 2)
        self.groups = nn.Linear(width, len(COARSE) + 1)
        self.other = nn.Linear(width, sum(_CLASSES))

    def losses(self, tokens: torch.Tensor, batch: WarmupBatch) -> dict[str, torch.Tensor]:
        """Return the four losses of a batch whose trunk tokens [B, 1 + patches, width] are given."""
        chest = len(batch.maps)
        glob, maps = tokens[:, 0], batch.maps * _MAP_SCALE
        return {
            "dense": F.mse_loss(self.dense(tokens[:chest, 1:]), maps.flatten(2).transpose(1, 2)),
            "region": F.mse_loss(self.region(glob[:chest]), F.avg_pool2d(maps, 2).flatten(1)),
            "groups": F.binary_cross_entropy_with_logits(self.groups(glob[:chest]), batch.groups),
            "other": F.cross_entropy(self.other(glob[chest:]), batch.other),
        }


_LOSS_WEIGHTS = {"dense": 1.0, "region": 2.0, "groups": 1.0, "other": 0.5}


def rate_schedule(steps: int, final: float) -> Callable[[int], float]:
    """Return the factor on the learning rate: a short ramp, then linear decay to ``final``."""
    return lambda step: min(1.0, (step + 1) / RAMP_STEPS) * (1 - (1 - final) * step / steps)


def warm_up(
    trunk: nn.Module, *, steps: int, seed: int, device: str, log: Callable[[str], None]
) -> dict[str, float]:
    """Train the image trunk in place.

    Args:
        trunk: timm VisionTransformer.
        steps: of 32 chest and 30 other pictures each.
        seed: of the stream and of the heads.
        device: torch device.
        log: receives a line now and then.

    Returns:
        Running means of the four losses at the end.
    """
    torch.manual_seed(seed)
    trunk.to(device).train()
    heads = Heads(int(trunk.embed_dim)).to(device)  # type: ignore[arg-type]
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_schedule(steps, 0.05))
    running: dict[str, float] = {}
    for step, batch in zip(range(steps), batches(seed), strict=False):
        batch = WarmupBatch(
            *(getattr(batch, name).to(device) for name in ("images", "maps", "groups", "other"))
        )
        losses = heads.losses(trunk.forward_features(batch.images), batch)  # type: ignore[operator]
        total = torch.stack([_LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        running = {name: _smooth(running.get(name), loss) for name, loss in losses.items()}
        if (step + 1) % 100 == 0:
            log(
                f"warm-up {step + 1}/{steps}: "
                + ", ".join(f"{name} {value:.3f}" for name, value in running.items())
            )
    return running


def _smooth(before: float | None, loss: torch.Tensor) -> float:
    return float(loss.detach()) if before is None else 0.95 * before + 0.05 * float(loss.detach())


def as_rgb(images: Array) -> Array:
    """Return grey images [n, S, S] with three equal channels."""
    return np.repeat(images[..., None], 3, -1)
