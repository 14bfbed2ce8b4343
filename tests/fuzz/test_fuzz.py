"""A few seconds of ``python -m tests.fuzz``, and that it notices what it looks for."""

from __future__ import annotations

import collections
from dataclasses import replace

import pytest

from benchmark.errors import DataError
from tests.fuzz import __main__ as fuzz
from tests.fuzz import readers
from tests.fuzz.readers import KINDS, Wrong, attempt, drawn


@pytest.mark.parametrize(
    ("kind", "count"), [("images", 150), ("foreign", 60), ("dicom", 60), ("weights", 25), ("npz", 60), ("adapters", 8)]
)  # fmt: skip
def test_damaged_files_are_read_or_refused_by_name(tmp_path, kind, count):
    outcomes = collections.Counter(
        outcome for number in range(count) for outcome in attempt(kind, *drawn(kind, number, 1), tmp_path)
    )
    assert outcomes["refused"] > 0
    assert bool(outcomes["read"]) == (not KINDS[kind].refused)


def test_an_adapter_whose_settings_are_brackets_is_one_line(tmp_path):
    assert list(attempt("adapters", "adapter_config.json", b"[" * 200_000, tmp_path)) == ["refused"]


def raising(error):
    def read(path):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (raising(IndexError("far")), "IndexError: far"),
        (raising(DataError("damaged")), "not one line with its name: 'damaged'"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (lambda path: None, "read, although its format is not allowed"),
    ],
)
def test_a_reader_that_errs_is_noticed(tmp_path, monkeypatch, read, says):
    monkeypatch.setitem(readers.KINDS, "foreign", replace(KINDS["foreign"], readers=((read, DataError),)))
    with pytest.raises(Wrong, match=says):
        list(attempt("foreign", "qoi.jpg", b"x", tmp_path))


def test_a_reader_that_dies_or_hangs_is_told_with_its_number(monkeypatch, capsys):
    def read(path):
        content = path.read_bytes()
        if content == b"5":
            fuzz.os._exit(1)
        while content == b"7":
            pass
        raise DataError(str(path))

    monkeypatch.setattr(fuzz, "LONGEST", 0.1)
    monkeypatch.setitem(readers.KINDS, "foreign", replace(KINDS["foreign"], readers=((read, DataError),)))
    monkeypatch.setattr(fuzz, "drawn", lambda kind, number, seed: ("a.png", str(number).encode()))
    assert fuzz.run("foreign", 9, 0) == 2
    said = capsys.readouterr().out
    assert "foreign: 9 files, 0 read, 7 refused, 2 not handled" in said
    assert "foreign:5: its process died" in said
    assert "foreign:7: a.png: TimeoutError: takes more than 0.1 seconds" in said
