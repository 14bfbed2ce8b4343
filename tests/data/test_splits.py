"""Published splits: known by count and hash; others by what was seen first."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from benchmark.data.prepare import splits
from benchmark.errors import DataError

IDS = ["b", "a", "c"]
HASH = hashlib.sha256(b"a\nb\nc").hexdigest()


def test_the_fingerprint_is_over_sorted_lines():
    assert splits.fingerprint(IDS) == HASH
    assert splits.fingerprint(reversed(IDS)) == HASH


def test_a_published_list_is_recognised(tmp_path):
    entry = {"count": 3, "sha256": HASH, "source": "a paper"}
    verdict = splits.check("toy", {"test": IDS}, folder=tmp_path, recorded={"test": entry})
    assert verdict.facts == {"test": {"count": 3, "sha256": HASH, "status": "published", "source": "a paper"}}
    assert (verdict.notes, verdict.first_seen) == ([], {})


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["a", "b"], "2 ids instead of 3"),
        (["a", "b", "d"], "3 ids as published, but others"),
        (["a", "b", "c", "c"], "1 ids stand in it twice"),
    ],
)
def test_a_list_that_differs_is_refused_or_told(tmp_path, ids, reason):
    recorded = {"test": {"count": 3, "sha256": HASH}}
    with pytest.raises(
        DataError, match=f"toy: list 'test' is not the published split: {reason}.*--accept-split"
    ):
        splits.check("toy", {"test": ids}, folder=tmp_path, recorded=recorded)
    verdict = splits.check("toy", {"test": ids}, folder=tmp_path, recorded=recorded, accept=True)
    assert verdict.notes == [f"test: not the published split ({reason})"]
    assert verdict.first_seen == {}


@pytest.mark.parametrize("recorded", [{}, {"test": {"count": 3, "sha256": None}}])
def test_without_a_published_hash_the_first_one_counts(tmp_path, recorded):
    first = splits.check("toy", {"test": IDS}, folder=tmp_path, recorded=recorded)
    assert first.facts["test"]["status"] == "as first prepared here"
    splits.remember(tmp_path, first)
    assert splits.check("toy", {"test": IDS}, folder=tmp_path, recorded=recorded).facts == first.facts
    with pytest.raises(DataError, match=r"1 missing \(first 'c'\) and 1 new \(first 'd'\)"):
        splits.check("toy", {"test": ["a", "b", "d"]}, folder=tmp_path, recorded=recorded)
    accepted = splits.check("toy", {"test": ["a", "b", "d"]}, folder=tmp_path, recorded=recorded, accept=True)
    splits.remember(tmp_path, accepted)  # an accepted list does not become the one to compare with
    assert splits.check("toy", {"test": IDS}, folder=tmp_path, recorded=recorded).notes == []


def test_the_recorded_files_are_well_formed():
    for path in splits.FOLDER.glob("*.json"):
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
            assert set(entry) == {"count", "sha256", "source"}, (path.name, name)
            assert entry["count"] is None or entry["count"] > 0
            is_hash = re.fullmatch("[0-9a-f]{64}", entry["sha256"] or "")
            assert is_hash or entry["sha256"] is None or " " in entry["sha256"], (path.name, name)
    assert splits.published("rsna")["test"]["count"] == 4003
    assert splits.published("no such dataset") == {}
