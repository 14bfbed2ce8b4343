"""Where the project keeps its data files, and where prepared data go by default.

The supported install is ``pip install -e .``: configuration and reported numbers are read from the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def configs(*parts: str) -> Path:
    """Return a path below ``configs/``, for example ``configs("suites", "phantom.yaml")``."""
    return ROOT.joinpath("configs", *parts)


def paper_tables() -> Path:
    """Return the file with the numbers that the paper reports."""
    return ROOT / "results" / "paper" / "tables.csv"


def default_data_root() -> Path:
    """Return the folder of prepared data: ``medpeft-bench`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache).expanduser() / "medpeft-bench" if cache else Path.home() / ".cache" / "medpeft-bench"


def user_path(text: str | Path) -> Path:
    """Return a path as the user writes it, with ``~`` as the home folder.

    Raises:
        ConfigError: there is no user of that name.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"'{text}': no user has this home folder. Write the path without ~") from None


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the checkout or the working folder when inside."""
    for base in (ROOT, Path.cwd()):
        if path.is_absolute() and path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)
