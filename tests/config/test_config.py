"""Layers of configuration: precedence, types, and all problems at once, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.config.layers import from_overrides
from benchmark.config.load import build_options, load_config
from benchmark.config.run_config import Recipe
from benchmark.errors import ConfigError, PluginError
from benchmark.files import read_yaml
from benchmark.settings import Given, check


def problems(*arguments, **words):
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **words)
    return caught.value.problems


def test_recipe_reports_all_bad_values_at_once():
    with pytest.raises(ConfigError) as caught:
        Recipe(batch_size=-1, lr=0.0, loss="clpi", betas=(0.9, 1.0))
    text = str(caught.value)
    assert "recipe.batch_size: expected a value of at least 1, got -1" in text
    assert "recipe.lr: expected a value greater than 0" in text
    assert "Did you mean 'clip'?" in text
    assert "recipe.betas" in text


def test_suite_then_method_then_flags_then_overrides(flags):
    config = load_config(flags)
    assert config.suite_name == "fakes"
    assert config.recipes["fake_one"].epochs == 3  # suite over defaults.yaml
    assert config.recipes["fake_one"].lr == 5e-4  # the suite's own settings of the method
    assert config.recipes["fake_two"].lr == 1e-3
    assert config.options["fake_one"] == {"depth": 3, "sizes": [1, 2]}
    config = load_config(
        flags | {"lr": "2e-3", "epochs": "5"}, ["recipe.epochs=7", "methods.fake_two.recipe.lr=3e-3"]
    )
    assert config.recipes["fake_one"].lr == 2e-3
    assert config.recipes["fake_two"].lr == 3e-3
    assert config.recipes["fake_two"].epochs == 7


def test_config_file_stands_between_suite_and_flags(flags, write):
    path = write(
        "mine.yaml", "recipe: {epochs: 9, lr: 1e-4}\nmethods: {Fake-One+: {sizes: [7]}}\nseeds: [4, 5]\n"
    )
    config = load_config(flags | {"epochs": "2"}, config_file=str(path))
    assert config.seeds == (4, 5)
    assert config.recipes["fake_one"].epochs == 2
    assert config.recipes["fake_one"].lr == 1e-4
    assert config.options["fake_one"] == {"depth": 3, "sizes": [7]}


def test_bare_recipe_fields_and_data_overrides(flags):
    config = load_config(flags, ["loss=clip", "grad_clip=null", "corpus.limit=5", "tasks.fake_task.depth=9"])
    assert config.recipes["fake_one"].loss == "clip"
    assert config.suite["corpus"]["limit"] == 5
    assert config.suite["corpus"]["part"] == "mimic"
    assert config.task_options["fake_task"]["depth"] == 9
    assert "rsna" in config.task_options["fake_task"]["datasets"]


def test_authors_recipe_is_taken_where_a_method_has_one(flags, write):
    suite = read_yaml(Path(flags["suite"]))
    suite["methods"]["fake_one"]["recipe"] = {"common": {"lr": 1e-5}, "authors": {"lr": 2e-5, "epochs": 50}}
    write("suite.yaml", yaml.safe_dump(suite))
    assert load_config(flags).recipes["fake_one"].lr == 1e-5
    authors = load_config(flags, ["recipe=authors"])
    assert authors.recipe_name == "authors"
    assert authors.recipes["fake_one"].epochs == 50
    assert authors.recipes["fake_two"].epochs == 3


def test_all_problems_come_at_once_with_their_places(flags, write):
    write("suite.yaml", Path(flags["suite"]).read_text() + "corpsu: {}\n")
    found = problems(
        flags | {"batch_size": "-3", "seeds": ["0", "x"], "device": "gpu"}, ["recpe.lr=1", "lr=abc"]
    )
    text = "\n".join(found)
    assert "suite.yaml:corpsu: unknown key 'corpsu'. Did you mean 'corpus'?" in text
    assert "--batch-size: expected a value of at least 1, got '-3'" in found
    assert "--seeds: expected a whole number, got ['0', 'x']" in found
    assert "recpe: unknown key 'recpe'. Did you mean 'recipe'?" in text
    assert "recipe.lr: expected a number, got 'abc'" in found
    assert "--device: expected auto, cpu, cuda or cuda:<i>, got 'gpu'" in found


def test_the_share_of_the_corpus_is_a_number_and_all_of_it_is_none(flags):
    plain = load_config(flags).suite["corpus"]
    assert load_config(flags, ["corpus.fraction=5e-1"]).suite["corpus"] == plain | {"fraction": 0.5}
    assert load_config(flags, ["corpus.fraction=1.0"]).suite["corpus"] == plain
    found = problems(flags, ["validation.fraction=0.5", "tasks.fake_task.datasets.rsna.fraction=0.5"])
    assert len([problem for problem in found if "only the corpus can be cut to a share" in problem]) == 2


def test_all_leaves_out_tasks_that_are_asked_for_by_name(flags, write):
    more = write(
        "more.py",
        "from benchmark.registry import register_task\n"
        "@register_task('rare_task', in_all=False)\nclass Rare: pass\n",
    )
    suite = Path(flags["suite"])
    suite.write_text(
        suite.read_text().replace("  fake_task:\n", "  rare_task: {datasets: {}}\n  fake_task:\n")
    )
    flags = flags | {"plugins": [*flags["plugins"], str(more)]}
    assert load_config(flags).tasks == ("fake_task",)
    assert load_config(flags | {"tasks": "all"}).tasks == ("fake_task",)
    assert load_config(flags | {"tasks": "all,rare_task"}).tasks == ("fake_task", "rare_task")


def test_a_plugin_that_raises_leaves_the_others(flags, write):
    text = "from benchmark.registry import register_method\n@register_method('fake_bad')\nclass A: 1/0\n"
    with_bad = flags | {"plugins": [*flags["plugins"], str(write("bad.py", text))]}
    config = load_config(with_bad)
    assert config.methods == ("fake_one", "fake_two")
    assert any("fake_bad" in line and "ZeroDivisionError" in line for line in config.broken)
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load_config(with_bad | {"methods": ["fake_bad"]})


def test_options_are_built_from_json_types(world):
    from benchmark.registry import METHODS, load_plugins

    load_plugins(["plugin.py"])
    options = build_options(METHODS.get("fake_one").Options, {"sizes": [3, 4]})
    assert options.sizes == (3, 4)
    with pytest.raises(ConfigError, match="unknown option 'dpth'"):
        build_options(type(options), {"dpth": 1})


words = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda text: text.strip("_"))
scalars = st.one_of(
    st.integers(-9, 9), st.booleans(), st.none(), st.floats(-1e3, 1e3), st.text("xyz -", max_size=5)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=2, max_size=4), scalars)
def test_key_value_words_give_the_nested_yaml_value(path, value):
    found = []
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("...").strip()
    layer = from_overrides([f"{'.'.join(path)}={text}"], Recipe, found)
    here = layer.values
    for part in path:
        here = here[part]
    assert found == []
    assert here == value


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.one_of(words, st.just("lr"), st.just("betas")), scalars, max_size=5))
def test_any_recipe_mapping_gives_a_recipe_or_lines(values):
    typed, lines = check(Recipe, [Given(key, value, f"x.yaml:{key}") for key, value in values.items()], "key")
    assert all(line.startswith("x.yaml:") for line in lines)
    assert len(lines) + len(typed) == len(values)
    assert isinstance(Recipe(**{key: value for key, value in typed.items() if key != "betas"}), Recipe)


@settings(max_examples=60, deadline=None)
@given(st.floats(min_value=1e-12, max_value=1e6))
def test_numbers_survive_as_text(number):
    for text in (repr(number), f"{number:.17g}", number):
        assert check(Recipe, [Given("lr", text, "lr")], "key")[0] == {"lr": number}


def test_what_class_labels_alone_can_teach_is_refused_on_pairs():
    (line,) = problems({"methods": "clap,coop,tip_adapter,kgcoop"})
    assert line.startswith(
        "--methods: clap, tip_adapter learn from class labels, and this run adapts on image-report"
    )
