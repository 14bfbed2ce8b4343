"""Published files: read without running code, converted once and whole, or refused in one line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.backbones import load_backbone
from benchmark.backbones.checkpoints import read_foreign
from benchmark.backbones.medical import convert as conversion
from benchmark.cli import main
from benchmark.errors import BenchmarkError, ConfigError, DataError
from benchmark.files import file_sha256
from tests.backbones.hub import REVISION, empty_cache, hub, refused
from tests.backbones.medical_files import RECORDS, ids, layout, loaded, small_sizes, write


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_sizes(monkeypatch)
    empty_cache(monkeypatch, tmp_path)


class Payload:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Settings(dict[str, Any]):
    """An object of a training library."""


# ---------------------------------------------------------------------------- reading
def test_code_in_a_file_stays_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def plant(content: dict[str, Any]) -> None:
        content["callbacks"] = [Payload()]
        content["hyper_parameters"] = Settings(a=Payload(), b=argparse.Namespace(c={1, 2}))

    backbone = loaded("mgca-vit", write("mgca-vit", tmp_path, plant))
    assert not (tmp_path / "executed").exists()
    with torch.no_grad():
        assert backbone.text.features(ids("mgca-vit")).isfinite().all()
    about = json.loads((tmp_path / "mgca-vit.mgca-vit.json").read_text())
    assert {"posix.system", "argparse.Namespace"} <= set(about["not_looked_up"])


def test_a_payload_in_the_place_of_a_tensor_is_a_missing_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def plant(content: dict[str, Any]) -> None:
        content["state_dict"] = dict(content["state_dict"]) | {"img_encoder_q.model.cls_token": Payload()}

    line = refused(DataError, "mgca-vit", write("mgca-vit", tmp_path, plant))
    assert "1 missing ('img_encoder_q.model.cls_token')" in line
    assert not (tmp_path / "executed").exists()


def test_tensors_of_every_kind_are_read(tmp_path: Path) -> None:
    content = {
        "module.a": torch.arange(6.0).view(2, 3).T,
        "module.b": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
        "module.c": torch.tensor(3),
    }
    torch.save({"epoch": 1, "state_dict": content, "deep": {"er": {0: torch.zeros(1)}}}, tmp_path / "x.pt")
    found = read_foreign(tmp_path / "x.pt")
    assert list(found.tensors) == ["state_dict.a", "state_dict.b", "state_dict.c", "deep.er.0"]
    assert torch.equal(found.tensors["state_dict.a"], content["module.a"])
    assert found.tensors["state_dict.b"].dtype == torch.float16
    assert found.inert == ()


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _old(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_old, "refused, not a zip archive of torch.save"),
        (lambda path: path.write_bytes(b"<html>Sign in</html>"), "refused, not a zip archive"),
        (_half, "refused, not a zip archive"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: _archive(path, "x/constants.pkl"), "it is a TorchScript program"),
        (lambda path: _archive(path, "x/other"), "cannot be read as weights"),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], Any], words: str
) -> None:
    path = write("mgca-vit", tmp_path)
    spoil(path)
    assert words in refused(BenchmarkError, "mgca-vit", path)
    assert not list(tmp_path.glob("*.safetensors"))


def _archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", b"3\n")
        archive.writestr(name, b"")


# ---------------------------------------------------------------------------- strictness
def _state(content: dict[str, Any]) -> dict[str, Any]:
    content["state_dict"] = dict(content["state_dict"])
    return content["state_dict"]


_MODEL, _NORM = "img_encoder_q.model", "img_encoder_q.model.norm.weight"
_BIAS, _QKV = "text_encoder_q.global_embed.head.3.bias", f"{_MODEL}.blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(_BIAS), f"1 missing ('{_BIAS}')"),
        (lambda state: state.pop(_QKV), f"missing ('{_QKV}')"),
        (lambda state: state.update(stranger=torch.zeros(2)), "1 unknown ('stranger')"),
        (
            lambda state: state.update({f"{_MODEL}.more": state.pop(_NORM)}),
            f"1 missing ('{_NORM}'), 1 unknown ('{_MODEL}.more')",
        ),
        (
            lambda state: state.update({_NORM: torch.zeros(3)}),
            f"1 of another size ('{_NORM}' is [3], expected [128])",
        ),
        (
            lambda state: state.update({_NORM: torch.full((128,), float("nan"))}),
            f"1 with values that are not finite ('{_NORM}')",
        ),
    ],
)
def test_every_tensor_is_accounted_for(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    path = write("mgca-vit", tmp_path, lambda content: change(_state(content)))
    line = refused(DataError, "mgca-vit", path)
    assert words in line
    assert str(path) in line
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".txt") == ["mgca-vit.ckpt"]


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    path = write("mgca-vit", tmp_path)
    assert "unknown ('img_encoder_q." in refused(DataError, "gloria", path)
    assert "missing ('img_encoder_q.model.layer1" in refused(DataError, "mgca-r50", path)


def test_two_trunks_of_one_name_have_to_be_equal(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        encoder = dict(content["image_encoder"])
        encoder["res_features.4.0.conv1.weight"] = encoder["res_features.4.0.conv1.weight"] + 1
        content["image_encoder"] = encoder

    line = refused(DataError, "kad", write("kad", tmp_path, change))
    assert "res_features.4.0.conv1.weight' and 'image_encoder.resnet.layer1.0.conv1.weight'" in line
    assert "should be the same tensor" in line


# ---------------------------------------------------------------------------- converting
def test_a_file_is_converted_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("mgca-vit", tmp_path)
    loaded("mgca-vit", path)
    target, record = tmp_path / "mgca-vit.mgca-vit.safetensors", tmp_path / "mgca-vit.mgca-vit.json"
    about = json.loads(record.read_text())
    assert about["model"] == "mgca-vit"
    assert about["sources"] == [
        {"file": "mgca-vit.ckpt", "size": path.stat().st_size, "sha256": file_sha256(path)}
    ]
    assert "prototype_layer.weight" in about["dropped"]
    assert about["tensors"] == len(load_file(target))
    first = target.stat().st_mtime_ns
    monkeypatch.setattr(conversion, "read_foreign", None)  # nothing is read a second time
    loaded("mgca-vit", path)
    assert target.stat().st_mtime_ns == first


def test_another_file_of_the_same_name_is_converted_again(tmp_path: Path) -> None:
    path = write("mgca-vit", tmp_path)
    before = loaded("mgca-vit", path)

    def change(content: dict[str, Any]) -> None:
        state = _state(content)
        state["img_encoder_q.model.norm.bias"] = state["img_encoder_q.model.norm.bias"] + 1

    after = loaded("mgca-vit", write("mgca-vit", tmp_path, change))
    bias = "visual.trunk.norm.bias"
    assert torch.equal(after.model.state_dict()[bias], before.model.state_dict()[bias] + 1)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("mgca-vit", tmp_path)

    def fail(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(conversion, "save_file", fail)
    assert "no space left" in refused(BenchmarkError, "mgca-vit", path)
    left = sorted(file.name for file in tmp_path.iterdir() if file.is_file())
    assert left == ["mgca-vit.ckpt", "vocab.txt"]


def test_a_place_that_cannot_be_written_uses_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    path, whole = write("mgca-vit", folder), conversion.write_whole

    def refuse(target: Path, how: Any) -> None:
        if target.parent == folder:
            raise PermissionError("read-only")
        whole(target, how)

    monkeypatch.setattr(conversion, "write_whole", refuse)
    loaded("mgca-vit", path)
    assert sorted(file.name for file in folder.iterdir()) == ["mgca-vit.ckpt", "vocab.txt"]
    assert len(list((tmp_path / "cache" / "medpeft-bench" / "converted").rglob("*.safetensors"))) == 1


def test_a_converted_file_stands_on_its_own(tmp_path: Path) -> None:
    path = write("mgca-vit", tmp_path)
    whole = loaded("mgca-vit", path)
    path.unlink()
    target = tmp_path / "mgca-vit.mgca-vit.safetensors"
    again = loaded("mgca-vit", target)
    assert again.fingerprint() == whole.fingerprint()
    assert "converted as 'mgca-vit'" in refused(DataError, "mgca-r50", target)
    target.write_bytes(target.read_bytes()[:-100])
    assert "cannot be read as weights" in refused(DataError, "mgca-vit", target)


def test_safetensors_in_the_published_layout_and_a_hub_id_with_one_file_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = write("mgca-vit", tmp_path / "files")
    hub(tmp_path / "hf", "someone/MGCA-vit", path, path.with_name("vocab.txt"))
    theirs = load_backbone("mgca-vit", pretrained="someone/MGCA-vit")
    assert theirs.origin["repo"] == "someone/MGCA-vit"
    state = {key: value.contiguous().clone() for key, value in layout("mgca-vit").state_dict().items()}
    save_file(state, path.with_name("again.safetensors"))
    assert loaded("mgca-vit", path.with_name("again.safetensors")).fingerprint() == theirs.fingerprint()


# ---------------------------------------------------------------------------- finding
def test_all_that_is_missing_is_told_at_once_with_commands(tmp_path: Path) -> None:
    line = refused(DataError, "biovil")
    fetch = "hf download microsoft/BiomedVLP-CXR-BERT-specialized"
    assert f"{fetch} biovil_image_resnet50_proj_size_128.pt --revision v1.1" in line
    assert f"{fetch} vocab.txt" in line
    line = refused(DataError, "gloria")
    assert "Download chexpert_resnet50.ckpt yourself: the Stanford Box folder" in line
    assert "licence: Apache-2.0" in line
    assert "hf download emilyalsentzer/Bio_ClinicalBERT vocab.txt" in line
    line = refused(DataError, "pmc-clip:heads=8")
    assert "hf download axiong/pmc_oa checkpoint.pt --repo-type dataset" in line


def test_wrong_requests(tmp_path: Path) -> None:
    assert "does not exist" in refused(ConfigError, "gloria", tmp_path / "gone.ckpt")
    assert "Say it: pmc-clip:heads=8 or pmc-clip:heads=32" in refused(ConfigError, "pmc-clip")
    assert "unknown option 'head'. Did you mean 'heads'?" in refused(ConfigError, "pmc-clip:head=8")
    assert "unknown value of heads '9'" in refused(ConfigError, "pmc-clip:heads=9")
    assert "hf download a/b" in refused(DataError, "quiltnet", "a/b")


def test_repositories_in_the_cache_are_found_by_their_tags(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    write("biovil", tmp_path / "files")
    files = sorted((tmp_path / "files").iterdir())
    snapshot = hub(tmp_path / "hf", "microsoft/BiomedVLP-CXR-BERT-specialized", *files, branch="v1.1")
    before = sorted(file.name for file in snapshot.iterdir())
    backbone = load_backbone("biovil")
    assert backbone.origin["repo"] == "microsoft/BiomedVLP-CXR-BERT-specialized"
    assert backbone.origin["revision"] == REVISION
    assert sorted(file.name for file in snapshot.iterdir()) == before  # converted elsewhere
    named = load_backbone("biovil", pretrained="microsoft/BiomedVLP-CXR-BERT-specialized")
    assert named.fingerprint() == backbone.fingerprint()
    about = next((tmp_path / "cache").rglob("*.json")).read_text()
    assert json.loads(about)["published"] == [False, None]  # its checksum is known, and is another one


def test_a_folder_and_parts_beside_a_file(tmp_path: Path) -> None:
    path = write("biovil", tmp_path)
    whole = load_backbone("biovil", pretrained=str(tmp_path))
    assert load_backbone("biovil", pretrained=str(path)).fingerprint() == whole.fingerprint()
    (tmp_path / "pytorch_model.bin").unlink()
    assert "another file of BioViL is not in the cache" in refused(DataError, "biovil", path)


def test_pmc_clip_in_three_files_is_the_same_model(tmp_path: Path) -> None:
    whole = loaded("pmc-clip", write("pmc-clip", tmp_path))
    state, three = layout("pmc-clip").state_dict(), tmp_path / "three"
    three.mkdir()
    for name, prefix in (("image_encoder(resnet50).pth", "visual."), ("text_encoder.pth", "text_encoder.")):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save(part, three / name)
    torch.save(state["text_projection"], three / "text_projection_layer.pth")
    shutil.copy(tmp_path / "vocab.txt", three)
    parts = load_backbone("pmc-clip:heads=8", pretrained=str(three))
    assert float(parts.logit_scale) == pytest.approx(
        83.9, abs=0.05
    )  # published elsewhere, not in these files
    ours, theirs = parts.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "logit_scale")


def test_a_word_list_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write("gloria", tmp_path)
    with (tmp_path / "vocab.txt").open("a") as words:
        words.write("more\n")
    line = refused(DataError, "gloria", path)
    assert "this word list is of another model: 29 words" in line
    (tmp_path / "vocab.txt").unlink()
    path = write("convirt", tmp_path)
    (tmp_path / "vocab.txt").unlink()
    assert "does not say which words its text model knows" in refused(DataError, "convirt", path)


# ---------------------------------------------------------------------------- command line
def test_convert_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write("pmc-clip", tmp_path), tmp_path / "out"
    assert main(["convert", "PMC_CLIP", str(path), "--out", str(out)]) == 0
    names = [f"pmc-clip.pmc-clip.{suffix}" for suffix in ("json", "safetensors")]
    assert sorted(file.name for file in out.iterdir()) == names
    assert "pmc-clip.pmc-clip.safetensors" in capsys.readouterr().out
    shutil.copy(tmp_path / "vocab.txt", out)
    assert load_backbone("pmc-clip:heads=32", pretrained=str(out)).embed_dim == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which model"),
        (["gloria"], "say which file: convert gloria FILE"),
        (["glori", "x"], "Did you mean 'gloria'?"),
        (["biomedclip", "x"], "is read as it is published"),
        (["gloria", "gone.ckpt"], "'gone.ckpt' does not exist"),
        (["gloria", "x", "a=b"], "takes no 'a=b'"),
    ],
)
def test_wrong_conversions(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_records_say_what_a_conversion_depends_on() -> None:
    assert len({record.digest() for record in RECORDS.values()}) == len(RECORDS)
    assert RECORDS["prior"].with_options("bank=gumbel").digest() == RECORDS["prior"].digest()
