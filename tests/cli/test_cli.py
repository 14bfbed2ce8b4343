"""The command line: verbs, flags, exit codes, and one clear line for a wrong request."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest

from benchmark.cli import main
from benchmark.cli import run as run_verb
from benchmark.cli._parser import ArgumentParser, normalised
from benchmark.cli._shell import with_seeds
from benchmark.config.request import load_request
from benchmark.errors import PluginError
from benchmark.plan import make_plan
from benchmark.store.cells import Store


@pytest.fixture
def words(flags):
    """Flags that select the fakes, as words."""
    return [
        "--suite", flags["suite"], "--plugins", *flags["plugins"], "--methods", "fake_*",
        "--output_dir", flags["output_dir"], "--device", "cpu", "--jobs", "1",
    ]  # fmt: skip


@pytest.fixture
def fakes(stand_in, world):
    """Let the run verb use the stand-in cells."""
    stand_in(importlib.import_module("fake_cells").run_cell)


def refused(capsys, *argv):
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error.splitlines()


def test_dashes_and_underscores_are_the_same_flag():
    assert normalised(["--batch_size=3", "--output_dir", "a_b", "x_y=1"]) == [
        "--batch-size=3", "--output-dir", "a_b", "x_y=1",
    ]  # fmt: skip


def test_lists_take_commas_or_blanks_and_leave_key_value_words():
    parser = ArgumentParser("run", "")
    run_verb.add_arguments(parser)
    args = parser.read(["--methods", "a,b", "c", "recipe.lr=1", "--seeds", "0", "1", "loss=clip"])
    assert args.methods == ["a", "b", "c"]
    assert args.seeds == ["0", "1"]
    assert sorted(args.overrides) == ["loss=clip", "recipe.lr=1"]


def test_run_then_reuse(capsys, fakes, words, world):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 cells: 2 done, 0 reused" in out
    assert (world / "out" / "results.csv").read_text().count("\n") == 3
    assert out.splitlines()[0] == "planning ..."
    assert "writing report ..." in out
    assert main(["run", *words]) == 0
    again = capsys.readouterr().out
    assert "2 cells: 0 done, 2 reused" in again
    assert "all 2 cells are finished: their results are reused, nothing runs" in again
    assert "started" not in again


def test_dry_run_writes_nothing(capsys, fakes, words, world):
    assert main([*words, "--dry-run"]) == 0
    assert "fake_one" in capsys.readouterr().out
    assert not (world / "out").exists()


def test_failed_cell_gives_exit_code_1_and_is_named(capsys, fakes, words, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_one", "raise")
    assert main(words) == 1
    caught = capsys.readouterr()
    assert "error: runs/fakes/tiny/fake_one/seed-0: RuntimeError: boom" in caught.err
    assert "1 done, 0 reused, 1 failed" in caught.out
    assert "Traceback" not in caught.out
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().out


def test_broken_plugin_is_one_line_while_others_run(capsys, fakes, words, write):
    bad = write("bad.py", "raise RuntimeError('no luck')\n")
    index = words.index("--plugins") + 2
    assert main([*words[:index], str(bad), *words[index:]]) == 2
    caught = capsys.readouterr()
    assert "error: plugin 'bad.py' could not be imported: RuntimeError: no luck" in caught.err
    assert "2 cells: 2 done" in caught.out


def test_result_of_a_newer_version_is_refused(capsys, fakes, words, world):
    assert main(words) == 0
    path = world / "out/runs/fakes/tiny/fake_one/seed-0/fake_task.json"
    path.write_text(json.dumps({"schema_version": 99}))
    capsys.readouterr()
    assert len(lines := refused(capsys, *words)) == 1
    assert "fake_task.json: written by a newer version" in lines[0]


def test_failing_report_does_not_lose_the_run(capsys, fakes, words, monkeypatch):
    from benchmark.report import report

    def broken(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "read_report", broken)
    assert main(words) == 0
    assert "warning: no report (RuntimeError: no ink)" in capsys.readouterr().err


def test_interrupt_names_the_way_on(capsys, fakes, words, monkeypatch):
    monkeypatch.setenv("TROUBLE_fake_two", "interrupt")
    assert main(words) == 130
    assert "The same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["tasks", "suites", "datasets", "backbones", "tables"])
def test_lists_are_json_on_request(capsys, what):
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["name"] for row in rows)
    assert main(["list", what]) == 0
    assert rows[0]["name"] in capsys.readouterr().out


EXPERIMENT = """
experiment:
  id: X
  kind: table
  tasks: {fake_task: [acc]}
  rows:
    - {title: two, method: fake_two}
    - {title: deep, method: fake_one, set: {depth: 9}}
    - {title: unknown, method: fake_one, backbone: nonesuch}
    - {title: heavy, method: fake_one, backbone: bmc-clip}
