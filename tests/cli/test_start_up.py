"""What commands load: those that only plan or list come without the libraries that take seconds to import."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from benchmark.cli import list as list_verb
from benchmark.files import ROOT

HEAVY = (
    "timm",
    "open_clip",
    "torchvision",
    "transformers",
    "peft",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
)
LOADED = """
import sys
from benchmark.cli import main
try:
    raise SystemExit(main(sys.argv[1:]))
finally:
    print("\\nloaded", *(name for name in sys.modules if "." not in name))
"""


@pytest.mark.parametrize(
    ("words", "code", "heavy"),
    [
        (["--help"], 0, ("torch", *HEAVY)),
        (["run", "--help"], 0, ("torch", *HEAVY)),
        (["--methos", "zero_shot"], 2, ("torch", *HEAVY)),
        (["--methods", "copo"], 2, ("torch", *HEAVY)),
        (["list", "methods", "--names"], 0, ("torch", *HEAVY)),
        (["list", "tables"], 0, ("torch", *HEAVY)),
        (["--dry-run"], 0, HEAVY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_loads_no_more_than_it_needs(words, code, heavy):
    assert loaded_by(words, code).isdisjoint(heavy)


def test_what_methods_can_do_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = list_verb._cached_at(argparse.Namespace(all=False, markdown=False))
    place.parent.mkdir(parents=True)
    place.write_text('{"rows": [], "columns": [], "cells": [], "remarks": [], "usable": []}')
    assert loaded_by(["list", "methods"], 0).isdisjoint(("torch", *HEAVY))


def loaded_by(words, code):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "benchmark" in loaded
    return loaded
