"""A package of somebody else adds a method by its entry point; nothing of ours is edited or installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.files import ROOT
from tests.test_docs import SUITE

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

SAMPLE = Path(__file__).parent / "sample"
END = "-- end --"
COMMANDS = (
    "list methods --names",
    "check-method image_bias --only count merge towers copy",
    "--methods image_bias --suite small.yaml --max-steps 2 --jobs 1 --device cpu --cell image_bias/seed-0",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder like site-packages after ``pip install tests/plugins/sample``: the module and its metadata."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((SAMPLE / "pyproject.toml").read_text())["project"]
    (folder / "medpeft_sample.py").write_bytes((SAMPLE / "medpeft_sample.py").read_bytes())
    info = folder / f"medpeft_sample-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in members.items())
        for group, members in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def said(site, folder) -> list[str]:
    """What three commands print in one process, with the sample on the path."""
    (folder / "small.yaml").write_text(SUITE)
    code = "from benchmark.cli import main\n" + "".join(
        f"assert main({words.split()}) == 0\nprint({END!r})\n" for words in COMMANDS
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(END)


def test_it_is_listed(said):
    assert "image_bias" in said[0]


def test_it_conforms(said):
    assert said[1].count(" ok\n") == 8


def test_it_runs_beside_ours(said, folder):
    assert "1 cells: 1 done" in said[2]
    assert (folder / "results/runs/small/tiny/image_bias/seed-0/adapter.safetensors").is_file()


def test_it_costs_at_most_60_lines():
    assert (SAMPLE / "medpeft_sample.py").read_text().count("\n") <= 60
