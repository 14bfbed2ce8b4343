"""Adapters that are none: checkpoints of authors, folders in peft's layout, cells that are exported or run again."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

from tests.bad_input.case import Case, Setup, files, small, together
from tests.bad_input.results import CELL, KEPT, changed_cell, finished, put, store


@functools.cache
def _tensors(count: int = 2) -> bytes:
    import torch
    from safetensors.torch import save

    return save({f"layer_{i}.weight": torch.ones(2, 3) for i in range(count)}, {"format": "pt"})


def _pickled(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class _Shell:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this must never be printed",))


_IMPORT = "import-adapter f.{} --method ace_lora --to out --suite s.yaml"
_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a text": ("pt", lambda: b"nothing", "'f.pt' cannot be read: "),
    "an empty file": ("pt", lambda: b"", "'f.pt' cannot be read: "),
    "a page of the web": ("pt", lambda: b"<!DOCTYPE html>", "'f.pt' cannot be read: "),
    "code": ("pt", lambda: _pickled(_Shell()), "'f.pt' cannot be read: it needs to run code to be read"),
    "an old pickle": ("pt", lambda: pickle.dumps({"a": 1}), "'f.pt' cannot be read: "),
    "a file cut off": ("pt", lambda: _pickled({"a": 1})[:-40], "'f.pt' cannot be read: "),
    "a list": ("pt", lambda: _pickled([1, 2]), "'f.pt' holds a list, expected tensors by name"),
    "numbers": (
        "pt",
        lambda: _pickled({"weights": 3, "metadata": 4}),
        "'f.pt': official checkpoint of ACE-LoRA: ",
    ),
    "tensors of another method": (
        "pt",
        lambda: _pickled({"weights": {}, "metadata": {}}),
        "'f.pt': official checkpoint of",
    ),
    "safetensors cut off": (
        "safetensors",
        lambda: _tensors()[:30],
        "'f.safetensors' cannot be read: expected a safetensors file",
    ),
    "safetensors of something else": (
        "safetensors",
        _tensors,
        "'f.safetensors': official checkpoint of ACE-LoRA: tensor",
    ),
}


def _folder(**content: bytes | str) -> Setup:
    return together(
        small, files({f"f.peft/{name.replace('__', '.')}": text for name, text in content.items()})
    )


def _lazy(name: str, content: Callable[[], bytes]) -> Setup:
    return together(small, lambda folder: (folder / name).write_bytes(content()))


ADAPTERS = [
    *(
        Case(f"import-adapter: {name}", _IMPORT.format(suffix), says, _lazy(f"f.{suffix}", content))
        for name, (suffix, content, says) in _FILES.items()
    ),
    Case(
        "import-adapter: an empty folder",
        _IMPORT.format("peft"),
        "'f.peft' is no adapter of peft: expected adapter_config.json",
        together(small, lambda folder: (folder / "f.peft").mkdir()),
    ),
    Case(
        "import-adapter: a folder without tensors",
        _IMPORT.format("peft"),
        "'f.peft' is no adapter of peft",
        _folder(adapter_config__json="{}"),
    ),
    Case(
        "import-adapter: a folder whose settings are a list",
        _IMPORT.format("peft"),
        "adapter_config.json' cannot be read: expected a JSON object",
        _folder(adapter_config__json="[]", adapter_model__safetensors=b""),
    ),
    Case(
        "import-adapter: a folder whose tensors are a text",
        _IMPORT.format("peft"),
        "adapter_model.safetensors' cannot be read",
        _folder(adapter_config__json='{"peft_type": "LORA"}', adapter_model__safetensors=b"x"),
    ),
    Case(
        "import-adapter: a folder of another method",
        _IMPORT.format("peft"),
        "'f.peft': ",
        together(
            _folder(adapter_config__json='{"peft_type": "IA3"}'),
            lambda f: (f / "f.peft/adapter_model.safetensors").write_bytes(_tensors()),
        ),
    ),
    Case(
        "import-adapter: a folder with settings in words",
        "import-adapter f.peft --method peft:lora --to out --suite s.yaml",
        "'f.peft': ",
        together(
            _folder(adapter_config__json='{"peft_type": "LORA", "r": "many", "target_modules": 3}'),
            lambda f: (f / "f.peft/adapter_model.safetensors").write_bytes(_tensors()),
        ),
    ),
    Case(
        "import-adapter: a folder that names no kind",
        _IMPORT.format("peft"),
        "adapter_config.json' names no peft_type",
        together(
            _folder(adapter_config__json="{}"),
            lambda f: (f / "f.peft/adapter_model.safetensors").write_bytes(_tensors()),
        ),
    ),
    Case(
        "import-adapter: an option that is none",
        "import-adapter f.pt --method ace_lora --to out methods.ace_lora.rr=3",
        "unknown option of method 'ace_lora' 'rr'",
        files(f__pt=""),
    ),
    Case(
        "export-adapter: a cell that is unfinished",
        f"export-adapter {CELL} --to x",
        "has no adapter to export: it is unfinished",
        store,
    ),
    Case(
        "export-adapter: a method without a form",
        f"export-adapter {CELL} --to x",
        "its method has no form in peft's layout",
        together(store, files({f"{CELL}/adapter.safetensors": b"x"})),
    ),
    Case(
        "export-adapter: a folder that is not empty",
        f"export-adapter {CELL} --to results",
        "--to: 'results' is not empty",
        together(store, files({f"{CELL}/peft/adapter_model.safetensors": b"x"})),
    ),
    Case(
        "export-adapter: a file in the way",
        f"export-adapter {CELL} --to results/f/x",
        "--to: 'results/f/x' cannot be written",
        together(store, files({f"{CELL}/peft/adapter_model.safetensors": b"x", "results/f": "x"})),
    ),
    Case(
        "reproduce: settings cut off",
        f"reproduce {CELL}",
        "config.yaml: missing or damaged",
        put("config.yaml", "[1"),
    ),
    Case(
        "reproduce: settings of a newer version",
        f"reproduce {CELL}",
        "config.yaml: written by a newer version",
        changed_cell("config.yaml", "schema_version", value=9),
    ),
    Case(
        "reproduce: a suite that is a number",
        f"reproduce {CELL}",
        "config.yaml: suite: expected keys and values",
        changed_cell("config.yaml", "suite", value=3),
    ),
    Case(
        "reproduce: settings that lack some",
        f"reproduce {CELL}",
        "config.yaml: not the settings of a cell",
        store,
    ),
    Case(
        "reproduce: an unknown device",
        f"reproduce {KEPT} --device gpu",
        "gpu",
        finished,
    ),
]

CASES = ADAPTERS
