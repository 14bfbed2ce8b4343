"""Pretraining, stage 3: images are projected to where the texts are; both towers are locked.

Features of a fixed generalist corpus are computed once, with both towers; then the image projection and the
temperature are trained with the contrastive loss. How noisy the captions of chest films are sets how weak the
generalist is; the locked text tower keeps what it has read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from torch.nn import functional as F

from benchmark.backbones.tiny import WordPieceTokenizer, to_input
from benchmark.phantom.chest.domains import FIGURE
from benchmark.phantom.chest.render import IMAGE_SIZE, render
from benchmark.phantom.chest.reports import caption
from benchmark.phantom.chest.studies import BLOCK, block_rng, sample_present, sample_studies
from benchmark.phantom.pretraining.modalities import MODALITIES
from benchmark.phantom.pretraining.modalities import caption as other_caption
from benchmark.phantom.pretraining.reading import cosine, short
from benchmark.phantom.pretraining.warmup import as_rgb
from benchmark.phantom.shapes import Array

LEARNING_RATE, WEIGHT_DECAY, BETAS = 3e-3, 0.05, (0.9, 0.98)
RAMP_STEPS = 50
BATCH_SIZE = 128  # half chest films, half one other modality in turn
_MAX_LOG_SCALE = 4.0
_CHEST = "chest"


@dataclass(frozen=True)
class Corpus:
    """Trunk features [n, W] and unit text features [n, E] of the generalist corpus, and the rows of each modality."""

    images: torch.Tensor
    texts: torch.Tensor
    rows: dict[str, Array]


def trunk_features(model: CustomTextCLIP, images: Array, device: str) -> torch.Tensor:
    """Return the image trunk's class-token features [n, W], before projection, on the CPU."""
    model.eval()
    with torch.inference_mode():
        chunks = [
            model.visual.trunk(to_input(images[at : at + 256]).to(device))
            for at in range(0, len(images), 256)
        ]
    return torch.cat(chunks).cpu().clone()


def draw_corpus(
    chest: int, other: int, seed: int, exact: float, wrong: float
) -> dict[str, tuple[Array, list[str]]]:
    """Draw pictures [n, S, S, 3] and captions: ``chest`` films, ``other`` of each other modality."""
    images: dict[str, list[Array]] = {}
    texts: dict[str, list[str]] = {}
    for block in range(chest // BLOCK):
        rng = block_rng(seed, "generalist", block)
        studies = sample_studies(rng, sample_present(rng, BLOCK, FIGURE), FIGURE)
        images.setdefault(_CHEST, []).append(as_rgb(render(rng, studies, FIGURE).images))
        words = block_rng(seed, "generalist-text", block)  # its own stream: other noise, same pictures
        texts.setdefault(_CHEST, []).extend(
            caption(words, studies, row, exact=exact, wrong=wrong) for row in range(BLOCK)
        )
    for name, modality in MODALITIES.items():
        for block in range(other // BLOCK):
            rng = block_rng(seed, f"generalist-{name}", block)
            drawn, labels = modality.draw(rng, BLOCK, IMAGE_SIZE)
            images.setdefault(name, []).append(drawn)
            texts.setdefault(name, []).extend(other_caption(rng, modality, int(label)) for label in labels)
    return {name: (np.concatenate(images[name]), texts[name]) for name in images}


def encode_corpus(
    model: CustomTextCLIP,
    tokenizer: WordPieceTokenizer,
    drawn: dict[str, tuple[Array, list[str]]],
    device: str,
) -> Corpus:
    """Compute the features of the corpus with both towers as they are."""
    features: list[torch.Tensor] = []
    texts: list[str] = []
    rows: dict[str, Array] = {}
    for name, (images, captions) in drawn.items():
        rows[name] = np.arange(len(texts), len(texts) + len(captions))
        features.append(trunk_features(model, images, device))
        texts += captions
    with torch.no_grad():
        read = [
            model.encode_text(short(tokenizer(texts[at : at + 256])).to(device), normalize=True)
            for at in range(0, len(texts), 256)
        ]
    return Corpus(torch.cat(features).to(device), torch.cat(read), rows)


def align(
    model: CustomTextCLIP, corpus: Corpus, *, steps: int, seed: int, device: str, log: Callable[[str], None]
) -> float:
    """Train image projection and temperature in place; the towers stay as they are.

    Returns:
        The running mean of the loss at the end.
    """
    draw = np.random.default_rng(seed)
    model.to(device).train()
    parameters = [*model.visual.head.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps, RAMP_STEPS))
    others = [name for name in corpus.rows if name != _CHEST]
    target, running = torch.arange(BATCH_SIZE, device=device), math.nan
    for step in range(steps):
        pools = (corpus.rows[_CHEST], corpus.rows[others[step % len(others)]])
        chosen = np.concatenate([draw.choice(pool, BATCH_SIZE // 2, replace=False) for pool in pools])
        images = F.normalize(model.visual.head(corpus.images[chosen]), dim=-1)
        logits = model.logit_scale.exp() * images @ corpus.texts[chosen].T
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(0, _MAX_LOG_SCALE)
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 500 == 0:
            scale = model.logit_scale.exp().item()
            log(f"alignment {step + 1}/{steps}: loss {running:.3f}, scale {scale:.1f}")
    model.eval()
    return running
