"""Every medical model: its published layout loads strictly and computes what its authors' order of operations does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.backbones import check_backbone, load_backbone
from benchmark.backbones.medical.convert import fit, rename
from benchmark.errors import DataError
from benchmark.files import ROOT, file_sha256
from benchmark.registry import BACKBONES, load_plugins
from benchmark.run.identity import _code
from benchmark.store.cells import digest
from tests.backbones.medical_files import MODELS, RECORDS, backbone, ids, images, layout, stirred, write
from tests.backbones.medical_oracles import BioVil, ConVirt, Gloria, Kad, Mgca, Plip, PmcClip, Prior
from tests.backbones.medical_parts import FULL, TINY, WORDS, Layout, ResNet, read

TEXT = "There is no edema. The left-sided effusion is clear."


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_image_features_are_the_authors(name: str) -> None:
    pixels = images(name)
    close(backbone(name).image.features(pixels), layout(name).image(pixels))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_text_features_are_the_authors_and_padding_is_trimmed_where_attention_leaves_it_out(
    name: str,
) -> None:
    model, length = backbone(name), 77 if name == "pmc-clip" else 16
    texts = ids(name, length)
    expected = layout(name).text(texts)
    close(model.text.features(texts), expected)
    assert model.text.embed_dim == model.image.embed_dim == expected.shape[1]
    short = model.trim(texts)
    assert short.shape[1] == (77 if name == "pmc-clip" else 9)
    close(model.text.features(short), expected)


SCALES = {
    "convirt": 10.0,
    "gloria": 10.0,
    "mgca-r50": 1 / 0.07,
    "mgca-vit": 1 / 0.07,
    "biovil": 2.0,
    "biovil-t": 2.0,
    "prior": 2.1,  # stored, and multiplied as it is
    "kad": 2.6593,  # never exponentiated
    "pmc-clip": math.exp(4.1),  # stored
}


@pytest.mark.parametrize("name", MODELS)
def test_scale_words_input_and_provenance(name: str) -> None:
    model, record = backbone(name), RECORDS[name]
    expected = SCALES.get(name) or float(layout(name).clip.logit_scale.exp())
    assert float(model.logit_scale) == pytest.approx(expected, rel=1e-4)
    tokens = model.tokenize([TEXT, "edema"])
    assert tokens.shape == (2, model.text.context_length)
    assert tokens.max() < 49408
    assert model.preprocess == record.preprocess
    spec = model.input_spec
    assert (spec.size, spec.mean) == (record.preprocess.size, record.preprocess.mean)
    assert model.origin["preprocess"] == json.loads(json.dumps(record.preprocess.as_json()))
    assert len(model.origin["sha256"]) >= 64
    assert (model.rules, set(model.extras)) == (record.rules, set(record.extras))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert BACKBONES.resolve(name) == name
    assert record.licence
    assert record.link
    assert record.pretrained_on


def test_the_page_names_every_model_its_file_and_its_licence() -> None:
    lines = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines()
    for name, record in RECORDS.items():
        row = next(line for line in lines if line.startswith(f"| `{name}"))
        source = record.files[0][0]
        assert name == "prior" or any(file in row for file in source.names)
        assert source.home is None or str(source.home) in row
        assert record.licence.partition(" ")[0].rstrip(":;") in row


def test_aliases() -> None:
    assert BACKBONES.resolve("MGCA") == "mgca-r50"
    assert BACKBONES.resolve("BioViL_T") == "biovil-t"
    assert BACKBONES.resolve("PMC-CLIP:heads=8") == "pmc-clip:heads=8"


PLUGIN = """
from benchmark.backbones.medical.load import MedicalBackbone
from benchmark.backbones.medical.records import OPENAI, CheckpointFile, ImageSide, Record, TextSide, bert, resnet
from benchmark.registry import register_backbone

