"""Short runs: a smoke run stands apart, and limits lower what they must."""

from __future__ import annotations

import dataclasses

import pytest

from benchmark.config.load import load_config
from benchmark.errors import ConfigError
from benchmark.plan import make_plan
from benchmark.store.cells import Store

PHANTOM = {"methods": "zero_shot,clip_lora", "tasks": "zeroshot,segmentation"}


def test_a_smoke_run_is_another_suite_with_few_images_and_steps(tmp_path):
    config = load_config(PHANTOM | {"smoke": True})
    assert config.suite_name == config.suite["name"] == "phantom-smoke"
    assert (config.limit, config.recipes["clip_lora"].max_steps, config.recipes["clip_lora"].batch_size) == (
        64,
        2,
        16,
    )
    assert (
        config.recipes["clip_lora"].lr == load_config(PHANTOM).recipes["clip_lora"].lr
    )  # all else is the suite's
    assert config.suite["corpus"]["n"] == config.suite["validation"]["n"] == 64
    segmentation = config.task_options["segmentation"]
    assert (segmentation["max_steps"], segmentation["bootstrap"]) == (2, 50)
    assert [segmentation["datasets"]["siim"][part]["n"] for part in ("train", "val", "test")] == [64] * 3
    assert "scores mean nothing" in config.suite["title"]
    assert any("smoke run" in line for line in config.notes)
    folders = {cell.spec.folder for cell in make_plan(config, Store(tmp_path)).cells}
    assert folders == {f"runs/phantom-smoke/tiny/{name}/seed-0" for name in ("zero_shot", "clip_lora")}
    assert "paper" not in config.suite


def test_what_the_user_says_wins_over_a_smoke_run():
    config = load_config(
        PHANTOM | {"smoke": True, "limit": "8"}, ["tasks.segmentation.max_steps=5", "max_steps=3"]
    )
    assert (config.limit, config.recipes["clip_lora"].max_steps) == (8, 3)
    assert config.task_options["segmentation"]["max_steps"] == 5
    assert config.recipes["clip_lora"].batch_size == 8


def test_without_it_nothing_is_shortened():
    config = load_config(PHANTOM)
    assert (config.suite_name, config.limit, config.notes) == ("phantom", None, ())
    assert "max_steps" not in config.task_options["segmentation"]  # so hashes are what they were


@pytest.mark.parametrize(
    "said", [({"max_steps": "2"}, []), ({}, ["max_steps=2"]), ({}, ["recipe.max_steps=2"])]
)
def test_the_steps_that_all_methods_may_take_bind_heads_too(said):
    flags, words = said
    options = load_config(PHANTOM | flags, words).task_options
    assert options["segmentation"]["max_steps"] == 2
    assert "max_steps" not in options["zeroshot"]
    only = load_config(PHANTOM, ["methods.clip_lora.recipe.max_steps=2"]).task_options
    assert "max_steps" not in only["segmentation"]  # heads are the same for all methods


def test_a_limit_below_the_batch_lowers_it_and_says_so():
    config = load_config(PHANTOM | {"limit": "16"})
    assert config.recipes["clip_lora"].batch_size == 16
    assert config.notes == ("--limit 16: batches of 32 pairs are lowered to 16",)
    assert load_config(PHANTOM | {"limit": "32"}).notes == ()
    assert load_config(PHANTOM | {"limit": "1"}).recipes["clip_lora"].batch_size == 2  # a pair needs another


def test_what_trains_nothing_asks_for_no_corpus_and_no_validation_set(write):
    suite = write(
        "s.yaml",
        """
        templates: ["a picture of {}."]
        tasks:
          zeroshot:
            datasets:
              rsna: {dataset: phantom, part: rsna, kind: binary, classes: [No Finding, Pneumonia], positive: Pneumonia}
        """,
    )
    assert load_config({"suite": str(suite), "methods": "zero_shot"}).methods == ("zero_shot",)
    with pytest.raises(ConfigError, match="the key 'corpus' is missing") as caught:
        load_config({"suite": str(suite), "methods": "zero_shot,coop"})
    assert any("the key 'validation' is missing" in line for line in caught.value.problems)


def test_a_smoke_run_and_a_real_one_share_no_name(tmp_path):
    names = [
        {cell.spec.folder for cell in make_plan(load_config(PHANTOM | more), Store(tmp_path)).cells}
        for more in ({}, {"smoke": True})
    ]
    assert not names[0] & names[1]
    assert dataclasses.replace(load_config(PHANTOM), smoke=True).smoke
