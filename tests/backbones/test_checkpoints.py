"""The reader of weight files: whatever the bytes are, they are read or refused in one line and change nothing."""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.backbones.checkpoints import read_content, read_foreign, read_state
from benchmark.errors import DataError
from tests.test_parsers import attempt, quick


def archive(path: Path, program: bytes) -> Path:
    """Write a file of torch.save whose pickle is another program."""
    torch.save({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in parts.items():
            changed.writestr(name, program if name.endswith("data.pkl") else content)
    return path


ATTRIBUTES, SLOTS = b"}X\x07\x00\x00\x00planted\x88s", b"N}X\x0c\x00\x00\x00__defaults__)s\x86"


@pytest.mark.parametrize("state", [ATTRIBUTES, SLOTS], ids=["attribute", "slot"])
@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
@pytest.mark.parametrize("inert", [None, set()], ids=["strict", "stand-ins"])
def test_a_pickle_cannot_change_a_function_of_torch(
    tmp_path: Path, name: str, state: bytes, inert: set[str] | None
) -> None:
    function = getattr(torch._utils, name)
    before = dict(vars(function)), function.__defaults__
    path = archive(tmp_path / "a.pt", b"\x80\x02ctorch._utils\n" + name.encode() + b"\n" + state + b"b.")
    with pytest.raises(DataError, match="not a file of tensors, or damaged"):
        read_content(path, inert)
    assert (dict(vars(function)), function.__defaults__) == before


def test_the_attack_works_on_an_unpickler_that_hands_out_the_function() -> None:
    pickle.loads(b"\x80\x02c" + f"{__name__}\nvictim\n".encode() + ATTRIBUTES + b"b.")  # noqa: S301
    assert vars(victim) == {"planted": True}


def victim() -> None:
    """Is changed by a pickle."""


@functools.cache
def whole(archived: bool) -> bytes:
    file = io.BytesIO()
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.float16)}
    torch.save({"state_dict": state, "epoch": 3}, file, _use_new_zipfile_serialization=archived)
    return file.getvalue()


@quick(max_examples=100)
@given(
    archived=st.booleans(),
    read=st.sampled_from([read_state, read_foreign]),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
def test_damaged_bytes_are_read_or_refused_in_one_line(
    tmp_path: Path, archived: bool, read: Callable[[Path], Any], cut: int, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(whole(archived))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(content[:cut] if cut < 1000 else content))
    _, refused = attempt(lambda: read(path), DataError)
    assert not refused or (refused.startswith(f"{path}: ") and "\n" not in refused)
