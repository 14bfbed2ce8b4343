"""Checks of the batch size: a pair is compared with the others of its batch, and an epoch has whole batches only."""

from __future__ import annotations

from collections.abc import Iterable

from benchmark.errors import DataError


def one_pair(batch_size: int, processes: int = 1) -> str:
    """Return why the loss is always zero: no pair is compared with another one. Empty if pairs are compared.

    Args:
        batch_size: pairs of a step.
        processes: those that share them, each comparing its own pairs alone.
    """
    if batch_size // processes > 1:
        return ""
    what, cure = f"a batch of {batch_size} pair", "Take at least 2"
    if processes > 1:
        what = f"with negatives=local each of {processes} processes compares 1 of {batch_size} pairs, which"
        cure = f"Take at least {2 * processes}, or negatives=global"
    return f"{what} leaves nothing to compare it with, so that the contrastive loss is always zero. {cure}"


def too_few(pairs: int, batch_size: int) -> tuple[str, str] | None:
    """Return the problem of a corpus that does not fill one batch, and what to do; None if it fills one."""
    if pairs >= batch_size:
        return None
    if pairs < 2:
        return f"{pairs} pair, and no other to compare it with", "take a larger corpus or raise --limit"
    return f"{pairs} pairs, fewer than one batch of {batch_size}", "lower --batch-size or raise --limit"


def check_corpus(corpus: str, pairs: int, batch_sizes: Iterable[int]) -> str:
    """Check that a corpus fills the batches of a run.

    Returns:
        A warning where an epoch is a single step; empty when there are more.

    Raises:
        DataError: it does not fill one batch.
    """
    largest = max(batch_sizes, default=0)
    if found := too_few(pairs, largest):
        raise DataError(f"corpus '{corpus}' has {found[0]}: {found[1]}")
    if pairs >= 2 * largest:
        return ""
    left = pairs - largest
    return (
        f"corpus '{corpus}' has {pairs} pairs, less than two batches of {largest}: an epoch is one step"
        + (f", which leaves out {left} pair{'s' * (left != 1)}" if left else "")
    )
