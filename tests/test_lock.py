"""The lock file beside the reference results: the versions that made them, in the ranges of the project, all hashed."""

from __future__ import annotations

import json
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmark.files import ROOT

REFERENCE = ROOT / "results" / "reference"
LOCK = (REFERENCE / "requirements.lock").read_text(encoding="ascii")
LINE = re.compile(r"([a-z0-9-]+)==([0-9][0-9A-Za-z.]*) --hash=sha256:([0-9a-f]{64})")
PINS = {found[1]: found[2] for found in map(LINE.fullmatch, LOCK.splitlines()) if found}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_line_is_a_version_with_its_hash():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert len(PINS) == len(lines) > 50
    assert list(PINS) == sorted(PINS)
    assert len(set(re.findall(r"sha256:(\w+)", LOCK))) == len(lines)
    assert "://" not in LOCK


def dependencies():
    section = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, flags=re.M | re.S)[1]
    return [Requirement(text) for text in re.findall(r'^\s*"([^"]+)"', section, flags=re.M)]


def test_it_holds_what_the_project_needs_within_its_ranges():
    wanted = dependencies()
    assert len(wanted) > 12
    for needed in wanted:
        assert needed.specifier.contains(PINS[canonicalize_name(needed.name)]), needed.name


def test_it_is_the_environment_of_the_reference_results():
    provenance = json.loads((REFERENCE / "phantom" / "provenance.json").read_text(encoding="utf-8"))
    versions = {canonicalize_name(name): version for name, version in provenance["packages"].items()}
    assert {name: PINS[name] for name in versions} == versions
    python, platform = provenance["python"], provenance["platform"]
    assert LOCK.startswith(f"# The packages behind results/reference/: Python {python} on {platform}")
