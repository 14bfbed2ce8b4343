"""Files of a cell and pictures that are cut off or have wrong bytes are read or refused with a message."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.prepare.images import read_image
from benchmark.errors import DataError
from benchmark.store.cells import CellFolder, StoreError
from benchmark.store.contents import Config, Result
from benchmark.store.contents import content_problem as problem
from tests.bad_input.drawn import attempt, folder, nested, quick


def damaged(content: bytes, cut: int, flips: list[tuple[int, int]]) -> bytes:
    """Return a file cut to a length, with some bytes changed."""
    changed = bytearray(content[: cut % (len(content) + 1)])
    for place, value in flips:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


damage = {
    "cut": st.integers(0, 10**6),
    "flips": st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
}
READERS = {
    "adapter.safetensors": CellFolder.read_tensors,
    "predictions.npz": CellFolder.read_npz,
    "zeroshot.json": CellFolder.read_json,
}


@functools.cache
def written(name: str) -> bytes:
    with folder() as place:
        cell = CellFolder(Path(place))
        if name.endswith("json"):
            metrics = {"acc": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 10}}
            cell.write_json(name, {"status": "success", "datasets": {"set": {"n": 10, "metrics": metrics}}})
        elif name.endswith("npz"):
            cell.write_npz(
                name, {"similarity": np.ones((3, 2), np.float32), "image_id": np.array(["a", "b", "c"])}
            )
        else:
            cell.write_tensors(name, {"weight": torch.ones(2, 3)})
        return (Path(place) / name).read_bytes()


@pytest.mark.parametrize("name", READERS)
@quick(max_examples=60)
@given(**damage)
def test_a_damaged_file_of_a_cell_is_read_or_unreadable(name, cut, flips):
    with folder() as place:
        Path(place, name).write_bytes(damaged(written(name), cut, flips))
        content, refused = attempt(lambda: READERS[name](CellFolder(Path(place)), name), StoreError)
        if refused:
            assert refused.startswith(f"{place}/{name}: ")
        else:
            assert isinstance(content, dict)


@pytest.mark.parametrize("name", ["history.jsonl", "config.yaml"])
@quick(max_examples=60)
@given(content=st.binary(max_size=40) | nested.map(lambda value: json.dumps(value, default=str).encode()))
def test_any_settings_and_history_are_read_or_unreadable(name, content):
    with folder() as place:
        Path(place, name).write_bytes(content)
        cell = CellFolder(Path(place))
        found, refused = attempt(
            lambda: cell.read_config() if name == "config.yaml" else cell.read_history(), StoreError
        )
        if refused:
            assert name in refused
        else:
            assert isinstance(found, dict | list)


@quick(max_examples=100)
@given(nested, st.sampled_from([Config, Result]))
def test_any_content_has_its_shape_or_a_place_where_not(content, shape):
    assert isinstance(problem(content, shape), str)
    assert problem({}, shape) == ""


@functools.cache
def picture(kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(file, kind)
    return file.getvalue()


@quick(max_examples=100)
@given(kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "GIF"]), **damage)
def test_a_damaged_picture_is_read_or_refused(kind, cut, flips):
    with folder() as place:
        path = Path(place, "a.png")
        path.write_bytes(damaged(picture(kind), cut, flips))
        image, refused = attempt(lambda: read_image(path), DataError)
        if refused:
            assert refused.startswith(f"{path}: ")
        else:
            assert image.pixels.dtype == np.uint8
            assert image.pixels.shape[:2] == (image.height, image.width)


@quick(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_picture(content):
    with folder() as place:
        path = Path(place, "a.dcm")
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.dcm: "):
            read_image(path)
