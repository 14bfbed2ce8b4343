"""Draw how close a method's class prompts lie to each other, for methods that fall below their start.

    python run_benchmark.py --methods coop,maple --tasks zeroshot --output-dir LAST recipe.select=last
    python results/reference/collapse.py OUT LAST docs/images/phantom_collapse.png

OUT holds the published runs (``publish.py``). LAST holds runs that keep the weights of the last step: in the published
ones validation prefers the start. Shown are cosines between the text features of the five classes of 5x200, the mean
over the templates of the suite, seed 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

import medpeft_bench as mb

CLASSES = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Pleural Effusion": "pleural effusion",
}


def cosines(cell: Path) -> np.ndarray:
    """Return cosines between class features ``[C, C]`` of an adapted model."""
    model = mb.load_adapted(cell)
    prompts = [template.replace("{}", text) for text in CLASSES.values() for template in model.templates]
    features = model.encode_texts(prompts).reshape(len(CLASSES), len(model.templates), -1).mean(axis=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features @ features.T)


def main(out: Path, last: Path, picture: Path) -> None:
    """Draw one square per method, all on one scale."""
    cells = {
        "Zero-shot (the start)": out / "runs/phantom/tiny/zero_shot/seed-0",
        "CoOp, last step": last / "runs/phantom/tiny/coop/seed-0",
        "MaPLe, last step": last / "runs/phantom/tiny/maple/seed-0",
        "CLIP-LoRA": out / "runs/phantom/tiny/clip_lora/seed-0",
    }
    found = {title: cosines(cell) for title, cell in cells.items()}
    others = ~np.eye(len(CLASSES), dtype=bool)
    least = min(square.min() for square in found.values())
    figure, axes = plt.subplots(1, len(found), figsize=(11, 3.2), layout="constrained", sharey=True)
    for axis, (title, square) in zip(axes, found.items(), strict=True):
        sns.heatmap(
            square, ax=axis, vmin=least, vmax=1, cmap="viridis", square=True, annot=True, fmt=".2f",
            annot_kws={"size": 7}, xticklabels=list(CLASSES), yticklabels=list(CLASSES),
            cbar=axis is axes[-1], cbar_kws={"label": "cosine"},
        )  # fmt: skip
        axis.set_title(f"{title}\nmean of different classes {square[others].mean():.2f}", fontsize=9)
        axis.tick_params(labelsize=7)
    figure.savefig(picture, dpi=130, metadata={"Software": ""})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
