"""Contrastive losses over a matrix of image-text logits, and a loss of findings.

A loss takes tensors only: it knows no method, model or batch. Both are symmetric cross-entropies whose targets are
on the diagonal; the label-guided one leaves out pairs that show the same findings (ACE-LoRA, arXiv 2603.17079).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["label_guided", "clip", "focal"]
LabelMatch = Literal["equal", "shared_positive"]


def clip_loss(logits: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the symmetric InfoNCE of ``[B, B]`` logits (rows images, columns texts), in fp32 or finer.

    Args:
        logits: scaled similarities; pair (i, i) belongs together.
        keep: bool ``[B, B]``, False where a pair is left out of both denominators; the diagonal always stays.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if keep is not None:
        logits = logits.masked_fill(~keep, float("-inf"))
    targets = torch.arange(len(logits), device=logits.device)
    image_to_text = functional.cross_entropy(logits, targets)
    text_to_image = functional.cross_entropy(logits.T, targets)
    return (image_to_text + text_to_image) / 2


def label_mask(labels: Tensor, match: LabelMatch = "equal") -> Tensor:
    """Return which pairs stay in the loss, bool ``[B, B]``.

    Args:
        labels: ``[B, K]`` with 1, 0, -1 (uncertain) and nan (not mentioned). Uncertain and missing count as 0, as in
            the authors' code (`ACE-LoRA: train.py`); a number above 1 is a state of its own (the corpus' policy
            "distinct"). A row of nan alone is a sample without labels: never left out.
        match: "equal" drops an off-diagonal pair whose rows agree in every column, two empty rows included
            (`ACE-LoRA: loss.py`); "shared_positive" drops a pair that shares at least one positive finding.
    """
    unlabelled = labels.isnan().all(dim=1)
    if match == "equal":
        state = torch.where(labels > 0, labels, 0.0)
        same = (state[:, None, :] == state[None, :, :]).all(dim=-1)
    else:
        positive = labels == 1
        same = (positive.float() @ positive.float().T) > 0
    same = same & ~unlabelled[:, None] & ~unlabelled[None, :]
    return ~same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)


def focal_loss(logits: Tensor, labels: Tensor, shares: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of findings, -w (1 - p)^gamma log p with p the probability of the right answer, averaged.

    What is answered easily counts little (arXiv 1708.02002). A positive counts by the share of negatives, a negative by
    that of positives, so that both weigh the same over the corpus.

    Args:
        logits: of presence, ``[B, K]``.
        labels: ``[B, K]``; 1 is present, nan unknown and left out, all else absent.
        shares: of positives in the corpus, ``[K]``.
        gamma: 0 is the weighted cross-entropy.
    """
    present, known = labels == 1, ~labels.isnan()
    right = functional.logsigmoid(torch.where(present, logits, -logits))
    weights = torch.where(present, 1 - shares, shares) * known
    return (-weights * (1 - right.exp()) ** gamma * right).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class Objective:
    """The loss of a run: one for all methods of a table.

    Attributes:
        name: "label_guided" (plain where a batch has no labels), "clip", or "focal": findings are asked for by pairs of
            prompts (:class:`methods.supervision.Findings`).
        match: rule of :func:`label_mask`.
    """

    name: LossName = "label_guided"
    match: LabelMatch = "equal"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ValueError: for an unknown loss or rule.
        """
        if self.name not in get_args(LossName):
            raise ValueError(f"loss: expected one of {get_args(LossName)}, got '{self.name}'")
        if self.match not in get_args(LabelMatch):
            raise ValueError(f"label_match: expected one of {get_args(LabelMatch)}, got '{self.match}'")

    def keep(self, labels: Tensor | None) -> Tensor | None:
        """Return the mask of pairs that stay, or None when all do."""
        if self.name == "clip" or labels is None:
            return None
        return label_mask(labels, self.match)

    def __call__(self, logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of ``[B, B]`` logits with labels ``[B, K]`` or None."""
        return clip_loss(logits, self.keep(labels))
