"""Pretrain a tiny generalist: an image trunk that warms up, a text tower that reads, and their alignment.

    python -m benchmark.phantom.pretraining.pretrain --seed 0 --out benchmark/backbones/weights/tiny

Writes ``<out>.safetensors`` (float16), ``<out>.json`` (command, versions, losses, scores) and, where there is
none yet, the tokenizer ``tiny.tokenizer.json`` beside them. Scores come from a generator seed of their own
(``--held-out``), which no result uses: choices may be guided by them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from safetensors import safe_open
from safetensors.torch import save_file

from benchmark.backbones.backbone import from_open_clip
from benchmark.backbones.tiny import WordPieceTokenizer, build_tiny
from benchmark.files import write_whole
from benchmark.phantom.chest.parts import GENERATOR_VERSION
from benchmark.phantom.pretraining.alignment import align, draw_corpus, encode_corpus
from benchmark.phantom.pretraining.probe import all_scores, describe
from benchmark.phantom.pretraining.reading import read
from benchmark.phantom.pretraining.vocabulary import make_tokenizer
from benchmark.phantom.pretraining.warmup import warm_up

_PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Settings:
    """The recipe of a tiny generalist; everything here is recorded with the weights."""

    seed: int = 0
    warmup_steps: int = 1000
    reading_steps: int = 400
    align_steps: int = 2500
    chest: int = 3072  # captioned chest films
    other: int = 1024  # captioned pictures of each other modality
    exact: float = 0.40  # share of chest captions that name a finding of the study
    wrong: float = 0.25  # share that name any finding at all


def pretrain(
    settings: Settings, tokenizer: WordPieceTokenizer, kept: Path, device: str, log: Callable[[str], None]
) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """Make one generalist.

    Args:
        settings: the recipe.
        tokenizer: fixes the vocabulary.
        kept: folder for what a finished stage trained; a stage that is there is not run again.
        device: torch device.
        log: receives progress lines.

    Returns:
        (model on the CPU in evaluation mode, losses and seconds of each stage).
    """
    model = build_tiny(tokenizer.vocab_size, settings.seed)
    how: dict[str, Any] = {"seed": settings.seed, "device": device, "log": log}
    steps = {"warmup": settings.warmup_steps, "reading": settings.reading_steps}
    stages: dict[str, tuple[torch.nn.Module, Callable[[], Mapping[str, float]]]] = {
        "warmup": (
            model.visual.trunk,
            lambda: warm_up(model.visual.trunk, steps=steps["warmup"], **how),
        ),
        "reading": (
            model.text,
            lambda: {"loss": read(model, tokenizer, steps=steps["reading"], **how)},
        ),
    }
    history = {}
    for name, (part, train) in stages.items():
        path = kept / f"{name}-seed_{settings.seed}-steps_{steps[name]}.safetensors"
        history[name] = _stage(part, train, path)
        log(f"{name}: {history[name]}")
    model.to(device)
    drawn = draw_corpus(settings.chest, settings.other, settings.seed, settings.exact, settings.wrong)
    corpus = encode_corpus(model, tokenizer, drawn, device)
    started = time.monotonic()
    loss = align(model, corpus, steps=settings.align_steps, **how)
    history["alignment"] = {"loss": loss, "seconds": round(time.monotonic() - started, 1)}
    return model.cpu().eval(), history


def _stage(part: torch.nn.Module, train: Callable[[], Mapping[str, float]], path: Path) -> dict[str, float]:
    """Train a part of the model, or take it from where it was kept, so that an interruption costs little."""
    if not path.exists():
        started = time.monotonic()
        figures = {**train(), "seconds": round(time.monotonic() - started, 1)}
        state = {name: value.cpu().contiguous() for name, value in part.state_dict().items()}
        save_file(state, path, metadata={"figures": json.dumps(figures)})
    with safe_open(path, framework="pt") as file:
        part.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        found: dict[str, float] = json.loads(file.metadata()["figures"])
    return found


def as_saved(model: CustomTextCLIP) -> dict[str, torch.Tensor]:
    """Return the state in float16, and leave the model with exactly those values."""
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
    return state


def command(settings: Settings, name: str) -> str:
    """Return the command that makes these weights in one go; kept stages and folders of this machine are no part."""
    changed = [
        f"--{option.replace('_', '-')} {value}"
        for option, value in asdict(settings).items()
        if option == "seed" or value != asdict(Settings())[option]
    ]
    words = [*changed, f"--out benchmark/backbones/weights/{name}"]
    return f"python -m benchmark.phantom.pretraining.pretrain {' '.join(words)}"


def _tokenizer(path: Path) -> WordPieceTokenizer:
    if not path.exists():
        _write_text(path, make_tokenizer().to_str(pretty=False) + "\n")
    return WordPieceTokenizer.from_file(path)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    threads = f"{options.threads} thread(s), {options.device}"
    return {
        "generator_version": GENERATOR_VERSION,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads}",
    }


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.phantom.pretraining.pretrain", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="weights to write, without suffix")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder to keep finished stages in, and to go on from (default: none is kept)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument(
        "--held-out", type=int, default=77, help="generator seed to judge the recipe by (default: 77)"
    )
    defaults = Settings()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Pretrain, score and write one generalist."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(options.out.with_name("tiny.tokenizer.json"))
    with tempfile.TemporaryDirectory() as scratch:
        kept = options.keep or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        model, history = pretrain(settings, tokenizer, kept, options.device, _log)
    state = as_saved(model)
    held_out = all_scores(model, tokenizer, options.held_out, trained=False)
    for kind, scores in held_out.items():
        _log(f"seed {options.held_out}, {kind}: {describe(scores)}")
    record = {
        "command": command(settings, options.out.name),
        "settings": asdict(settings),
        **_environment(options),
        "parameters": sum(value.numel() for value in model.parameters()),
        "fingerprint": from_open_clip(model).fingerprint(),
        "stages": history,
        f"scores_seed_{options.held_out}_held_out": held_out,
    }
    write_whole(options.out.with_suffix(".safetensors"), lambda beside: save_file(state, beside))
    _write_text(options.out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
