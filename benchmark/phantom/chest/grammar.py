"""The words of reports and captions, as data.

In a phrase ``{s}`` is the side, ``{z}`` the zone, ``{v}`` a word for the severity (which may be empty). About
a third of the phrases avoid the name of the finding, as radiologists do.
"""

from __future__ import annotations

from benchmark.phantom.chest.studies import BOTH, LEFT, LOWER, MIDDLE, OPACITIES, RIGHT, UPPER

SIDES = {RIGHT: ("right",), LEFT: ("left",), BOTH: ("bilateral", "bilateral", "right and left")}
ZONES = {
    UPPER: ("upper lobe", "upper lung zone", "apical"),
    MIDDLE: ("mid lung zone", "perihilar", "middle zone"),
    LOWER: ("lower lobe", "basal", "lower lung zone"),
}
SEVERITIES = (  # (below this severity, words)
    (0.45, ("mild", "small", "subtle", "minimal")),
    (0.70, ("moderate", "", "")),
    (1.10, ("severe", "large", "extensive", "marked")),
)
PHRASES = {
    "enlarged_cardiomediastinum": (
        "widened mediastinum",
        "the mediastinal contour is enlarged",
        "enlarged cardiomediastinum",
        "{v} widening of the cardiomediastinal silhouette",
    ),
    "cardiomegaly": (
        "{v} cardiomegaly",
        "the heart is {v} enlarged",
        "enlarged cardiac silhouette",
        "cardiomegaly is present",
        "increased cardiothoracic ratio",
        "{v} cardiac enlargement",
    ),
    "lung_lesion": (
        "{s} {z} nodule",
        "rounded {s} lung lesion",
        "{v} well defined mass in the {s} {z}",
        "solitary pulmonary nodule on the {s}",
        "{s} lung mass",
    ),
    "edema": (
        "{v} pulmonary edema",
        "perihilar haze and kerley lines",
        "{v} interstitial edema",
        "vascular congestion with edema",
        "findings of fluid overload",
        "bilateral perihilar opacities consistent with edema",
    ),
    "consolidation": (
        "{s} {z} consolidation",
        "dense {s} {z} airspace opacity with air bronchograms",
        "{v} consolidation in the {s} {z}",
        "lobar consolidation on the {s}",
        "homogeneous opacification of the {s} {z}",
    ),
    "pneumonia": (
        "{s} {z} pneumonia",
        "patchy {s} {z} opacity concerning for infection",
        "{v} {s} pneumonia",
        "ill defined {s} {z} opacities, likely pneumonia",
        "infectious process in the {s} {z}",
        "multifocal patchy opacities in the {s} lung",
    ),
    "atelectasis": (
        "{s} basal atelectasis",
        "{v} {s} lower lobe atelectasis",
        "linear opacities at the {s} base with volume loss",
        "plate like atelectasis at the {s} base",
        "{s} basilar subsegmental atelectasis",
        "elevated {s} hemidiaphragm with bands of collapse",
    ),
    "pneumothorax": (
        "{v} {s} pneumothorax",
        "{s} apical pneumothorax",
        "{s} pleural line without peripheral lung markings",
        "there is a {v} pneumothorax on the {s}",
        "air in the {s} pleural space",
    ),
    "pleural_effusion": (
        "{v} {s} pleural effusion",
        "blunting of the {s} costophrenic angle",
        "{s} effusion",
        "{v} {s} pleural fluid",
        "layering {s} pleural effusion",
        "{s} meniscus at the base, {v} effusion",
    ),
    "pleural_other": (
        "{s} pleural thickening",
        "{v} pleural thickening along the {s} chest wall",
        "{s} pleural scarring",
        "calcified {s} pleural plaque",
    ),
    "fracture": (
        "{s} rib fracture",
        "displaced fracture of the {s} ribs",
        "acute {s} sided rib fractures",
    ),
    "support_devices": (
        "lines and tubes in standard position",
        "endotracheal tube and central line in place",
        "pacemaker leads are unchanged",
        "support devices are in place",
        "monitoring leads overlie the chest",
    ),
    "emphysema": ("{v} emphysema", "hyperinflated lungs with flattened diaphragms", "emphysematous changes"),
    "fibrosis": ("{s} basal fibrosis", "reticular opacities at the {s} base", "{v} pulmonary fibrosis"),
    "hernia": ("hiatal hernia", "retrocardiac air fluid level, {v} hernia"),
    "infiltration": ("{s} infiltrate", "{v} {s} lung infiltration", "streaky {s} infiltrates"),
}
NEGATIONS = {  # finding: (how often it is the one denied, its names in a denial)
    "pneumothorax": (0.25, ("pneumothorax",)),
    "pleural_effusion": (0.25, ("pleural effusion", "effusion")),
    "consolidation": (0.15, ("focal consolidation", "consolidation")),
    "edema": (0.12, ("pulmonary edema", "edema")),
    "pneumonia": (0.10, ("pneumonia", "evidence of infection")),
    "fracture": (0.04, ("acute fracture",)),
    "cardiomegaly": (0.04, ("cardiomegaly",)),
    "lung_lesion": (0.03, ("suspicious nodule",)),
    "atelectasis": (0.02, ("atelectasis",)),
}
DOUBTS = ("possible {}", "{} cannot be excluded", "may represent {}", "questionable {}")
DOUBTED = {  # what a doubt calls a finding
    "pneumonia": "pneumonia",
    "atelectasis": "atelectasis",
    "edema": "pulmonary edema",
    "pleural_effusion": "pleural effusion",
    "consolidation": "consolidation",
    "pneumothorax": "pneumothorax",
    "lung_lesion": "lung nodule",
    "fracture": "rib fracture",
}
NORMAL = (
    "the lungs are clear",
    "heart size is normal",
    "cardiomediastinal silhouette is unremarkable",
    "no acute cardiopulmonary process",
    "clear lungs",
    "normal chest radiograph",
    "no acute finding",
    "no finding",
    "the hila are normal",
)
ASIDES = (
    "ap portable view of the chest",
    "comparison is made to the prior study",
    "the patient is rotated",
    "frontal view of the chest",
    "clinical correlation is advised",
    "follow up is recommended",
    "interval change is difficult to assess",
    "low lung volumes",
    "the soft tissues are unremarkable",
    "the study is limited by technique",
)
# What may stand before a phrase that is not a sentence of its own.
LEADS = ("", "", "", "there is ", "findings suggesting ", "again seen is ", "stable ", "new ", "likely ")
VERBS = (" is ", " are ", " overlie ", "lines and tubes")

