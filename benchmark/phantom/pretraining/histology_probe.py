"""The ceiling of the histology suite: a linear probe with true labels.

    python -m benchmark.phantom.pretraining.histology_probe --backbone tiny

The probe is one logistic regression over all tissues on the class token of the frozen trunk, fitted on 3072 tiles of
the corpus and tested, as the methods are, on the shifted sets, among the classes of each.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from open_clip.model import CustomTextCLIP
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmark.backbones.embedded import load_tiny, tiny_names
from benchmark.phantom.histology.parts import NAMES, PARTS, draw_part
from benchmark.phantom.pretraining.alignment import trunk_features
from benchmark.phantom.pretraining.probe import Scores, score

FITTED_ON = 3072  # tiles of the corpus, twice the suite's


def linear_probe(model: CustomTextCLIP, seed: int, fitted_on: int = FITTED_ON) -> Scores:
    """Fit the probe on the corpus of ``seed`` and score it on the other parts at their own sizes."""
    corpus = draw_part("pmc_oa", fitted_on, seed)
    features = trunk_features(model, corpus.images, "cpu").numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
        features, corpus.tissue
    )
    result = {}
    for name, part in PARTS.items():
        if part.split != "train":
            data = draw_part(name, part.count, seed)
            columns = [NAMES.index(label) for label in part.classes]
            decided = probe.decision_function(trunk_features(model, data.images, "cpu").numpy())[:, columns]
            result[name] = score(name, decided, np.searchsorted(columns, data.tissue))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Print the probe's scores of a tiny backbone as JSON."""
    program = "python -m benchmark.phantom.pretraining.histology_probe"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--backbone", default="tiny", choices=tiny_names())
    parser.add_argument("--seed", type=int, default=0, help="of the suite (default: 0)")
    options = parser.parse_args(arguments)
    scores = linear_probe(load_tiny(options.backbone)[0], options.seed)
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
