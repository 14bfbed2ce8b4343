"""An empty hub cache, repositories laid out in it, and the one line with which a backbone is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmark.backbones import load_backbone
from benchmark.errors import BenchmarkError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def empty_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make an empty hub cache, and one of our own, the only ones; return the hub's home."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    return folder / "hf"


def hub(home: Path, repo: str, *sources: Path, branch: str = "main") -> Path:
    """Lay files out as huggingface_hub does and return the snapshot."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    folder, blobs = place / "snapshots" / REVISION, place / "blobs"
    for path in (place / "refs", folder, blobs):
        path.mkdir(parents=True)
    (place / "refs" / branch).write_text(REVISION)
    for number, source in enumerate(sources):
        shutil.copyfile(source, blobs / f"{number:040x}")
        os.symlink(os.path.relpath(blobs / f"{number:040x}", folder), folder / source.name)
    return folder


def refused(kind: type[BenchmarkError], name: str, pretrained: object = None) -> str:
    with pytest.raises(kind) as caught:
        load_backbone(name, pretrained=None if pretrained is None else str(pretrained))
    line = str(caught.value)
    assert "\n" not in line
    return line
