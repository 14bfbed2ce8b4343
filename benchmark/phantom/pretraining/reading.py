"""Pretraining, stage 2: the text tower learns to read, from texts alone.

Two wordings of the same findings, a report and a caption that names them, are to agree. This stands for what the text
tower of a medical model knows from the literature before it meets an image: that "perihilar haze and kerley lines" is
edema, and that "no effusion" is none. No image is seen, and no report of the suite: the studies are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from torch.nn import functional as F

from benchmark.backbones.tiny import WordPieceTokenizer
from benchmark.phantom.chest import grammar
from benchmark.phantom.chest.domains import FIGURE
from benchmark.phantom.chest.reports import report
from benchmark.phantom.chest.studies import (
    BLOCK,
    FINDINGS,
    Studies,
    block_rng,
    sample_present,
    sample_studies,
)

LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.05, (0.9, 0.98)
RAMP_STEPS = 30
BLOCKS_PER_STEP = 4
_SCALE = 14.0


def wordings(rng: np.random.Generator, studies: Studies, row: int) -> tuple[str, str]:
    """Return the report of one study, and a caption that names what the study shows."""
    said = report(rng, studies, row).text
    names = [
        grammar.NAMES[FINDINGS[at]]
        for at in np.flatnonzero(studies.present[row])
        if FINDINGS[at] != "support_devices"
    ]
    what = " and ".join(rng.permutation(names)) if names else str(rng.choice(grammar.CAPTION_NORMAL))
    return said, str(rng.choice(grammar.CAPTIONS)).format(what, n=1) + "."


def _pairs(seed: int, step: int) -> tuple[list[str], list[str]]:
    """Return the reports and captions of one step."""
    rng, pairs = block_rng(seed, "reading", step), []
    for _ in range(BLOCKS_PER_STEP):
        studies = sample_studies(rng, sample_present(rng, BLOCK, FIGURE), FIGURE)
        pairs += [wordings(rng, studies, row) for row in range(BLOCK)]
    reports, captions = zip(*pairs, strict=True)
    return list(reports), list(captions)


def agreement(reports: torch.Tensor, captions: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Return the contrastive loss of unit features [B, E] each; equal captions are no negatives of each other."""
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([number[text] for text in texts], device=reports.device)
    same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    logits = (_SCALE * reports @ captions.T).masked_fill(same, float("-inf"))
    target = torch.arange(len(texts), device=ids.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def read(
    model: CustomTextCLIP,
    tokenizer: WordPieceTokenizer,
    *,
    steps: int,
    seed: int,
    device: str,
    log: Callable[[str], None],
) -> float:
    """Train the text tower in place.

    Args:
        model: its image tower is not looked at.
        tokenizer: of the text tower.
        steps: of 128 pairs of texts each.
        seed: of the texts.
        device: torch device.
        log: receives a line now and then.

    Returns:
        The running mean of the loss at the end.
    """
    torch.manual_seed(seed)
    model.to(device).train()
    parameters = list(model.text.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps, RAMP_STEPS))
    running = math.nan
    for step in range(steps):
        texts = _pairs(seed, step)
        features = [model.encode_text(short(tokenizer(side)).to(device), normalize=True) for side in texts]
        loss = agreement(features[0], features[1], texts[1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 100 == 0:
            log(f"reading {step + 1}/{steps}: loss {running:.3f}")
    return running


def cosine(steps: int, ramp: int) -> Callable[[int], float]:
    """Return the factor on the learning rate: a short ramp times a cosine to zero."""
    return lambda step: min(1.0, (step + 1) / ramp) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))


def short(ids: torch.Tensor) -> torch.Tensor:
    """Return token ids [n, L] without the columns that are padding in every row: they change nothing."""
    return ids[:, : int((ids != 0).sum(1).max())]
