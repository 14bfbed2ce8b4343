"""Radiology reports: finds findings and impression in free text, and chooses the caption of an image.

A section starts where a line opens with its name and a colon; findings and impression also within a line, after a
sentence. Only names of whole sections end a section: labels such as "LUNGS:" inside the findings stay where they are.
Nothing is rewritten: every section is a stretch of the report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

MIN_TOKENS = 3
"""Alphanumeric tokens that a caption needs; shorter ones say nothing about an image."""

Kind = Literal["findings", "impression", "comparison", "view", "before", "after", "other", "label"]
Origin = Literal[
    "findings and impression", "findings", "impression", "last paragraph", "comparison", "nothing"
]

# A name in capitals (or one known word in any case) at the start of a line, then a colon, perhaps on the next line. The
# colon of a clock time ends no name, but may stand in one: "AP CHEST, 10:11 A.M.:". Within a line only two names count,
# after other words than those of a longer name ("CT FINDINGS:"); XXXX is what Open-i has in the place of names.
_HEADER = re.compile(
    r"""
    ^[ \t]*(?P<name>[A-Z_](?:[A-Z0-9_ \t/,&()\#'.+-]|(?<=\d):(?=\d\d)|\b(?:at|on|[ap]\.?m)\b){1,80}?|[A-Za-z]{4,16})
    \s*:(?!(?<=\d:)\d\d)
    | (?<![A-WYZ])(?<!linical)\s+(?P<within>(?:FINDING|IMPRESSION|CONCLUSION)S?|(?:Finding|Impression|Conclusion)s?)\s*:
    """,
    re.MULTILINE | re.VERBOSE,
)
_TITLE = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_DIVIDER = re.compile(r"^[ \t]*(?:_{5,}[ \t]*$|(?P<name>WET READ|FINAL ADDENDUM)\b)", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")

_NAMES: dict[Kind, tuple[str, ...]] = {
    "findings": ("FINDINGS", "FINDING"),
    "impression": ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"),
    "comparison": ("COMPARISON", "COMPARISONS"),
    # written before the report was final, with what follows; and after it: neither is the report
    "before": ("WET", "PROVISIONAL", "PRELIMINARY"),
    "after": ("ADDENDUM", "NOTIFICATION", "COMMUNICATION", "CRITICAL", "RECOMMENDATION", "RECOMMENDATIONS"),
    "other": (
        *("EXAMINATION", "EXAM", "STUDY", "PROCEDURE", "INDICATION", "INDICATIONS", "HISTORY", "REASON"),
        *("CLINICAL", "TECHNIQUE", "DATE"),
    ),
    "view": ("CHEST", "RADIOGRAPH", "RADIOGRAPHS", "VIEW", "VIEWS", "PORTABLE", "FRONTAL", "LATERAL"),
}
_KIND_OF = {word: kind for kind, words in _NAMES.items() for word in words}
# "CLINICAL CORRELATION:" and "STUDY QUALITY:" stand in the findings, whatever their first word
_LABELS = re.compile(r"\b(?:CORRELATION|QUALITY|LIMITATIONS?)\b", re.IGNORECASE)
_TITLE_WORD = re.compile(
    r"\d+|[ap]?m|a|p|p?a|at?p?|on|of|and|the|in|x|ray|cxr|chest|films?|radiographs?|views?|exam|examination|study|lat|lateral|"
    r"frontal|single|one|two|portable|bedside|upright|supine|semi|semierect|erect|dated?|hours|hrs"
)


@dataclass(frozen=True)
class Caption:
    """What is taken from a report.

    Attributes:
        text: whitespace collapsed; empty when the report holds nothing usable.
        source: where it comes from, for the counts of a preparation.
    """

    text: str
    source: Origin


@dataclass(frozen=True)
class Sections:
    """Sections of a report, whitespace collapsed; empty where the report has none.

    Attributes:
        findings, impression, comparison: the last occurrence with content; "FINDINGS AND IMPRESSION" is findings.
        last_paragraph: the paragraphs under no section's name, or below the first one of another section.
    """

    findings: str
    impression: str
    comparison: str
    last_paragraph: str

    def caption(self) -> Caption:
        """Return the first of these that has `MIN_TOKENS`, else the first that is there.

        Findings and impression, one of them alone, the last paragraph, the comparison.
        """
        both = f"{self.findings} {self.impression}" if self.findings and self.impression else ""
        texts: list[tuple[str, Origin]] = [
            (both, "findings and impression"), (self.findings, "findings"), (self.impression, "impression"),
            (self.last_paragraph, "last paragraph"), (self.comparison, "comparison"),
        ]  # fmt: skip
        found = [Caption(text, source) for text, source in texts if text] or [Caption("", "nothing")]
        return next((item for item in found if num_tokens(item.text) >= MIN_TOKENS), found[0])


def parse_report(report: str) -> Sections:
    """Find the sections of a report as MIMIC-CXR and others write them; never fails, whatever the text."""
    report = report.replace("\r\n", "\n").replace("\r", "\n")
    title = _TITLE.search(report)
    found: dict[Kind, str] = {}
    last_paragraph, before = "", False
    for name, kind, body in _split(report[title.end() :] if title else report):
        text = collapse(body)
        before = kind == "before" or (before and name != "" and kind != "other")
        if before:
            continue
        if num_tokens(text) >= MIN_TOKENS and not _is_title(text) if kind == "view" else num_tokens(text):
            found[kind] = text
        if kind in ("other", "comparison", "label"):
            last_paragraph = _paragraphs(body, 1 if name else 0) or last_paragraph
    findings = found.get("findings") or found.get("view", "")
    return Sections(findings, found.get("impression", ""), found.get("comparison", ""), last_paragraph)


def collapse(text: str) -> str:
    """Return text with every run of whitespace as one blank."""
    return " ".join(text.split())


def num_tokens(text: str) -> int:
    """Return the number of alphanumeric tokens; the underscores of de-identification do not count."""
    return len(_tokens(text))


def _tokens(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _is_title(text: str) -> bool:
    """Return whether a text only says what was taken and when, such as "AP CHEST, 10:11 A.M., ___"."""
    return all(map(_TITLE_WORD.fullmatch, _tokens(text.lower())))


def _split(report: str) -> list[tuple[str, Kind, str]]:
    """Return (name, kind, body) of every section in order; what follows the start or a line has no name."""
    starts: list[tuple[int, int, str, Kind]] = [(0, 0, "", "label")]
    marks = [(match.start(), match.end(), match["name"] or "", False) for match in _DIVIDER.finditer(report)]
    for match in _HEADER.finditer(report):
        marks.append((match.start(), match.end(), match["name"] or match["within"], not match["name"]))
    for start, end, name, within in sorted(marks):
        kind = _kind(name) if name else "label"
        if start < starts[-1][1] or (name and _is_label(name, kind, starts[-1][3])):
            continue
        if within and kind == "impression" and starts[-1][2] == "":  # "Lungs clear. Impression: normal."
            starts[-1] = (*starts[-1][:3], "view")
        starts.append((start, end, name, kind))
    stops = [start for start, _, _, _ in starts[1:]] + [len(report)]
    return [(name, kind, report[end:stop]) for (_, end, name, kind), stop in zip(starts, stops, strict=True)]


def _is_label(name: str, kind: Kind, inside: Kind) -> bool:
    """Return whether a name starts no new section; within findings, "OTHER FINDINGS:" continues them."""
    if kind == "view":
        return inside in ("findings", "impression")
    more = kind == inside == "findings" and not name.strip(" _").upper().startswith("FIND")
    return kind == "label" or more


@lru_cache(maxsize=4096)
def _kind(name: str) -> Kind:
    """Return what a header stands for: its first known word, near spellings included ("IMPRESION"), views last."""
    if _LABELS.search(name):
        return "label"
    kinds: list[Kind] = []
    for word in re.findall(r"[A-Z]{3,}", name.upper()):
        near = get_close_matches(word, _KIND_OF, n=1, cutoff=0.85)
        kinds += [_KIND_OF[near[0]]] if near else []
    first = next((kind for kind in kinds if kind != "view"), None)
    # "Chest:" or "Views:" in running text is no header
    return first or ("view" if kinds and name == name.upper() else "label")


def _paragraphs(body: str, skip: int) -> str:
    """Return what lies between the first and the last paragraph that describes something, both included.

    Args:
        body: of a section.
        skip: paragraphs that are the value of the section's own header.
    """
    paragraphs = [collapse(part) for part in _PARAGRAPH.split(body)][skip:]
    useful = [place for place, part in enumerate(paragraphs) if not _is_title(part)]
    text = " ".join(paragraphs[useful[0] : useful[-1] + 1]) if useful else ""
    return collapse(text) if num_tokens(text) >= MIN_TOKENS else ""
