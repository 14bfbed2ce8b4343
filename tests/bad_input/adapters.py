"""Files that are no adapters, and cells that cannot be exported or run again."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.case import Says, Setup, files, small, spoilt, together
from tests.bad_input.results import CELL, KEPT, changed_cell, finished, put, store


@functools.cache
def _tensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({f"layer_{i}.weight": torch.ones(2, 3) for i in range(2)}, {"format": "pt"})


def _pickled(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class _Shell:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemExit(3)",))


def _file(content: Callable[[], bytes], name: str = "f.pt") -> Setup:
    """Return a setup that makes the file when it is needed: it may need torch."""
    return together(small, lambda folder: files({name: content()})(folder))


def _folder(settings: str | None = None, tensors: Callable[[], bytes] | None = None) -> Setup:
    """Return a setup of a folder in peft's layout."""

    def write(folder: Path) -> None:
        (folder / "f.peft").mkdir()
        if settings is not None:
            (folder / "f.peft/adapter_config.json").write_text(settings)
        if tensors is not None:
            (folder / "f.peft/adapter_model.safetensors").write_bytes(tensors())

    return together(small, write)


_IMPORT = "import-adapter f.{} --method {} --to out --suite s.yaml"
_OFFICIAL = "'f.pt': official checkpoint of ACE-LoRA: "
_DAMAGED = "f.pt: not a file of tensors, or damaged. Fetch it again"
_PICKLES: dict[str, tuple[Setup, Says]] = {
    "a text": (_file(lambda: b"nothing"), _DAMAGED),
    "an empty file": (_file(lambda: b""), "f.pt: cannot be read as weights"),
    "a page of the web": (_file(lambda: b"<!DOCTYPE html>"), _DAMAGED),
    "code": (
        _file(lambda: _pickled(_Shell())),
        "f.pt: refused, it holds Python objects that could run code (builtins",
    ),
    "an old pickle": (_file(lambda: pickle.dumps({"a": 1})), _DAMAGED),
    "a file cut off": (_file(lambda: _pickled({"a": 1})[:-40]), "f.pt: cannot be read as weights"),
    "a list": (_file(lambda: _pickled([1, 2])), "'f.pt' holds a list, expected tensors by name"),
    "numbers": (_file(lambda: _pickled({"weights": 3, "metadata": 4})), _OFFICIAL),
    "tensors of another method": (_file(lambda: _pickled({"weights": {}, "metadata": {}})), _OFFICIAL),
}
_NAME = "f.safetensors"
_SAFETENSORS: dict[str, tuple[Setup, Says]] = {
    "safetensors cut off": (
        _file(lambda: _tensors()[:30], _NAME),
        f"{_NAME}: cannot be read as weights",
    ),
    "safetensors of something else": (
        _file(_tensors, _NAME),
        f"'{_NAME}': official checkpoint of ACE-LoRA: tensor",
    ),
}
_FOLDERS: dict[str, tuple[Setup, Says]] = {
    "an empty folder": (_folder(), "'f.peft' is no adapter of peft: expected adapter_config.json"),
    "a folder without tensors": (_folder("{}"), "'f.peft' is no adapter of peft"),
    "settings that are a list": (
        _folder("[]", bytes),
        "adapter_config.json' cannot be read: expected a JSON object",
    ),
    "tensors that are a text": (
        _folder('{"peft_type": "LORA"}', lambda: b"x"),
        "adapter_model.safetensors: cannot be read as weights",
    ),
    "a folder of another method": (_folder('{"peft_type": "IA3"}', _tensors), "'f.peft': "),
    "a folder that names no kind": (_folder("{}", _tensors), "adapter_config.json' names no peft_type"),
}
_IN_WORDS = '{"peft_type": "LORA", "r": "many", "target_modules": 3}'
_EXPORTABLE = together(store, files({f"{CELL}/peft/adapter_model.safetensors": b"x", "results/f": "x"}))
_NEWER, _NUMBER = (changed_cell("config.yaml", key, value=9) for key in ("schema_version", "suite"))

CASES = [
    *spoilt("import-adapter", _IMPORT.format("pt", "ace_lora"), _PICKLES),
    *spoilt("import-adapter", _IMPORT.format("safetensors", "ace_lora"), _SAFETENSORS),
    *spoilt("import-adapter", _IMPORT.format("peft", "ace_lora"), _FOLDERS),
    *spoilt(
        "import-adapter",
        _IMPORT.format("peft", "peft:lora"),
        {"settings in words": (_folder(_IN_WORDS, _tensors), "'f.peft': ")},
    ),
    *spoilt(
        "import-adapter",
        "import-adapter f.pt --method ace_lora --to out methods.ace_lora.rr=3",
        {"an unknown option": (files(f__pt=""), "unknown option of method 'ace_lora' 'rr'")},
    ),
    *spoilt(
        "export-adapter",
        f"export-adapter {CELL} --to x",
        {
            "a cell that is unfinished": (store, "has no adapter to export: it is unfinished"),
            "a method without a form": (
                together(store, files({f"{CELL}/adapter.safetensors": b"x"})),
                "its method has no form in peft's layout",
            ),
        },
    ),
    *spoilt(
        "export-adapter",
        f"export-adapter {CELL} --to results",
        {"a folder that is not empty": (_EXPORTABLE, "--to: 'results' is not empty")},
    ),
    *spoilt(
        "export-adapter",
        f"export-adapter {CELL} --to results/f/x",
        {"a file in the way": (_EXPORTABLE, "--to: 'results/f/x' cannot be written")},
    ),
    *spoilt(
        "reproduce",
        f"reproduce {CELL}",
        {
            "settings cut off": (put("config.yaml", "[1"), "config.yaml: missing or damaged"),
            "settings of a newer version": (_NEWER, "config.yaml: written by a newer version"),
            "a suite that is a number": (_NUMBER, "config.yaml: suite: expected keys and values"),
            "settings that lack some": (store, "config.yaml: not the settings of a cell"),
        },
    ),
    *spoilt("reproduce", f"reproduce {KEPT} --device gpu", {"an unknown device": (finished, "gpu")}),
]
