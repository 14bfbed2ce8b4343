"""Whatever a user writes is parsed or refused with a message: properties of the parsers, on drawn input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmark.config.layers import from_overrides, yaml_value
from benchmark.config.load import load_config
from benchmark.config.request import load_request
from benchmark.config.run_config import Recipe, RunConfig, Settings
from benchmark.console import NullReporter
from benchmark.data.datasets.siim import decode_runs
from benchmark.data.entries import View, load_dataset, view_problems
from benchmark.data.prepare.raw import RawTable, checked_table
from benchmark.data.prepare.reports import parse_report
from benchmark.data.prepared import REPORT, read_manifest, read_report
from benchmark.errors import BenchmarkError, ConfigError, DataError, PluginError
from benchmark.files import parse_yaml, read_yaml
from benchmark.preprocess import Fitting
from benchmark.registry import read_source
from benchmark.settings import Given, check, words
from tasks.base import fill
from tests.bad_input.drawn import attempt, folder, names, nested, quick
from tests.conftest import SUITE
from tests.data.trees import runs

SIZE = (7, 5)


# ---------------------------------------------------------------------- run-length codes
@quick(max_examples=60)
@given(arrays(np.bool_, SIZE))
def test_a_mask_survives_its_code(mask):
    np.testing.assert_array_equal(decode_runs(runs(mask), SIZE), mask)


@quick(max_examples=100)
@given(st.text(max_size=30) | st.lists(st.integers(-3, 40)).map(lambda numbers: " ".join(map(str, numbers))))
def test_any_code_is_a_mask_or_refused(code):
    mask, refused = attempt(lambda: decode_runs(code, SIZE), DataError)
    if refused:
        assert "is no run-length code of 7x5 pixels" in refused
    else:
        assert mask.shape == SIZE
        assert mask.sum() == sum(map(int, code.split()[1::2]))


# ---------------------------------------------------------------------- tables
cells = st.text(st.characters(codec="utf-8"), max_size=8)
CSV_WORDS = [
    "path",
    "text",
    "label_A",
    "image_id",
    ",",
    ";",
    "\t",
    '"',
    "\n",
    "\r\n",
    "a.png",
    "1",
    "-1",
    "\0",
    "é",
    "",
]
tables = st.lists(st.sampled_from(CSV_WORDS) | cells, max_size=40).map("".join)


@quick(max_examples=80)
@given(tables.map(str.encode) | st.binary(max_size=60))
def test_any_file_is_a_manifest_or_refused(content):
    with folder() as place:
        path = Path(place, "manifest.csv")
        path.write_bytes(content)
        manifest, refused = attempt(lambda: read_manifest(path), DataError)
        if refused:
            assert refused.startswith(f"{path}: ")
        else:
            labels = manifest.filter(regex="^label_").to_numpy(dtype=float)
            assert set(labels[~np.isnan(labels)].tolist()) <= {-1.0, 0.0, 1.0}


@quick(max_examples=80)
@given(
    tables.map(str.encode) | st.binary(max_size=60),
    st.sampled_from([{}, {"class_column": "text"}, {"part": "a"}]),
)
def test_any_file_is_an_own_csv_or_refused(content, keys):
    with folder() as place:
        Path(place, "own.csv").write_bytes(b"path,text\n" + content if content[:1] == b"a" else content)
        Path(place, "a.png").write_bytes(b"x")
        entry = {"dataset": "csv", "file": f"{place}/own.csv", **keys}
        data, refused = attempt(lambda: load_dataset(entry, Path(place), NullReporter()), DataError)
        if refused:
            assert refused.startswith(f"{place}/own.csv: ")
        else:
            assert set(data.manifest["image_id"]) <= {"a.png"}


@quick(max_examples=60)
@given(st.text(max_size=20) | nested.map(lambda value: json.dumps(value, default=str)))
def test_any_text_is_boxes_or_refused(text):
    import pandas as pd

    source = RawTable(pd.DataFrame({"image_id": ["a"], "file": ["a.png"], "boxes": [text]}))
    table, refused = attempt(lambda: checked_table("drawn", source), DataError)
    if refused:
        assert "boxes of image 'a': expected [[x1, y1, x2, y2], ...]" in refused
    else:
        boxes = json.loads(table["boxes"][0] or "[]")
        assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)


@quick(max_examples=60)
@given(
    st.binary(max_size=40)
    | nested.map(lambda value: json.dumps({"format_version": 1, "files": value}, default=str).encode())
)
def test_any_file_is_a_prepare_report_or_refused(content):
    with folder() as place:
        Path(place, REPORT).write_bytes(content)
        report, refused = attempt(lambda: read_report(Path(place)), DataError)
        if refused:
            assert place in refused
        else:
            assert isinstance(report["files"], dict)
            assert isinstance(report["info"], dict)


# ---------------------------------------------------------------------- radiology reports
HEADS = [
    "FINDINGS:",
    "IMPRESSION:",
    "INDICATION:",
    "Findings:",
    "FINDINGS AND IMPRESSION:",
    "COMPARISON: ",
    "____",
    "WET READ:",
]
reports = st.lists(
    st.sampled_from([*HEADS, "\n", "\n\n", "The heart is enlarged.", "No effusion", " ", ":"]) | cells,
    max_size=25,
).map("".join)


@quick(max_examples=150)
@given(reports)
def test_sections_are_stretches_of_the_report(text):
    sections = parse_report(text)
    whole = " ".join(text.split())
    for section in dataclasses.astuple(sections):
        assert section in whole
    caption = sections.caption()
    assert (caption.source == "nothing") == (caption.text == "")


# ---------------------------------------------------------------------- YAML and key=value
KEYS = sorted(
    {item.name for item in dataclasses.fields(Settings)}
    | {f"recipe.{item.name}" for item in dataclasses.fields(Recipe)}
    | {"recipe", "methods", "tasks", "corpus", "validation", "templates", "methods.fake_one", "methods.fake_one.recipe"}
    | {"methods.fake_one.depth", "methods.fake_one.options", "tasks.fake_task", "tasks.fake_task.datasets"}
    | {"tasks.fake_task.datasets.rsna", "corpus.dataset", "corpus.limit", "corpus.part", "corpus.fraction", "corpus.n"}
    | {"validation.kind", "validation.classes", "validation.positive", "validation.prompts", "validation.task"}
    - {"plugins"}
)  # fmt: skip


def loaded(load) -> None:
    """Either there is a whole configuration, or every problem is a line."""
    config, refused = attempt(load, ConfigError, PluginError)
    if refused:
        assert "\n" not in refused
    else:
        assert isinstance(config, RunConfig)
        assert config.methods


@quick(max_examples=120)
@given(st.dictionaries(st.sampled_from(KEYS) | names, nested, min_size=1, max_size=3))
def test_any_values_of_a_file_give_a_configuration_or_lines(flags, values):
    content: dict = {}
    for key, value in values.items():
        here, *parts = content, *key.split(".")
        for part in parts[:-1]:
            here = here.setdefault(part, {}) if isinstance(here.setdefault(part, {}), dict) else {}
        here[parts[-1]] = value
    Path("drawn.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
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


def places(content, above=()) -> list[tuple]:
    """Return the keys down to every value."""
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
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
    if refused:
        assert refused
    else:
        assert request.configs or request.experiments[0].kind == "datasets"


@quick(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS) | names, cells | st.sampled_from(["[", "{a: 1}", "2020-13-45", "!!int x"])
        ),
        max_size=3,
    )
)
def test_any_words_give_a_configuration_or_lines(flags, pairs):
    loaded(lambda: load_config(flags, [f"{key}={value}" for key, value in pairs]))


@quick(max_examples=150)
@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from([*"[]{}:,-&*!?|>\n\t", "a", "1", "- ", ": ", "!!int ", "&a ", "*a"])).map(
        "".join
    )
)
def test_any_text_is_yaml_or_refused(text):
    value, refused = attempt(lambda: parse_yaml(text), ConfigError)
    if refused:
        assert refused.startswith("not valid YAML")
        assert yaml_value(text) == text
    else:
        assert repr(yaml_value(text)) == repr(value)
    with folder() as place:
        path, problems = Path(place, "a.yaml"), []
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert isinstance(read_yaml(path, problems), dict)
    assert len(problems) <= 1


@quick(max_examples=60)
@given(nested)
def test_yaml_gives_back_what_was_written(value):
    text = yaml.safe_dump(value)
    assert repr(parse_yaml(text)) == repr(yaml.safe_load(text))


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


@quick(max_examples=100)
@given(nested)
def test_any_value_is_seeds_or_a_line(value):
    typed, problems = check(Settings, [Given("seeds", value, "--seeds")], "key")
    assert len(typed) + len(problems) == 1
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in typed.get("seeds", ()))
    assert isinstance(words(value), list)


# ---------------------------------------------------------------------- classes, prompts, plugins, transforms
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


@quick(max_examples=80)
@given(
    st.lists(
        st.sampled_from(
            [
                "@register_method(",
                '"a"',
                "'b c'",
                ")",
                "\nclass A: pass\n",
                "aliases=",
                "3",
                "(",
                ",",
                "\0",
                "x",
            ]
        )
    ).map("".join)
)
def test_any_source_is_read_or_refused(text):
    with folder() as place:
        path = Path(place, "plugin.py")
        path.write_text(text)
        source, refused = attempt(lambda: read_source(path, "register_method"), PluginError)
        if refused:
            assert "plugin.py:" in refused
        else:
            assert all(one.name == "a" for one in source.found)


@quick(max_examples=80)
@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["squash", "shortest_crop", "-", "224", "x", "0", "area", "grey"])).map(
        "".join
    )
)
def test_any_name_is_a_transform_or_refused(name):
    fitting, refused = attempt(lambda: Fitting.parse(name), BenchmarkError)
    if refused:
        assert refused
    else:
        assert Fitting.parse(fitting.name) == fitting
