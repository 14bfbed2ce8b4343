"""Compares the volume towers, LoRA and preprocessing with a file of golden vectors made by the authors' code.

    python -m tests.golden.ct FILE

FILE is a safetensors file with its JSON beside it (formulas, tolerances, sizes). Prints what was compared and the worst
ratio of difference to tolerance; the exit code is 1 where a ratio is above 1.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import methods
from benchmark.backbones import Backbone
from benchmark.backbones.backbone import VolumeSpec
from benchmark.backbones.ct import CT_CLIP
from benchmark.backbones.medical.convert import fill, rename
from benchmark.backbones.medical.ctvit import CTLayer
from benchmark.backbones.medical.records import Record
from benchmark.backbones.volumes import VolumeFitting
from benchmark.data.prepare.volumes import read_scan
from benchmark.files import ROOT
from methods.molre import Experts, Router, entropy

Tensors = Mapping[str, Tensor]


@dataclass
class Comparisons:
    """What was compared so far: name -> largest difference over what is allowed."""

    ratios: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, ours: Tensor, theirs: Tensor, allowed: float) -> None:
        """Compare two tensors; ``allowed`` 0 asks for the same values."""
        if ours.shape != theirs.shape:
            self.ratios[name] = math.inf
            return
        apart = float((ours.detach().double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
        self.ratios[name] = apart / allowed if allowed else (0.0 if apart == 0 else math.inf)

    def gradients(self, prefix: str, ours: Tensors, stored: Tensors, share: float) -> None:
        """Compare all stored gradients below ``prefix``; allowed is a share of the largest entry of each."""
        for name, theirs in under(stored, prefix).items():
            allowed = share * max(float(theirs.abs().max()), 1e-12)
            self.add(f"{prefix}{name}", ours.get(name, torch.full_like(theirs, math.inf)), theirs, allowed)


def under(stored: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors of a golden file; either of the two files may be named."""
    facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return facts, load_file(file.with_suffix(".safetensors"))


