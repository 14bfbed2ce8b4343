"""Wrong YAML: suites, files for --config, experiments."""

from __future__ import annotations

import itertools
from typing import Any

from tests.bad_input.case import (
    RUN,
    SUITE,
    TRAIN,
    Case,
    Says,
    Setup,
    changed,
    files,
    requests,
    small,
    spoilt,
    suite,
    together,
)


def _text(content: str | bytes):
    return together(small, files({"s.yaml": content}))


_SUITE_FILES = {
    "an open bracket": ("recipe: {lr: [1\n", "s.yaml: not valid YAML in line 2"),
    "a tab": ("recipe:\n\tlr: 1\n", "s.yaml: not valid YAML in line 2"),
    "a list": ("- name: small\n", "s.yaml: expected keys and values, got list"),
    "a text": ("small", "s.yaml: expected keys and values, got str"),
    "a page of the web": ("<!DOCTYPE html>\n<html></html>\n", "s.yaml: expected keys and values, got str"),
    "bytes": (bytes(range(256)), "s.yaml: cannot be read (not a text file)"),
    "UTF-16": (SUITE.encode("utf-16"), "s.yaml: cannot be read (not a text file)"),
    "a key that stands twice": (SUITE + "recipe: {lr: 1}\n", "the key 'recipe' occurs twice"),
    "a value that holds itself": (SUITE + "paper: &a {b: *a}\n", "s.yaml: not valid YAML: nested too deeply"),
    "a billion laughs": (
        "a: &a [1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")
        ),
        "s.yaml: not valid YAML: its aliases stand for more than 200,000 values",
    ),
    "brackets without end": ("a: " + "[" * 3000 + "]" * 3000, "s.yaml: not valid YAML: nested too deeply"),
    "the thirteenth month": (SUITE + "title: 2020-13-45\n", "s.yaml: not valid YAML: month must be in 1..12"),
    "code of Python": (
        SUITE + "title: !!python/object/apply:os.system [ls]\n",
        "could not determine a constructor",
    ),
    "a bool that is none": (SUITE + "title: !!bool maybe\n", "s.yaml: not valid YAML"),
    "two documents": (SUITE + "---\nname: other\n", "s.yaml: not valid YAML"),
}
_SUITES: list[tuple[dict[str, Any], Says]] = [
    ({"corpsu": {}}, "s.yaml:corpsu: unknown key 'corpsu'. Did you mean 'corpus'?"),
    ({"lr": 1}, "unknown key 'lr'. Did you mean 'recipe.lr'?"),
    ({"name": ["a"]}, "s.yaml:name: expected a text, got ['a']"),
    ({"templates": None}, "s.yaml: the key 'templates' is missing: prompts such as"),
    ({"templates": ["{} {}"]}, "s.yaml:templates.1: expected a text with one {}"),
    ({"tasks": ["zeroshot"]}, "s.yaml:tasks: expected keys and values, got ['zeroshot']"),
    ({"methods": ["coop"]}, "s.yaml:methods: expected keys and values, got ['coop']"),
    ({"tasks": {"zeroshoot": {}}}, "s.yaml:tasks.zeroshoot: unknown task 'zeroshoot'. Did you mean"),
    ({"methods": {"cop": {}}}, "s.yaml:methods.cop: unknown method 'cop'. Did you mean 'coop'?"),
    ({"paper": 3}, "s.yaml:paper: expected keys and values, got 3"),
    ({"paper": {"table_1": 3}}, "s.yaml:paper: expected the paper's names and ours below 'table_1'"),
    ({"related": {"second": 3}}, "s.yaml:related.second: expected the name of a suite"),
    ({"backbones": {"a": 1}}, "s.yaml:backbones: expected a list of names, got {'a': 1}"),
    ({"backbone": "tinny"}, "s.yaml:backbone: unknown backbone 'tinny'. Did you mean 'tiny'?"),
    (
        {"recipe": {"lr": "fast", "epochs": 0, "losss": "clip"}},
        (
            "s.yaml:recipe.lr: expected a number, got 'fast'",
            "s.yaml:recipe.epochs: expected a value of at least 1",
            "s.yaml:recipe.losss: unknown recipe key 'losss'. Did you mean 'loss'?",
        ),
    ),
    (
        {"methods": {"zero_shot": {"recipe": {"common": 3}}}},
        "methods.zero_shot.recipe.common: expected keys and values",
    ),
    ({"tasks": {"zeroshot": {"datasets": {"films": "csv"}}}}, "films: expected keys and values, got 'csv'"),
    ({"corpus": {"dataset": "phantom"}}, "dataset 'phantom' needs the key 'part'"),
    (
        {"corpus": {"dataset": "phantom", "part": "mimic", "seed": "x"}},
        "corpus.seed: expected a whole number, got 'x'",
    ),
    (
        {
            "tasks": {
                "transclip": {
                    "datasets": {
                        "films": {
                            "dataset": "csv",
                            "file": "films.csv",
                            "kind": "multilabel",
                            "classes": ["Edema"],
                        }
                    }
                }
            }
        },
        "films.kind: several labels per image",
    ),
    (
        {"tasks": {"grounding": {"datasets": {"films": {"dataset": "csv", "file": "films.csv"}}}}},
        "films.positive: the key 'positive' is missing",
    ),
    (
        {"tasks": {"segmentation": {"datasets": {"films": {"dataset": "rsna", "train": {}, "test": {}}}}}},
        "films.val: the key 'val' is missing",
    ),
    (
        {
            "tasks": {
                "segmentation": {
                    "datasets": {"films": {"dataset": "rsna", "train": "a", "val": {}, "test": {}}}
                }
            }
        },
        "films.train: expected keys and values, got 'a'",
    ),
    ({"tasks": {"segmentation": {"taps": [9, 2], "datasets": {}}}}, "taps: expected rising block numbers"),
]
_CHANGED: dict[str, tuple[Setup, Says]] = {
    "an empty file": (
        _text("name: small\n"),
        "the key 'templates' is missing",
    ),
    "a dataset without a kind": (
        changed("s.yaml", "part: test, kind: multilabel, ", "part: test, "),
        "films.kind: the key 'kind' is missing",
    ),
    "a dataset without classes": (
        changed("s.yaml", ", classes: [Edema, Effusion]", ""),
        "films.classes: the key 'classes' is missing",
    ),
    "a CSV dataset without a file": (
        changed("s.yaml", "corpus: {dataset: csv, file: films.csv,", "corpus: {dataset: csv,"),
        "s.yaml:corpus: dataset 'csv' needs the key 'file'",
    ),
}
_TRAINED = {
    "no corpus for a method that trains": (
        suite(corpus=None),
        "s.yaml: the key 'corpus' is missing: the pairs that methods are adapted on",
    ),
    "no validation for a method that trains": (
        suite(validation=None),
        "s.yaml: the key 'validation' is missing",
    ),
    "a validation without a task": (
        changed("s.yaml", "task: zeroshot, ", ""),
        "validation.task: the key 'task' is missing",
    ),
    "a validation without a metric": (
        changed("s.yaml", "metric: auroc, ", ""),
        "validation.metric: the key 'metric' is",
    ),
}
SUITES = [
    *spoilt("suite", RUN, {name: (_text(content), says) for name, (content, says) in _SUITE_FILES.items()}),
    *(
        Case(
            f"suite: {keys}",
            f"{RUN} --tasks all,transclip" if "transclip" in str(keys) else RUN,
            says,
            suite(**keys),
        )
        for keys, says in _SUITES
    ),
    *spoilt("suite", RUN, _CHANGED),
    *spoilt("suite", TRAIN, _TRAINED),
]

