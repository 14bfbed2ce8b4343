"""The tiny model of CT volumes: its weights, its record, and that it knows what it was pretrained on."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.backbones import Backbone, check_backbone, load_backbone
from benchmark.backbones import tiny_ct as module
from benchmark.errors import ConfigError
from benchmark.phantom.ct import anatomy
from benchmark.phantom.ct.reports import sentences
from benchmark.phantom.pretraining import volumes as pretraining
from benchmark.phantom.pretraining.vocabulary import make_tokenizer
from benchmark.preprocess import preprocess_of


@functools.cache
def model() -> Backbone:
    return load_backbone("tiny_ct")


def test_the_weights_are_small_and_have_their_record() -> None:
    assert sum(path.stat().st_size for path in module.WEIGHTS.iterdir()) < 2_000_000
    record = json.loads((module.WEIGHTS / "tiny_ct.json").read_text())
    assert record["command"].startswith("python -m benchmark.phantom.pretraining.volumes ")
    assert record["auroc_held_out"]["source"]["mean"] > 0.5
    found = check_backbone("tiny_ct")
    assert found.fingerprint == model().fingerprint()
    assert found.values() == sum(value.numel() for value in model().model.parameters())
    assert found.config["embed_dim"] == model().embed_dim


def test_it_takes_what_the_generator_draws() -> None:
    assert (anatomy.SIZE, anatomy.SPACING, anatomy.AXES) == (module.SIZE, module.SPACING, module.AXES)
    assert model().image.grid == anatomy.BOXES
    assert preprocess_of(check_backbone("tiny_ct")).fitting.size == anatomy.SIZE
    volume, _ = anatomy.draw_scan(np.random.default_rng(0), np.zeros(8, dtype=bool), anatomy.Scanner(18))
    with torch.inference_mode():
        features = model().image.features(model().input_spec.to_input(np.stack([volume, volume])))
    assert features.shape == (2, module.EMBED_DIM)
    torch.testing.assert_close(features[0], features[1])


def test_the_tokenizer_is_that_of_the_grammar() -> None:
    kept = json.loads((module.WEIGHTS / "tiny_ct.tokenizer.json").read_text())
    assert kept == json.loads(make_tokenizer(2 * sentences()).to_str())
    ids = model().tokenize(sentences())
    assert not (ids == kept["model"]["vocab"]["[UNK]"]).any()
    assert int(model().text.lengths(ids).max()) < module.CONTEXT_LENGTH


def test_other_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="'tiny_ct' brings its own weights"):
        load_backbone("tiny_ct", pretrained="mine.pt")


def test_the_command_makes_weights_of_this_form(tmp_path: Path) -> None:
    sizes = ["--volumes", "130", "--warmup-steps", "1", "--align-steps", "1", "--held-out", "24"]
    assert pretraining.main(["--out", str(tmp_path / "tiny_ct"), *sizes]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in module.WEIGHTS.iterdir()}
    record = json.loads((tmp_path / "tiny_ct.json").read_text())
    assert record["parameters"] == check_backbone("tiny_ct").values()
    assert set(record["auroc_held_out"]) == {"source", "suite"}
