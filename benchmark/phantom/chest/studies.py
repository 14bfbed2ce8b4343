"""What is in a study: findings, hospital scenarios, and the truth labels that follow from them.

A block of studies is a handful of small arrays; nothing here knows how a finding looks or is worded. Random
numbers come per block of :data:`BLOCK` studies, so study ``i`` of a part never depends on how many studies
are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.phantom.chest.domains import Domain
from benchmark.phantom.shapes import Array

BLOCK = 32
FINDINGS = (
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
    "emphysema",
    "fibrosis",
    "hernia",
    "infiltration",
)
INDEX = {name: column for column, name in enumerate(FINDINGS)}
CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
NIH_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)
OPACITIES = ("edema", "consolidation", "pneumonia", "atelectasis", "lung_lesion", "fibrosis", "infiltration")
MASS_SEVERITY = 0.7  # a lung lesion above this severity is a mass, below it a nodule
RIGHT, LEFT, BOTH = 0, 1, 2
UPPER, MIDDLE, LOWER = 0, 1, 2

_ALWAYS_BOTH = ("edema", "emphysema")
_NEVER_BOTH = ("pneumothorax", "lung_lesion", "fracture")

# Co-occurrence model of the adaptation corpus: share of the studies, probability of each finding.
SCENARIOS: tuple[tuple[float, dict[str, float]], ...] = (
    (0.28, {}),
    (0.15, {"cardiomegaly": 0.8, "edema": 0.7, "pleural_effusion": 0.45}),
    (0.16, {"pneumonia": 0.75, "consolidation": 0.4, "pleural_effusion": 0.2, "infiltration": 0.15}),
    (0.12, {"pleural_effusion": 0.8, "atelectasis": 0.55}),
    (0.11, {"atelectasis": 0.7, "support_devices": 0.9, "pneumothorax": 0.3, "pleural_effusion": 0.2}),
    (0.06, {"fracture": 0.6, "pneumothorax": 0.55}),
    (0.06, {"lung_lesion": 0.9, "pleural_effusion": 0.2, "enlarged_cardiomediastinum": 0.3}),
    (0.06, {"emphysema": 0.5, "fibrosis": 0.35, "pleural_other": 0.35, "hernia": 0.12, "pneumothorax": 0.15}),
)
BACKGROUND = {  # what any abnormal study may carry besides
    "cardiomegaly": 0.05,
    "atelectasis": 0.05,
    "lung_lesion": 0.02,
    "pleural_other": 0.02,
    "fracture": 0.015,
    "enlarged_cardiomediastinum": 0.03,
    "pneumothorax": 0.01,
    "consolidation": 0.02,
    "edema": 0.02,
    "pleural_effusion": 0.02,
}


@dataclass(frozen=True)
class Studies:
    """A block of studies, one row each; the columns of the first four follow :data:`FINDINGS`.

    Attributes:
        present: [n, 16] bool.
        severity: [n, 16] float32 in [0.25, 1]; meaningful where present.
        side: [n, 16] int8, RIGHT, LEFT or BOTH.
        zone: [n, 16] int8, UPPER, MIDDLE or LOWER.
        portable: [n] bool, an AP film taken at the bedside.
    """

    present: Array
    severity: Array
    side: Array
    zone: Array
    portable: Array

    def __len__(self) -> int:
        return len(self.present)

    def has(self, finding: str) -> Array:
        """Return [n] bool: which studies carry this finding."""
        return self.present[:, INDEX[finding]]

    def rows(self, finding: str) -> Array:
        """Return the row numbers of the studies which carry this finding."""
        return np.flatnonzero(self.has(finding))


def block_rng(seed: int, stream: str, block: int = 0) -> np.random.Generator:
    """Return the random generator of one block of one named stream."""
    key = [int(seed), *[ord(letter) for letter in stream], int(block)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def sample_present(rng: np.random.Generator, count: int, domain: Domain) -> Array:
    """Draw which findings each study carries under the co-occurrence model, [count, 16] bool."""
    draw = rng.random((count, len(FINDINGS)))
    shares = np.cumsum([share for share, _ in SCENARIOS])
    scenario = np.searchsorted(shares / shares[-1], rng.random(count))
    probability = np.zeros((count, len(FINDINGS)))
    for number, (_, table) in enumerate(SCENARIOS):
        for name, chance in table.items():
            probability[scenario == number, INDEX[name]] = chance
    for name, chance in BACKGROUND.items():
        column = probability[:, INDEX[name]]
        column[:] = np.where(scenario > 0, np.maximum(column, chance), column)
    devices = probability[:, INDEX["support_devices"]]
    devices[:] = np.maximum(devices, domain.devices)
    return draw < probability


def sample_studies(rng: np.random.Generator, present: Array, domain: Domain) -> Studies:
    """Draw severity, side, zone and projection for studies whose findings are known."""
    shape = present.shape
    severity = (0.25 + 0.75 * rng.beta(*domain.severity, shape)).astype(np.float32)
    side = rng.choice([RIGHT, LEFT, BOTH], shape, p=[0.45, 0.40, 0.15]).astype(np.int8)
    side[:, [INDEX[name] for name in _ALWAYS_BOTH]] = BOTH
    single = [INDEX[name] for name in _NEVER_BOTH]
    side[:, single] = np.where(side[:, single] == BOTH, RIGHT, side[:, single])
    zone = rng.choice([UPPER, MIDDLE, LOWER], shape, p=[0.2, 0.3, 0.5]).astype(np.int8)
    return Studies(present, severity, side, zone, rng.random(len(present)) < domain.portable)


def chexpert_truth(studies: Studies) -> Array:
    """Return the 14 CheXpert labels, [n, 14] bool.

    Lung Opacity is any parenchymal opacity; No Finding is nothing but devices.
    """
    truth = np.zeros((len(studies), len(CHEXPERT_LABELS)), bool)
    for column, name in enumerate(CHEXPERT_LABELS):
        key = name.lower().replace(" ", "_")
        if key in INDEX:
            truth[:, column] = studies.has(key)
    opacities = [INDEX[name] for name in OPACITIES]
    truth[:, CHEXPERT_LABELS.index("Lung Opacity")] = studies.present[:, opacities].any(1)
    disease = np.delete(studies.present, INDEX["support_devices"], axis=1)
    truth[:, CHEXPERT_LABELS.index("No Finding")] = ~disease.any(1)
    return truth


def nih_truth(studies: Studies) -> Array:
    """Return the 14 NIH labels, [n, 14] bool; a lung lesion is a Mass or a Nodule by its size."""
    lesion = studies.has("lung_lesion")
    mass = studies.severity[:, INDEX["lung_lesion"]] > MASS_SEVERITY
    special = {
        "Effusion": studies.has("pleural_effusion"),
        "Pleural Thickening": studies.has("pleural_other"),
        "Mass": lesion & mass,
        "Nodule": lesion & ~mass,
    }
    return np.stack(
        [special[name] if name in special else studies.has(name.lower()) for name in NIH_LABELS], axis=1
    )


def concatenate(blocks: list[Studies], count: int) -> Studies:
    """Join blocks of studies and keep the first ``count``."""
    names = ("present", "severity", "side", "zone", "portable")
    return Studies(*(np.concatenate([getattr(block, name) for block in blocks])[:count] for name in names))
