"""JSON Schemas: the shipped files satisfy them, they are up to date, and they find what a user mistypes."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from benchmark.cli import main
from benchmark.files import ROOT, configs, parse_yaml

FOLDERS = {"suite": "suites", "experiment": "experiments", "method": "methods", "run": "."}
FILES = [(kind, path) for kind, folder in FOLDERS.items() for path in sorted(configs(folder).glob("*.yaml"))]


def problems(kind, content):
    schema = json.loads(configs("schema", f"{kind}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(content)]


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_shipped_files_name_their_schema_and_satisfy_it(kind, path):
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).is_file()
    assert first.endswith(f"schema/{kind}.json")
    assert problems(kind, parse_yaml(path.read_text())) == []


def test_the_stored_schemas_are_those_of_the_declarations(tmp_path):
    command = [sys.executable, str(ROOT / "run_benchmark.py"), "list", "schema", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    for path in configs("schema").glob("*.json"):
        assert (tmp_path / path.name).read_text() == path.read_text(), (
            f"run: list schema --output {path.parent}"
        )


@pytest.mark.parametrize(
    ("kind", "text", "place"),
    [
        ("suite", "corpsu: {}", "$"),
        ("suite", "recipe: {lr: -1}", "$.recipe"),
        ("suite", "methods: {coop: {recipe: {authors: {epochs: 0}}}}", "$.methods.coop"),
        ("suite", "methods: {coop: {n_ctxx: 4}}", "$.methods.coop"),
        ("suite", "tasks: {zeroshot: {bootstrap: many}}", "$.tasks.zeroshot"),
        ("suite", "corpus: {dataset: phantom, prt: mimic}", "$.corpus"),
        ("run", "seeds: [-1]", "$.seeds"),
        ("run", "device: 3", "$.device"),
        ("method", "recipe: {authors: {optimiser: adamax}}", "$.recipe"),
        ("experiment", "experiment: {id: X, kind: tabel, tasks: {zeroshot: [acc]}}", "$.experiment.kind"),
        ("experiment", "seeds: [0]", "$"),
    ],
)
def test_what_is_mistyped_is_found(kind, text, place):
    assert problems(kind, yaml.safe_load(text)) == [place]


def test_names_of_schemas_are_checked(capsys):
    assert main(["list", "schema", "suit"]) == 2
    assert "unknown schema 'suit'. Did you mean 'suite'?" in capsys.readouterr().err
    assert main(["list", "schema"]) == 2
    assert "say which schema (suite, run, experiment, method)" in capsys.readouterr().err
    assert main(["list", "suites", "phantom"]) == 2
    assert "list takes no 'phantom'" in capsys.readouterr().err
