"""Where a published model lies on this machine: a folder, or the part of a hub repository that is in the cache.

Nothing here touches the network: what is missing is named together with the command that fetches it, so a run without
a connection fails at once and one with a connection never downloads behind the user's back. ``HF_HOME`` and
``HF_HUB_CACHE`` say where the cache is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmark.errors import ConfigError, DataError


def hub_cache() -> Path:
    """Return the folder of downloaded repositories, by the rules of huggingface_hub but read at every call."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or base).expanduser() / "hub"


@dataclass(frozen=True)
class Place:
    """Files that belong together; a folder or a repository is given.

    Attributes:
        folder: a folder on disk. repo: ``organisation/name`` on the Hugging Face hub.
        branch: of the repository, or a tag. kind: of the repository.
    """

    folder: Path | None = None
    repo: str | None = None
    branch: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that is here.

        Raises:
            ConfigError: the repository's name is not one.
        """
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        for name in names:
            try:
                found = try_to_load_from_cache(
                    str(self.repo), name, cache_dir=hub_cache(), revision=self.branch, repo_type=self.kind
                )
            except HFValidationError:
                raise ConfigError(f"'{self.repo}' is not a hub id: expected organisation/name") from None
            if isinstance(found, str):
                return Path(found)
        return None

    def need(self, what: str, *names: str, fetch: str = "") -> Path:
        """Return the first of these files.

        Args:
            what: how a message calls it.
            names: accepted file names, the preferred one first.
            fetch: file to download when none is here; default downloads the whole repository.

        Raises:
            DataError: none of them is here; the message says how to get it.
        """
        found = self.find(*names)
        if found is not None:
            return found
        wanted = " or ".join(names)
        if self.repo is None:
            raise DataError(f"{self.folder}: {what} is missing ({wanted}). Copy it there")
        raise DataError(
            f"{self.repo}: {what} is not in the cache ({hub_cache()}). Fetch it: " + self.command(fetch)
        )

    def command(self, fetch: str = "") -> str:
        """Return the command that downloads a file of the repository, or all of it."""
        words = [f"hf download {self.repo}", f"'{fetch}'" if "(" in fetch else fetch]
        words += [f"--revision {self.branch}"] if self.branch != "main" else []
        words += [f"--repo-type {self.kind}"] if self.kind != "model" else []
        return " ".join(filter(None, words))

    def only(self, suffixes: Iterable[str]) -> Path | None:
        """Return the file with one of these suffixes, if there is just one."""
        folder = self.folder or self._snapshot()
        if folder is None or not folder.is_dir():
            return None
        found = [path for path in sorted(folder.iterdir()) if path.suffix in tuple(suffixes)]
        return found[0] if len(found) == 1 else None

    def __str__(self) -> str:
        return str(self.repo or self.folder)

    @property
    def revision(self) -> str | None:
        """Commit of the repository that the cache holds; None for a folder."""
        if self.repo is None:
            return None
        try:
            return (self._cached / "refs" / self.branch).read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    @property
    def _cached(self) -> Path:
        return hub_cache() / f"{self.kind}s--{str(self.repo).replace('/', '--')}"

    def _snapshot(self) -> Path | None:
        revision = self.revision
        return None if revision is None else self._cached / "snapshots" / revision
