"""Convert a published checkpoint of a medical model to safetensors; nothing in it is run.

`convert MODEL FILE` writes `<file>.<model>.safetensors` and a JSON record beside FILE. A run with `--pretrained FILE`
does the same by itself. `list backbones` names the models; docs/backbones.md says where their files are published.
"""

from __future__ import annotations

import argparse

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError
from benchmark.files import user_path

BEGINS = "reading the checkpoint ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_needed(
        "model", "say which model: convert MODEL FILE", "name of the backbone: gloria, mgca-r50, kad, ..."
    )
    parser.add_argument(
        "file", nargs="?", help="its weights file, a folder, or a hub id that is in the cache"
    )
    parser.add_argument("--out", help="folder of the result (default: beside the file)")


def main(args: argparse.Namespace, console: Console) -> int:
    """Convert one checkpoint.

    Raises:
        ConfigError: no file is named, or the model is unknown.
        DataError: the file is damaged or of another model. StoreError: the result cannot be written.
    """
    if not args.file:
        raise ConfigError(f"say which file: convert {args.model} FILE")
    from benchmark.backbones.medical.load import convert_files  # loads torch

    folder = None if args.out is None else user_path(args.out)
    target = convert_files(args.model, args.file, folder)
    console.line(
        f"{target} ({target.stat().st_size / 1e6:,.0f} MB; {target.with_suffix('.json').name} beside it)"
    )
    return 0
