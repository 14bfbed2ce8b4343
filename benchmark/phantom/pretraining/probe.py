"""What a tiny backbone knows, and what supervised training makes of it.

    python -m benchmark.phantom.pretraining.probe --backbone tiny
    python -m benchmark.phantom.pretraining.probe --backbone tiny --suite phantom_histology

For chest films:

- ``zero_shot``: the model as it is;
- ``reading``: its text tower alone, reports of the corpus against the class prompts;
- ``linear_probe``: a logistic regression per class on the class token of the frozen image trunk;
- ``end_to_end``: a linear layer per class on the class token, trained together with the trunk.

The last two are fitted on the corpus part with the labels of the generator (not those of the reports). All are
tested on the shifted sets by the rule that methods are scored by: softmax over the classes of a set. AUROC only ranks;
accuracy is given for the five-class set alone, because the corpus's prevalences are not those of the binary sets.

For tissues there is a probe alone: one logistic regression over all of them, fitted on 3072 tiles of the corpus and
tested on the shifted sets, among the classes of each.
"""

from __future__ import annotations

import argparse
import copy
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
from torch import nn
from torch.nn import functional as F

from benchmark.backbones.embedded import tiny_names
from benchmark.backbones.tiny import WordPieceTokenizer, load_tiny, to_input
from benchmark.phantom.chest.parts import FIVE, PartData, draw_part
from benchmark.phantom.chest.studies import CHEXPERT_LABELS, Studies, chexpert_truth, nih_truth
from benchmark.phantom.histology import parts as histology
from benchmark.phantom.pretraining.alignment import trunk_features
from benchmark.phantom.pretraining.reading import cosine, short
from benchmark.phantom.pretraining.vocabulary import TEMPLATES
from benchmark.phantom.shapes import Array

Scores = dict[str, dict[str, float]]
SETS = {  # part -> films and classes, as in configs/suites/phantom.yaml; the last one of two is the positive
    "chexpert_5x200": (1000, FIVE),
    "rsna": (1000, ("No Finding", "Pneumonia")),
    "siim": (1000, ("No Finding", "Pneumothorax")),
    "nih": (
        3000,
        (
            "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Pneumonia", "Pneumothorax", "Consolidation",
            "Edema",
        ),
    ),
}  # fmt: skip
TESTS = ("chexpert_5x200", "rsna", "siim")
READ = (*FIVE, "Pneumonia", "Pneumothorax")  # diseases that reports are asked for
_CLASSES = tuple(dict.fromkeys(name for _, names in SETS.values() for name in names))
_CORPUS = 6400  # films of the corpus that references are fitted on, those of the suite
_STEPS, _BATCH, _RATE, _RAMP = 800, 32, 1e-3, 50  # of end-to-end training


def draw_sets(seed: int) -> dict[str, PartData]:
    """Draw the validation and evaluation sets of a seed at their own sizes."""
    return {name: draw_part(name, count, seed) for name, (count, _) in SETS.items()}


def labels(studies: Studies, names: tuple[str, ...]) -> Array:
    """Return which classes each study belongs to, [n, C] bool."""
    healthy = chexpert_truth(studies)[:, CHEXPERT_LABELS.index("No Finding")]
    columns = []
    for name in names:
        finding = name.lower().replace(" ", "_")
        finding = "pleural_effusion" if finding == "effusion" else finding
        columns.append(healthy if name == "No Finding" else studies.has(finding))
    return np.stack(columns, axis=1)


def asked(name: str, studies: Studies) -> tuple[Array, Array]:
    """Return the rows of a set that are scored, and their class numbers.

    Of the NIH-like set these are the films with nothing or with exactly one of its classes, as in the suite.
    """
    truth = labels(studies, SETS[name][1])
    kept = (
        (truth.sum(1) == 1) & (nih_truth(studies).sum(1) <= 1) if name == "nih" else np.ones(len(truth), bool)
    )
    classes: Array = truth.argmax(1) if truth.shape[1] > 2 else truth[:, 1].astype(int)
    return np.flatnonzero(kept), classes[kept]


def score(scores: Array, truth: Array) -> dict[str, float]:
    """Score class scores [n, C] of one set: accuracy, and (macro) AUROC of the softmax over classes."""
    chosen = {"acc": float((scores.argmax(1) == truth).mean())}
    if scores.shape[1] == 2:
        return {**chosen, "auroc": float(roc_auc_score(truth, scores[:, 1] - scores[:, 0]))}
    classes = range(scores.shape[1])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return {**chosen, "auroc": float(np.mean([roc_auc_score(truth == at, shares[:, at]) for at in classes]))}


@torch.inference_mode()
def class_features(
    model: CustomTextCLIP, tokenizer: WordPieceTokenizer, names: tuple[str, ...]
) -> torch.Tensor:
    """Return unit text features [C, E] of classes, averaged over the suite's two templates."""
    prompts = [tokenizer([template.format(name) for template in TEMPLATES]) for name in names]
    return torch.stack(
        [F.normalize(model.encode_text(ids, normalize=True).mean(0), dim=0) for ids in prompts]
    )


