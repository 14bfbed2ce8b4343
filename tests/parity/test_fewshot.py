"""Few-shot methods, draws and harmonic means against what their authors' code gave (tests/golden/fewshot.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import fewshot

FILE = Path(fewshot.__file__).with_name("fewshot_a.json")


@pytest.fixture(scope="module")
def compared() -> fewshot.Comparison:
    return fewshot.compare(FILE)


def test_every_output_agrees_within_its_tolerance(compared: fewshot.Comparison) -> None:
    assert {name: ratio for name, ratio in compared.ratios.items() if not ratio <= 1} == {}
    assert len(compared.ratios) == 332


def test_only_what_no_method_makes_is_skipped(compared: fewshot.Comparison) -> None:
    skipped = dict(fewshot.reasons(compared))
    assert len(skipped) == 8
    assert "nothing here makes it" not in skipped.values()


def test_a_difference_is_told_and_ends_with_1(
    compared: fewshot.Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shifted(file: fewshot.Comparison) -> None:
        file.same("sstext.weights", file["sstext.weights"] + 1)
        file.same("clap.a_c", file["clap.a_c"])

    monkeypatch.setattr(fewshot, "GROUPS", [shifted])
    assert fewshot.main([str(FILE)]) == 1
    told = capsys.readouterr().out
    assert "differs sstext.weights: 1.32e+03 times its tolerance" in told
    assert "2 tensors compared, worst 1.32e+03 of its tolerance (sstext.weights)" in told
    assert "skipped lpp.lr_w: nothing here makes it" in told
    assert fewshot.main([]) == 2