register_backbone("outside", summary="a model of somebody else")(MedicalBackbone(Record(
    "outside", "Outside", files=((CheckpointFile(("outside.pt",)),),),
    names=(*resnet("eye."), ("eye_head.*", "visual.head.0.*"), *bert("mouth."), ("mouth_head.*", "text.proj.0.*")),
    image=ImageSide(head=("linear",)), text=TextSide(head=("linear",), max_length=16), preprocess=OPENAI,
    embed_dim=24, scale=10.0,
), __name__))
"""


class Outside(Layout):
    def __init__(self) -> None:
        super().__init__()
        self.eye, self.mouth = ResNet(TINY), self.bert(TINY, pooler=False)
        self.eye_head, self.mouth_head = nn.Linear(self.eye.width, 24), nn.Linear(TINY.width, 24)


@torch.no_grad()
def test_a_record_of_a_plugin_is_a_backbone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert load_plugins([str(tmp_path / "mine.py")]) == []
    model, pixels, texts = stirred(Outside()), images("outside"), ids("outside")
    torch.save(model.published(), tmp_path / "outside.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    ours = load_backbone("outside", pretrained=str(tmp_path))
    close(ours.image.features(pixels), model.eye_head(model.eye(pixels)[-1].mean(dim=(2, 3))))
    close(ours.text.features(texts), model.mouth_head(read(model.mouth, texts).last_hidden_state[:, 0]))
    assert ours.tokenize([TEXT]).shape == (1, 16)
    assert _code(BACKBONES.get("outside")) == {"code": digest([file_sha256(tmp_path / "mine.py")])}


# ---------------------------------------------------------------------------- full size
FULL_SIZE: dict[str, Any] = {
    "convirt": lambda: ConVirt(FULL, words=30522),
    "gloria": lambda: Gloria(FULL),
    "mgca-r50": lambda: Mgca(FULL, 128),
    "mgca-vit": lambda: Mgca(FULL, 128, vit=True),
    "biovil": lambda: BioVil(FULL, 128),
    "biovil-t": lambda: BioVil(FULL, 128, temporal=True),
    "prior": lambda: Prior(FULL),
    "kad": lambda: Kad(FULL),
    "pmc-clip": lambda: PmcClip(FULL),
    "plip": lambda: Plip(FULL),
    "quiltnet": lambda: Plip(FULL),
}
# tensors of the image file or part, and how many learnt values (batch statistics not counted)
COUNTS: dict[str, tuple[str, int, int | None]] = {
    "gloria": ("gloria.img_encoder.", 321, None),
    "mgca-r50": ("img_encoder_q.", 342, None),
    "mgca-vit": ("img_encoder_q.model.", 150, None),
    "biovil": ("", 328, 25_835_944),
    "biovil-t": ("", 372, 27_349_928),
    "prior": ("image_encoder.", 327, None),
    "kad": ("image_encoder.", 642, None),
    "pmc-clip": ("visual.", 339, 37_792_352),
}
UNCASED = {
    "kad": "text_encoder.bert_model", "biovil": "bert", "biovil-t": "bert", "pmc-clip": "text_encoder",
}  # fmt: skip
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_layouts_fit_without_memory(name: str) -> None:
    with torch.device("meta"):
        whole = FULL_SIZE[name]()
    if name.startswith("biovil"):
        image, text = whole.published_parts()
        tensors = image | text
    else:
        tensors = (whole.clip if name in ("plip", "quiltnet") else whole).state_dict()
    if name in UNCASED:  # its word list is smaller than BERT's cased one
        words = f"{UNCASED[name]}.embeddings.word_embeddings.weight"
        tensors[words] = torch.empty(30522, 768, device="meta")
    renamed = rename(RECORDS[name], tensors, "a file")
    fit(RECORDS[name].with_options("heads=8" if name == "pmc-clip" else ""), renamed, "a file")
    if name in COUNTS:
        prefix, count, values = COUNTS[name]
        part = image if name.startswith("biovil") else tensors
        named = {key: value for key, value in part.items() if key.startswith(prefix)}
        learnt = sum(value.numel() for key, value in named.items() if not key.endswith(STATISTICS))
        assert len(named) == count
        assert values in (None, learnt)


def test_published_sizes_are_asked_for() -> None:
    with torch.device("meta"):
        tensors = Gloria(FULL).state_dict()
        tensors["gloria.img_encoder.global_embedder.weight"] = torch.empty(512, 2048)
    with pytest.raises(DataError, match=r"global_embedder.weight' is \[512, 2048\], expected \[768, 2048\]"):
        fit(RECORDS["gloria"], rename(RECORDS["gloria"], tensors, "a file"), "a file")


def test_a_trunk_without_its_last_layers_is_missed() -> None:
    with torch.device("meta"):
        tensors = Gloria(FULL).state_dict()
    short = {key: value for key, value in tensors.items() if ".layer.11." not in key}
    with pytest.raises(DataError, match=r"missing \('gloria.text_encoder.model.encoder.layer.11.output"):
        fit(RECORDS["gloria"], rename(RECORDS["gloria"], short, "a file"), "a file")


def test_what_is_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_backbone("gloria", pretrained=str(write("gloria", tmp_path)))
    assert found.image_size == (224, 224)
    assert found.config["embed_dim"] == 768
    assert found.values() > 100_000
    assert "gloria.ckpt" in found.lines()[0]
    assert found.preprocess == RECORDS["gloria"].preprocess


def test_one_channel_takes_the_grey_levels_of_colours() -> None:
    spec = backbone("prior").input_spec
    colour = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]]], dtype=np.uint8)
    grey = np.array([[[76, 150, 29, 18]]], dtype=np.uint8)  # ITU-R 601, as Pillow rounds
    assert torch.equal(spec.to_input(colour), spec.to_input(grey))
    assert spec.to_input(grey).shape == (1, 1, 1, 4)
