"""The report parser: sections as MIMIC-CXR writes them, odd cases included, and nothing that is not in the report."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.data.prepare.reports import collapse, num_tokens, parse_report

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
        ("FINDINGS:\n\n CLINICAL CORRELATION: a b\n\n IMPRESSION: c d", "CLINICAL CORRELATION: a b", "c d"),
        (
            "FINDINGS: a b.\nOTHER FINDINGS: e f.\nSTUDY QUALITY: good.",
            "a b. OTHER FINDINGS: e f. STUDY QUALITY: good.",
            "",
        ),
        ("FINDINGS: a b.  Impression: c d.", "a b.", "c d."),
        ("FINDINGS: a b. Impression: c\nd.\n\nIMPRESSION: c d.", "a b.", "c d."),
        ("EXAM: CHEST History: Dyspnea FINDINGS: a b. IMPRESSION: c d.", "a b.", "c d."),
        ("IMPRESSION: no change from the CT FINDINGS: c d", "", "no change from the CT FINDINGS: c d"),
        ("FINDINGS: a b\nCOMMUNICATION OF FINDINGS: told to Dr. X", "a b", ""),
        ("IMPRESSION AND RECOMMENDATIONS: c d", "", "c d"),
        ("Lungs are clear. Impression: c d", "Lungs are clear.", "c d"),
        ("AP CHEST, ___\n\n HISTORY: Fever. CONCLUSION: c d", "", "c d"),
        ("CLINICAL IMPRESSION: pneumonia\nFINDINGS: a b", "a b", ""),
    ],
)
def test_odd_sections(report, findings, impression):
    sections = parse_report(report)
    assert (sections.findings, sections.impression) == (findings, impression)


WET = """\
 WET READ: ___ ___ ___ 9:10 PM
  {wet}
 ______________________________________________________________________________
                                 FINAL REPORT
 HISTORY:  Fever.

 Both lungs are clear today.
"""


@pytest.mark.parametrize(
    "wet",
    [
        "Large effusion on the left side.",
        "IMPRESSION: Large effusion on the left side.",
        "COMPARISON: ___\n FINDINGS: Large effusion.\n\n EXAMINATION: chest\n\n It is on the left side.",
    ],
)
@pytest.mark.parametrize(
    "start", ["WET READ:", "WET READ VERSION #1", "PROVISIONAL FINDINGS IMPRESSION (PFI):"]
)
def test_a_read_before_the_final_report_is_not_the_report(wet, start):
    report = WET.format(wet=wet).replace("WET READ:", start)
    caption = parse_report(report).caption()
    assert (caption.text, caption.source) == ("Both lungs are clear today.", "last paragraph")
    without_title = report.replace("FINAL REPORT", "")
    assert parse_report(without_title).caption().text == "Both lungs are clear today."
    last = "IMPRESSION: Clear lungs today.\n\n" + report.partition("____")[0]
    assert parse_report(last).caption().text == "Clear lungs today."


CLOCK = """\
                                 FINAL REPORT
 {title}

 HISTORY:  Hypoxia.

 {rest}
"""


@pytest.mark.parametrize(
    "title",
    [
        "AP CHEST, 10:11 A.M., ___",
        "AP CHEST, ___, 10:11 A.M.:",
        "PORTABLE CHEST, ___ at 10:11 a.m.:",
        "CHEST RADIOGRAPH:  10:11 A.M. ON ___",
        "CHEST, TWO VIEWS:  ___ AT 07:45 HOURS",
        "Portable AP chest radiograph, ___ at 10:11.",
    ],
)
@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ("Both lungs are clear.  No effusion.", "Both lungs are clear. No effusion."),
        ("FINDINGS: Both lungs are clear.", "Both lungs are clear."),
        ("IMPRESSION:  AP chest compared to ___ 9:15 a.m.:\n\n Edema is new.",
         "AP chest compared to ___ 9:15 a.m.: Edema is new."),
        ("COMPARISON:  Chest of ___,\n 10:11 A.M.", ""),
    ],
)  # fmt: skip
def test_a_clock_time_opens_no_section_and_a_title_describes_nothing(title, rest, text):
    sections = parse_report(CLOCK.format(title=title, rest=rest))
    assert sections.last_paragraph + sections.findings + sections.impression == text


def test_a_section_may_be_named_with_a_clock_time():
    report = "AP CHEST, 10:11 A.M., ___:\n\n Both lungs are clear.\n\n IMPRESSION: No edema."
    assert parse_report(report).caption().text == "Both lungs are clear. No edema."


def test_all_paragraphs_below_a_header_are_the_report():
    report = """\
 PORTABLE CHEST FILM

 HISTORY:  Fever
 and cough.

 Moderate cardiomegaly is stable.

 ___

 Dr. ___ was told at 10:11 a.m.
"""
    assert parse_report(report).caption().text == (
        "Moderate cardiomegaly is stable. ___ Dr. ___ was told at 10:11 a.m."
    )


@pytest.mark.parametrize(
    ("report", "text", "source"),
    [
        ("FINDINGS: a b c", "a b c", "findings"),
        ("IMPRESSION: a b c", "a b c", "impression"),
        (
            "FINAL REPORT\n INDICATION: cough\n\n ___\n\n Lungs are clear.\n\n ___",
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
        "AP CHEST, 10:11 A.M.",
        "  FINDINGS: ",
        ". Impression: ",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=300), st.lists(words, max_size=40).map("".join)))
def test_whatever_the_text_every_section_is_a_stretch_of_it(report):
    sections = parse_report(report)
    for text in (sections.findings, sections.impression, sections.comparison, sections.last_paragraph):
        assert text in collapse(report)
    assert (sections.caption().text == "") == (sections.caption().source == "nothing")
