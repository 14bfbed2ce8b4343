"""The verb list: methods with what each can do, everything else without torch."""

from __future__ import annotations

import json

import pytest

from benchmark.cli import main
from benchmark.conformance import page
from benchmark.registry import METHODS

CHEAP = ["taskres", "zero_shot"]
BAD = '''
"""A method that cannot be built."""
from benchmark.registry import register_method
from methods.base import Method, MethodCard

@register_method("bad", in_all=False)
class Bad(Method):
    card = MethodCard(title="Bad", paper="-", equation="-", trains="-", count="-")

    def setup(self):
        raise RuntimeError("no luck\\nat all")
'''


@pytest.fixture
def cheap(monkeypatch, tmp_path):
    """Only two methods, and a family of two, of which one is not usable."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = METHODS.names

    def few(extras=True):
        return [name for name in names(extras) if name in (*CHEAP, "bad", "broken_one", "peft")]

    monkeypatch.setattr(METHODS, "names", few)
    monkeypatch.setattr(
        page,
        "members",
        lambda entry: {f"{entry.name}:lora": "", f"{entry.name}:odd": "needs a language model"},
    )


def test_the_matrix_is_printed_with_progress_on_standard_error(capsys, cheap):
    assert main(["list", "methods"]) == 0
    out, err = capsys.readouterr()
    row = next(line for line in out.splitlines() if "taskres" in line)
    assert row.split() == [
        "taskres", "64", "-", "both", "no", "no", "yes", "yes", "both", "yes",
    ]  # fmt: skip
    assert "And with --all: peft:lora" in out
    assert "odd" not in out
    assert "trying every method" in err


def test_what_was_found_is_cached_until_the_code_changes(capsys, cheap, monkeypatch):
    assert main(["list", "methods"]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(page, "method_rows", lambda *_: pytest.fail("probed again"))
    assert main(["list", "methods"]) == 0
    assert capsys.readouterr() == (first, "")
    monkeypatch.setattr("benchmark.cli.list.file_sha256", lambda path: "other code")
    with pytest.raises(pytest.fail.Exception):
        main(["list", "methods"])


def test_json_holds_the_matrix_and_nothing_else_is_on_standard_output(capsys, cheap):
    assert main(["list", "methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == CHEAP
    assert rows["taskres"]["cached"] == ["image", "text"]
    assert rows["taskres"]["trained"] == 64
    assert rows["zero_shot"]["merges"] is None


def test_all_probes_the_usable_members_of_families(capsys, cheap):
    assert main(["list", "methods", "--all", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [*CHEAP, "peft:lora"]
    assert rows["peft:lora"]["merges"] is True


def test_a_broken_plugin_is_one_line_with_the_reason(capsys, cheap, write):
    bad = write("bad.py", BAD)
    worse = write(
        "worse.py",
        "from benchmark.registry import register_method\n@register_method('broken_one')\nclass A: 1/0\n",
    )
    assert main(["list", "methods", "--plugins", str(bad), str(worse)]) == 0
    out, err = capsys.readouterr()
    assert "taskres" in out
    assert "warning: bad: RuntimeError: no luck at all" in err
    assert "ZeroDivisionError" in next(line for line in err.splitlines() if "broken_one" in line)
    assert "Traceback" not in out + err


def test_names_in_json_have_aliases_and_sources(capsys):
    assert main(["list", "methods", "--names", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["coop"]["source"] == "methods/coop.py"
    assert set(rows["coop"]) == {"name", "aliases", "summary", "source"}


def test_tables_tell_the_papers_numbers_and_the_cells_of_a_suite(capsys):
    assert main(["list", "tables", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["table_5"] == {
        "name": "table_5", "kind": "table", "title": "Components of ACE-LoRA", "numbers": 15, "cells": 5,
    }  # fmt: skip
    assert (rows["table_A1"]["cells"], rows["figure_A2"]["numbers"]) == (0, 0)
    assert sum(row["numbers"] for row in rows.values()) == 250
    assert main(["list", "tables", "--suite", "radiology", "--json"]) == 0
    radiology = {row["name"]: row["cells"] for row in json.loads(capsys.readouterr().out)}
    assert rows["figure_A4"]["cells"] == radiology["figure_A4"] == 7
    assert main(["list", "tables", "--suite", "radiolgy"]) == 2
    assert "Did you mean 'radiology'?" in capsys.readouterr().err
