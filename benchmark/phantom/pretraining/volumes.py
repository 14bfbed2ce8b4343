"""Pretrain the tiny model of CT volumes: image warm-up on maps of findings, then alignment with noisy captions.

    python -m benchmark.phantom.pretraining.volumes --out benchmark/backbones/weights_ct/tiny_ct

Writes ``<out>.safetensors`` (float16), ``<out>.tokenizer.json`` and ``<out>.json`` (command, settings, losses, scores).
The model learns on volumes of one scanner; the suite's come from others. In the second stage the image trunk is locked
and a share of the captions belongs to another patient, so that zero-shot use leaves headroom.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from benchmark.backbones.backbone import Backbone
from benchmark.backbones.tiny import WordPieceTokenizer
from benchmark.backbones.tiny_ct import CONTEXT_LENGTH, WIDTH, build_tiny_ct
from benchmark.files import write_whole
from benchmark.metrics.classification import plain_value, weighted_auroc
from benchmark.phantom.chest.studies import block_rng
from benchmark.phantom.ct.anatomy import BOXES, FINDINGS, PREVALENCE, SIZE, Scanner, draw_scan
from benchmark.phantom.ct.parts import GENERATOR_VERSION, HERE, SOURCE
from benchmark.phantom.ct.reports import report, sentences
from benchmark.phantom.pretraining.vocabulary import make_tokenizer
from benchmark.phantom.shapes import Array

PRESENT, ABSENT = "{} is present.", "{} is not present."
_WARM_BATCH, _ALIGN_BATCH, _ENCODE = 32, 128, 64
_FIRST_SCALE, _MAX_LOG_SCALE = 1 / 0.07, 4.0


@dataclass(frozen=True)
class Settings:
    """The recipe; all of it is recorded with the weights."""

    seed: int = 0
    volumes: int = 2048
    warmup_steps: int = 650
    align_steps: int = 500
    wrong: float = 0.30  # share of captions of another patient
    rare: float = 6.0  # weight of boxes with a finding
    held_out: int = 320  # volumes that are scored at the end


@dataclass(frozen=True)
class Drawn:
    """Volumes ``[N, D, H, W]`` int16, findings ``[N, K]`` and their boxes ``[N, K, t, h, w]``, bool."""

    volumes: Array
    present: Array
    maps: Array


def draw(stream: str, count: int, seed: int, scanner: Scanner) -> Drawn:
    """Draw volumes of a stream of their own, which no part of the suite uses."""
    volumes = np.empty((count, *SIZE), dtype=np.int16)
    present = np.empty((count, len(FINDINGS)), dtype=bool)
    maps = np.empty((count, len(FINDINGS), *BOXES), dtype=bool)
    for row in range(count):
        rng = block_rng(seed, f"ct-{stream}", row)
        present[row] = rng.random(len(FINDINGS)) < PREVALENCE
        volumes[row], maps[row] = draw_scan(rng, present[row], scanner)
    return Drawn(volumes, present, maps)


def warm_up(backbone: Backbone, drawn: Drawn, settings: Settings, log: Callable[[str], None]) -> float:
    """Train the image trunk in place: each token tells the findings of its box, the best token those of the volume."""
    trunk, heads = [*_trunk(backbone)], nn.Linear(WIDTH, len(FINDINGS))
    nn.init.constant_(heads.bias, -3.0)
    optimizer = torch.optim.AdamW(
        [*trunk, *heads.parameters()], lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98)
    )
    order, weight, running = np.random.default_rng(settings.seed), torch.tensor(settings.rare), math.nan
    maps = torch.from_numpy(drawn.maps).flatten(2).transpose(1, 2)
    for step in range(settings.warmup_steps):
        _set_rate(optimizer, 1e-3, step, settings.warmup_steps)
        rows = order.choice(len(maps), _WARM_BATCH, replace=False)
        inputs = backbone.input_spec.to_input(drawn.volumes[rows])
        logits = heads(backbone.image.forward(inputs).sequence.tokens)
        dense = functional.binary_cross_entropy_with_logits(logits, maps[rows].float(), pos_weight=weight)
        best = functional.binary_cross_entropy_with_logits(logits.amax(dim=1), _tensor(drawn.present[rows]))
        _step(optimizer, dense + 0.3 * best, [*trunk, *heads.parameters()])
        running = _smooth(running, dense + 0.3 * best)
        if (step + 1) % 50 == 0:
            log(f"warm-up {step + 1}/{settings.warmup_steps}: loss {running:.4f}")
    return running


def align(backbone: Backbone, drawn: Drawn, settings: Settings, log: Callable[[str], None]) -> float:
    """Train text tower, image projection and scale in place on pairs; the image trunk stays as it is."""
    rng = np.random.default_rng([settings.seed, 1])
    count = len(drawn.volumes)
    told = drawn.present.copy()
    others = rng.random(count) < settings.wrong
    told[others] = drawn.present[rng.permutation(count)][others]
    ids = backbone.tokenize(
        [report(np.random.default_rng([settings.seed, 2, row]), told[row]) for row in range(count)]
    )
    image, text = backbone.image, backbone.text
    model: Any = backbone.model
    pooled = _pooled(backbone, drawn.volumes)
    nn.init.constant_(model.logit_scale, math.log(_FIRST_SCALE))
    trained = [*model.visual.proj.parameters(), *model.text.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    findings, running = torch.from_numpy(told), math.nan
    for step in range(settings.align_steps):
        _set_rate(optimizer, 1e-3, step, settings.align_steps)
        rows = rng.choice(count, _ALIGN_BATCH, replace=False)
        images = functional.normalize(image.project(pooled[rows]), dim=-1)
        texts = functional.normalize(text.features(backbone.trim(ids[rows])), dim=-1)
        same = (findings[rows][:, None] == findings[rows][None]).all(dim=-1) & ~torch.eye(
            len(rows), dtype=torch.bool
        )
        logits = (backbone.logit_scale * images @ texts.T).masked_fill(same, -torch.inf)
        target = torch.arange(len(rows))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        _step(optimizer, loss, trained)
        model.logit_scale.data.clamp_(0, _MAX_LOG_SCALE)
        running = _smooth(running, loss)
        if (step + 1) % 50 == 0:
            log(f"alignment {step + 1}/{settings.align_steps}: loss {running:.3f}")
    return running


@torch.no_grad()
def scores(backbone: Backbone, drawn: Drawn) -> dict[str, float]:
    """Return the AUROC of the pair of prompts of every finding, and their mean."""
    images = functional.normalize(backbone.image.project(_pooled(backbone, drawn.volumes)), dim=-1)
    prompts = [template.format(name) for template in (PRESENT, ABSENT) for name in FINDINGS]
    texts = functional.normalize(backbone.text.features(backbone.trim(backbone.tokenize(prompts))), dim=-1)
    cosines = (images @ texts.T).double().numpy()
    found = {
        name: plain_value(
            weighted_auroc(cosines[:, k] - cosines[:, k + len(FINDINGS)], drawn.present[:, k]), len(images)
        )
        for k, name in enumerate(FINDINGS)
    }
    return {**found, "mean": sum(found.values()) / len(found)}


def _trunk(backbone: Backbone) -> list[nn.Parameter]:
    named = backbone.model.named_parameters()
    return [
        value for name, value in named if name.startswith("visual.") and not name.startswith("visual.proj.")
    ]


@torch.no_grad()
def _pooled(backbone: Backbone, volumes: Array) -> torch.Tensor:
    parts = []
    for at in range(0, len(volumes), _ENCODE):
        inputs = backbone.input_spec.to_input(volumes[at : at + _ENCODE])
        parts.append(backbone.image.pool(backbone.image.forward(inputs).sequence))
    return torch.cat(parts)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    factor = min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * factor


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, trained: list[nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def _smooth(before: float, loss: torch.Tensor) -> float:
    now = float(loss.detach())
    return now if math.isnan(before) else 0.95 * before + 0.05 * now


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values).float()


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.phantom.pretraining.volumes", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="weights to write, without suffix")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Pretrain, score and write the model."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    words = options.out.with_suffix(".tokenizer.json")
    text = make_tokenizer(2 * sentences()).to_str(pretty=False) + "\n"
    write_whole(words, lambda beside: beside.write_text(text, encoding="utf-8"))
    torch.manual_seed(settings.seed)
    backbone = build_tiny_ct(WordPieceTokenizer.from_file(words, CONTEXT_LENGTH), settings.seed)
    started = time.process_time()
    drawn = draw("pretraining", settings.volumes, settings.seed, SOURCE)
    losses = {
        "warmup": warm_up(backbone, drawn, settings, _log),
        "alignment": align(backbone, drawn, settings, _log),
    }
    seconds = round(time.process_time() - started, 1)
    state = {name: value.half().contiguous() for name, value in backbone.model.state_dict().items()}
    backbone.model.load_state_dict({name: value.float() for name, value in state.items()})
    held_out = {
        place: scores(backbone, draw("held-out", settings.held_out, settings.seed, scanner))
        for place, scanner in (("source", SOURCE), ("suite", HERE))
    }
    record = {
        "command": "python -m benchmark.phantom.pretraining.volumes " + " ".join(arguments or sys.argv[1:]),
        "settings": asdict(settings),
        "generator_version": GENERATOR_VERSION,
        "parameters": sum(value.numel() for value in backbone.model.parameters()),
        "fingerprint": backbone.fingerprint(),
        "losses": losses,
        "cpu_seconds": seconds,
        "auroc_held_out": held_out,
    }
    _log(json.dumps(held_out, indent=1))
    write_whole(options.out.with_suffix(".safetensors"), lambda beside: save_file(state, beside))
    write_whole(
        options.out.with_suffix(".json"),
        lambda beside: beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
