"""Turn an authors' checkpoint or a folder in peft's layout into a cell that `run` evaluates without training.

Options that the file determines (rank, neighbours, where the adapter acts, ...) are taken from it; the others, as in
`run`, from the suite and from key=value words such as methods.NAME.KEY=2.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmark.cli._parser import ArgumentParser, add_plugins, given
from benchmark.config.load import load_config
from benchmark.config.run_config import RunConfig
from benchmark.console import Console
from benchmark.errors import ConfigError, StoreError, quoted
from benchmark.files import PROGRAM, user_path
from benchmark.plan import CellSpec, make_plan
from benchmark.registry import METHODS
from benchmark.store.cells import CellFolder, Store
from benchmark.store.provenance import provenance, scrub

if TYPE_CHECKING:
    from benchmark.run.adapters import AdapterFile
    from methods.base import Method

BEGINS = "reading the adapter ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.takes_settings = True
    parser.add_argument(
        "file", nargs="?", help="authors' checkpoint (.pt, .safetensors) or folder in peft's layout"
    )
    parser.add_argument("--method", help="method that the adapter is of")
    parser.add_argument("--to", help="output folder that gets the cell")
    parser.add_argument("--suite", help="name in configs/suites or FILE.yaml (default: phantom)")
    parser.add_argument("--backbone", help="backbone that the adapter was trained on (default: the suite's)")
    parser.add_argument("--pretrained", help="weights of the backbone: tag or path")
    parser.add_list("--seeds", "number of the cell (default: 0)")
    add_plugins(parser, "methods or backbones")


def main(args: argparse.Namespace, console: Console) -> int:
    """Import one adapter.

    Raises:
        ConfigError: flags are missing, or a key=value word contradicts the file.
        PluginError: there is no such method or backbone.
        StoreError: the file does not fit the method, or the cell exists.
    """
    needed = {"a checkpoint or folder": args.file, "--method": args.method, "--to": args.to}
    if lacking := [name for name, value in needed.items() if not value]:
        raise ConfigError(f"import-adapter: say {', '.join(lacking)}")
    flags = given(args, "file", "method", "to", "debug") | {"methods": [args.method], "output_dir": args.to}
    plain = load_config(flags, args.overrides)
    if len(plain.seeds) != 1 or len(plain.methods) != 1:
        raise ConfigError("import-adapter: one file is one cell: give one method and one of --seeds")
    from benchmark.backbones import load_backbone
    from benchmark.run import adapters, identity
    from benchmark.run.build import build_method

    checkpoint = adapters.read_checkpoint(user_path(args.file))
    here = scrub(plain.backbone)
    if (made_on := (checkpoint.about or {}).get("backbone", here)) != here:
        raise StoreError(
            f"'{args.file}' was made on backbone {quoted(made_on)}, not '{here}': give --backbone"
        )
    backbone = load_backbone(plain.backbone, pretrained=plain.pretrained)
    name = plain.methods[0]
    told = adapters.options_of(checkpoint, name, METHODS.get(name), backbone)
    config = _with(told, name, flags, args.overrides)
    store = Store(config.output_dir)
    store.check_writable()
    spec = make_plan(config, store).cells[0].spec
    weights, _ = identity.model_of(spec.backbone, spec.pretrained, backbone)
    method = build_method(spec.method, backbone, spec.options, spec.recipe, seed=spec.seed)
    missing = adapters.load_checkpoint(method, checkpoint)
    folder = store.cell(spec.folder)
    _write(folder, spec, method, checkpoint, missing, weights)
    if missing:
        console.warn(f"not in the file, so as at the start: {_few(missing)}")
    words = [
        f"methods.{name}.{key}={json.dumps(value)}"
        for key, value in told.items()
        if value != plain.options[name][key]
    ]
    console.line(f"{folder.path}: imported. Evaluate it with")
    console.line("  " + shlex.join([PROGRAM, "run", *_flags(args, name), *words, *args.overrides]))
    return 0


def _with(told: Mapping[str, Any], name: str, flags: dict[str, Any], overrides: list[str]) -> RunConfig:
    """Return the configuration with the file's options; those of the user come last and must agree.

    Raises:
        ConfigError: one line per option that the user gave otherwise.
    """
    words = [f"methods.{name}.{key}={json.dumps(value)}" for key, value in told.items()]
    config = load_config(flags, [*words, *overrides])
    given_options = config.options[name]
    problems = [
        f"methods.{name}.{key}: the file was made with {json.dumps(value)}, got {json.dumps(given_options[key])}. "
        "Leave the word out"
        for key, value in told.items()
        if given_options[key] != value
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _write(
    folder: CellFolder,
    spec: CellSpec,
    method: Method,
    checkpoint: AdapterFile,
    missing: list[str],
    weights: str,
) -> None:
    """Write the cell; config.yaml, which makes it one, comes last.

    Raises:
        StoreError: there is a cell already, or another process holds it.
    """
    from benchmark.run import identity
    from benchmark.run.adapters import FOLDER, write_adapter
    from benchmark.run.cost import parameter_counts

    origin = {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "not_in_file": missing}
    with folder.lock() as held:
        if not held or folder.exists("config.yaml") or folder.exists("adapter.safetensors"):
            raise StoreError(
                f"{folder.path}: there is a run already. Choose another --to, or delete that folder"
            )
        folder.write_tensors("adapter.safetensors", method.trainable_state())
        write_adapter(method, spec, folder.inside(FOLDER))
        counts = parameter_counts(method)
        cost = {
            "trainable_parameters": counts["trainable"],
            "trainable_parameters_without_logit_scale": counts["trainable_without_logit_scale"],
            "total_parameters": counts["total"],
            "adapter_bytes": folder.inside("adapter.safetensors").stat().st_size,
        }
        folder.write_json("efficiency.json", cost)
        adapted = {"adapt_hash": spec.adapt_hash, "pairs": None, "best": None, "imported": origin}
        adapted[identity.KEY] = identity.of_import(spec, weights)
        folder.write_json("adapt.json", adapted)
        public = spec.public()
        folder.write_json("provenance.json", provenance(public, spec.adapt_hash) | {"imported": origin})
        folder.write_json("status.json", {"status": "partial", "error": "imported, not evaluated yet"})
        folder.write_config({"adapt_hash": spec.adapt_hash, **public})


def _flags(args: argparse.Namespace, name: str) -> list[str]:
    words = ["--methods", name, "--output-dir", str(args.to)]
    for flag in ("suite", "backbone", "pretrained"):
        value = getattr(args, flag)
        words += [f"--{flag}", str(value)] if value else []
    for flag in ("seeds", "plugins"):
        value = getattr(args, flag)
        words += [f"--{flag}", *map(str, value)] if value else []
    return words


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
