"""The report parser: sections as MIMIC-CXR writes them, odd cases included, and nothing that is not in the report."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.data.reports import collapse, num_tokens, parse_report

USUAL = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 COMPARISON:  None.

 FINDINGS: 

 There is no focal consolidation.  The heart
 is normal.

 IMPRESSION: 

 No acute process.
"""  # noqa: W291  as PhysioNet has it


def test_the_usual_report():
    sections = parse_report(USUAL)
    assert sections.findings == "There is no focal consolidation. The heart is normal."
    assert sections.impression == "No acute process."
    assert sections.comparison == "None."
    assert sections.caption().text == f"{sections.findings} {sections.impression}"
    assert sections.caption().source == "findings and impression"


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("FINDINGS: a b\nIMPRESSION: c d", "a b", "c d"),
        ("Findings: a b\nImpression: c d", "a b", "c d"),
        ("FINDNGS: a b\nIMPRESION: c d", "a b", "c d"),
        ("FINDINGS\n:\n a b\n\n IMPRESSION \n : c d", "a b", "c d"),
        ("FINDING: a b\nCONCLUSION: c d", "a b", "c d"),
        ("FINDINGS: old\nFINDINGS: new\nIMPRESSION: first\nIMPRESSION: ___", "new", "first"),
        ("FINDINGS AND IMPRESSION: a b", "a b", ""),
        ("FINDINGS/IMPRESSION:\n a b", "a b", ""),
        ("___ FINDINGS: a b\nIMPRESSION:___ c d", "a b", "___ c d"),
        ("FINDINGS: \nLUNGS: clear.\nHEART: big.\nIMPRESSION: c d", "LUNGS: clear. HEART: big.", "c d"),
        (
            "IMPRESSION:  AP chest compared to ___:\n\n Clear lungs.",
            "",
            "AP chest compared to ___: Clear lungs.",
        ),
        ("FINDINGS: a b\r\nIMPRESSION: c d\r\nNOTIFICATION: told to Dr. X", "a b", "c d"),
        ("IMPRESSION: c d\n ADDENDUM: corrected by phone", "", "c d"),
        ("IMPRESSION: c d\nRECOMMENDATION(S): repeat in a week", "", "c d"),
        (
            "CHEST, TWO VIEWS: ___\n\n Both lungs are clear.\n IMPRESSION: c d",
            "___ Both lungs are clear.",
            "c d",
        ),
        ("PORTABLE CHEST: ___\n FINDINGS: a b", "a b", ""),
    ],
)
def test_odd_sections(report, findings, impression):
    sections = parse_report(report)
    assert (sections.findings, sections.impression) == (findings, impression)


def test_a_wet_read_is_not_the_report():
    report = """\
 WET READ: ___ ___ ___ 9:10 PM
  Large effusion on the left side.
 ______________________________________________________________________________
                                 FINAL REPORT
 HISTORY:  Fever.

 Both lungs are clear today.
"""
    caption = parse_report(report).caption()
    assert caption.text == "Both lungs are clear today."
    assert caption.source == "last paragraph"


@pytest.mark.parametrize(
    ("report", "text", "source"),
    [
        ("FINDINGS: a b c", "a b c", "findings"),
        ("IMPRESSION: a b c", "a b c", "impression"),
        (
            "FINAL REPORT\n INDICATION: cough\n\n One thing here.\n\n Lungs are clear.\n\n ___",
            "Lungs are clear.",
            "last paragraph",
        ),
        (
            "INDICATION: cough and fever today\n COMPARISON: lungs are clear as before",
            "lungs are clear as before",
            "comparison",
        ),
        ("INDICATION: cough and fever today", "", "nothing"),
        ("no headers at all here", "no headers at all here", "last paragraph"),
        ("___", "", "nothing"),
        ("", "", "nothing"),
    ],
)
def test_what_a_caption_is_taken_from(report, text, source):
    caption = parse_report(report).caption()
    assert (caption.text, caption.source) == (text, source)


def test_tokens_are_words_and_numbers_but_not_the_underscores_of_deidentification():
    assert num_tokens("No ___ change, 2 cm.") == 4
    assert num_tokens("___ _____ .") == 0


words = st.sampled_from(
    [
        "FINDINGS",
        "IMPRESSION",
        ":",
        "\n",
        " ",
        "___",
        "COMPARISON:",
        "lungs clear.",
        "WET READ:",
        "FINAL REPORT\n",
        "\r",
        "LUNGS:",
    ]
    + [
        "_" * 70,
        "CHEST, AP:",
        "Impression:",
        "\n\n",
        "heart of normal size",
        "ADDENDUM:",
        "\t",
        "FINDINGS AND IMPRESSION:",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=300), st.lists(words, max_size=40).map("".join)))
def test_whatever_the_text_every_section_is_a_stretch_of_it(report):
    sections = parse_report(report)
    for text in (sections.findings, sections.impression, sections.comparison, sections.last_paragraph):
        assert text in collapse(report)
    assert (sections.caption().text == "") == (sections.caption().source == "nothing")
