"""Which code stands behind each version number: ``cached_code.json`` holds what it was when the number was set.

A change of that code makes a test fail. Raise the number if the code now gives other bits; then, or if it gives the
same, write down that this is so: ``python -m tests.cached_code``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import json
import tokenize
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("cached_code.json")


def known() -> dict[str, dict[str, Any]]:
    """Return version -> its number, and the digests of its code, as they were written down."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def number_of(version: str) -> int:
    """Return the number that a version, ``module:NAME``, has now."""
    module, _, name = version.partition(":")
    return int(getattr(importlib.import_module(module), name))


def code_digest(name: str) -> str:
    """Return the SHA-256 of a module, class or function: without comments, docstrings and layout."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, path.split(".")):
        found = inspect.getattr_static(found, part)
    source = inspect.cleandoc("\n" + inspect.getsource(found))
    lines = [list(line) for line in source.splitlines()]
    spans = [
        (token.start, token.end)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            spans.append(((text.lineno, text.col_offset), (text.end_lineno, text.end_col_offset)))
    for (first, start), (last, stop) in spans:
        for row in range(first, last + 1):
            line = lines[row - 1]
            here = range(start if row == first else 0, stop if row == last else len(line))
            for column in here:
                line[column] = " "
    text = "".join("".join(line) for line in lines)
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


def write_down() -> None:
    """Write numbers and digests as they are now, and say what was not so before."""
    content = known()
    for version, before in content.items():
        code = {path: code_digest(path) for path in before["code"]}
        changed = [path for path, digest in code.items() if before["code"][path] != digest]
        number = number_of(version)
        if changed or number != before["version"]:
            print(f"{version}: {before['version']} -> {number}; changed: {', '.join(changed) or 'nothing'}")
        content[version] = {"version": number, "code": code}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_down()
