"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import methods
from benchmark.conformance.checks import run_checks
from benchmark.files import ROOT
from benchmark.registry import load_plugins

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_example_method_is_a_plugin_that_conforms(tmp_path: Path) -> None:
    (tmp_path / "text_gain.py").write_text(BLOCKS[0])
    assert load_plugins([str(tmp_path / "text_gain.py")]) == []
    failed = [v for v in run_checks(lambda backbone: methods.build("text_gain", backbone)) if v.reason]
    assert not failed


def test_the_python_example_runs(capsys) -> None:
    torch.manual_seed(0)
    exec(BLOCKS[1], {})
    assert capsys.readouterr().out.strip().endswith("trained values")


def test_ci_uses_the_readmes_commands() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ('pip install -e ".[dev]"', "python -m pytest -q -n 2", "--methods all --tasks zeroshot"):
        assert command in readme
        assert command.removeprefix("pip install ") in ci
