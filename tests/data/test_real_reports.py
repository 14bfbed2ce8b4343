"""The report parser on every real report at hand: 3,955 of Open-i in MIMIC-CXR's layout, and 1,000 of CT."""

from __future__ import annotations

import csv
import tarfile
import textwrap
from collections import Counter
from xml.etree import ElementTree

import pytest

from benchmark.data.prepare.reports import MIN_TOKENS, collapse, num_tokens, parse_report
from tests.data import real

NAMES = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
MIMIC = f"""\
 WET READ: ___ ___ ___ 9:10 PM
  IMPRESSION: Large effusion, which the final report does not mention.
 {"_" * 78}
                                 FINAL REPORT
 {{title}}

 HISTORY:  {{INDICATION}}

 COMPARISON:  {{COMPARISON}}

 {{findings}}

 {{impression}}
"""
TITLES = ("AP CHEST, 10:11 A.M., ___", "CHEST, PA AND LATERAL:  ___ AT 07:45 HOURS", "PORTABLE CHEST FILM")


@pytest.fixture(scope="module")
def openi() -> dict[str, dict[str, str]]:
    """Report -> section -> text, of all of Open-i."""
    found = {}
    with tarfile.open(real.tables() / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                root = ElementTree.parse(archive.extractfile(member)).getroot()
                texts = {item.get("Label"): collapse(item.text or "") for item in root.iter("AbstractText")}
                found[member.name] = {name: texts[name] for name in NAMES}
    assert len(found) == 3955
    return found


def wrapped(text: str) -> str:
    return "\n ".join(textwrap.wrap(text, 78, break_on_hyphens=False, break_long_words=False))


def said(sections: dict[str, str]) -> str:
    return collapse(f"{sections['FINDINGS']} {sections['IMPRESSION']}")


def compared(reports: dict[str, dict[str, str]], layout) -> tuple[Counter[str], dict[str, str]]:
    """Return how often a caption is taken from what, and report -> caption where it is not what the report says."""
    sources: Counter[str] = Counter()
    other = {}
    for i, (name, sections) in enumerate(reports.items()):
        caption = parse_report(layout(i, sections)).caption()
        sources[caption.source] += 1
        if caption.text != said(sections):
            other[name.rpartition("/")[2]] = caption.text
    return sources, other


def test_every_openi_report_comes_back_out_of_the_layout_of_mimic(openi) -> None:
    def layout(i: int, sections: dict[str, str]) -> str:
        parts = {name: wrapped(text) for name, text in sections.items()}
        findings, impression = f"FINDINGS: \n\n {parts['FINDINGS']}", f"IMPRESSION:  {parts['IMPRESSION']}"
        return MIMIC.format(title=TITLES[i % 3], findings=findings, impression=impression, **parts)

    sources, other = compared(openi, layout)
    assert sources == {"findings and impression": 3419, "impression": 502, "findings": 6, "nothing": 28}
    # one impression holds the whole report a second time
    assert list(other) == ["2415.xml"]
    assert other["2415.xml"].count("The heart is mildly enlarged") == 1


def test_every_openi_report_comes_back_out_of_one_line(openi) -> None:
    def layout(i: int, sections: dict[str, str]) -> str:
        names = [(name, name.capitalize())[i % 2] for name in ("FINDINGS", "IMPRESSION")]
        return collapse(" ".join(f"{name}: {sections[name.upper()]}" for name in names))

    sources, other = compared(openi, layout)
    assert sources == {"findings and impression": 3418, "impression": 502, "findings": 7, "nothing": 28}
    # "... in the Left sided SVC IMPRESSION: ..." ends no sentence, and looks like a longer name
    assert sorted(other) == ["2415.xml", "2756.xml"]


def test_every_openi_report_comes_back_without_names_of_sections(openi) -> None:
    def layout(i: int, sections: dict[str, str]) -> str:
        parts = {name: wrapped(text) for name, text in sections.items()}
        return MIMIC.format(
            title=TITLES[i % 3], findings=parts["FINDINGS"], impression=parts["IMPRESSION"], **parts
        )

    sources, other = compared(openi, layout)
    assert sources == {"last paragraph": 3926, "findings and impression": 1, "nothing": 28}
    # "AP and lateral view of the chest." is all of the findings of one report
    assert sorted(other) == ["202.xml", "2415.xml"]


def test_no_caption_is_short_where_the_report_says_more(openi) -> None:
    short = [name for name, sections in openi.items() if num_tokens(said(sections)) < MIN_TOKENS]
    assert len(short) == 28  # their findings and impression are empty
    assert not any(said(openi[name]) for name in short)


def test_every_ct_report_is_its_caption_whole() -> None:
    folder, texts = real.folder("ct_tables"), []
    for part in ("train", "val"):
        with (folder / f"ct_reports_{part}.csv").open(newline="", encoding="utf-8") as file:
            texts += [row["report_text"] for row in csv.DictReader(file)]
    captions = [parse_report(text).caption() for text in texts]
    assert len(captions) == 1000
    sources = Counter(caption.source for caption in captions)
    assert sources == {"last paragraph": 998, "comparison": 1, "findings and impression": 1}
    for text, caption in zip(texts, captions, strict=True):
        name = {"comparison": "Comparison: ", "findings and impression": "CONCLUSION: "}.get(
            caption.source, ""
        )
        assert caption.text == collapse(text).replace(name, "", 1)
    assert min(num_tokens(caption.text) for caption in captions) > 50
