"""What a tiny backbone knows: zero-shot scores, and the ceiling: a linear probe with true labels.

    python -m benchmark.phantom.pretraining.probe --backbone tiny
    python -m benchmark.phantom.pretraining.probe --backbone tiny --suite phantom_histology

For chest films the probe is a logistic regression per label on the class token of the frozen trunk, fitted on the
corpus part with the labels of the generator (not those of the reports) and tested, as the methods are, on the shifted
sets. AUROC only ranks; the accuracy is given for the five-class set alone, because the corpus's prevalences are not
those of the binary sets. For tissues it is one logistic regression over all of them, fitted on 3072 tiles of the
corpus and tested on the shifted sets, among the classes of each; there is no zero-shot score.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from benchmark.backbones.embedded import tiny_names
from benchmark.backbones.tiny import WordPieceTokenizer, load_tiny, to_input
from benchmark.phantom.chest.parts import FIVE, PARTS, PartData, draw_part
from benchmark.phantom.chest.studies import CHEXPERT_LABELS, NIH_LABELS, Studies, chexpert_truth, nih_truth
from benchmark.phantom.histology import parts as histology
from benchmark.phantom.pretraining.alignment import trunk_features
from benchmark.phantom.pretraining.vocabulary import TEMPLATES
from benchmark.phantom.shapes import Array

Scores = dict[str, dict[str, float]]
SETS = {  # part -> class names of its prompts; the last one of two is the positive
    "chexpert_5x200": FIVE,
    "rsna": ("No Finding", "Pneumonia"),
    "siim": ("No Finding", "Pneumothorax"),
    "nih": NIH_LABELS,
}


def draw_sets(seed: int) -> dict[str, PartData]:
    """Draw the validation and evaluation sets of a seed at their own sizes."""
    return {name: draw_part(name, PARTS[name].count, seed) for name in SETS}


def _truth(name: str, studies: Studies) -> Array:
    """Return class numbers [n], or for the NIH-like set labels [n, 14]."""
    if name == "nih":
        return nih_truth(studies)
    labels = chexpert_truth(studies)[:, [CHEXPERT_LABELS.index(label) for label in SETS[name]]]
    truth: Array = labels.argmax(1) if len(SETS[name]) > 2 else labels[:, 1].astype(int)
    return truth


def score(name: str, scores: Array, truth: Array) -> dict[str, float]:
    """Score class scores [n, C] of one set: macro AUROC, and accuracy where one class is to be chosen."""
    if name == "nih":
        return {
            "auroc": float(
                np.mean([roc_auc_score(truth[:, at], scores[:, at]) for at in range(truth.shape[1])])
            )
        }
    chosen = {"acc": float((scores.argmax(1) == truth).mean())}
    if scores.shape[1] == 2:
        return {**chosen, "auroc": float(roc_auc_score(truth, scores[:, 1] - scores[:, 0]))}
    classes = range(scores.shape[1])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return {**chosen, "auroc": float(np.mean([roc_auc_score(truth == at, shares[:, at]) for at in classes]))}


@torch.inference_mode()
def zero_shot(model: CustomTextCLIP, tokenizer: WordPieceTokenizer, sets: dict[str, PartData]) -> Scores:
    """Score the model as it is, with the suite's two templates averaged per class."""
    model.eval()
    result = {}
    for name, data in sets.items():
        prompts = [tokenizer([template.format(label) for template in TEMPLATES]) for label in SETS[name]]
        classes = [F.normalize(model.encode_text(ids, normalize=True).mean(0), dim=0) for ids in prompts]
        images = [
            model.encode_image(to_input(data.images[at : at + 256]), normalize=True)
            for at in range(0, len(data.images), 256)
        ]
        logits = model.logit_scale.exp() * torch.cat(images) @ torch.stack(classes).T
        result[name] = score(name, logits.double().numpy(), _truth(name, data.studies))
    return result


def linear_probe(model: CustomTextCLIP, sets: dict[str, PartData], seed: int) -> Scores:
    """Fit the probe on the corpus part of ``seed`` and score it on the sets."""
    corpus = draw_part("mimic", PARTS["mimic"].count, seed)
    features = trunk_features(model, corpus.images, "cpu").numpy()
    result = {}
    for name, data in sets.items():
        names = NIH_LABELS if name == "nih" else SETS[name]
        labels = nih_truth(corpus.studies) if name == "nih" else chexpert_truth(corpus.studies)
        columns = range(len(names)) if name == "nih" else [CHEXPERT_LABELS.index(label) for label in names]
        shown = trunk_features(model, data.images, "cpu").numpy()
        decided = np.stack([_fit(features, labels[:, at]).decision_function(shown) for at in columns], axis=1)
        if len(names) == 2:  # the positive class alone
            decided[:, 0] = 0
        result[name] = score(name, decided, _truth(name, data.studies))
        if len(names) == 2:
            del result[name]["acc"]
    return result


def all_scores(model: CustomTextCLIP, tokenizer: WordPieceTokenizer, seed: int) -> dict[str, Scores]:
    """Return zero-shot and linear-probe scores on the chest sets of one generator seed."""
    sets = draw_sets(seed)
    return {"zero_shot": zero_shot(model, tokenizer, sets), "linear_probe": linear_probe(model, sets, seed)}


def _fit(features: Array, labels: Array) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(features, labels)


def tissue_probe(model: CustomTextCLIP, seed: int, fitted_on: int = 3072) -> Scores:
    """Fit the probe on the histology corpus of ``seed`` and score it on the other parts at their own sizes."""
    corpus = histology.draw_part("pmc_oa", fitted_on, seed)
    probe = _fit(trunk_features(model, corpus.images, "cpu").numpy(), corpus.tissue)
    result = {}
    for name, part in histology.PARTS.items():
        if part.split != "train":
            data = histology.draw_part(name, part.count, seed)
            columns = [histology.NAMES.index(label) for label in part.classes]
            decided = probe.decision_function(trunk_features(model, data.images, "cpu").numpy())[:, columns]
            result[name] = score(name, decided, np.searchsorted(columns, data.tissue))
    return result


def describe(scores: Scores) -> str:
    """Return scores as one line, in percent."""
    parts = []
    for name, values in scores.items():
        parts.append(f"{name} " + "/".join(f"{100 * value:.1f}" for value in values.values()))
    return "  ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Print the scores of a tiny backbone as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.phantom.pretraining.probe", description=__doc__
    )
    parser.add_argument("--backbone", default="tiny", choices=tiny_names())
    parser.add_argument("--suite", default="phantom", choices=("phantom", "phantom_histology"))
    parser.add_argument("--seed", type=int, default=0, help="of the suite (default: 0)")
    options = parser.parse_args(arguments)
    model, tokenizer = load_tiny(options.backbone)
    scores: Any
    if options.suite == "phantom":
        scores = all_scores(model, tokenizer, options.seed)
    else:
        scores = tissue_probe(model, options.seed)
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
