"""Radiology reports: findings and impression out of free text, and what of them becomes the caption of an image.

A section starts at a line that opens with its name and a colon. Only names of whole sections end a section: labels such
as "LUNGS:" inside the findings stay where they are. Nothing is rewritten: every section is a stretch of the report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

MIN_TOKENS = 3
"""Alphanumeric tokens that a caption needs; shorter ones say nothing about an image."""

Kind = Literal["findings", "impression", "comparison", "view", "other", "label"]

# A name in capitals (or one known word in any case) at the start of a line; the colon may follow after a line break.
_HEADER = re.compile(r"^[ \t]*(?P<name>[A-Z_][A-Z0-9_ \t/,&()#'.+-]{1,80}?|[A-Za-z]{4,16})\s*:", re.MULTILINE)
# Preliminary reads and final report are divided by a line of underscores; "FINAL REPORT" stands alone on a line.
_DIVIDER = re.compile(r"^[ \t]*(?:_{5,}|FINAL (?:REPORT|ADDENDUM))[ \t]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")

_NAMES: dict[Kind, tuple[str, ...]] = {
    "findings": ("FINDINGS", "FINDING"),
    "impression": ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"),
    "comparison": ("COMPARISON", "COMPARISONS"),
    "other": (
        *("EXAMINATION", "EXAM", "STUDY", "PROCEDURE", "INDICATION", "INDICATIONS", "HISTORY", "REASON"),
        *("CLINICAL", "TECHNIQUE", "RECOMMENDATION", "RECOMMENDATIONS", "NOTIFICATION", "ADDENDUM", "WET"),
        *("PROVISIONAL", "PRELIMINARY", "DATE", "CRITICAL", "COMMUNICATION"),
    ),
    "view": ("CHEST", "RADIOGRAPH", "RADIOGRAPHS", "VIEW", "VIEWS", "PORTABLE", "FRONTAL", "LATERAL"),
}
_KIND_OF = {word: kind for kind, words in _NAMES.items() for word in words}
# Read before the report was final, or written after it: never the source of a fallback.
_NOT_THE_REPORT = ("WET", "PROVISIONAL", "PRELIMINARY", "ADDENDUM", "NOTIFICATION", "RECOMMENDATION")


@dataclass(frozen=True)
class Caption:
    """What is taken from a report.

    Attributes:
        text: whitespace collapsed; empty when the report holds nothing usable.
        source: where it comes from, for the counts of a preparation.
    """

    text: str
    source: Literal[
        "findings and impression", "findings", "impression", "last paragraph", "comparison", "nothing"
    ]


@dataclass(frozen=True)
class Sections:
    """Sections of a report, whitespace collapsed; empty where the report has none.

    Attributes:
        findings, impression, comparison: the last occurrence with content; "FINDINGS AND IMPRESSION" is findings.
        last_paragraph: of what stands under no section's name, or below the first paragraph of another section.
    """

    findings: str
    impression: str
    comparison: str
    last_paragraph: str

    def caption(self) -> Caption:
        """Return findings and impression, else whichever exists, else the last paragraph, else the comparison."""
        if self.findings and self.impression:
            return Caption(f"{self.findings} {self.impression}", "findings and impression")
        if self.findings:
            return Caption(self.findings, "findings")
        if self.impression:
            return Caption(self.impression, "impression")
        if self.last_paragraph:
            return Caption(self.last_paragraph, "last paragraph")
        return Caption(self.comparison, "comparison" if self.comparison else "nothing")


def parse_report(report: str) -> Sections:
    """Find the sections of a report as MIMIC-CXR and others write them; never fails, whatever the text."""
    found: dict[Kind, str] = {}
    last_paragraph = ""
    for name, kind, body in _split(report.replace("\r\n", "\n").replace("\r", "\n")):
        text = collapse(body)
        if _has_content(text):
            found[kind] = text
        if kind in ("other", "comparison", "label"):
            last_paragraph = _last_paragraph(name, body) or last_paragraph
    described = found.get("view", "")
    findings = found.get("findings") or (described if num_tokens(described) >= MIN_TOKENS else "")
    return Sections(findings, found.get("impression", ""), found.get("comparison", ""), last_paragraph)


def collapse(text: str) -> str:
    """Return text with every run of whitespace as one blank."""
    return " ".join(text.split())


def num_tokens(text: str) -> int:
    """Return the number of alphanumeric tokens; the underscores of de-identification are none."""
    return len(re.findall(r"[^\W_]+", text))


def _split(report: str) -> list[tuple[str, Kind, str]]:
    """Return (name, kind, body) of every section in order; the text before the first has no name."""
    starts: list[tuple[int, int, str, Kind]] = [(0, 0, "", "label")]
    marks = [(match.start(), match.end(), "") for match in _DIVIDER.finditer(report)]
    marks += [(match.start(), match.end(), match["name"]) for match in _HEADER.finditer(report)]
    for start, end, name in sorted(marks):
        kind = _kind(name) if name else "label"
        inside = starts[-1][3] in ("findings", "impression")
        if start < starts[-1][1] or (name and (kind == "label" or (kind == "view" and inside))):
            continue
        starts.append((start, end, name, kind))
    stops = [start for start, _, _, _ in starts[1:]] + [len(report)]
    return [(name, kind, report[end:stop]) for (_, end, name, kind), stop in zip(starts, stops, strict=True)]


@lru_cache(maxsize=4096)
def _kind(name: str) -> Kind:
    """Return what a header stands for; near spellings count ("IMPRESION"). Mixed case must be a known word."""
    kinds: set[Kind] = set()
    for word in re.findall(r"[A-Z]{3,}", name.upper()):
        near = get_close_matches(word, _KIND_OF, n=1, cutoff=0.85)
        kinds |= {_KIND_OF[near[0]]} if near else set()
    order: tuple[Kind, ...] = ("findings", "impression", "comparison", "other", "view")
    kind: Kind = next((kind for kind in order if kind in kinds), "label")
    # "Chest:" or "Views:" in running text is no header
    return "label" if kind == "view" and name != name.upper() else kind


def _last_paragraph(name: str, body: str) -> str:
    """Return the last paragraph that is more than the value of its section's own header."""
    if any(word in name.upper() for word in _NOT_THE_REPORT):
        return ""
    paragraphs = [collapse(part) for part in _PARAGRAPH.split(body)][1 if name else 0 :]
    useful = [part for part in paragraphs if num_tokens(part) >= MIN_TOKENS]
    return useful[-1] if useful else ""


def _has_content(text: str) -> bool:
    return num_tokens(text) > 0
