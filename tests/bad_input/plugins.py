"""Broken plugins: files that are not Python, impossible registrations, classes that break the contract."""

from __future__ import annotations

from tests.bad_input.case import RUN, Case, Says, Setup, files, small, spoilt, suite, together

_USE = "from benchmark.registry import register_method, register_task, register_dataset, register_backbone\n"


def _method(body: str, call: str = '"mine"') -> str:
    return f"{_USE}import dataclasses\n@register_method({call})\nclass Mine:\n    {body}\n"


_SOURCES: dict[str, tuple[str | bytes, str]] = {
    "Python that does not parse": ("def (:\n", "Not read: mine.py: SyntaxError: invalid syntax"),
    "nothing": ("", "unknown method 'mine'"),
    "bytes": (b"\x00\xff\xfe", "Not read: mine.py: UnicodeDecodeError"),
    "brackets without end": (
        "x = " + "(" * 5000,
        "Not read: mine.py: SyntaxError: too many nested parentheses",
    ),
    "a page of the web": ("<!DOCTYPE html>\n", "Not read: mine.py: SyntaxError"),
    "a name that is worked out": (
        f"{_USE}NAME = 'mine'\n@register_method(NAME)\nclass A: pass\n",
        "must be written out",
    ),
    "an error on import": (
        _method("x = 1 / 0"),
        "method 'mine' (mine.py:3) could not be imported: ZeroDivisionError",
    ),
    "an exit on import": (
        _method("x = exit(0)"),
        "method 'mine' (mine.py:3) could not be imported: SystemExit",
    ),
    "an import of what is not there": (
        _method("import nowhere"),
        "could not be imported: ModuleNotFoundError: No module named",
    ),
    "a name of ours": (_method("pass", '"coop"'), "method 'coop' is registered twice: methods/coop.py:"),
    "a name twice": (
        _method("pass") + _method("pass"),
        "method 'mine' is registered twice: mine.py:3 and mine.py:8",
    ),
    "a word of the command line as name": (_method("pass", '"all"'), "'all' cannot be the name of a plugin"),
    "a name with blanks": (
        _method("pass", '"my method"'),
        "'my method' cannot be the name of a plugin: expected letters",
    ),
    "a name that leads out of its folder": (
        _method("pass", '"../mine"'),
        "'../mine' cannot be the name of a plugin",
    ),
    "a number for a name": (_method("pass", "3"), "mine.py:3: 3 cannot be the name of a plugin"),
    "aliases that are a number": (
        _method("pass", '"mine", aliases=3'),
        "mine.py:3: aliases: expected a tuple of texts",
    ),
    "an unknown keyword": (
        _method("pass", '"mine", colour=3'),
        "mine.py:3: unknown keyword 'colour'. Known: aliases",
    ),
    "options that are no dataclass": (
        _method("Options = 3"),
        "method 'mine' (mine.py:3): its Options must be a dataclass",
    ),
    "options that are a plain class": (_method("class Options: r = 2"), "its Options must be a dataclass"),
    "an option without a default": (
        _method("Options = dataclasses.make_dataclass('Options', [('r', int)])"),
        "its option 'r' has no default",
    ),
    "an option of a type that is not there": (
        _method("Options = dataclasses.make_dataclass('Options', [('r', 'Nowhere', 3)])"),
        "the types of its Options cannot be read (NameError",
    ),
    "options that always refuse": (
        _method(
            "Options = dataclasses.dataclass(type('Options', (), {'__post_init__': lambda self: {}['depth']}))"
        ),
        "method 'mine': KeyError: 'depth'",
    ),
    "a cost in words": (_method("cost_hint = 'much'"), "its cost_hint must be a number, not 'much'"),
}


def _dataset(body: str, options: str = "pass", contract: str = "Options = Keys") -> Setup:
    entry = {"dataset": "mine", "kind": "multilabel", "classes": ["a"]}
    source = (
        f"{_USE}import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Keys:\n    {options}\n"
        f"@register_dataset('mine')\nclass Mine:\n    {contract}\n"
        f"    def load(self, options, request):\n        {body}\n"
    )
    return together(suite(tasks={"zeroshot": {"datasets": {"mine": entry}}}), files(mine__py=source))