@torch.inference_mode()
def zero_shot(model: CustomTextCLIP, tokenizer: WordPieceTokenizer, sets: dict[str, PartData]) -> Scores:
    """Score the model as it is."""
    model.eval()
    result = {}
    for name, data in sets.items():
        classes = class_features(model, tokenizer, SETS[name][1])
        rows, truth = asked(name, data.studies)
        images = [
            model.encode_image(to_input(data.images[rows[at : at + 256]]), normalize=True)
            for at in range(0, len(rows), 256)
        ]
        logits = model.logit_scale.exp() * torch.cat(images) @ classes.T
        result[name] = score(logits.double().numpy(), truth)
    return result


@torch.inference_mode()
def reading(
    model: CustomTextCLIP, tokenizer: WordPieceTokenizer, seed: int, count: int = 3072
) -> dict[str, float]:
    """Ask the text tower what reports say, by their cosine with the class prompts.

    Returns:
        AUROC per disease: its prompt against "No Finding" on all reports, labels as read from the report; their mean.
    """
    model.eval()
    manifest = draw_part("mimic", count, seed).manifest
    texts = list(manifest["text"])
    reports = [
        model.encode_text(short(tokenizer(texts[at : at + 256])), normalize=True)
        for at in range(0, count, 256)
    ]
    scores = (torch.cat(reports) @ class_features(model, tokenizer, ("No Finding", *READ)).T).numpy()
    found = {
        name: float(
            roc_auc_score((manifest[f"label_{name}"] == 1).fillna(False), scores[:, at] - scores[:, 0])
        )
        for at, name in enumerate(READ, start=1)
    }
    return {**found, "mean": float(np.mean(list(found.values())))}


def linear_probe(model: CustomTextCLIP, sets: dict[str, PartData], corpus: PartData) -> Scores:
    """Fit the probe on the corpus part and score it on the sets."""
    features = trunk_features(model, corpus.images, "cpu").numpy()
    truth = labels(corpus.studies, _CLASSES)
    probes = [_fit(features, truth[:, at]) for at in range(len(_CLASSES))]

    def decide(images: Array) -> Array:
        shown = trunk_features(model, images, "cpu").numpy()
        return np.stack([probe.decision_function(shown) for probe in probes], axis=1)

    return _references(decide, sets)


def end_to_end(model: CustomTextCLIP, sets: dict[str, PartData], corpus: PartData, seed: int) -> Scores:
    """Train a copy of the trunk and a layer on it with the truth, as long as methods train, and score it."""
    trained = copy.deepcopy(model)
    trunk = trained.visual.trunk.train()
    torch.manual_seed(seed)
    layer = nn.Linear(int(trunk.embed_dim), len(_CLASSES))
    parameters = [*trunk.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(_STEPS, _RAMP))
    truth = torch.from_numpy(labels(corpus.studies, _CLASSES)).float()
    draw = np.random.default_rng(seed)
    epochs = -(-_STEPS * _BATCH // len(truth))
    order = np.concatenate([draw.permutation(len(truth)) for _ in range(epochs)])
    for step in range(_STEPS):
        rows = order[step * _BATCH : (step + 1) * _BATCH]
        logits = layer(trunk(to_input(corpus.images[rows])))
        loss = F.binary_cross_entropy_with_logits(logits, truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.inference_mode()
    def decide(images: Array) -> Array:
        decided: Array = layer(trunk_features(trained, images, "cpu")).double().numpy()
        return decided

    return _references(decide, sets)


def _references(decide: Any, sets: dict[str, PartData]) -> Scores:
    """Score class scores [n, all classes] of images on the sets, among the classes of each."""
    result = {}
    for name, data in sets.items():
        rows, truth = asked(name, data.studies)
        columns = [_CLASSES.index(label) for label in SETS[name][1]]
        result[name] = score(decide(data.images[rows])[:, columns], truth)
        if name != "chexpert_5x200":
            del result[name]["acc"]
    return result


def all_scores(
    model: CustomTextCLIP, tokenizer: WordPieceTokenizer, seed: int, *, trained: bool
) -> dict[str, Scores]:
    """Return the scores on the chest sets of a generator seed; ``trained``: those of end-to-end training too."""
    sets, corpus = draw_sets(seed), draw_part("mimic", _CORPUS, seed)
    return {
        "zero_shot": zero_shot(model, tokenizer, sets),
        "reading": {"mimic": reading(model, tokenizer, seed)},
        "linear_probe": linear_probe(model, sets, corpus),
        **({"end_to_end": end_to_end(model, sets, corpus, seed)} if trained else {}),
    }


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
            result[name] = score(decided, np.searchsorted(columns, data.tissue))
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
        scores = all_scores(model, tokenizer, options.seed, trained=True)
    else:
        scores = tissue_probe(model, options.seed)
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