# Captions of the generalist corpus. Pneumonia is never said of a picture that has it: only "opacity", or one
# of several names offered together, so that a generalist knows the word's neighbourhood and not its look.
COARSE = {
    "opacity": OPACITIES,
    "pleural disease": ("pneumothorax", "pleural_effusion", "pleural_other"),
    "cardiac abnormality": ("cardiomegaly", "enlarged_cardiomediastinum"),
}
UNNAMED = ("pneumonia",)
COARSE_FORMS = ("{}", "{}", "diffuse {}", "{} (arrow)", "an area of {}")
VAGUE = ("an abnormal finding", "abnormal lungs", "the disease")
CAPTION_NORMAL = ("no finding", "a normal chest", "no acute abnormality", "normal lungs")
CAPTIONS = (
    "chest x-ray showing {}",
    "a chest x-ray image of {}",
    "frontal chest radiograph demonstrates {}",
    "chest radiograph of a patient with {}",
    "figure {n}. chest x-ray of {}",
    "plain film of the chest with {}",
    "findings suggesting {} on chest x-ray",
)
NAMES = {name: name.replace("_", " ") for name in PHRASES} | {
    "lung_lesion": "lung nodule",
    "pleural_other": "pleural thickening",
}
# Normal sentences that also deny one finding.
DENYING = {
    "heart size is normal": "cardiomegaly",
    "cardiomediastinal silhouette is unremarkable": "enlarged_cardiomediastinum",
}