"""


def test_an_experiment_runs_its_rows_and_the_next_one_shares_them(
    capsys, fakes, words, world, write, monkeypatch
):
    def no_weights(name, pretrained=None):
        raise PluginError(f"no weights of {name}")

    monkeypatch.setattr("benchmark.backbones.check_backbone", no_weights)
    monkeypatch.setattr(run_verb, "_prepare", lambda *_: None)
    first = write("a.yaml", EXPERIMENT)
    assert main([*words, "--config", str(first)]) == 0
    out, err = capsys.readouterr()
    assert "2 cells: 2 done, 0 reused" in out
    assert "not run: table X, unknown: no backbone 'nonesuch' is known here" in err
    assert "not run: rows of backbone bmc-clip: no weights of bmc-clip" in err
    assert (world / "out/runs/fakes/tiny/fake_one+depth=9/seed-0/fake_task.json").is_file()
    second = write("b.yaml", EXPERIMENT.replace("id: X", "id: Y").replace("depth: 9", "depth: 8"))
    assert main([*words, "--config", str(first), str(second), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 cells" in out
    assert out.count("reuse") == 2


def test_an_experiment_goes_on_after_an_interruption(capsys, fakes, words, write, monkeypatch):
    file = str(write("a.yaml", EXPERIMENT.split("    - {title: unknown")[0]))
    monkeypatch.setenv("TROUBLE_fake_two", "interrupt")  # the other one is longer, so it comes first
    assert main([*words, "--config", file]) == 130
    monkeypatch.delenv("TROUBLE_fake_two")
    assert main([*words, "--config", file]) == 0
    assert "2 cells: 1 done, 1 reused" in capsys.readouterr().out


def test_an_experiment_without_cells_says_so(capsys, fakes, words, write):
    text = (
        EXPERIMENT.split("  rows:")[0].replace("table", "datasets")
        + "  rows: [{title: a, task: fake_task}]\n"
    )
    assert main([*words, "--config", str(write("a.yaml", text))]) == 0
    assert "table X: describes the datasets and needs no run" in capsys.readouterr().out


def test_every_suite_and_backbone_of_an_experiment_is_prepared_once(flags, world, write, monkeypatch):
    text = EXPERIMENT.replace("nonesuch", "tiny_b").replace("heavy, method", "again, set: {depth: 1}, method")
    path = write("a.yaml", text.replace("bmc-clip", "tiny_b"))
    given = {key: value for key, value in flags.items() if key != "methods"}
    seen = []
    prepare_suite = importlib.import_module("benchmark.run.prepare_suite")
    monkeypatch.setattr(
        prepare_suite, "prepare_suite", lambda suite, *_, **__: seen.append(sorted(suite["tasks"]))
    )
    monkeypatch.setattr(prepare_suite, "_check_tasks", lambda *_: None)  # the fakes are no tasks
    monkeypatch.setattr("benchmark.backbones.check_backbone", lambda name, pretrained=None: seen.append(name))
    plan = make_plan(load_request(given, [], [str(path)]).configs, Store(world / "out"))
    specs = [cell.spec for cell in plan.open]
    more = dataclasses.replace(specs[0], tasks={"other_task": {"datasets": {}}})
    prepare_suite.prepare_cells([*specs, more], None)
    assert seen == ["tiny", "tiny_b", ["fake_task", "other_task"]]


def test_the_next_command_is_the_same_one_with_more_seeds():
    assert with_seeds(["--methods", "coop", "--seeds", "0", "lr=1"], "0,1") == (
        "python run_benchmark.py --methods coop lr=1 --seeds 0,1"
    )
    assert with_seeds(["--protocol", "fewshot", "--seeds", "0"], "") == (
        "python run_benchmark.py --protocol fewshot"  # whose seeds are its own
    )
    assert with_seeds(["--seeds=3", "seeds=[1]", "--smoke", "--suite", "my suite"], "0") == (
        "python run_benchmark.py --suite 'my suite' --seeds 0"
    )
