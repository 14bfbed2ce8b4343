"""Real files for tests that look at every row of them; where they are not, these tests are skipped and say so.

Tables come from the wheel `torchxrayvision` of the dev extra (its data files are read, nothing of it is imported);
images and CT reports from a folder ``../shared/real`` beside the checkout, or wherever ``MEDPEFT_REAL_DATA`` says.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from benchmark.files import ROOT


def tables() -> Path:
    """Return the folder of the tables of radiology datasets."""
    found = importlib.util.find_spec("torchxrayvision")
    if found is None or found.origin is None:
        pytest.skip('no real tables: pip install -e ".[dev]"')
    return Path(found.origin).parent / "data"


def folder(name: str) -> Path:
    """Return a folder of real images or reports."""
    path = Path(os.environ.get("MEDPEFT_REAL_DATA", ROOT.parent / "shared" / "real")) / name
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is not there")
    return path