_CONFIGS: dict[str, Says] = {
    "learning_rate: 1\n": "c.yaml:learning_rate: unknown key 'learning_rate'",
    "- lr: 1\n": "c.yaml: expected keys and values, got list",
    "recipe: {lr: -1}\nseeds: [x]\ndevice: [cpu]\n": (
        "c.yaml:recipe.lr: expected a value greater than 0",
        "c.yaml:seeds: expected a whole number",
        "c.yaml:device: expected a text, got ['cpu']",
    ),
    "output_dir:\n": "c.yaml:output_dir: expected a text, got None",
    'output_dir: "a\\0b"\n': "c.yaml:output_dir: expected a text",
    "methods: {zero_shot: {options: [1]}}\n": "c.yaml:methods.zero_shot.options: expected keys and values, got [1]",
    "methods: {clip_lora: {rr: 2}}\nmethods_: 1\n": "unknown key 'methods_'. Did you mean",
    "methods: 3\n": "unknown method '3'",
    "tasks: {zershot: {bootstrap: 3}}\n": "c.yaml:tasks.zershot: unknown task",
    "plugins: [gone.py]\n": "--plugins: file 'gone.py' does not exist",
    "recipe: athors\n": "c.yaml:recipe: expected one of common, authors",
    "tasks: {zeroshot: {datasets: {more: {dataset: phantom, part: rsna, kind: binary, "
    "classes: [a, b], positive: b, n: x}}}}\n": "more.n: expected a whole number, got 'x'",
}
_WITHOUT_METHODS = RUN.replace(" --methods zero_shot", "")
CONFIGS = [
    Case(
        f"--config: {content.strip()}",
        f"{_WITHOUT_METHODS if content.startswith(('methods: 3', 'plugins')) else RUN} --config c.yaml",
        says,
        together(small, files(c__yaml=content)),
    )
    for content, says in _CONFIGS.items()
] + requests(
    {
        f"{RUN} --config c.yaml": "c.yaml: cannot be read (No such file or directory)",
        f"{RUN} --config films": "films: cannot be read (Is a directory)",
        f"{RUN} --config s.yaml s.yaml": "several files are taken only when each has",
        f"{RUN} --config s.yaml": "s.yaml:name: unknown key 'name'",
    },
    small,
)

