"""Pretrain a tiny generalist: image warm-up, then alignment with noisy captions.

    python -m benchmark.phantom.pretraining.pretrain --seed 0 --out benchmark/backbones/weights/tiny

Writes ``<out>.safetensors`` (float16), ``<out>.json`` (command, versions, losses, scores) and, where there is
none yet, the tokenizer ``tiny.tokenizer.json`` beside them. Scores that guide any choice come from a
generator seed of their own (``--held-out``); those of the suite's own seed are computed once at the end, for
the record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
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
from benchmark.phantom.pretraining.vocabulary import make_tokenizer
from benchmark.phantom.pretraining.warmup import warm_up

SUITE_SEED = 0
_PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Settings:
    """The recipe of a tiny generalist; everything here is recorded with the weights."""

    seed: int = 0
    warmup_steps: int = 1300
    align_steps: int = 300
    chest: int = 3072  # captioned chest films
    other: int = 1024  # captioned pictures of each other modality
    exact: float = 0.10  # share of chest captions that name a finding of the study
    wrong: float = 0.30  # share that name any finding at all


def pretrain(
    settings: Settings, tokenizer: WordPieceTokenizer, trunk: Path, device: str, log: Callable[[str], None]
) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """Make one generalist.

    Args:
        settings: the recipe.
        tokenizer: fixes the vocabulary.
        trunk: where the warmed-up image trunk is kept; read when it is there already.
        device: torch device.
        log: receives progress lines.

    Returns:
        (model on the CPU in evaluation mode, losses and seconds of each stage).
    """
    model = build_tiny(tokenizer.vocab_size, settings.seed)
    if not trunk.exists():
        _make_trunk(model.visual.trunk, settings, trunk, device, log)
    with safe_open(trunk, framework="pt") as kept:
        history = json.loads(kept.metadata()["history"])
        model.visual.trunk.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
    log(f"image trunk: {history}")
    model.to(device)
    drawn = draw_corpus(settings.chest, settings.other, settings.seed, settings.exact, settings.wrong)
    corpus = encode_corpus(model, tokenizer, drawn, device)
    started = time.monotonic()
    loss = align(model, corpus, steps=settings.align_steps, seed=settings.seed, device=device, log=log)
    history["alignment"] = {"loss": loss, "seconds": round(time.monotonic() - started, 1)}
    return model.cpu().eval(), history


def _make_trunk(
    trunk: torch.nn.Module, settings: Settings, path: Path, device: str, log: Callable[[str], None]
) -> None:
    """Warm the image trunk up and keep it with its losses, so that an interruption costs little."""
    started = time.monotonic()
    losses = warm_up(trunk, steps=settings.warmup_steps, seed=settings.seed, device=device, log=log)
    history = {"warmup": {**losses, "seconds": round(time.monotonic() - started, 1)}}
    state = {name: value.cpu().contiguous() for name, value in trunk.state_dict().items()}
    save_file(state, path, metadata={"history": json.dumps(history)})


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
        "--trunk", type=Path, help="keep the warmed-up trunk here; go on from it when it is there"
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
    trunk = options.trunk or options.out.with_name(f".{options.out.name}.trunk.safetensors")
    model, history = pretrain(settings, tokenizer, trunk, options.device, _log)
    state = as_saved(model)
    held_out = all_scores(model, tokenizer, options.held_out)
    for kind, scores in held_out.items():
        _log(f"seed {options.held_out}, {kind}: {describe(scores)}")
    record = {
        "command": "python -m benchmark.phantom.pretraining.pretrain " + " ".join(arguments or sys.argv[1:]),
        "settings": asdict(settings),
        **_environment(options),
        "parameters": sum(value.numel() for value in model.parameters()),
        "fingerprint": from_open_clip(model).fingerprint(),
        "stages": history,
        f"scores_seed_{options.held_out}_held_out": held_out,
        f"scores_seed_{SUITE_SEED}_suite": all_scores(model, tokenizer, SUITE_SEED),
    }
    write_whole(options.out.with_suffix(".safetensors"), lambda beside: save_file(state, beside))
    _write_text(options.out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    if not options.trunk:
        trunk.unlink()  # it was only kept against interruptions
    return 0


if __name__ == "__main__":
    sys.exit(main())
