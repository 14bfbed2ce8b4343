"""The verb check-method: one readable line per check, and a reason where one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.conformance import checks

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
NAMES = ("declared parameter count", "identity at initialisation")


@pytest.fixture(autouse=True)
def two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {name: checks.CHECKS[name] for name in NAMES})


def test_a_conforming_method_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-method", "TaskRes"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()  # the first says what begins
    assert len(lines) == 4
    assert all(line.startswith("taskres") and line.endswith("ok") for line in lines)


def test_a_broken_file_fails_with_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    assert main(["check-method", str(file)]) == 1
    out, err = capsys.readouterr()
    assert "trains 64 values, its formula says 3" in out
    assert "text features at the start: differs by" in out
    assert "not conforming: broken" in err


def test_words_select_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-method", "taskres", "--only", "count"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()  # the first says what begins
    assert [line.split("  ")[0] for line in lines] == ["taskres"] * 2
    assert all("declared parameter count" in line for line in lines)


def test_options_reach_the_method_in_their_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        checks,
        "CHECKS",
        {"look": lambda build, family: seen.append(build(checks.small_backbone(family)))},
    )
    words = ["r=2", "params=q,v", "lora_alpha=0.5", "logit_scale=frozen"]
    assert main(["check-method", "clip_lora", *words]) == 0
    assert len(seen) == 2
    assert all((m.options.r, m.options.params, m.options.lora_alpha) == (2, ("q", "v"), 0.5) for m in seen)
    assert all(m.logit_scale.mode == "frozen" for m in seen)


def test_a_member_of_a_family_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-method", "peft:lora", "r=2", "--only", "count"]) == 0
    assert "peft:lora" in capsys.readouterr().out


def test_an_error_of_a_plugin_names_file_and_line(tmp_path, capsys):
    code = (
        "from benchmark.registry import register_method\nfrom methods.base import Method, MethodCard\n\n\n"
        '@register_method("faulty")\nclass Faulty(Method):\n'
        '    card = MethodCard(title="F", paper="p", equation="e", trains="nothing", count="0")\n'
        "    identity_at_init = True\n\n"
        "    def text_head(self, features):\n        return features + self.absent\n"
    )
    file = tmp_path / "faulty.py"
    file.write_text(code)
    assert main(["check-method", str(file), "--only", "identity"]) == 1
    said = capsys.readouterr().out
    assert "AttributeError" in said
    assert "faulty.py, line 11)" in said
    other = tmp_path / "absent.py"
    other.write_text(code.replace("card =", "card = missing_name or").replace('"faulty"', '"absent"'))
    assert main(["check-method", str(other)]) == 2
    assert "absent.py, line 7)" in capsys.readouterr().err
