"""Reports of the drawn CT volumes, and the captions of pretraining.

The words of the test prompts ("... is present", "... is not present") occur for every finding: a finding that a grammar
denies in other words alone cannot be asked for, and adaptation then drives its score below chance.
"""

from __future__ import annotations

import numpy as np

from benchmark.phantom.ct.anatomy import FINDINGS
from benchmark.phantom.shapes import Array

_SEEN: dict[str, tuple[str, ...]] = {
    "Lung nodule": ("a pulmonary nodule is seen", "a millimetric nodule is present in the lung"),
    "Pleural effusion": ("pleural effusion is observed", "there is fluid in the pleural space"),
    "Consolidation": ("an area of consolidation is seen", "consolidation with air bronchograms is observed"),
    "Emphysema": ("emphysematous changes are observed", "bullae are seen in both lungs"),
    "Cardiomegaly": ("heart size is increased", "cardiomegaly is observed"),
    "Pericardial effusion": ("pericardial effusion is seen", "there is fluid around the heart"),
    "Coronary artery wall calcification": (
        "calcified plaques are observed in the coronary arteries", "the coronary artery walls are calcified",
    ),
    "Atelectasis": ("linear atelectasis is seen", "atelectatic changes are observed"),
}  # fmt: skip
_DENIED: dict[str, str] = {
    "Lung nodule": "no nodule was detected in either lung",
    "Pleural effusion": "pleural effusion was not observed",
    "Consolidation": "no consolidation was detected",
    "Emphysema": "emphysema was not observed",
    "Cardiomegaly": "heart contour and size are normal",
    "Pericardial effusion": "pericardial effusion was not observed",
    "Coronary artery wall calcification": "no coronary calcification was detected",
    "Atelectasis": "no atelectasis was detected",
}
_BESIDE = ("trachea and both main bronchi are open", "vertebral body heights are preserved")
_TOLD = 0.5
"""Share of absent findings that a report mentions."""


def report(rng: np.random.Generator, present: Array) -> str:
    """Return a report of findings, bool ``[K]``: all that are there, some that are not, in any order."""
    sentences = [str(rng.choice(_BESIDE))] if rng.random() < 0.6 else []
    for name, there in zip(FINDINGS, present, strict=True):
        if there:
            sentences.append(str(rng.choice(positives(name))))
        elif rng.random() < _TOLD:
            sentences.append(str(rng.choice(negatives(name))))
    if not sentences:
        sentences.append(_BESIDE[0])
    rng.shuffle(sentences)
    return " ".join(f"{sentence}." for sentence in sentences)


def positives(name: str) -> tuple[str, ...]:
    """Return the sentences that say that a finding is there."""
    return (*_SEEN[name], f"{name.lower()} is present", f"{name.lower()} is seen")


def negatives(name: str) -> tuple[str, ...]:
    """Return the sentences that say that it is not."""
    return (_DENIED[name], f"{name.lower()} is not present", f"no {name.lower()}")


def sentences() -> list[str]:
    """Return every sentence of the grammar, always in the same order."""
    found = [sentence for name in FINDINGS for sentence in (*positives(name), *negatives(name))]
    return [f"{sentence}." for sentence in (*found, *_BESIDE)]
