"""Wrong YAML: suites, files for --config, experiments."""

from __future__ import annotations

import itertools

from tests.bad_input.case import RUN, SUITE, TRAIN, Case, changed, files, small, suite, together


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
    "a key that stands twice": (SUITE + "recipe: {lr: 1}\n", "the key 'recipe' stands twice"),
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
_SUITES = {
    "an unknown key": (suite(corpsu={}), "s.yaml:corpsu: unknown key 'corpsu'. Did you mean 'corpus'?"),
    "a key of the recipe at the top": (suite(lr=1), "unknown key 'lr'. Did you mean 'recipe.lr'?"),
    "a list for its name": (suite(name=["a"]), "s.yaml:name: expected a text, got ['a']"),
    "no templates": (suite(templates=None), "s.yaml: the key 'templates' is missing: prompts such as"),
    "no corpus": (
        suite(corpus=None),
        "s.yaml: the key 'corpus' is missing: the pairs that methods are adapted on",
    ),
    "templates of two places": (
        suite(templates=["{} {}"]),
        "s.yaml:templates.1: expected a text with one {}",
    ),
    "a list of tasks": (
        suite(tasks=["zeroshot"]),
        "s.yaml:tasks: expected keys and values, got ['zeroshot']",
    ),
    "a list of methods": (suite(methods=["coop"]), "s.yaml:methods: expected keys and values, got ['coop']"),
    "an unknown task": (
        suite(tasks={"zeroshoot": {}}),
        "s.yaml:tasks.zeroshoot: unknown task 'zeroshoot'. Did you mean",
    ),
    "an unknown method": (
        suite(methods={"cop": {}}),
        "s.yaml:methods.cop: unknown method 'cop'. Did you mean 'coop'?",
    ),
    "a number for the paper": (suite(paper=3), "s.yaml:paper: expected keys and values, got 3"),
    "a number for the paper's table": (
        suite(paper={"table_1": 3}),
        "s.yaml:paper: expected the paper's names and ours below 'table_1'",
    ),
    "a number for a related suite": (
        suite(related={"second": 3}),
        "s.yaml:related.second: expected the name of a suite",
    ),
    "a mapping of backbones": (
        suite(backbones={"a": 1}),
        "s.yaml:backbones: expected a list of names, got {'a': 1}",
    ),
    "an unknown backbone": (
        suite(backbone="tinny"),
        "s.yaml:backbone: unknown backbone 'tinny'. Did you mean 'tiny'?",
    ),
    "wrong values of the recipe": (
        suite(recipe={"lr": "fast", "epochs": 0, "losss": "clip"}),
        (
            "s.yaml:recipe.lr: expected a number, got 'fast'",
            "s.yaml:recipe.epochs: expected a value of at least 1",
            "s.yaml:recipe.losss: unknown recipe key 'losss'. Did you mean 'loss'?",
        ),
    ),
    "a number for one of two recipes": (
        suite(methods={"zero_shot": {"recipe": {"common": 3}}}),
        "methods.zero_shot.recipe.common: expected keys and values",
    ),
    "a dataset without a kind": (
        changed("s.yaml", "part: test, kind: multilabel, ", "part: test, "),
        "films.kind: the key 'kind' is missing",
    ),
    "a dataset without classes": (
        changed("s.yaml", ", classes: [Edema, Effusion]", ""),
        "films.classes: the key 'classes' is missing",
    ),
    "a text for a dataset": (
        suite(tasks={"zeroshot": {"datasets": {"films": "csv"}}}),
        "films: expected keys and values, got 'csv'",
    ),
    "a CSV dataset without a file": (
        changed("s.yaml", "corpus: {dataset: csv, file: films.csv,", "corpus: {dataset: csv,"),
        "s.yaml:corpus: dataset 'csv' needs the key 'file'",
    ),
    "a drawn dataset without its part": (
        suite(corpus={"dataset": "phantom"}),
        "dataset 'phantom' needs the key 'part'",
    ),
    "a drawn dataset with a seed in words": (
        suite(corpus={"dataset": "phantom", "part": "mimic", "seed": "x"}),
        "corpus.seed: expected a whole number, got 'x'",
    ),
    "several labels for TransCLIP": (
        suite(
            tasks={
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
        ),
        "films.kind: several labels per image",
    ),
    "a grounding set without a finding": (
        suite(tasks={"grounding": {"datasets": {"films": {"dataset": "csv", "file": "films.csv"}}}}),
        "films.positive: the key 'positive' is missing",
    ),
    "a dense set without a validation part": (
        suite(tasks={"segmentation": {"datasets": {"films": {"dataset": "rsna", "train": {}, "test": {}}}}}),
        "films.val: the key 'val' is missing",
    ),
    "a dense set with a text for a part": (
        suite(
            tasks={
                "segmentation": {
                    "datasets": {"films": {"dataset": "rsna", "train": "a", "val": {}, "test": {}}}
                }
            }
        ),
        "films.train: expected keys and values, got 'a'",
    ),
    "taps out of order": (
        suite(tasks={"segmentation": {"taps": [9, 2], "datasets": {}}}),
        "taps: expected rising block numbers",
    ),
}
_TRAINED = {
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
    *(Case(f"suite: {name}", RUN, says, _text(content)) for name, (content, says) in _SUITE_FILES.items()),
    *(
        Case(f"suite: {name}", f"{RUN} --tasks all,transclip" if "TransCLIP" in name else RUN, says, setup)
        for name, (setup, says) in _SUITES.items()
    ),
    *(Case(f"suite: {name}", TRAIN, says, setup) for name, (setup, says) in _TRAINED.items()),
    Case(
        "suite: an empty file",
        RUN,
        ("the key 'templates' is missing", "the key 'corpus' is missing"),
        _text("name: small\n"),
    ),
]

_CONFIGS = {
    "a file that is not there": (None, "c.yaml: cannot be read (No such file or directory)"),
    "an unknown key": ("learning_rate: 1\n", "c.yaml:learning_rate: unknown key 'learning_rate'"),
    "a list": ("- lr: 1\n", "c.yaml: expected keys and values, got list"),
    "wrong values": (
        "recipe: {lr: -1}\nseeds: [x]\ndevice: [cpu]\n",
        (
            "c.yaml:recipe.lr: expected a value greater than 0",
            "c.yaml:seeds: expected a whole number",
            "c.yaml:device: expected a text, got ['cpu']",
        ),
    ),
    "a null for a folder": ("output_dir:\n", "c.yaml:output_dir: expected a text, got None"),
    "a folder with a zero byte": ('output_dir: "a\\0b"\n', "c.yaml:output_dir: expected a text"),
    "options of a method that are a list": (
        "methods: {zero_shot: {options: [1]}}\n",
        "c.yaml:methods.zero_shot.options: expected keys and values, got [1]",
    ),
    "an unknown option of a method": (
        "methods: {clip_lora: {rr: 2}}\nmethods_: 1\n",
        "unknown key 'methods_'. Did you mean",
    ),
    "a number of methods": ("methods: 3\n", "unknown method '3'"),
    "a mapping of tasks that are none": (
        "tasks: {zershot: {bootstrap: 3}}\n",
        "c.yaml:tasks.zershot: unknown task",
    ),
    "no plugin": ("plugins: [gone.py]\n", "--plugins: file 'gone.py' does not exist"),
    "an unknown name of a recipe": ("recipe: athors\n", "c.yaml:recipe: expected one of common, authors"),
    "a drawn set without images": (
        "tasks: {zeroshot: {datasets: {more: {dataset: phantom, part: rsna, kind: binary, "
        "classes: [a, b], positive: b, n: x}}}}\n",
        "more.n: expected a whole number, got 'x'",
    ),
}
_WITHOUT_METHODS = RUN.replace(" --methods zero_shot", "")
CONFIGS = [
    Case(
        f"--config: {name}",
        f"{_WITHOUT_METHODS if 'number of methods' in name or 'no plugin' in name else RUN} --config c.yaml",
        says,
        small if content is None else together(small, files(c__yaml=content)),
    )
    for name, (content, says) in _CONFIGS.items()
] + [
    Case("--config: a folder", f"{RUN} --config films", "films: cannot be read (Is a directory)", small),
    Case(
        "--config: two plain files",
        f"{RUN} --config s.yaml s.yaml",
        "several files are taken only when each has",
        small,
    ),
    Case("--config: a suite", f"{RUN} --config s.yaml", ("s.yaml:name: unknown key 'name'",), small),
]

_HEAD = "experiment:\n  id: X\n  kind: table\n  tasks: {zeroshot: [acc]}\n"
_ROWS = {
    "no method": ("  rows: [{title: a}]\n", "experiment.rows.1: expected either a method or a difference"),
    "a method and a difference": (
        "  rows: [{title: a, method: coop, difference: [a, a]}]\n",
        "rows.1: expected either a method or a difference",
    ),
    "no title": ("  rows: [{method: coop}]\n", "experiment.rows.1: the key 'title' is missing"),
    "one title twice": (
        "  rows: [{title: a, method: coop}, {title: a, method: mma}]\n",
        "two rows have the title 'a'. Give each one of its own",
    ),
    "a difference with what is not there": (
        "  rows: [{title: ab, method: coop}, {title: c, difference: [ab, aa]}]\n",
        "no row has the title 'aa'. Did you mean 'ab'?",
    ),
    "a difference of one": (
        "  rows: [{title: a, method: coop}, {title: c, difference: [a]}]\n",
        "expected the titles of two rows, got ['a']",
    ),
    "an unknown key": (
        "  rows: [{title: a, method: coop, sett: {}}]\n",
        "unknown key 'sett'. Did you mean 'set'?",
    ),
    "an unknown method": (
        "  rows: [{title: a, method: cop}]\n",
        "rows.a.method: unknown method 'cop'. Did you mean 'coop'?",
    ),
    "a list of changes": (
        "  rows: [{title: a, method: coop, set: [1]}]\n",
        "rows.1.set: expected keys and values, got [1]",
    ),
    "a change of nothing": (
        "  rows: [{title: a, method: coop, set: {n_ctxx: 1}}]\n",
        "rows.a.set.n_ctxx: unknown method key 'n_ctxx'. Did you mean",
    ),
    "a change that makes no sense": (
        "  rows: [{title: a, method: taskres, set: {recipe.lr: -1}}]\n",
        "rows.a.set.recipe.lr: expected a value greater than 0",
    ),
    "a change elsewhere": (
        "  rows: [{title: a, method: taskres, set: {data.x: 1}}]\n",
        "rows.a.set.data.x: expected an option, recipe.<key>",
    ),
    "a change with a number for its key": (
        "  rows: [{title: a, method: taskres, set: {3: 1}}]\n",
        "experiment.rows.1.set.3: expected a text, got 3",
    ),
    "a number for rows": ("  rows: 3\n", "experiment.rows: expected a list, got 3"),
    "a text for a row": ("  rows: [coop]\n", "experiment.rows.1: expected keys and values, got 'coop'"),
    "neither rows nor a sweep": ("", "expected rows or a sweep, got neither"),
    "a sweep without values": (
        "  sweep: {method: coop, option: n_ctx}\n",
        "sweep: the key 'values' is missing",
    ),
    "a sweep over nothing": (
        "  sweep: {method: coop, option: n_ctx, values: []}\n",
        "expected a list of values, got []",
    ),
    "a sweep of a number": ("  sweep: 3\n", "experiment.sweep: expected keys and values, got 3"),
    "no backbone for any row": (
        "  rows: [{title: a, method: coop, backbone: nonesuch}]\n",
        ("nothing to run", "table X, a: no backbone 'nonesuch' is known here"),
    ),
    "rows of other methods": (
        "  rows: [{title: a, method: coop}]\n",
        "no row of table X is of zero_shot, only: coop",
    ),
}
_EXPERIMENTS = {
    "a text": ("experiment: table\n", "x.yaml:experiment: expected keys and values, got 'table'"),
    "no id": (
        _HEAD.replace("  id: X\n", "") + "  rows: [{title: a, method: coop}]\n",
        "the key 'id' is missing",
    ),
    "an unknown kind": (
        _HEAD.replace("table", "tabel") + "  rows: [{title: a, method: coop}]\n",
        "expected one of table, datasets, curve, figure",
    ),
    "no tasks": (
        _HEAD.replace("  tasks: {zeroshot: [acc]}\n", "") + "  rows: [{title: a, method: coop}]\n",
        "x.yaml:experiment: the key 'tasks' is missing",
    ),
    "a metric that is no list": (
        _HEAD.replace("[acc]", "acc") + "  rows: [{title: a, method: coop}]\n",
        "tasks.zeroshot: expected a list of metrics",
    ),
    "an unknown task": (
        _HEAD.replace("zeroshot", "zershot") + "  rows: [{title: a, method: coop}]\n",
        "unknown task 'zershot'",
    ),
    "an id that is a list": (
        _HEAD.replace("id: X", "id: [X]") + "  rows: [{title: a, method: coop}]\n",
        "experiment.id: expected a text, got ['X']",
    ),
}
EXPERIMENTS = [
    Case(
        f"experiment: {name}",
        f"{RUN if 'other methods' in name else _WITHOUT_METHODS} --config x.yaml",
        says,
        together(small, files(x__yaml=content)),
    )
    for name, (content, says) in [
        *((name, (_HEAD + rows, says)) for name, (rows, says) in _ROWS.items()),
        *_EXPERIMENTS.items(),
    ]
] + [
    Case(
        "experiment: what its rows set, set again",
        f"{_WITHOUT_METHODS} --config x.yaml methods.coop.n_ctx=2",
        "methods.coop.n_ctx: the rows of table X set 'n_ctx' themselves",
        together(small, files(x__yaml=_HEAD + "  rows: [{title: a, method: coop, set: {n_ctx: 1}}]\n")),
    ),
    Case(
        "experiment: beside plain settings",
        f"{_WITHOUT_METHODS} --config x.yaml c.yaml",
        "c.yaml has no 'experiment:' section",
        together(
            small, files(x__yaml=_HEAD + "  rows: [{title: a, method: coop}]\n", c__yaml="seeds: [1]\n")
        ),
    ),
]

CASES = [*SUITES, *CONFIGS, *EXPERIMENTS]
