"""Sentences about classes come from a file of the user's; its hash is in the result, its faults are one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.console import NullReporter
from benchmark.data.descriptions import read_descriptions
from benchmark.errors import DataError
from benchmark.files import file_sha256
from benchmark.run.execute import execute_cell
from benchmark.store.cells import Store
from tests.run.test_few_labels import CLASSES, SUITE, run, specs


def test_each_class_has_as_many_sentences_as_the_one_with_the_fewest(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"b": ["one", "two", "three"], "a": ["four", "five"], "c": []}))
    found = read_descriptions(str(file), ["a", "b"])
    assert found.sentences == (("four", "five"), ("one", "two"))
    assert found.facts() == {"descriptions": {"sha256": file_sha256(file), "sentences": 2}}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "descriptions cannot be read"),
        ("{", "not JSON"),
        ("[]", r"expected \{class: \[sentence, ...\]\}, got list"),
        ('{"edemas": ["x"]}', "nothing about 'edema'. Did you mean 'edemas'"),
        ('{"edema": "x"}', "'edema': expected a list of sentences"),
        ('{"edema": []}', "'edema': expected a list of sentences"),
        ('{"edema": ["x", " "]}', "'edema': expected a list of sentences"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str | None, line: str) -> None:
    file = tmp_path / "said.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=f"said.json: .*{line}") as caught:
        read_descriptions(str(file), ["edema"])
    assert "\n" not in str(caught.value)


def test_a_cell_learns_with_them_and_says_their_hash(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps({name: [f"{name} {word}" for word in ("seen", "likely")] for name in CLASSES}))
    suite: dict[str, Any] = copy.deepcopy(SUITE)
    suite["tasks"]["zeroshot"]["datasets"]["films"]["descriptions"] = str(file)
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(suite))
    (spec,) = specs(tmp_path, methods="biomedcoop", shots="1", seeds="0")
    cell = run(spec, tmp_path / "out")
    assert cell.read_json("adapt.json")["descriptions"] == {"sha256": file_sha256(file), "sentences": 2}
    file.write_text(file.read_text().replace("likely", "certain"))
    again = execute_cell(spec, Store(tmp_path / "out"), NullReporter())
    assert again.status != "done"
    assert "other data" in again.error
