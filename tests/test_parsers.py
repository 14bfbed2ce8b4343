"""Whatever a user or a file says is read or refused with a message: properties of the parsers, on drawn input."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmark.config.layers import from_overrides, yaml_value
from benchmark.config.load import load_config
from benchmark.config.request import load_request
from benchmark.config.run_config import Recipe, RunConfig, Settings
from benchmark.console import NullReporter
from benchmark.data.datasets.siim import decode_runs
from benchmark.data.entries import View, load_dataset, view_problems
from benchmark.data.prepare.images import read_image
from benchmark.data.prepare.raw import RawTable, checked_table
from benchmark.data.prepare.reports import parse_report
from benchmark.data.prepared import REPORT, read_manifest, read_report
from benchmark.errors import BenchmarkError, ConfigError, DataError, PluginError
from benchmark.files import parse_yaml, read_yaml
from benchmark.preprocess import Fitting
from benchmark.registry.sources import read_source
from benchmark.settings import Given, check
from benchmark.store.cells import CellFolder, StoreError
from benchmark.store.contents import Config, Result, content_problem
from tasks.base import fill
from tests.conftest import SUITE
from tests.data.trees import runs

SIZE = (7, 5)
as_bytes = st.deferred(lambda: st.binary(max_size=40) | as_json.map(str.encode))
quick = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
names = st.text(string.ascii_letters + " _-.:/{}'\"#", min_size=1, max_size=12)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12), st.dates(),
    st.binary(max_size=4),
)  # fmt: skip
nested = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(names | st.integers() | st.none(), below, max_size=3)
    ),
    max_leaves=6,
)
as_json = nested.map(lambda value: json.dumps(value, default=str))
cells = st.text(st.characters(codec="utf-8"), max_size=8)


def mixed(*pieces: str, most: int = 40) -> st.SearchStrategy[str]:
    """Texts of known pieces and anything else."""
    return st.lists(st.sampled_from(pieces) | cells, max_size=most).map("".join)


tables = mixed(
    "path", "text", "label_A", "image_id", ",", ";", "\t", '"', "\n", "\r\n", "a.png", "1", "-1", "\0", "é"
).map(str.encode) | st.binary(max_size=60)  # fmt: skip


# ---------------------------------------------------------------------- files and texts
@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads something that is drawn: from (drawn, empty folder).

    Attributes:
        drawn: what it is given. refuses: the errors that it may raise. says: what their message contains.
        holds: whether (what it returns, drawn) is right.
    """

    drawn: st.SearchStrategy[Any]
    read: Callable[[Any, Path], Any]
    refuses: type[Exception] = DataError
    says: str = ""
    holds: Callable[[Any, Any], bool] = lambda found, drawn: True


def attempt(call: Callable[[], Any], *kinds: type[Exception]) -> tuple[Any, str]:
    """Return what a call gives and an empty text, or None and the message with which it is refused."""
    try:
        return call(), ""
    except kinds as error:
        return None, str(error) or "refused without a message\n"


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read_own_csv(drawn: tuple[bytes, dict[str, str]], folder: Path) -> Any:
    content, keys = drawn
    put(folder / "own.csv", b"path,text\n" + content if content[:1] == b"a" else content)
    put(folder / "a.png", b"x")
    return load_dataset({"dataset": "csv", "file": f"{folder}/own.csv", **keys}, folder, NullReporter())


def read_boxes(text: str, _: Path) -> Any:
    source = pd.DataFrame({"image_id": ["a"], "file": ["a.png"], "boxes": [text]})
    return json.loads(checked_table("drawn", RawTable(source))["boxes"][0] or "[]")


@functools.cache
def written(name: str) -> bytes:
    """A whole file of a cell, or a picture."""
    with tempfile.TemporaryDirectory() as place:
        cell, file = CellFolder(Path(place)), io.BytesIO()
        if name.endswith("json"):
            metrics = {"acc": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 10}}
            cell.write_json(name, {"status": "success", "datasets": {"set": {"n": 10, "metrics": metrics}}})
        elif name.endswith("npz"):
            cell.write_npz(
                name, {"similarity": np.ones((3, 2), np.float32), "image_id": np.array(["a", "b", "c"])}
            )
        elif name.endswith("safetensors"):
            cell.write_tensors(name, {"weight": torch.ones(2, 3)})
        else:
            PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(file, name)
            return file.getvalue()
        return (Path(place) / name).read_bytes()


@st.composite
def damaged(draw: st.DrawFn, *names: str) -> bytes:
    """A whole file cut to a length, with some bytes changed."""
    content = written(draw(st.sampled_from(names)))
    changed = bytearray(content[: draw(st.integers(0, len(content)))])
    for place, value in draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)):
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


def of_cell(read: Callable[..., Any], name: str, drawn: st.SearchStrategy[bytes] | None = None) -> Reader:
    def do(content: bytes, folder: Path) -> Any:
        put(folder / name, content)
        return read(CellFolder(folder), name) if drawn is None else read(CellFolder(folder))

    drawn_or_damaged = damaged(name) if drawn is None else drawn
    return Reader(drawn_or_damaged, do, StoreError, name, lambda found, _: isinstance(found, dict | list))


