"""What commands load: those that only plan or list come without the libraries that take seconds to import."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from benchmark.cli import list as list_verb
from benchmark.files import ROOT

HEAVY = {
    "timm", "open_clip", "torchvision", "transformers", "peft", "pandas", "scipy", "sklearn", "matplotlib", "seaborn",
}  # fmt: skip
RUN = """
import json
import sys
from benchmark.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    try:
        codes.append(main(words))
    except SystemExit as ended:
        codes.append(ended.code)
print()
print(json.dumps([codes, [name for name in sys.modules if "." not in name]]))
"""


def loaded_by(*commands):
    """Return the exit codes of commands in one new process, and the packages that it has loaded in the end."""
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN, words], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    codes, packages = json.loads(done.stdout.splitlines()[-1])
    return codes, set(packages)


def test_help_wrong_words_and_lists_load_neither_torch_nor_pandas(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = list_verb._cached_at(argparse.Namespace(all=False, markdown=False))
    place.parent.mkdir(parents=True)
    place.write_text('{"rows": [], "columns": [], "cells": [], "remarks": [], "usable": []}')
    lists = ("methods", "methods --names", "tasks", "suites", "datasets", "backbones", "tables")
    codes, packages = loaded_by(
        "--help", "run --help", "--methos zero_shot", "--methods copo", *(f"list {words}" for words in lists)
    )
    assert codes == [0, 0, 2, 2, *[0] * len(lists)]
    assert packages.isdisjoint({"torch", *HEAVY})


def test_a_plan_needs_torch_alone(tmp_path):
    codes, packages = loaded_by(f"--dry-run --output-dir {tmp_path}")
    assert codes == [0]
    assert packages.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        ("--methods coop", "planning ..."),
        ("--dry-run --format sh", "planning ..."),
        ("validate", "looking at data, weights and hardware ..."),
        ("validate --json", "looking at data, weights and hardware ..."),
        ("report", "reading results ..."),
        ("compare coop taskres", "reading results ..."),
        ("check-method coop", "building models ..."),
        ("reproduce runs/a/b/c/seed-0", "reading the stored cell ..."),
    ],
)
def test_a_command_says_its_first_line_before_it_loads_anything_heavy(request_, line):
    code = """
import sys
from benchmark.console import Console
from benchmark.cli import main
loaded = lambda: ",".join(name for name in sys.modules if "." not in name)
Console.line = Console.note = lambda self, text: sys.exit(f"{text}|{loaded()}")
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *request_.split()], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    said, _, packages = done.stderr.strip().partition("|")
    assert said == line
    assert set(packages.split(",")).isdisjoint({"torch", *HEAVY})
