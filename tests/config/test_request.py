"""What a command with experiments asks for: layers above the rows, shared cells, and clear refusals."""

from __future__ import annotations

import pytest

from benchmark.config.request import load_request
from benchmark.errors import ConfigError
from benchmark.plan import make_plan
from benchmark.store.cells import Store

EXPERIMENT = """
experiment:
  id: X
  kind: table
  tasks: {fake_task: [acc]}
  rows:
    - {title: two, method: fake_two}
    - {title: one, method: fake_one}
    - {title: deep, method: fake_one, set: {depth: 9}}
    - {title: same, method: fake_one, set: {depth: 3}}
    - {title: quick, method: fake_one, set: {recipe.lr: 1e-2, corpus.fraction: 0.5}}
    - {title: other, method: fake_one, backbone: tiny_b}
    - {title: unknown, method: fake_one, backbone: kda}
seeds: [0, 1]
recipe: {epochs: 7}
"""
QUICK = "fake_one+corpus.fraction=0.5,recipe.lr=0.01"
TRAINED = ("tiny/fake_one", "tiny/fake_one+depth=9", f"tiny/{QUICK}", "tiny_b/fake_one")
CELLS = ["tiny/fake_two/seed-0", *(f"{name}/seed-{seed}" for name in TRAINED for seed in (0, 1))]


@pytest.fixture
def ask(flags, write):
    """A function that loads the experiment above with flags and key=value words, and plans it."""

    def asked(*overrides, text=EXPERIMENT, **more):
        path = write("mine.yaml", text)
        given = {key: value for key, value in flags.items() if key != "methods"} | more
        return load_request(given, overrides, [str(path)])

    return asked


def cells(request, world):
    plan = make_plan(request.configs, Store(world / "out"))
    return {cell.spec.folder.removeprefix("runs/fakes/"): cell.spec for cell in plan.cells}


def refused(ask, *overrides, **more):
    with pytest.raises(ConfigError) as caught:
        ask(*overrides, **more)
    return caught.value.problems


def test_rows_become_cells_and_equal_ones_are_planned_once(ask, world):
    request = ask()
    planned = cells(request, world)
    assert list(planned) == CELLS
    assert request.skipped == ("table X, unknown: no backbone 'kda' is known here",)
    assert request.named == {"tiny_b"}
    deep, quick = planned[CELLS[3]], planned[CELLS[5]]
    assert (deep.method, deep.variant, deep.options["depth"]) == ("fake_one", "depth=9", 9)
    assert (quick.recipe.lr, quick.suite["corpus"]["fraction"]) == (0.01, 0.5)
    assert {spec.recipe.epochs for spec in planned.values()} == {7}  # keys beside the experiment


def test_the_base_cell_is_that_of_an_ordinary_run(ask, flags, world):
    base = cells(ask(text=EXPERIMENT.replace("recipe: {epochs: 7}", "")), world)["tiny/fake_one/seed-0"]
    plain = cells(load_request(flags), world)["tiny/fake_one/seed-0"]
    assert base.adapt_hash == plain.adapt_hash
    assert base.task_hash("fake_task") == plain.task_hash("fake_task")


def test_flags_and_words_stand_above_the_rows(ask, world):
    planned = cells(ask("methods.fake_one.sizes=[7]", seeds="4", epochs="2", backbone="random"), world)
    assert list(planned)[:2] == ["random/fake_two/seed-4", "random/fake_one/seed-4"]
    assert {spec.recipe.epochs for spec in planned.values()} == {2}
    assert planned["random/fake_one+depth=9/seed-4"].options == {"depth": 9, "sizes": [7]}
    assert "tiny_b/fake_one/seed-4" in planned


def test_methods_narrow_the_rows(ask, world):
    assert list(cells(ask(methods=["Fake-One+"], seeds="0"), world)) == [
        CELLS[1],
        CELLS[3],
        CELLS[5],
        CELLS[7],
    ]
    assert list(cells(ask(methods=["fake_two"]), world)) == CELLS[:1]
    assert ask(methods=["fake_two"]).skipped == ()
    assert list(cells(ask(methods=["all"]), world)) == CELLS
    lines = refused(ask, methods=["coop"])
    assert lines == ["--methods: no row of table X is of coop, only: fake_two, fake_one"]


def test_pretrained_belongs_to_the_chosen_backbone(ask):
    found = {config.backbone: config.pretrained for config in ask(pretrained="file.pt").configs}
    assert found == {"tiny": "file.pt", "tiny_b": None}


def test_tasks_none_adapts_only(ask, world):
    assert {tuple(spec.tasks) for spec in cells(ask(tasks="none"), world).values()} == {()}