def _backbone(body: str) -> Setup:
    return together(
        small,
        files(mine__py=f'{_USE}@register_backbone("mine")\ndef mine(name, pretrained=None):\n    {body}\n'),
    )


_DATASETS: dict[str, tuple[Setup, Says]] = {
    "raises": (
        _dataset("raise IndexError('far')"),
        "dataset 'mine' failed: IndexError: far (mine.py, line 10). --debug shows where",
    ),
    "gives nothing": (
        _dataset("return None"),
        "dataset 'mine': its plugin gives a NoneType, expected a Prepared",
    ),
    "is a function": (
        together(
            _dataset(""),
            files(mine__py=f"{_USE}@register_dataset('mine')\ndef mine(root, reporter=None): ...\n"),
        ),
        "dataset 'mine' (mine.py:2): expected a class with Options and load(self, options, request)",
    ),
    "has no options": (
        _dataset("return None", contract="pass"),
        "dataset 'mine' (mine.py:6): expected a class with Options",
    ),
    "has a plain class as options": (
        _dataset("return None", contract="Options = int"),
        "dataset 'mine' (mine.py:6): its Options must be a dataclass",
    ),
    "refuses to begin": (
        _dataset("return None", contract="Options, __init__ = Keys, lambda self: {}['x']"),
        "dataset 'mine' failed: KeyError: 'x'",
    ),
    "needs more": (_dataset("return None", "site: str"), "dataset 'mine' needs the key 'site'"),
    "cannot be imported": (
        _dataset("return None", "part: str = nowhere"),
        "dataset 'mine' (mine.py:6) could not be imported: NameError",
    ),
}
_BACKBONES: dict[str, tuple[Setup, Says]] = {
    "raises": (_backbone("return {}['x']"), "backbone 'mine' failed: KeyError: 'x'"),
    "is a number": (_backbone("return 3"), "backbone 'mine': its plugin gives a int, expected a Backbone"),
}
_TASK = together(
    suite(tasks={"mine": {"datasets": {}}}),
    files(mine__py=f"{_USE}@register_task('mine')\nclass A:\n    raise RuntimeError('no')\n"),
)
_TASKS: dict[str, tuple[Setup, Says]] = {
    "cannot be imported": (_TASK, "task 'mine' (mine.py:2) could not be imported: RuntimeError: no")
}
_CHECKED: dict[str, tuple[Setup, Says]] = {
    "registers nothing": (files(mine__py="x = 1\n"), "'mine.py' registers no method"),
    "raises": (files(mine__py=_method("x = 1 / 0")), "could not be imported: ZeroDivisionError"),
    "is no method": (files(mine__py=_method("pass")), "method 'mine'"),
}
_NAMED: dict[str, Says] = {
    "./films": "--plugins: file './films' does not exist",
    "./films.csv": "--plugins: file './films.csv' is not a Python file (.py)",
    "nowhere_at_all": "--plugins: no module 'nowhere_at_all'",
    "sys": "--plugins: no module 'sys' is installed",
    "os.path.nowhere": "no module 'os.path.nowhere'",
    "a.py,b.py": ("--plugins: file 'a.py' does not exist", "--plugins: file 'b.py' does not exist"),
}
_MINE = "--plugins mine.py"

CASES = [
    *(
        Case(
            f"plugin: {name}",
            f"{RUN} {_MINE}".replace("zero_shot", "mine"),
            says,
            together(small, files(mine__py=source)),
        )
        for name, (source, says) in _SOURCES.items()
    ),
    *spoilt("plugin: a dataset", f"{RUN} {_MINE}", _DATASETS),
    *spoilt("plugin: a backbone", f"efficiency --methods coop --backbone mine {_MINE}", _BACKBONES),
    *spoilt("plugin: a task", f"{RUN} {_MINE} --tasks mine", _TASKS),
    *spoilt("check-method", "check-method mine.py r=3", _CHECKED),
    *(Case(f"--plugins {name}", f"{RUN} --plugins {name}", says, small) for name, says in _NAMED.items()),
]