def read_yaml_text(text: str, folder: Path) -> Any:
    problems: list[str] = []
    path = put(folder / "a.yaml", text.encode("utf-8", "surrogatepass"))
    assert isinstance(read_yaml(path, problems), dict)
    assert len(problems) <= 1
    try:
        return parse_yaml(text)
    except ConfigError:
        assert yaml_value(text) == text
        raise


READERS = {
    "a run-length code": Reader(
        st.text(max_size=30) | st.lists(st.integers(-3, 40)).map(lambda numbers: " ".join(map(str, numbers))),
        lambda code, _: decode_runs(code, SIZE),
        says="is not a run-length code of 7x5 pixels",
        holds=lambda mask, code: mask.shape == SIZE and mask.sum() == sum(map(int, code.split()[1::2])),
    ),
    "a manifest": Reader(
        tables,
        lambda content, folder: read_manifest(put(folder / "manifest.csv", content)),
        says="{folder}/manifest.csv: ",
        holds=lambda found, _: found.filter(regex="^label_").isin([-1, 0, 1, np.nan]).all(axis=None),
    ),
    "an own CSV": Reader(
        st.tuples(tables, st.sampled_from([{}, {"class_column": "text"}, {"part": "a"}])),
        read_own_csv,
        says="{folder}/own.csv: ",
        holds=lambda found, _: set(found.manifest["image_id"]) <= {"a.png"},
    ),
    "boxes": Reader(
        st.text(max_size=20) | as_json,
        read_boxes,
        says="boxes of image 'a': expected [[x1, y1, x2, y2], ...]",
        holds=lambda boxes, _: all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes),
    ),
    "a prepare report": Reader(
        st.binary(max_size=40)
        | nested.map(lambda value: json.dumps({"format_version": 1, "files": value}, default=str).encode()),
        lambda content, folder: read_report(put(folder / REPORT, content).parent),
        says="{folder}",
        holds=lambda report, _: isinstance(report["files"], dict) and isinstance(report["info"], dict),
    ),
    "a damaged adapter": of_cell(CellFolder.read_tensors, "adapter.safetensors"),
    "damaged predictions": of_cell(CellFolder.read_npz, "predictions.npz"),
    "damaged results": of_cell(CellFolder.read_json, "zeroshot.json"),
    "settings of a cell": of_cell(CellFolder.read_config, "config.yaml", as_bytes),
    "a history": of_cell(CellFolder.read_history, "history.jsonl", as_bytes),
    "a damaged picture": Reader(
        damaged("PNG", "JPEG", "BMP", "TIFF", "GIF"),
        lambda content, folder: read_image(put(folder / "a.png", content)),
        says="{folder}/a.png: ",
        holds=lambda image, _: (image.pixels.dtype, image.pixels.shape[:2]) == (np.uint8, (image.height, image.width)),
    ),
    "bytes as DICOM": Reader(
        st.binary(max_size=200),
        lambda content, folder: read_image(put(folder / "a.dcm", content)),
        says="{folder}/a.dcm: ",
        holds=lambda *_: False,
    ),
    "YAML": Reader(
        st.text(max_size=30)
        | st.lists(st.sampled_from([*"[]{}:,-&*!?|>\n\t", "a", "1", "- ", ": ", "!!int ", "&a ", "*a"])).map("".join),
        read_yaml_text,
        ConfigError,
        says="not valid YAML",
        holds=lambda value, text: repr(yaml_value(text)) == repr(value),
    ),
    "a plugin's source": Reader(
        mixed("@register_method(", '"a"', "'b c'", ")", "\nclass A: pass\n", "aliases=", "3", "(", ",", "\0", "x"),
        lambda text, folder: read_source(put(folder / "plugin.py", text.encode()), "register_method"),
        PluginError,
        says="plugin.py:",
        holds=lambda source, _: all(one.name == "a" for one in source.found),
    ),
    "a transform": Reader(
        st.text(max_size=20) | mixed("squash", "shortest_crop", "-", "224", "x", "0", "area", "grey"),
        lambda name, _: Fitting.parse(name),
        BenchmarkError,
        holds=lambda fitting, _: Fitting.parse(fitting.name) == fitting,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@quick(max_examples=80)
@given(data=st.data())
def test_anything_is_read_or_refused_with_a_message(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    drawn = data.draw(reader.drawn)
    with tempfile.TemporaryDirectory() as folder:
        found, refused = attempt(lambda: reader.read(drawn, Path(folder)), reader.refuses)
        assert reader.says.format(folder=folder) in refused if refused else reader.holds(found, drawn)


@quick(max_examples=60)
@given(arrays(np.bool_, SIZE))
def test_a_mask_survives_its_code(mask):
    np.testing.assert_array_equal(decode_runs(runs(mask), SIZE), mask)


@quick(max_examples=100)
@given(nested, st.sampled_from([Config, Result]))
def test_any_content_has_its_shape_or_a_place_where_not(content, shape):
    assert isinstance(content_problem(content, shape), str)
    assert content_problem({}, shape) == ""


@quick(max_examples=150)
@given(
    mixed(
        "FINDINGS:", "IMPRESSION:", "INDICATION:", "Findings:", "FINDINGS AND IMPRESSION:", "COMPARISON: ", "____",
        "WET READ:", "\n", "\n\n", "The heart is enlarged.", "No effusion", " ", ":", most=25,
    )
)  # fmt: skip
def test_sections_are_stretches_of_the_report(text):
    sections = parse_report(text)
    whole = " ".join(text.split())
    assert all(section in whole for section in dataclasses.astuple(sections))
    caption = sections.caption()
    assert (caption.source == "nothing") == (caption.text == "")


# ---------------------------------------------------------------------- configurations
def loaded(load: Callable[[], RunConfig]) -> None:
    """Either there is a whole configuration, or every problem is a line."""
    config, refused = attempt(load, ConfigError, PluginError)
    assert "\n" not in refused
    assert refused or (isinstance(config, RunConfig) and config.methods)


def fields(declared: type) -> st.SearchStrategy[dict[str, Any]]:
    """Any values for the keys of a dataclass, and for other keys."""
    known = [item.name for item in dataclasses.fields(declared) if item.name != "plugins"]
    return st.dictionaries(st.sampled_from(known) | names, nested, max_size=2)


@quick(max_examples=120)
@given(fields(Settings), fields(Recipe))
def test_any_values_of_a_file_give_a_configuration_or_lines(flags, values, recipe):
    Path("drawn.yaml").write_text(yaml.safe_dump({"recipe": recipe, **values}), encoding="utf-8")
    loaded(lambda: load_config(flags, config_file="drawn.yaml"))


EXPERIMENT = {
    "experiment": {
        "id": "X",
        "kind": "table",
        "tasks": {"fake_task": ["acc"]},
        "rows": [
            {"title": "one", "method": "fake_one", "set": {"depth": 3, "recipe.lr": 0.1}, "backbone": "tiny"},
            {"title": "two", "method": "fake_two", "recipe_of": "fake_one"},
            {"title": "d", "difference": ["one", "two"]},
        ],
        "sweep": {"method": "fake_one", "option": "depth", "values": [1, 2]},
    },
    "seeds": [0, 1],
}


def places(content: Any, above: tuple = ()) -> list[tuple]:
    """Return the keys down to every value."""
    items = content.items() if isinstance(content, dict) else []
    items = enumerate(content) if isinstance(content, list) else items
    return [path for key, value in items for path in ((*above, key), *places(value, (*above, key)))]


def replaced(content: dict, place: tuple, value: object) -> dict:
    """Return a copy with another value at a place; the place itself may be gone."""
    copied = json.loads(json.dumps(content))
    here = copied
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    return copied


@quick(max_examples=120)
@given(st.sampled_from(places(yaml.safe_load(SUITE))), nested)
def test_a_suite_with_any_value_anywhere_gives_a_configuration_or_lines(flags, place, value):
    content = replaced(yaml.safe_load(SUITE), place, value)
    Path(flags["suite"]).write_text(yaml.safe_dump(content), encoding="utf-8")
    loaded(lambda: load_config(flags))


@quick(max_examples=80)
@given(st.sampled_from(places(EXPERIMENT)), nested)
def test_an_experiment_with_any_value_anywhere_gives_cells_or_lines(flags, place, value):
    Path("x.yaml").write_text(yaml.safe_dump(replaced(EXPERIMENT, place, value)), encoding="utf-8")
    given = {key: value for key, value in flags.items() if key != "methods"}
    request, refused = attempt(lambda: load_request(given, [], ["x.yaml"]), BenchmarkError)
    assert refused or request.configs or request.experiments[0].kind == "datasets"


@quick(max_examples=100)
@given(st.lists(st.text(max_size=10), max_size=4))
def test_any_pairs_are_values_or_lines(pairs):
    problems: list[str] = []
    layer = from_overrides(pairs, Recipe, problems)
    assert len(problems) <= len(pairs)
    assert bool(layer.values) or len(problems) == len(pairs)


@quick(max_examples=100)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.sampled_from([",", " ", ", ", "  "]))
def test_seeds_are_read_in_any_spelling(seeds, separator):
    text = separator.join(map(str, seeds))
    for value in (text, text.split(), seeds, [text]):
        assert check(Settings, [Given("seeds", value, "--seeds")], "key") == ({"seeds": tuple(seeds)}, [])


@quick(max_examples=150)
@given(st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(View)]), nested, max_size=6))
def test_any_view_is_right_or_lines(entry):
    lines = list(view_problems(entry, lambda key: f"suite:{key}"))
    assert all(line.startswith("suite:") for line in lines)
    if not lines and entry.get("classes") is not None:
        assert all(isinstance(name, str | int) for name in entry["classes"])


@quick(max_examples=60)
@given(st.text(max_size=20), st.text(max_size=20).filter(lambda text: "{}" not in text), st.text(max_size=20))
def test_a_class_stands_in_its_template_as_it_is_written(before, name, after):
    template = before + "{}" + after
    if template.count("{}") == 1:
        assert fill([template], name) == [before + name + after]
