"""What a table answers: how methods stand, who is best, and sentences that agree with the numbers."""

from __future__ import annotations

import pytest

from benchmark.report.collect import collect_blocks
from benchmark.report.paper import load_paper
from benchmark.report.report import read_report
from benchmark.report.significance.comparisons import block_tests
from benchmark.report.significance.decision import decide, nearest_end

FILMS, SLIDES = "Wide film set", "Slides"


@pytest.fixture(scope="module")
def blocks(decided):
    return {base: collect_blocks(decided, load_paper(), baseline=base)[0] for base in (None, "full_ft")}


def test_standings_count_the_verdicts_of_the_paired_tests(blocks):
    decision, tests = decide(blocks[None]), block_tests(blocks[None])
    assert decision.base.method == "zero_shot"
    for one in decision.standings:
        for sign in ("better", "worse"):
            verdicts = [tests.against(one.row.cell, key).verdict for key in decision.keys]
            assert one.count(sign) == verdicts.count(sign)
    signs = {one.row.method: [one.signs[key] for key in decision.keys] for one in decision.standings}
    assert signs == {
        "clip_adapter": ["better"] * 4,
        "full_ft": ["better", "better", "worse", "worse"],
        "taskres": ["tied"] * 4,
        "peft:dora": ["worse"] * 4,
    }
    assert [one.row.method for one in decision.standings] == [
        "clip_adapter",
        "full_ft",
        "taskres",
        "peft:dora",
    ]
    assert [one.row.method for one in decision.choices] == ["clip_adapter"]


def test_by_how_much_at_least_is_the_nearest_end_of_the_smallest_interval(blocks):
    decision = decide(blocks[None])
    first = decision.standings[0]
    ends = [nearest_end(one) for one in first.tests.values()]
    assert first.least("better") == f"{100 * min(ends):.1f}"
    assert all(end <= abs(one.difference) for end, one in zip(ends, first.tests.values(), strict=True))
    assert first.text == f"better in 4 of 4 (by {first.least('better')} or more)"
    alike = decision.standings[2]
    assert alike.least("worse") == ""
    assert alike.text == "no difference that matters in 4"


def test_the_best_of_a_column_and_its_ties_are_those_of_the_tests(blocks):
    decision = decide(blocks[None])
    for one in decision.best:
        values = {row.cell: row.scores[one.key].value for row in decision.tests.rows}
        assert one.row.cell == max(values, key=values.get)
        assert {row.cell for row in one.tied} == decision.tests.tied_with_best(one.key) - {one.row.cell}
        assert [values[row.cell] for row in one.tied] == sorted(
            (values[row.cell] for row in one.tied), reverse=True
        )


def test_sentences_name_the_choice_the_leaders_and_the_cost(blocks):
    decision = decide(blocks[None])
    said, leaders = " ".join(decision.sentences), dict(decision.leaders())
    assert decision.sentences[0].startswith(
        f"CLIP-Adapter is better than Zero-shot in 4 of 4 columns (by {decision.standings[0].least('better')} or more)"
    )
    assert "worse in none" in decision.sentences[0]
    for what, row in leaders.items():
        assert what in decision.sentences[1]
        assert row.title in decision.sentences[1]
    assert "trains 4,609 values (0.46 % of the model)" in said
    assert "One seed" in said  # that of peft:dora


def test_without_a_choice_the_sentence_says_that_the_test_set_decides(blocks):
    decision = decide(blocks["full_ft"])  # the others gain on slides and lose on films
    assert decision.choices == ()
    assert decision.sentences[0].startswith("No method is better than Full FT")
    assert "the test set decides" in decision.sentences[0]


def test_markdown_and_screen_say_the_same_sentences(decided):
    report = read_report(decided)
    (table, *_) = report.rendered
    report.write(["md"])
    text = (decided / "report" / "table_1.md").read_text().replace("\\", "")
    for sentence in table.decision.sentences:
        assert sentence in text
    for one in table.decision.standings:
        assert f"- {one.row.title}: {one.text}" in text