# ---------------------------------------------------------------------------- CT-CLIP
def ct_record(config: Mapping[str, Any], size: tuple[int, ...] | None = None) -> Record:
    """Return CT-CLIP's record at the sizes of a golden model."""
    vision, text = config["vision"], config["text"]
    patch = vision["patch_size"]
    return replace(
        CT_CLIP,
        shapes={},
        embed_dim=config["dim_latent"],
        image=replace(CT_CLIP.image, box=(vision["temporal_patch_size"], patch, patch)),
        text=replace(CT_CLIP.text, head_width=text["hidden_size"] // text["num_attention_heads"]),
        preprocess=replace(
            CT_CLIP.preprocess, size=size or (config["frames"], vision["image_size"], vision["image_size"])
        ),
    )


def ct_backbone(facts: Mapping[str, Any], stored: Tensors, size: tuple[int, ...] | None = None) -> Backbone:
    """Return the golden CT-CLIP, loaded from its published names as a file of weights is."""
    record = ct_record(facts["ctclip"]["config"], size)
    return fill(record, rename(record, under(stored, "ctclip.sd/"), "golden"), "golden")


@contextmanager
def quantiser(backbone: Backbone, mode: str) -> Iterator[None]:
    """Set the mode of the quantiser for a while."""
    module: Any = backbone.model
    before = module.visual.quantiser.mode
    module.visual.quantiser.mode = mode
    try:
        yield
    finally:
        module.visual.quantiser.mode = before


@torch.no_grad()
def towers(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare the image tower stage by stage, the text tower, and zero-shot scores of prompt pairs."""
    backbone, allowed = ct_backbone(facts, stored), facts["ctclip"]["tolerances_max_abs"]
    model: Any = backbone.model
    visual, tower = model.visual, backbone.image
    inputs, expected = under(stored, "ctclip.in/"), under(stored, "ctclip.out/")
    last_within = len(visual.enc_spatial_transformer.layers) - 1
    output = tower.forward(inputs["volume"], taps=(last_within, tower.depth - 1))
    temporal = visual.enc_temporal_transformer.norm_out(output.taps[tower.depth - 1].movedim(1, -1))
    method = methods.build("zero_shot", backbone)
    images, prompts = method.encode_image(inputs["volume"]), method.encode_text(inputs["prompt_ids"])
    logits = method.logits(images, prompts).unflatten(1, (-1, 2))
    with quantiser(backbone, "off"):
        bypassed = method.encode_image(inputs["volume"])
    with quantiser(backbone, "published"):
        published = method.encode_image(inputs["volume"])
    ours = {
        "tokens_patch": visual.to_patch_emb(inputs["volume"]),
        "pos_bias": visual.spatial_rel_pos_bias(*tower.grid[1:]),
        "tokens_spatial": output.taps[last_within].movedim(1, -1),
        "tokens_temporal": temporal,
        "indices": visual.quantiser.indices(temporal),
        "tokens_quantised": output.sequence.tokens.unflatten(1, tower.grid),
        "pooled_flat": tower.pool(output.sequence),
        "image_latent": images,
        "image_latent_quantiser_off": bypassed,
        "report_latent": method.encode_text(inputs["report_ids"]),
        "report_hidden": backbone.text.forward(inputs["report_ids"]).sequence.tokens,
        "prompt_latent": prompts,
        "zeroshot_logits": logits,
        "zeroshot_scores": logits.softmax(dim=-1)[..., 0],
    }
    for name, theirs in expected.items():
        found.add(f"ctclip.out/{name}", ours[name], theirs, allowed[name])
    found.add(
        "ctclip.out/image_latent, mode published",
        published,
        expected["image_latent"],
        allowed["image_latent"],
    )
    shares = tower.patch_features(inputs["volume"]).sum(dim=1)
    found.add("boxes add up to the feature", functional.normalize(shares, dim=-1), images, 1e-5)


def training(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare losses and gradients of full fine-tuning in the three modes of the quantiser."""
    allowed = facts["ctclip"]["tolerances_max_abs"]["loss"]
    for mode, stage in (("straight_through", "straight_through"), ("off", "off"), ("published", "eval")):
        backbone = ct_backbone(facts, stored)
        method = methods.build("full_ft", backbone, loss="clip").eval()
        if mode == "published":  # what stands in front of the quantiser cannot train
            for name, value in backbone.model.named_parameters():
                value.requires_grad_(not name.startswith("visual.") or name.startswith("visual.proj."))
        with quantiser(backbone, mode):
            loss = pair_loss(method, stored)
        loss.backward()
        theirs = stored[f"ctclip.train/loss_{stage}"]
        found.add(f"ctclip.train/loss_{stage}", loss, theirs, allowed)
        gradients = {
            published_name(facts, name): value.grad
            for name, value in backbone.model.named_parameters()
            if value.grad is not None
        }
        gradients["temperature"] = method.logit_scale.value.grad
        found.gradients(f"ctclip.train/grad_{stage}/", gradients, stored, 3e-4)
        codes: Any = backbone.model.get_buffer("visual.quantiser.codebook")
        found.add(
            f"the codebook stays, mode {mode}",
            codes,
            stored["ctclip.sd/visual_transformer.vq._codebook.embed"],
            0,
        )


def pair_loss(method: Any, stored: Tensors) -> Tensor:
    """Return the loss of the stored volumes and reports."""
    images = method.encode_image(stored["ctclip.in/volume"])
    return method.loss_of({"image": images, "text": method.encode_text(stored["ctclip.in/report_ids"])}, None)


def published_name(facts: Mapping[str, Any], name: str) -> str:
    """Return the published name of a parameter."""
    names = rename_back(tuple(facts["ctclip"]["state_dict"]))
    return names[name]


def rename_back(names: tuple[str, ...]) -> dict[str, str]:
    """Return name here -> published name, of all that is kept."""
    empty = {name: torch.empty(0, device="meta") for name in names}
    return rename(replace(CT_CLIP, shapes={}), empty, "golden").origins


# ---------------------------------------------------------------------------- LoRA
def lora(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare LoRA on q, k and v of both towers; one adapter stands on the fused map of keys and values."""
    setting, allowed = facts["lora"]["setting"], facts["lora"]["tolerances_max_abs"]
    options = {"r": setting["r"], "lora_alpha": setting["alpha"], "scaling": "linear", "lora_dropout": 0.0}
    backbone = ct_backbone(facts, stored)
    method = methods.build("clip_lora", backbone, loss="clip", **options).eval()
    model: Any = backbone.model
    depth = len(model.visual.enc_spatial_transformer.layers)
    placed = dict(method.adapters.named_parameters())
    ours = {lora_name(name, depth): value for name, value in placed.items()}
    with torch.no_grad():
        for name, value in under(stored, "lora.in/").items():
            ours[name].copy_(value)
    count = torch.tensor(sum(value.numel() for value in placed.values()))
    found.add("lora: count", count, torch.tensor(setting["count"]), 0)
    inputs, expected = under(stored, "ctclip.in/"), under(stored, "lora.out/")
    with torch.no_grad():
        for name in ("report", "prompt"):
            latent = method.encode_text(inputs[f"{name}_ids"])
            found.add(f"lora.out/{name}_latent", latent, expected[f"{name}_latent"], allowed["latents"])
        for mode, name in (("published", "image_latent"), ("off", "image_latent_quantiser_off")):
            with quantiser(backbone, mode):
                latent = method.encode_image(inputs["volume"])
            found.add(f"lora.out/{name}", latent, expected[name], allowed.get(name, allowed["latents"]))
    for mode in ("straight_through", "off"):
        method.zero_grad()
        with quantiser(backbone, mode):
            loss = pair_loss(method, stored)
        loss.backward()
        found.add(f"lora.train/loss_{mode}", loss, stored[f"lora.train/loss_{mode}"], allowed["loss"])
        gradients = {name: value.grad for name, value in ours.items() if value.grad is not None}
        found.gradients(f"lora.train/grad_{mode}/", gradients, stored, 3e-4)


def lora_name(name: str, depth: int) -> str:
    """Return the golden file's name of an adapter's matrix: ``image.3.kv.A`` of a tower of 2 x ``depth`` layers."""
    kind, index, site, letter = name.split(".")
    if kind == "text":
        part = {"q": "query", "k": "key", "v": "value"}[site]
        return f"text_transformer.encoder.layer.{index}.attention.self.{part}.{letter}"
    stage, layer = ("spatial", int(index)) if int(index) < depth else ("temporal", int(index) - depth)
    return f"visual_transformer.enc_{stage}_transformer.layers.{layer}.1.to_{site}.{letter}"


# ---------------------------------------------------------------------------- other grids
@torch.no_grad()
def other_grids(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare grids whose sides differ: the published order of axes, and axes taken for what they are."""
    allowed = facts["ctclip"]["tolerances_max_abs"]
    for part in ("uneq_t", "uneq_hw"):
        volume = stored[f"{part}.in/volume"]
        backbone = ct_backbone(facts, stored, tuple(volume.shape[2:]))
        model: Any = backbone.model
        for published in (False, True):
            for layer in (module for module in model.modules() if isinstance(module, CTLayer)):
                layer.published_axes = published
            found_here = stages(backbone, volume)
            prefix, names = (f"{part}.out/", set(found_here)) if published else (f"{part}.ours/", set())
            for name, theirs in under(stored, prefix).items():
                key = name.removesuffix("_proper_permute")
                assert key in found_here, (sorted(names), name)
                found.add(f"{prefix}{name}", found_here[key], theirs, allowed[key])


def stages(backbone: Backbone, volume: Tensor) -> dict[str, Tensor]:
    """Return what the stages of the image tower give."""
    tower, model = backbone.image, backbone.model
    visual: Any = model.visual
    last = len(visual.enc_spatial_transformer.layers) - 1
    output = tower.forward(volume, taps=(last, tower.depth - 1))
    temporal = visual.enc_temporal_transformer.norm_out(output.taps[tower.depth - 1].movedim(1, -1))
    pooled = tower.pool(output.sequence)
    whole = pooled.shape[-1] == visual.proj.in_features
    latent = functional.normalize(tower.project(pooled), dim=-1) if whole else torch.empty(0)
    return {
        "pos_bias": visual.spatial_rel_pos_bias(*tower.grid[1:]),
        "tokens_spatial": output.taps[last].movedim(1, -1),
        "tokens_temporal": temporal,
        "indices": visual.quantiser.indices(temporal),
        "image_latent": latent,
    }


# ---------------------------------------------------------------------------- preprocessing
def preprocessing(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare how volumes are resampled, cut off, cropped and scaled, by CT-CLIP's and by HLIP's rule."""
    prep = facts["prep"]
    xyz, source = stored["prep.in/hu_xyz"].double().numpy(), prep["input"]
    spacing = (source["z_spacing"], source["xy_spacing"], source["xy_spacing"])
    for variant, offset in (
        ("raw_stored", 0),
        ("hu_stored_rescaled_again", prep["ctclip_raw_stored"]["intercept"]),
    ):
        for rule in RULES:
            values = rule.spec.to_input(rule.fitting.resampled(rule.turned(xyz + offset), spacing)[None])[
                0, 0
            ]
            key = f"prep.{rule.name}/{variant}/inner_box_{rule.axes}"
            found.add(key, values, stored[key], prep["tolerances_max_abs"][rule.allowed])
    key = "prep.hlip/raw_stored/resampled_hu_zyx"
    wide = replace(HLIP.fitting, window=(-10_000, 10_000)).resampled(HLIP.turned(xyz), spacing)
    found.add(key, torch.from_numpy(wide), stored[key], prep["tolerances_max_abs"]["hlip_resampled_hu"])
    later = replace(CTCLIP.fitting, window=(-10_000, 10_000)).resampled(CTCLIP.turned(xyz), spacing)
    key = "prep.ctclip/raw_stored_training_order/inner_box_zxy"
    found.add(key, CTCLIP.spec.to_input(later[None])[0, 0], stored[key], prep["tolerances_max_abs"]["ctclip"])
    for rule, name, samples in ((CTCLIP, "crop", "ctclip_samples_zxy"), (HLIP, "hlip_crop", "samples_zyx")):
        _crop(found, prep, stored, rule, name, samples)
    _real(found, prep, stored)
    for case in prep["integer_truncation_cases"]:
        for rule, wanted in ((CTCLIP, "released"), (HLIP, "other_order")):
            probe = replace(rule.fitting, spacing=(float(case["target"]),) * 3)
            count = probe.counts((int(case["n"]),) * 3, (float(case["spacing"]),) * 3)[0]
            name = f"voxels of {case['n']} x {case['spacing']} / {case['target']}, {rule.name}"
            found.add(name, torch.tensor(count), torch.tensor(case[wanted]), 0)


@dataclass(frozen=True)
class PrepRule:
    """A loader's rule: its name in the golden file, fitting, scale, order of axes there, and tolerance."""

    name: str
    fitting: VolumeFitting
    spec: VolumeSpec
    axes: str
    allowed: str

    def turned(self, xyz: np.ndarray) -> np.ndarray:
        """Return a volume in the order of axes that the rule has."""
        return xyz.transpose(["xyz".index(axis) for axis in self.axes])


_OURS = CT_CLIP.preprocess
_HLIP_SIZE = (112, 336, 336)
CTCLIP = PrepRule(
    "ctclip",
    CT_CLIP.preprocess.fitting,
    VolumeSpec(_OURS.size, _OURS.mean, _OURS.std, (-1000, 1000)),
    "zxy",
    "ctclip",
)
HLIP = PrepRule(
    "hlip",
    VolumeFitting(_HLIP_SIZE, spacing=(3.0, 1.0, 1.0), axes="SPL", window=(-1150, 350), rule="hlip"),
    VolumeSpec(_HLIP_SIZE, (0.449,), (0.226,), (-1150, 350)),
    "zyx",
    "hlip_normalised",
)
RULES = (CTCLIP, HLIP)


def _crop(
    found: Comparisons, prep: Mapping[str, Any], stored: Tensors, rule: PrepRule, name: str, samples: str
) -> None:
    """Compare a volume that is larger than the model's box along some axes and smaller along others."""
    case, allowed = prep[name], prep["tolerances_max_abs"][rule.allowed]
    spacing = (case["z_spacing"], case["xy_spacing"], case["xy_spacing"])
    values = rule.turned(stored[f"prep.{name}/hu_xyz"].double().numpy())
    whole = rule.spec.to_input(rule.fitting.volume(values, spacing)[None])[0, 0]
    edges = [slice(start, stop) for start, stop in case[f"box_{rule.axes}"]]
    inner = whole[tuple(edges)]
    theirs = stored[f"prep.{name}/{samples}"]
    steps = tuple(slice(1, None, max(1, n // 16)) for n in inner.shape)
    part = inner[steps][tuple(slice(0, n) for n in theirs.shape)]
    found.add(f"prep.{name}/{samples}", part, theirs, allowed)
    beside = whole.clone()
    beside[tuple(edges)] = whole.min()
    lowest = rule.spec.to_input(np.full((1, 1, 1, 1), rule.fitting.window[0]))[0, 0, 0, 0, 0]
    found.add(f"prep.{name}, around the volume", beside.max(), lowest, 1e-6)


# ---------------------------------------------------------------------------- MoLRE
def molre(found: Comparisons, facts: Mapping[str, Any], stored: Tensors) -> None:
    """Compare the mixture of experts with numbers worked out by hand, in double precision."""
    given, allowed = under(stored, "molre.in/"), facts["molre"]["tolerances_max_abs"]
    weights, inputs, coefficients = given["W0"], given["x"], given["C"]
    for activation in ("relu", "gelu"):
        experts, router = mixture(given, activation)
        inputs = given["x"].clone().requires_grad_()
        shares = router(inputs)
        output = inputs @ weights.T + experts(inputs, shares)
        loss = (output * coefficients).sum()
        loss.backward()
        ours = {
            "h": output, "g": shares, "loss": loss, "routing_entropy": entropy(shares), "grad_x": inputs.grad,
            "grad_A": experts.A.grad, "grad_B": experts.B.grad, "grad_R1": router.first.weight.grad,
            "grad_c1": router.first.bias.grad, "grad_R2": router.last.weight.grad, "grad_c2": router.last.bias.grad,
            "grad_W0_not_trained": coefficients.T @ given["x"],
        }  # fmt: skip
        for name, theirs in under(stored, f"molre.{activation}/").items():
            value = ours[name]
            assert value is not None, name
            found.add(f"molre.{activation}/{name}", value, theirs, allowed)
    _equal_weights(found, stored, given, allowed)
    experts, router = mixture(given, "relu")
    rows = stored["molre.slices/x"]
    routed = rows @ weights.T + experts(rows, router(rows))
    shares = (routed @ stored["molre.slices/pool_query"]).softmax(dim=1)
    pooled = (shares[..., None] * routed).sum(dim=1)
    found.add("molre.slices/pool_weights", shares, stored["molre.slices/pool_weights"], allowed)
    key = "molre.slices/routed_per_slice_then_pooled"
    found.add(key, pooled, stored[key], allowed)
    shares = (rows @ stored["molre.slices/pool_query_input"]).softmax(dim=1)
    whole = (shares[..., None] * rows).sum(dim=1)
    key = "molre.slices/pooled_then_routed"
    found.add(key, whole @ weights.T + experts(whole, router(whole)), stored[key], allowed)


def mixture(given: Tensors, activation: str) -> tuple[Experts, Router]:
    """Return experts and router with the stored values."""
    count, rank, width = given["A"].shape
    experts = Experts(width, given["B"].shape[1], experts=count, r=rank).double()
    router = Router(width, len(given["R1"]), count, activation).double()
    with torch.no_grad():
        experts.A.copy_(given["A"])
        experts.B.copy_(given["B"])
        for layer, letter in ((router.first, "1"), (router.last, "2")):
            layer.weight.copy_(given[f"R{letter}"])
            layer.bias.copy_(given[f"c{letter}"])
    return experts, router


def _equal_weights(found: Comparisons, stored: Tensors, given: Tensors, allowed: float) -> None:
    """Compare the start of the router, the single LoRA that it equals, one expert, and three steps from zero."""
    weights, inputs, coefficients = given["W0"], given["x"], given["C"]
    experts, router = mixture(given, "relu")
    with torch.no_grad():
        router.last.weight.zero_()
        router.last.bias.zero_()
    shares = router(inputs)
    output = inputs @ weights.T + experts(inputs, shares)
    (output * coefficients).sum().backward()
    stacked = (
        inputs @ weights.T + inputs @ stored["molre.start/stacked_A"].T @ stored["molre.start/stacked_B"].T
    )
    for name, ours in {
        "g_uniform": shares, "h_uniform": output, "grad_B_uniform": experts.B.grad,
        "grad_R2_uniform": router.last.weight.grad,
    }.items():  # fmt: skip
        assert ours is not None, name
        found.add(f"molre.start/{name}", ours, stored[f"molre.start/{name}"], allowed)
    found.add("molre: one LoRA of rank K r", output, stacked, allowed)
    alone = Experts(inputs.shape[1], len(weights), experts=1, r=experts.A.shape[1]).double()
    with torch.no_grad():
        alone.A.copy_(given["A"][:1])
        alone.B.copy_(given["B"][:1])
    found.add("molre.K1/h", inputs @ weights.T + alone(inputs, None), stored["molre.K1/h"], allowed)
    with torch.no_grad():
        experts.B.zero_()
    trained = [*experts.parameters(), *router.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        ((inputs @ weights.T + experts(inputs, router(inputs))) * coefficients).sum().backward()
        optimiser.step()
    key = "molre.start/h_after_3_sgd_steps"
    found.add(key, inputs @ weights.T + experts(inputs, router(inputs)), stored[key], allowed)


def _real(found: Comparisons, prep: Mapping[str, Any], stored: Tensors) -> None:
    """Compare a real CT, where its file is there: the released loaders take the array as it lies in the file."""
    case = prep["real_ct"]
    path = Path(
        os.environ.get("MEDPEFT_REAL_DATA", ROOT.parent / "shared" / "real"),
        "ct",
        Path(case["file"].split()[1]).name,
    )
    if not path.is_file():
        return
    scan = read_scan(path)
    for rule in RULES:
        values = rule.fitting.resampled(rule.turned(scan.values), scan.spacing)
        cut = [
            slice(max(0, (n - m) // 2), max(0, (n - m) // 2) + m)
            for n, m in zip(values.shape, rule.fitting.size, strict=True)
        ]
        inner = rule.spec.to_input(values[tuple(cut)][None])[0, 0]
        steps = slice(1, None, case["results"]["samples_step"])
        key = f"prep.real/{rule.name}_samples_{rule.axes}"
        found.add(key, inner[steps, steps, steps], stored[key], prep["tolerances_max_abs"][rule.allowed])


STAGES = (towers, training, lora, other_grids, preprocessing, molre)


def compare(file: Path) -> Comparisons:
    """Return all comparisons with a golden file."""
    facts, stored = read(file)
    found = Comparisons()
    for stage in STAGES:
        stage(found, facts, stored)
    return found


def main(arguments: list[str]) -> int:
    """Print the comparisons with a file; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden.ct FILE")
        return 2
    ratios = compare(Path(arguments[0])).ratios
    broken = {name: ratio for name, ratio in ratios.items() if not ratio <= 1}
    for name, ratio in broken.items():
        print(f"differs: {name}: {ratio:.3g} times what is allowed")
    worst = max(ratios, key=lambda name: ratios[name])
    print(
        f"{len(ratios)} comparisons, {len(broken)} differ; worst: {worst}, {ratios[worst]:.3g} of what is allowed"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
