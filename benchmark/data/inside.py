"""Names of files that a table brings are read only where they stay inside the folder that the table belongs to."""

from __future__ import annotations

import os
from pathlib import Path


class Inside:
    """Tells names below a folder from those that lead elsewhere.

    Args:
        folder: where the names begin; it may be a link itself.
        allow_outside: whether they may lead out of it, as the user says.
    """

    def __init__(self, folder: Path, *, allow_outside: bool = False) -> None:
        self._root, self._allow = os.path.realpath(folder), allow_outside
        self._stay: dict[str, bool] = {}

    def problem(self, name: str) -> str:
        """Return why a file of this name is not read; empty when it may be."""
        if "\0" in name:
            return "its name holds a NUL character"
        if self._allow:
            return ""
        if os.path.isabs(name):
            return "it is named by an absolute path"
        if ".." in Path(name).parts:
            return "its name leads out of the folder"
        return "" if self._stays(name) else "a link leads out of the folder"

    def _stays(self, name: str) -> bool:
        """Return whether links leave a name inside; each folder is looked up once, as there may be many files."""
        parent, path = os.path.dirname(name), os.path.join(self._root, name)
        if parent not in self._stay:
            self._stay[parent] = self._holds(os.path.dirname(path))
        return self._stay[parent] and (not os.path.islink(path) or self._holds(path))

    def _holds(self, path: str) -> bool:
        return os.path.commonpath((self._root, os.path.realpath(path))) == self._root
