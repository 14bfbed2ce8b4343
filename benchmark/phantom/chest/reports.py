"""Reports of studies and captions of figures, composed from the grammar.

A report keeps account of what it says, so that the labels of the corpus are those a labeler would read from
it: asserted, denied, doubted, or not mentioned. It omits a share of the findings, as real ones do, and never
affirms an absent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from benchmark.phantom.chest import grammar
from benchmark.phantom.chest.studies import CHEXPERT_LABELS, FINDINGS, INDEX, OPACITIES, Studies
from benchmark.phantom.shapes import Array

IMPRESSION = 0.9  # share of reports that end in an impression; it names findings by their plain names
OMIT = 0.08  # share of the findings, but for the most severe one, that a report does not mention
DOUBT = 0.05  # share of the mentions that are hedged
DOUBT_ABSENT = 0.04  # share of the reports that raise the possibility of something absent
ASSERTED, DENIED, DOUBTED = 1, 0, -1

_DEVICES = "support_devices"
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Report:
    """A report and what it says: finding -> ASSERTED, DENIED or DOUBTED; what it omits is not a key."""

    text: str
    mentions: dict[str, int]


def _one(rng: np.random.Generator, options: Sequence[_Item]) -> _Item:
    return options[int(rng.integers(len(options)))]


def phrase(rng: np.random.Generator, studies: Studies, row: int, finding: str) -> str:
    """Describe one present finding with its side, zone and severity."""
    at = INDEX[finding]
    severity = studies.severity[row, at]
    words = next(words for limit, words in grammar.SEVERITIES if severity < limit)
    side = _one(rng, grammar.SIDES[int(studies.side[row, at])])
    zone = _one(rng, grammar.ZONES[int(studies.zone[row, at])])
    text = _one(rng, grammar.PHRASES[finding]).format(s=side, z=zone, v=_one(rng, words))
    return " ".join(text.split())


def report(rng: np.random.Generator, studies: Studies, row: int) -> Report:
    """Write the report of one study.

    Args:
        rng: advanced by the writing.
        studies: a block of studies.
        row: which one.

    Returns:
        The text (lower case, full stops) and its mentions.
    """
    mentions: dict[str, int] = {}
    body = _positives(rng, studies, row, mentions)
    body += _normals(rng, mentions)
    body += _denials(rng, studies, row, mentions)
    body += _stray_doubt(rng, studies, row, mentions)
    sentences = [_one(rng, grammar.ASIDES)] if rng.random() < 0.5 else []
    sentences += [body[place] for place in rng.permutation(len(body))]
    if rng.random() < 0.2:
        sentences.append(_one(rng, grammar.ASIDES))
    if rng.random() < IMPRESSION:
        sentences += _impression(rng, studies, row, mentions)
    return Report(". ".join(sentences) + ".", mentions)


def _positives(rng: np.random.Generator, studies: Studies, row: int, mentions: dict[str, int]) -> list[str]:
    """Mention the present findings, all but a few, some of them in doubt."""
    present = [FINDINGS[at] for at in np.flatnonzero(studies.present[row])]
    diseases = [name for name in present if name != _DEVICES]
    main = max(diseases, key=lambda name: float(studies.severity[row, INDEX[name]]), default="")
    sentences = []
    for finding in present:
        if finding != main and rng.random() < OMIT:
            continue
        if finding in grammar.DOUBTED and rng.random() < DOUBT:
            mentions[finding] = DOUBTED
            sentences.append(_one(rng, grammar.DOUBTS).format(grammar.DOUBTED[finding]))
        else:
            mentions[finding] = ASSERTED
            sentences.append(_lead(rng, phrase(rng, studies, row, finding)))
    return sentences


def _lead(rng: np.random.Generator, text: str) -> str:
    whole = any(verb in text for verb in grammar.VERBS)
    return text if whole else _one(rng, grammar.LEADS) + text


def _normals(rng: np.random.Generator, mentions: dict[str, int]) -> list[str]:
    """Say that a study without disease is normal, or (30 %) that at least the heart is."""
    sentences: list[str] = []
    if not _diseases(mentions):
        sentences = [_one(rng, grammar.NORMAL) for _ in range(int(rng.integers(1, 3)))]
    elif "cardiomegaly" not in mentions and rng.random() < 0.3:
        sentences = ["heart size is normal"]
    return sentences


def _diseases(mentions: dict[str, int]) -> list[str]:
    return [name for name, said in mentions.items() if said != DENIED and name != _DEVICES]


def _denials(rng: np.random.Generator, studies: Studies, row: int, mentions: dict[str, int]) -> list[str]:
    """Deny up to three absent findings in one sentence."""
    absent = [name for name in grammar.NEGATIONS if not studies.has(name)[row]]
    weights = np.array([grammar.NEGATIONS[name][0] for name in absent])
    count = min(int(rng.integers(0, 4)), len(absent))
    if not count:
        return []
    chosen = rng.choice(len(absent), count, replace=False, p=weights / weights.sum())
    denied = [absent[number] for number in chosen]
    mentions.update(dict.fromkeys(denied, DENIED))
    names = [_one(rng, grammar.NEGATIONS[name][1]) for name in denied]
    return ["no " + " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)]


def _stray_doubt(rng: np.random.Generator, studies: Studies, row: int, mentions: dict[str, int]) -> list[str]:
    """Now and then, raise the possibility of a finding that is absent and was not denied."""
    if rng.random() >= DOUBT_ABSENT:
        return []
    open_questions = [name for name in grammar.DOUBTED if name not in mentions and not studies.has(name)[row]]
    if not open_questions:
        return []
    finding = _one(rng, open_questions)
    mentions[finding] = DOUBTED
    return [_one(rng, grammar.DOUBTS).format(grammar.DOUBTED[finding])]


def _impression(rng: np.random.Generator, studies: Studies, row: int, mentions: dict[str, int]) -> list[str]:
    """Name up to three asserted diseases, as an impression does, or say that nothing was found."""
    asserted = [name for name in _diseases(mentions) if mentions[name] == ASSERTED]
    if asserted:
        chosen = [asserted[place] for place in rng.permutation(len(asserted))[:3]]
        return ["impression: " + " and ".join(grammar.NAMES[name] for name in chosen)]
    return [] if _diseases(mentions) else ["impression: " + _one(rng, grammar.NORMAL)]


def labels_of(said: Report) -> Array:
    """Return the 14 CheXpert labels a labeler reads from a report, [14]: 1, 0, -1 (uncertain), NaN (blank).

    As CheXpert's labeler does, No Finding is 1 or blank, and Lung Opacity follows from the opacities that are
    named.
    """
    labels = np.full(len(CHEXPERT_LABELS), np.nan)
    for column, name in enumerate(CHEXPERT_LABELS):
        labels[column] = said.mentions.get(name.lower().replace(" ", "_"), np.nan)
    opacities = [said.mentions[name] for name in OPACITIES if name in said.mentions]
    if ASSERTED in opacities or DOUBTED in opacities:
        labels[CHEXPERT_LABELS.index("Lung Opacity")] = ASSERTED if ASSERTED in opacities else DOUBTED
    if not _diseases(said.mentions):
        labels[CHEXPERT_LABELS.index("No Finding")] = ASSERTED
    return labels


def caption(rng: np.random.Generator, studies: Studies, row: int, *, exact: float, wrong: float) -> str:
    """Write the figure caption of a chest film: mostly coarse, sometimes wrong, rarely exact.

    Args:
        rng: advanced by the writing.
        studies: a block of studies.
        row: which one.
        exact: probability of naming a finding of the study.
        wrong: probability of naming any finding at all.

    Returns:
        One sentence.
    """
    diseases = [FINDINGS[at] for at in np.flatnonzero(studies.present[row]) if FINDINGS[at] != _DEVICES]
    what = (
        _caption_disease(rng, studies, row, diseases, exact, wrong)
        if diseases
        else _caption_normal(rng, wrong)
    )
    return _one(rng, grammar.CAPTIONS).format(what, n=int(rng.integers(1, 6))) + "."


def _any_name(rng: np.random.Generator) -> str:
    return grammar.NAMES[_one(rng, [name for name in FINDINGS if name not in grammar.UNNAMED])]


def _caption_normal(rng: np.random.Generator, wrong: float) -> str:
    return _any_name(rng) if rng.random() < 0.6 * wrong else _one(rng, grammar.CAPTION_NORMAL)


def _caption_disease(
    rng: np.random.Generator, studies: Studies, row: int, diseases: list[str], exact: float, wrong: float
) -> str:
    finding, draw = _one(rng, diseases), rng.random()
    if draw < wrong:
        return _any_name(rng)
    if draw < wrong + exact and finding not in grammar.UNNAMED:
        return grammar.NAMES[finding] if rng.random() < 0.6 else phrase(rng, studies, row, finding)
    group = next((group for group, members in grammar.COARSE.items() if finding in members), None)
    if group is None:
        return _one(rng, grammar.VAGUE)
    members = grammar.COARSE[group]
    if len(members) > 2 and rng.random() < 0.3:  # a differential diagnosis, whatever the truth is
        first, second = rng.choice(len(members), 2, replace=False)
        return f"{grammar.NAMES[members[first]]} or {grammar.NAMES[members[second]]}"
    return _one(rng, grammar.COARSE_FORMS).format(group)