_HEAD = "experiment:\n  id: X\n  kind: table\n  tasks: {zeroshot: [acc]}\n"
_ROWS: dict[str, Says] = {
    "rows: [{title: a}]": "experiment.rows.1: expected either a method or a difference",
    "rows: [{title: a, method: coop, difference: [b, b]}, {title: b, method: mma}]": "expected either a method or",
    "rows: [{method: coop}]": "experiment.rows.1: the key 'title' is missing",
    "rows: [{title: a, method: coop}, {title: a, method: mma}]": "two rows have the title 'a'",
    "rows: [{title: ab, method: coop}, {title: c, difference: [ab, aa]}]": "title 'aa'. Did you mean 'ab'?",
    "rows: [{title: a, method: coop}, {title: c, difference: [a]}]": "expected the titles of two rows, got ['a']",
    "rows: [{title: a, method: coop}, {title: c, difference: [c, a]}]": "'c' is a difference itself",
    "rows: [{title: a, method: coop, sett: {}}]": "unknown key 'sett'. Did you mean 'set'?",
    "rows: [{title: a, method: cop}]": "rows.a.method: unknown method 'cop'. Did you mean 'coop'?",
    "rows: [{title: a, method: coop, set: [1]}]": "rows.1.set: expected keys and values, got [1]",
    "rows: [{title: a, method: coop, set: {n_ctxx: 1}}]": "rows.a.set.n_ctxx: unknown method key 'n_ctxx'. Did",
    "rows: [{title: a, method: taskres, set: {recipe.lr: -1}}]": "rows.a.set.recipe.lr: expected a value greater",
    "rows: [{title: a, method: taskres, set: {data.x: 1}}]": "rows.a.set.data.x: expected an option, recipe.<key>",
    "rows: [{title: a, method: taskres, set: {3: 1}}]": "experiment.rows.1.set.3: expected a text, got 3",
    "rows: 3": "experiment.rows: expected a list, got 3",
    "rows: [coop]": "experiment.rows.1: expected keys and values, got 'coop'",
    "": "expected rows or a sweep, got neither",
    "sweep: {method: coop, option: n_ctx}": "sweep: the key 'values' is missing",
    "sweep: {method: coop, option: n_ctx, values: []}": "expected a list of values, got []",
    "sweep: {method: coop, values: [3]}": "sweep: the key 'option' is missing",
    "rows: {a: 1}": "experiment.rows: expected a list, got {'a': 1}",
    "sweep: 3": "experiment.sweep: expected keys and values, got 3",
    "rows: [{title: a, method: coop, backbone: nonesuch}]": (
        "nothing to run",
        "table X, a: no backbone 'nonesuch' is known here",
    ),
    "rows: [{title: a, method: coop}]": "no row of table X is of zero_shot, only: coop",
}
_EXPERIMENTS: dict[str, Says] = {
    "experiment: [\n": "x.yaml: not valid YAML",
    _HEAD.replace("table", "datasets") + "  rows: [{title: a}]\n": "rows.1: the key 'task' is missing",
    "experiment: table\n": "x.yaml:experiment: expected keys and values, got 'table'",
    _HEAD.replace("  id: X\n", "") + "  rows: [{title: a, method: coop}]\n": "the key 'id' is missing",
    _HEAD.replace("table", "tabel")
    + "  rows: [{title: a, method: coop}]\n": "expected one of table, datasets, curve, figure",
    _HEAD.replace("  tasks: {zeroshot: [acc]}\n", "")
    + "  rows: [{title: a, method: coop}]\n": "x.yaml:experiment: the key 'tasks' is missing",
    _HEAD.replace("[acc]", "acc")
    + "  rows: [{title: a, method: coop}]\n": "tasks.zeroshot: expected a list of metrics",
    _HEAD.replace("zeroshot", "zershot") + "  rows: [{title: a, method: coop}]\n": "unknown task 'zershot'",
    _HEAD.replace("id: X", "id: [X]")
    + "  rows: [{title: a, method: coop}]\n": "experiment.id: expected a text, got ['X']",
}
_ONE_ROW = _HEAD + "  rows: [{title: a, method: coop, set: {n_ctx: 1}}]\n"
EXPERIMENTS = [
    Case(
        f"experiment: {content.removeprefix(_HEAD).strip()}",
        f"{RUN if 'no row of' in says else _WITHOUT_METHODS} --config x.yaml",
        says,
        together(small, files(x__yaml=content)),
    )
    for content, says in [
        *((f"{_HEAD}  {rows}\n", says) for rows, says in _ROWS.items()),
        *_EXPERIMENTS.items(),
    ]
] + requests(
    {
        f"{_WITHOUT_METHODS} --config x.yaml methods.coop.n_ctx=2": "the rows of table X set 'n_ctx' themselves",
        f"{_WITHOUT_METHODS} --config x.yaml c.yaml": "c.yaml has no 'experiment:' section",
    },
    together(small, files(x__yaml=_ONE_ROW, c__yaml="seeds: [1]\n")),
)

CASES = [*SUITES, *CONFIGS, *EXPERIMENTS]
