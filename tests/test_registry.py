"""Plugins are found by their file being there, and a bad one is one line."""

from __future__ import annotations

import pytest

from benchmark.errors import PluginError
from benchmark.registry import METHODS, TASKS, Registry, load_plugins, register_method, scan_plugins


def test_listing_names_the_files_of_methods_and_tasks():
    assert {"zero_shot", "coop", "ace_lora"} <= set(METHODS.names())
    assert "zeroshot" in TASKS.names()
    assert not {"base", "prompts", "__init__"} & {*METHODS.names(), *TASKS.names()}


@pytest.mark.parametrize("spelling", ["fake_one", "FAKE-ONE", "fake one", "Fake-One+", "fakeone"])
def test_spellings_resolve_to_the_canonical_name(world, spelling):
    load_plugins([str(world / "plugin.py")])
    assert METHODS.resolve(spelling) == "fake_one"


def test_prefix_resolves_to_the_plugin_and_keeps_the_rest(world):
    load_plugins([str(world / "plugin.py")])
    assert METHODS.resolve("Fake-Two:rest") == "fake_two:rest"
    assert METHODS.get("fake_two:rest").__name__ == "FakeTwo"


def test_a_family_gives_the_member_behind_the_colon(world, write):
    write(
        "family.py",
        """
        from benchmark.registry import register_method

        @register_method("clan", in_all=False, family=True)
        class Clan:
            @classmethod
            def variant(cls, name):
                return f"member {name!r}"
        """,
    )
    assert scan_plugins(["family.py"]) == []
    assert METHODS.entry("clan").family
    assert METHODS.get("Clan:one") == "member 'one'"
    assert METHODS.get("clan") == "member ''"
    assert METHODS.entry("clan").family
    assert "clan" in METHODS.names()
    assert "clan" not in METHODS.expand(["all"])
    assert "clan" not in METHODS.expand(["c*"])
    assert METHODS.expand(["clan:one", "clan:two"]) == ["clan:one", "clan:two"]
    with pytest.raises(PluginError, match="'clan:\\*': globs do not reach behind 'clan:'"):
        METHODS.expand(["clan:*"])


def test_all_leaves_out_methods_that_ask_for_it(world):
    load_plugins([str(world / "plugin.py")])
    assert "fake_one" in METHODS.names()
    assert "fake_one" not in METHODS.expand(["all"])
    assert METHODS.expand(["fake_*", "fake_one"]) == ["fake_one", "fake_two"]


def test_names_of_a_plugin_file_are_known_before_it_is_imported(world, write):
    write(
        "later.py",
        "from benchmark.registry import register_method\n@register_method('late')\nclass A: pass\n1/0\n",
    )
    assert scan_plugins(["later.py"]) == []
    assert "late" in METHODS.names()
    with pytest.raises(PluginError, match=r"'late' \(later.py:2\) could not be imported: ZeroDivisionError"):
        METHODS.get("late")
    assert METHODS.broken["late"].startswith("ZeroDivisionError")


def test_a_plugin_that_raises_is_reported_and_the_others_load(world, write):
    write("bad.py", "raise RuntimeError('two\\nlines')\n")
    problems = load_plugins(["bad.py", "plugin.py"])
    assert problems == ["plugin 'bad.py' could not be imported: RuntimeError: two lines (bad.py, line 1)"]
    assert METHODS.get("fake_one").cost_hint == 2.0


def test_a_module_is_a_plugin_too(world):
    assert load_plugins(["plugin"]) == []
    assert METHODS.get("fake_two").deterministic


def test_duplicate_registration_at_run_time_is_an_error(world):
    register_method("made_here")(object)
    with pytest.raises(PluginError, match="registered twice"):
        register_method("made_here")(object)


def test_files_of_the_folder_are_listed_even_when_broken(write, tmp_path):
    write("methods/broken.py", "def (:\n")
    write("methods/silent.py", "x = 1\n")
    write("methods/_hidden.py", "x = 1\n")
    write("methods/base.py", "x = 1\n")
    own = Registry("method", str(tmp_path / "methods"), not_plugins=("base",))
    assert own.names() == ["broken", "silent"]
    assert "SyntaxError" in own.broken["broken"]


def test_a_group_stands_for_its_members_and_neither_all_nor_a_glob_does():
    few = METHODS.expand(["fewshot"])
    assert {"clap", "tip_adapter_f", "clip_svd", "kgcoop"} <= set(few)
    assert len(few) == 12
    assert not set(few) & set(METHODS.expand(["all"]))
    assert METHODS.expand(["c*"]) == ["clip_adapter", "clip_lora", "cocoop", "coop"]
    assert METHODS.expand(["clap", "fewshot"])[0] == "clap"