@pytest.mark.parametrize(
    ("overrides", "more", "line"),
    [
        ([], {"lr": "1e-4"}, "--lr: the rows of table X set 'recipe.lr' themselves. Leave it out"),
        (["recipe.lr=1"], {}, "recipe.lr: the rows of table X set 'recipe.lr' themselves"),
        (["methods.fake_one.depth=2"], {}, "methods.fake_one.depth: the rows of table X set 'depth' themselves"),
        (["methods.fake_one.options.depth=2"], {}, "the rows of table X set 'depth' themselves"),
        (["methods.Fake-One+.recipe.lr=2"], {}, "the rows of table X set 'recipe.lr' themselves"),
        (["corpus.fraction=0.2"], {}, "corpus.fraction: the rows of table X set 'corpus.fraction' themselves"),
        ([], {"tasks": "zeroshot"}, "the suite has no data for task 'zeroshot'"),
        (["recipe.lrr=3"], {}, "recipe.lrr: unknown recipe key 'lrr'. Did you mean 'lr'?"),
        (["methods.fake_one.dpeth=2"], {}, "methods.fake_one.dpeth: unknown option of method 'fake_one'"),
    ],
)  # fmt: skip
def test_what_contradicts_the_rows_or_is_wrong_is_one_line(ask, overrides, more, line):
    found = [problem for problem in refused(ask, *overrides, **more) if line in problem]
    assert len(found) == 1


def test_another_rows_option_is_no_contradiction(ask, world):
    assert list(cells(ask("methods.fake_two.recipe.lr=5e-3"), world)) == CELLS


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("{depth: 9}", "{dept: 9}", "mine.yaml:experiment.rows.deep.set.dept: unknown"),
        ("method: fake_two", "method: fake_tow", "mine.yaml:experiment.rows.two.method: unknown method 'fake_tow'"),
        ("{fake_task: [acc]}", "{fake_tsk: [acc]}", "mine.yaml:experiment.tasks.fake_tsk: unknown task 'fake_tsk'"),
        ("seeds: [0, 1]", "sedes: [0, 1]", "mine.yaml:sedes: unknown key 'sedes'. Did you mean 'seeds'?"),
        ("recipe: {epochs: 7}", "recipe: {lr: 1}", "mine.yaml:recipe.lr: the rows of table X set 'recipe.lr'"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_refused_with_its_place(ask, old, new, line):
    assert any(problem.startswith(line) for problem in refused(ask, text=EXPERIMENT.replace(old, new)))


def test_a_backbone_that_no_row_takes_is_refused(ask):
    text = EXPERIMENT.replace("method: fake_", "backbone: tiny_b, method: fake_").replace(
        "backbone: tiny_b}", "}"
    )
    lines = refused(ask, text=text.replace(", backbone: kda", ""), backbone="random")
    assert lines == ["--backbone: every row of table X has its own (tiny_b). Leave it out"]


def test_a_suite_without_the_data_gives_a_reason(ask):
    lines = refused(ask, text=EXPERIMENT.replace("fake_task", "segmentation"))
    assert lines[0] == "nothing to run"
    assert "table X, deep: suite 'fakes' has no data for segmentation" in lines


def test_several_files_are_one_request(flags, write, world):
    first = write("a.yaml", EXPERIMENT)
    second = write("b.yaml", EXPERIMENT.replace("id: X", "id: Y").replace("depth: 9", "depth: 8"))
    given = {key: value for key, value in flags.items() if key != "methods"}
    request = load_request(given, ["seeds=0"], [str(first), str(second)])
    assert [item.label for item in request.experiments] == ["table X", "table Y"]
    assert list(cells(request, world)) == [
        *CELLS[0:2],
        CELLS[3],
        CELLS[5],
        CELLS[7],
        "tiny/fake_one+depth=8/seed-0",
    ]
    plain = write("c.yaml", "seeds: [3]\n")
    with pytest.raises(ConfigError, match=r"--config: c.yaml has no 'experiment:' section"):
        load_request(given, [], [str(first), str(plain)])
    with pytest.raises(
        ConfigError, match="several files are taken only when each has an 'experiment:' section"
    ):
        load_request(given, [], [str(plain), str(plain)])


def test_ordinary_files_are_read_as_before(flags, write):
    request = load_request(flags, ["epochs=2"], [str(write("c.yaml", "seeds: [3]\n"))])
    assert (len(request.configs), request.configs[0].seeds, request.experiments) == (1, (3,), ())


def test_a_table_of_datasets_needs_no_cells(ask):
    text = (
        EXPERIMENT.split("  rows:")[0].replace("table", "datasets")
        + "  rows: [{title: a, task: fake_task}]\n"
    )
    assert ask(text=text).configs == ()
