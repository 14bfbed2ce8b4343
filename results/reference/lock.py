"""Write the exact packages of this environment, with the sha256 of each file, as a requirements file for pip.

    python results/reference/lock.py > results/reference/requirements.lock

Locked are the packages that the installed project needs here, and theirs; tools of developers are left out. pip says
which files it would install for them and what their hashes are; nothing is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "medpeft-bench"
HEADER = """\
# The packages behind results/reference/: Python {python} on {system}, CPU and CUDA alike. docs/reproduce.md says how
# to install them. Made by results/reference/lock.py; not meant to be edited by hand.
"""


def closure(project: str) -> dict[str, str]:
    """Return name -> version of everything that an installed project needs here, with what that needs in turn."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(project, frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            found[canonicalize_name(needed.name)] = importlib.metadata.version(needed.name)
            step = (needed.name, frozenset(needed.extras))
            waiting += [] if step in seen else [step]
            seen.add(step)
    return found


def hashes(versions: dict[str, str]) -> dict[str, str]:
    """Return name -> sha256 of the wheel that pip would install for each version."""
    wanted = [f"{name}=={version}" for name, version in sorted(versions.items())]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        subprocess.run([*command, "--only-binary", ":all:", "--report", str(report), *wanted], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in items
    }


def main() -> None:
    """Print the lock file."""
    versions = closure(PROJECT)
    known = hashes(versions)
    system = f"{platform.system()} {platform.machine()}"
    print(HEADER.format(python=platform.python_version(), system=system), end="")
    for name, version in sorted(versions.items()):
        print(f"{name}=={version} --hash=sha256:{known[name]}")


if __name__ == "__main__":
    main()
