"""What a wheel installs runs every verb from an empty folder, with nothing of the checkout in reach."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from benchmark.cli._parser import verbs
from benchmark.files import ROOT

COPIED = (
    "benchmark",
    "methods",
    "tasks",
    "configs",
    "results/paper",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
CELL = "out/runs/phantom/tiny/clip_lora/seed-0"
SETTINGS = "--limit 64 --max-steps 1 --device cpu --jobs 1 --data-root data"
LONG = f"""
--methods zero_shot,clip_lora --tasks zeroshot {SETTINGS} --output-dir out
report --output-dir out --tables all
compare zero_shot clip_lora --output-dir out
reproduce {CELL} --data-root data
export-adapter {CELL} --to adapter
import-adapter adapter --method clip_lora --to again
check-method text_gain.py
efficiency --methods zero_shot --backbone tiny --output-dir costs --rounds 1
"""
SHORT = """
list methods --names
list suites
list tables
list backbones
list schema --output schema
new-method text_gain
prepare
prepare rsna --raw nowhere --data-root data
validate --suite nowhere
--suite radiology --methods clip_lora --dry-run --data-root data
convert
new-suite nowhere.csv
report --output-dir nowhere
compare a b --output-dir nowhere
reproduce nowhere
export-adapter nowhere --to adapter
import-adapter nowhere --method clip_lora --to again
check-method nowhere.py
efficiency --backbone nowhere
--config configs/experiments/table_1.yaml --dry-run --data-root data
--dry-run --format sh --methods clip_lora
--print-completion bash
"""
"""Files of a wheel that a verb reads before it works: settings, schemas, templates, records, the paper's numbers."""
REFUSED = ("prepare rsna", "convert", *(x for x in SHORT.splitlines() if "nowhere" in x))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what a wheel holds, as pip unpacks it."""
    setuptools = pytest.importorskip("setuptools.build_meta")
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in COPIED:
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, place, ignore=skip) if (ROOT / name).is_dir() else shutil.copy(
            ROOT / name, place
        )
    with contextlib.chdir(source), contextlib.redirect_stdout(io.StringIO()):
        wheel = setuptools.build_wheel(str(wheels))
    with zipfile.ZipFile(wheels / wheel) as archive:
        archive.extractall(wheels / "site")
    return wheels / "site"


def run(site, folder, commands):
    """Run commands in one process, in an empty folder, and hold their exit codes."""
    lines = [line for line in commands.splitlines() if line]
    script = f"""
import shlex
from benchmark import files
from benchmark.cli import main
assert str(files.ROOT) == {str(site)!r} and files.PROGRAM == "medpeft-bench"
for line in {lines!r}:
    print("@@", line, flush=True)
    print("@=", main(shlex.split(line)), flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder / "cache")}
    (folder / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder / "empty", env=environment, capture_output=True, text=True,
        timeout=1200, check=False,
    )  # fmt: skip
    parts = [part.partition("\n") for part in ("\n" + done.stdout).split("\n@@ ")[1:]]
    codes = {head: int(said.rpartition("@= ")[2]) for head, _, said in parts}
    wanted = {line: 2 if line.startswith(REFUSED) else 0 for line in lines}
    assert codes == wanted, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "run_benchmark.py" not in done.stdout + done.stderr


def test_every_verb_finds_its_files_where_a_wheel_is_installed(site, tmp_path):
    assert {line.split()[0] for line in SHORT.splitlines() if line} >= set(verbs()) - {"run"}
    run(site, tmp_path, SHORT)


@pytest.mark.skipif("MEDPEFT_LONG" not in os.environ, reason="takes a minute: set MEDPEFT_LONG to run it")
def test_every_verb_works_where_a_wheel_is_installed(site, tmp_path):
    run(site, tmp_path, "new-method text_gain\n" + LONG)
    assert (tmp_path / "empty/out/report/index.html").is_file()
