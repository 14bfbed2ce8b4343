"""The Dockerfile copies files that exist; the docs build as a site without a warning."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from benchmark.files import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_installs_the_lock_and_copies_what_is_there():
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    words = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}
    assert {line.split()[0] for line in lines} == words
    copied = [path for line in lines if line.startswith("COPY") for path in line.split()[1:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    packages = re.search(r"include = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())[1]
    assert set(re.findall(r'"(\w+)\*"', packages)) <= set(copied)
    assert "--require-hashes --no-deps -r results/reference/requirements.lock" in DOCKERFILE
    python = re.search(r"Python (\d+\.\d+)", (ROOT / "results/reference/requirements.lock").read_text())[1]
    assert f"FROM python:{python}-" in DOCKERFILE


def test_every_page_is_on_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {
        page
        for item in nav
        for entry in item.values()
        for page in ([entry] if isinstance(entry, str) else entry)
    }
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md"}


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eleven methods" in (tmp_path / "site" / "index.html").read_text()
