"""The tiny backbone: quiet building, strict weights, and its tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmark.backbones import check_backbone, embedded, load_backbone, tiny
from benchmark.errors import DataError
from benchmark.phantom.chest.parts import draw_part
from benchmark.phantom.pretraining import probe
from benchmark.phantom.pretraining.vocabulary import make_tokenizer, vocabulary

NAMES = ["tiny", "tiny_b"]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    return tiny.load_tiny(request.param)


def test_both_weights_are_there_and_small():
    assert embedded.tiny_names() == NAMES
    assert sum(path.stat().st_size for path in embedded.WEIGHTS.iterdir()) < 2_000_000


def test_shapes_and_unit_norm(loaded):
    model, tokenizer = loaded
    images = tiny.to_input(torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8))
    with torch.inference_mode():
        image, text = (
            model.encode_image(images, normalize=True),
            model.encode_text(tokenizer(["edema"]), normalize=True),
        )
    assert image.shape == (2, embedded.EMBED_DIM)
    assert text.shape == (1, embedded.EMBED_DIM)
    assert image.norm(dim=-1) == pytest.approx([1, 1], abs=1e-5)


def test_padding_does_not_matter(loaded):
    model, tokenizer = loaded
    ids = tokenizer(["no pleural effusion."])
    with torch.inference_mode():
        long, short = model.encode_text(ids), model.encode_text(ids[:, : int((ids != 0).sum())])
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)


def test_the_two_seeds_differ():
    first, second = (tiny.load_tiny(name)[0].state_dict() for name in NAMES)
    assert first.keys() == second.keys()
    assert not torch.equal(first["visual.trunk.cls_token"], second["visual.trunk.cls_token"])


def test_the_text_tower_reads_reports_and_the_model_is_no_specialist(loaded):
    model, tokenizer = loaded
    assert probe.reading(model, tokenizer, seed=77, count=1024)["mean"] > 0.88
    five = {"chexpert_5x200": draw_part("chexpert_5x200", 1000, 77)}
    assert 0.65 < probe.zero_shot(model, tokenizer, five)["chexpert_5x200"]["auroc"] < 0.75


def test_every_weight_has_its_record():
    for name in NAMES:
        record = json.loads((embedded.WEIGHTS / f"{name}.json").read_text())
        assert record["command"].startswith("python -m benchmark.phantom.pretraining.pretrain ")
        assert {"settings", "versions", "machine", "stages"} <= set(record)
        backbone, found = load_backbone(name), check_backbone(name)
        assert found.fingerprint == backbone.fingerprint()
        assert found.values() == sum(value.numel() for value in backbone.model.parameters())
        assert found.image_size == backbone.input_spec.size
        assert found.config["embed_dim"] == backbone.embed_dim


def test_building_is_reproducible_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = tiny.build_tiny(50, seed=1), tiny.build_tiny(50, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_unknown_weights_suggest_a_name():
    with pytest.raises(DataError, match="Did you mean 'tiny"):
        tiny.load_tiny("tinny")


def test_weights_that_do_not_fit_are_named(monkeypatch, tmp_path):
    for source in embedded.WEIGHTS.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "tiny.safetensors").write_bytes(b"not safetensors")
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path)
    with pytest.raises(DataError, match=r"tiny\.safetensors: cannot be read as weights"):
        tiny.load_tiny("tiny")


def test_committed_tokenizer_is_the_one_the_grammar_gives():
    kept = json.loads((embedded.WEIGHTS / "tiny.tokenizer.json").read_text())
    assert kept["model"]["vocab"] == {token: number for number, token in enumerate(vocabulary())}
    assert kept == json.loads(make_tokenizer().to_str())


def test_tokenizer_pads_and_keeps_the_last_separator(loaded):
    _, tokenizer = loaded
    ids = tokenizer(["edema", "edema " * 100])
    assert ids.shape == (2, tokenizer.context_length)
    assert ids.dtype == torch.long
    assert (ids[0, 3:] == tokenizer.pad_id).all()
    separator = ids[0, 2]
    assert ids[1, -1] == separator
    assert (ids[1, 1:-1] == ids[0, 1]).all()
    assert tokenizer("edema", context_length=3).tolist() == ids[:1, :3].tolist()
    assert tokenizer([]).shape == (0, tokenizer.context_length)


def test_everything_the_suite_says_is_in_the_vocabulary(loaded):
    _, tokenizer = loaded
    suite = yaml.safe_load((Path(__file__).parents[2] / "configs/suites/phantom.yaml").read_text())
    classes = set(suite["validation"]["classes"])
    for dataset in suite["tasks"]["zeroshot"]["datasets"].values():
        classes |= set(dataset["classes"])
    texts = [template.format(name) for template in suite["templates"] for name in classes]
    for text in [*texts, *draw_part("mimic", 256, 0).manifest["text"], "Any $strange text, Caf\u00e9 42!"]:
        assert "[UNK]" not in tokenizer.tokens(text), text


def test_nearly_all_reports_fit_the_context(loaded):
    _, tokenizer = loaded
    lengths = [len(tokenizer.tokens(text)) for text in draw_part("mimic", 512, 0).manifest["text"]]
    assert sum(length <= tokenizer.context_length for length in lengths) / len(lengths) > 0.95


def test_registered_names_are_imported_and_tiny_is_found_without_torch():
    code = (
        "import sys; from benchmark.backbones import check_backbone, find_backbone; "
        "from benchmark.registry import BACKBONES; [BACKBONES.get(name) for name in BACKBONES.names()]; "
        "check_backbone('tiny'); find_backbone('tiny'); assert not {'torch', 'timm', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
