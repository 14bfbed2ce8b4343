"""The verb check-method: one readable line per check, and a reason where one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import conformance
from benchmark.cli import main

BROKEN = '''
"""A method that trains a frozen tensor behind everybody's back."""
import torch
from torch import nn
from benchmark.registry import register_method
from methods.base import Method, MethodCard


@register_method("broken", in_all=False)
class Broken(Method):
    card = MethodCard(title="Broken", paper="-", equation="-", trains="-", count="3")
    identity_at_init = True

    def setup(self):
        self.text = nn.ParameterDict({"bias": nn.Parameter(torch.ones(self.backbone.embed_dim))})

    def text_head(self, features):
        return features + self.text["bias"]

    def expected_parameters(self):
        return 3
'''


@pytest.fixture(autouse=True)
def two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("declared parameter count", "identity at initialisation")
    monkeypatch.setattr(conformance, "CHECKS", {name: conformance.CHECKS[name] for name in names})


def test_a_conforming_method_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-method", "TaskRes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("taskres") and line.endswith("ok") for line in lines)


def test_a_broken_file_fails_with_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    assert main(["check-method", str(file)]) == 1
    out, err = capsys.readouterr()
    assert "trains 96 values, its formula says 3" in out
    assert "text features at the start: differs by" in out
    assert "not conforming: broken" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "say which method"), (["taskrez"], "Did you mean 'taskres'"), (["/no/such.py"], "does not exist")],
)
def test_wrong_requests(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-method", *words]) == 2
    assert says in capsys.readouterr().err
