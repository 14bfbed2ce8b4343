"""Compare the few-shot methods with a file of golden vectors: ``python -m tests.golden.fewshot FILE``.

FILE is the stem, the .json or the .safetensors of a set: what the authors' code gave for features of the set
(its JSON holds each formula, source and tolerance). Prints how many tensors were compared, the worst difference as a
share of its tolerance, and what was skipped and why; ends with 1 where a tensor differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import methods
from benchmark.conformance.small_models import FAMILIES, small_backbone
from benchmark.data.fewshot import coop_draw, half, harmonic, of_half, realistic_draw
from methods import (
    biomedcoop,
    clip_svd,
    kgcoop,
    lpp,
    prograd,
    ss_text,
    ss_text_u,
    tip_adapter,
    tip_adapter_f,
    zs_lp,
)
from methods.base import Method
from methods.linear_probe import Search, regression
from methods.supervision import Classes

Group = Callable[["Comparison"], None]
GROUPS: list[Group] = []
SKIPPED = {
    "simpleshot.": "SimpleShot is no method here",
    "linear_probe.final_": "the authors' fit is not converged: not to be compared closely",
    "clipsvd.odd.effective_weight_with_delta": "the authors cut the rank; ours keeps the rest of the weight",
    "clipsvd.odd.output_init": "the same: ours starts at the original output, which is compared",
    "clipsvd.odd.output_with_delta": "the same",
}
"""Outputs that nothing here makes, by how their names begin."""


@dataclass
class Comparison:
    """One golden file, and what was compared with it.

    Attributes:
        ratios: name -> largest difference as a share of its tolerance.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    ratios: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path) -> Comparison:
        stem = file.with_suffix("") if file.suffix in (".json", ".safetensors") else file
        facts = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        return cls(load_file(f"{stem}.safetensors"), facts)

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Name -> what is said of each output."""
        every = {
            name: one for group in self.facts["groups"].values() for name, one in group["tensors"].items()
        }
        return {name: one for name, one in every.items() if one["role"] == "output"}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def has(self, name: str) -> bool:
        return name in self.tensors

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(prefix)]

    def same(self, name: str, ours: Any) -> None:
        """Compare with an output; a name that the file does not hold is not asked for."""
        if name not in self.outputs:
            return
        expected, ours = self[name], torch.as_tensor(ours).detach()
        tolerance = self.outputs[name]["tolerance"]
        if isinstance(tolerance, str):
            tolerance = float(tolerance.split()[-1]) * expected.double().abs().clamp(min=1e-300)
        if ours.shape != expected.shape:
            self.ratios[name] = float("inf")
            return
        difference = (ours.double() - expected.double()).abs()
        allowed = torch.as_tensor(tolerance, dtype=torch.float64).expand_as(difference)
        ratio = torch.where(difference == 0, 0.0, difference / allowed)
        self.ratios[name] = float(ratio.max()) if ratio.numel() else 0.0

    def all(self, prefix: str, **ours: Any) -> None:
        """Compare several outputs ``<prefix>.<name>``."""
        for name, value in ours.items():
            self.same(f"{prefix}.{name}", value)

    # ------------------------------------------------------------------ inputs
    @property
    def scale(self) -> float:
        return float(torch.tensor(self.facts["sizes"]["log_logit_scale"]).exp())

    @property
    def classes(self) -> Classes:
        features = self["in.text_templates_raw"]
        return Classes(torch.zeros(len(features), 1, 2, dtype=torch.long), features)

    def labelled(self, kind: str) -> tuple[Tensor, Tensor]:
        return self[f"in.{kind}_features"], self[f"in.{kind}_labels"].long()

    def support(self, *kinds: str) -> tuple[Tensor, Tensor]:
        """The first of these supports that the file has."""
        return self.labelled(next(kind for kind in (*kinds, "support") if self.has(f"in.{kind}_features")))


def group(run: Group) -> Group:
    GROUPS.append(run)
    return run


def built(name: str, scale: float) -> Method:
    """Return a method whose own arithmetic is asked; features come from the file."""
    method = methods.build(name, small_backbone(FAMILIES[1]))
    method.logit_scale.set(scale)
    return method.eval()


@torch.no_grad()
def cosine_logits(file: Comparison, weights: Tensor) -> Tensor:
    """Return logits of the queries by a fitted cosine classifier."""
    method: Any = built("zs_lp", file.scale)
    method.keep(weights=weights)
    return method.logit_scale() * method.scores(file["in.query_features"].to(weights), method.classifier())


@group
def zero_shot(file: Comparison) -> None:
    query, text = file["in.query_features"], file.classes.frozen()
    file.same("zeroshot.text_weights", text)
    file.same("zeroshot.query_logits", file.scale * query @ text.T)
    file.same("zeroshot.query_logits_scale100", 100 * query @ text.T)
    file.same("zeroshot_mean.query_logits", cosine_logits(file, file.classes.text))


@group
def clap(file: Comparison) -> None:
    probe = zs_lp.probe_of(zs_lp.ProbeOptions(), file.scale)
    runs = [("in", "zslp", False), ("in", "clap", True), ("in_unbal", "zslp_unbal", False)]
    for source, name, penalised in [*runs, ("in_unbal", "clap_unbal", True)]:
        if not file.has(f"{source}.clap_train_features"):
            continue
        features, labels = file[f"{source}.clap_train_features"], file[f"{source}.clap_train_labels"].long()
        base = f"{source}.clap_base_text"
        text = file[base] if file.has(base) else file["in.clap_base_text"]
        batches = file[f"{source}.clap_batch_index"].long()
        multipliers = zs_lp.multipliers(features, labels, text, file.scale)
        pull = multipliers if penalised else None
        file.all(name, a_c=multipliers, weights_init=file.classes.text, lr_per_step=probe.rates)
        steps = list(zs_lp.path(text, features, labels, probe, pull, batches))
        file.same(f"{name}.loss_per_step", torch.stack([step.loss for step in steps]))
        _steps(file, name, steps)
        double = None if pull is None else pull.double()
        *_, last = zs_lp.path(text.double(), features.double(), labels, probe, double, batches)
        file.all(name, weights_final_f64=last.weights, query_logits_f64=cosine_logits(file, last.weights))


def _steps(file: Comparison, name: str, steps: Sequence[zs_lp.Step]) -> None:
    for number in (1, 2):
        file.same(f"{name}.grad_step{number}", steps[number - 1].gradient)
    for number in (1, 2, 10):
        file.same(f"{name}.weights_after_{number}", steps[number - 1].weights)
    last = steps[-1].weights
    file.all(name, weights_final=last, query_logits=cosine_logits(file, last))


@group
def clap_of_ss_text(file: Comparison) -> None:
    features, labels = file.labelled("support")
    probe = zs_lp.probe_of(zs_lp.ProbeOptions(warmup=False), file.scale)
    text = file.classes.text
    # that code multiplies a column by a row: the mean multiplier for all classes
    uniform = zs_lp.multipliers(features, labels, text, file.scale).mean().expand(len(text))
    for name, pull in (("ss_zslp", None), ("ss_clap", uniform)):
        file.same(f"{name}.lr_per_step", probe.rates)
        _steps(file, name, list(zs_lp.path(text, features, labels, probe, pull)))


@group
def closed_forms(file: Comparison) -> None:
    features, labels = file.labelled("support")
    text, pool = file.classes.text, file["in.unlabeled_features"]
    for name, form in (("sstext", ss_text.plain_form), ("sstext_plus", ss_text.plus_form)):
        weights = form(text, features, labels, file.scale)
        file.all(name, weights=weights, query_logits=cosine_logits(file, weights))
    given = (text, features, labels, pool, file.scale)
    found = ss_text_u.solve(*given)
    file.all("sstextu", weights=found.weights, query_logits=cosine_logits(file, found.weights))
    file.same("sstextu.label_marginal_used", ss_text_u.marginal_of(labels, len(text)))
    for number, code in enumerate(found.codes, start=1):
        file.same(f"sstextu.codes_iter{number}", code)
    oracle = ss_text_u.solve(*given, marginal=file["in.true_label_marginal"]).weights
    file.all("sstextu_oracle", weights=oracle, query_logits=cosine_logits(file, oracle))
    none = ss_text_u.solve(*given, rounds=0).weights
    file.all("sstextu_mm0", weights=none, query_logits=cosine_logits(file, none))


@group
def lp_plus_plus(file: Comparison) -> None:
    ensemble, mean = file.classes.frozen(), functional.normalize(file.classes.text, dim=-1)
    for name, text in (("lpp", ensemble), ("lpp_biomed", ensemble), ("lpp_ss", mean)):
        features, labels = file.support() if name == "lpp_ss" else file.support("support_bal")
        steps = lpp.steps_of(features, labels, text, file[f"{name}.bias_init"])
        if name == "lpp_biomed":  # that code rounds the start
            halved = lpp.steps_of(features.half().float(), labels, text, steps.start.bias).start.weights
            start = steps.start._replace(weights=halved.half().float())
            steps = lpp.Steps(start, steps.weights, steps.alpha)
        first = lpp.gradients(steps.start, features, labels, text)
        file.all(
            name, text_weights=text.T, lr_w=steps.weights, lr_alpha=steps.alpha, weights_init=steps.start.weights,
            alpha_init=steps.start.alpha, grad_w_step1=first.weights, grad_b_step1=first.bias,
        )  # fmt: skip
        states = list(lpp.epochs(features, labels, text, steps, 300))
        for number in (1, 10, 20, 300):
            state = states[number - 1]
            file.same(f"{name}.weights_after_{number}", state.weights)
            file.same(f"{name}.bias_after_{number}", state.bias)
            file.same(f"{name}.alpha_after_{number}", state.alpha)
            file.same(f"{name}.alpha_grad_accumulated_step{number}", state.gradient)
        query, validation = file["in.query_features"], file.labelled("val")
        scores = [lpp.accuracy(state.logits(validation[0], text), validation[1]) for state in states]
        kept = lpp.best_of(iter(states), text, validation)
        file.all(
            name, query_logits=states[-1].logits(query, text), query_logits_300=states[-1].logits(query, text),
            query_logits_kept=kept.logits(query, text), val_acc_per_epoch=scores,
        )  # fmt: skip


@group
def tip(file: Comparison) -> None:
    labels, query, text = file["in.support_labels"].long(), file["in.query_features"], file.classes.frozen()
    # the authors' columns: as many as the highest label says
    values = tip_adapter.one_hot(labels, int(labels.max()) + 1)
    text = text[: values.shape[1]]
    keys = functional.normalize(file["in.tip_aug_features_raw"].mean(dim=0), dim=-1)
    own = file["in.support_features"]
    constant, validation = 85.2323, file.labelled("val")

    def cache(alpha: float, beta: float, own: Tensor = keys) -> tip_adapter.Cache:
        return tip_adapter.Cache(own, values, alpha, beta)

    def logits(made: tip_adapter.Cache, images: Tensor = query, scale: float = constant) -> Tensor:
        return scale * images @ text.T + made.scores(images)

    file.all(
        "tip", cache_keys=keys.T, cache_values=values, zeroshot_query_logits_scale85=constant * query @ text.T
    )
    file.same("tip.zeroshot_query_logits_scale85.2323", constant * query @ text.T)
    for alpha, beta, word in ((1.0, 1.0, "alpha1_beta1"), (3.0, 5.5, "alpha3_beta5.5")):
        file.same(f"tip.query_logits_{word}", logits(cache(alpha, beta)))
        file.same(f"tip.val_logits_{word}", logits(cache(alpha, beta), validation[0]))
        file.same(f"tip_original.query_logits_{word}", logits(cache(alpha, beta, own), scale=100.0))
    found = tip_adapter.searched(cache(1, 1), constant * validation[0] @ text.T, validation, 8, 50.0)
    file.same("tip.searched_query_logits", logits(found))
    plain = functional.normalize(file.classes.text, dim=-1)[: values.shape[1]]
    made = cache(1, 1, own)
    file.same("tip_original.cache_keys", own.T)
    file.all(
        "tip_ss", cache_keys=own.T, cache_values=values, query_logits=query @ plain.T + made.scores(query)
    )
    _tip_trained(
        file, {"tipf": cache(1.0, 1.0, own), "tipf_alpha3_beta5.5": cache(3.0, 5.5, own)}, constant, text
    )


def _tip_trained(file: Comparison, starts: dict[str, tip_adapter.Cache], scale: float, text: Tensor) -> None:
    (images, labels), query, validation = (
        file.labelled("support"),
        file["in.query_features"],
        file.labelled("val"),
    )
    zero_shot, options = scale * images @ text.T, tip_adapter_f.TipFOptions()
    for name, start in starts.items():
        epochs = list(tip_adapter_f.trained(start, zero_shot, images, labels, options))
        for number, made in ((1, start), (2, epochs[0])):
            keys = made.keys.clone().requires_grad_()
            loss = tip_adapter_f.loss_of(
                tip_adapter.Cache(keys, made.values, made.alpha, made.beta), zero_shot, images, labels
            )
            file.same(f"{name}.grad_step{number}", torch.autograd.grad(loss, keys)[0])
        for number in (1, 5, 20):
            file.same(f"{name}.keys_after_{number}", epochs[number - 1].keys)
        best = max(epochs, key=lambda item: lpp.accuracy(scale * validation[0] @ text.T + item.scores(validation[0]),
                                                         validation[1]))  # fmt: skip
        file.all(
            name, keys_init=start.keys, lr_per_step=tip_adapter_f.rates(options),
            train_logits_step1=zero_shot + start.scores(images),
            query_logits_after_5=scale * query @ text.T + epochs[4].scores(query),
            query_logits_kept=scale * query @ text.T + best.scores(query),
        )  # fmt: skip


@group
def linear_probe(file: Comparison) -> None:
    features, labels = file.support("support_bal")
    query = file["in.query_features"].numpy()
    model = regression(features, labels, 1.0)
    file.all(
        "linear_probe",
        C1_coef=model.coef_,
        C1_intercept=model.intercept_,
        C1_query_logits=model.decision_function(query),
    )
    search = Search(features, labels, file.labelled("val"))
    search.run()
    file.all("linear_probe", searched_C=search.strengths, final_C=search.strength)
    stored = "linear_probe.val_acc"
    percent = file.has(stored) and float(file[stored].max()) > 1
    file.same(stored, np.array(search.accuracies) / (1 if percent else 100))
    if missing := file.names("linear_probe_missing."):
        model = regression(*file.labelled("support"), 1.0)
        made = {"coef": model.coef_, "intercept": model.intercept_, "query_logits": model.decision_function(query),
                "classes": model.classes_}  # fmt: skip
        for name in missing:
            found = [value for word, value in made.items() if name.endswith(word)]
            if found:
                file.same(name, found[0])


@dataclass
class Prompted:
    """Learned text features with their gradient, and the images of the prompt groups."""

    raw: Tensor
    text: Tensor
    images: Tensor
    labels: Tensor

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.raw, retain_graph=True)[0]


def prompted(file: Comparison) -> Prompted:
    raw = file["prompt.learned_text_raw"].clone().requires_grad_()
    images = functional.normalize(file["prompt.images_raw"], dim=-1)
    return Prompted(raw, functional.normalize(raw, dim=-1), images, file["prompt.labels"].long())


@group
def kg_coop(file: Comparison) -> None:
    given = prompted(file)
    moved = kgcoop.distance(given.text, functional.normalize(file["prompt.frozen_text"], dim=-1))
    cosines = given.images @ given.text.T
    method: Any = methods.build("kgcoop", small_backbone(FAMILIES[1]), w=2.0)
    method.logit_scale.set(file.scale)
    total = method.loss_of_classes({"cosines": cosines, "moved": moved.expand(len(cosines))}, given.labels)
    file.all(
        "kgcoop", regulariser=moved, grad_regulariser=given.gradient(moved), logits=file.scale * cosines,
        loss_ce=Method.loss_of_classes(method, {"cosines": cosines}, given.labels), loss_total_w2=total,
        grad_total_w2=given.gradient(total),
    )  # fmt: skip


@group
def biomed_coop(file: Comparison) -> None:
    given = prompted(file)
    sentences = functional.normalize(file["biomedcoop.description_features_raw"], dim=-1)
    for name, options in (
        ("biomedcoop", {"sccm_lambda": 0.5, "kdsp_lambda": 0.25, "tau": 1.5}),
        ("biomedcoop_strong", {"sccm_lambda": 20.0, "kdsp_lambda": 10.0, "tau": 1.25}),
    ):
        method: Any = methods.build("biomedcoop", small_backbone(FAMILIES[1]), **options)
        method.logit_scale.set(file.scale)
        chosen = biomedcoop.select(given.images, sentences, file.scale, options["tau"])
        teacher = given.images @ biomedcoop.mean_of(sentences, chosen.kept).T
        apart = biomedcoop.to_mean(given.text, biomedcoop.mean_of(sentences))
        cosines = given.images @ given.text.T
        ce = Method.loss_of_classes(method, {"cosines": cosines}, given.labels)
        sccm = options["sccm_lambda"] * apart
        kdsp = options["kdsp_lambda"] * biomedcoop.taught(file.scale * cosines, file.scale * teacher)
        embedded = {"cosines": cosines, "teacher": teacher, "apart": apart.expand(len(cosines))}
        total = method.loss_of_classes(embedded, given.labels)
        file.all(
            name, prompt_scores=chosen.scores, prompt_z=chosen.z, prompt_mask=chosen.kept.to(torch.uint8),
            logits=file.scale * cosines, loss_ce=ce, loss_sccm_weighted=sccm, loss_kdsp_weighted=kdsp, loss_total=total,
            grad_ce=given.gradient(ce), grad_sccm=given.gradient(sccm), grad_kdsp=given.gradient(kdsp),
            grad_total=given.gradient(total),
        )  # fmt: skip


@group
def pro_grad(file: Comparison) -> None:
    for kind in ("agree", "conflict"):
        for share in (1, 0.8):
            ours = prograd.combined(file["prograd.g_ce"], file[f"prograd.g_kl_{kind}"], share)
            file.same(f"prograd.combined_{kind}_lambda{share:g}", ours)
    for number in (1, 2):
        pair = (file[f"prograd.two.g_ce_{number}"], file[f"prograd.two.g_kl_{number}"])
        file.same(f"prograd.two.combined_{number}", prograd.combined(*pair, 1.0))
    student = file["prograd.student_logits"].clone().requires_grad_()
    labels = file["prograd.labels" if file.has("prograd.labels") else "prompt.labels"].long()
    task = functional.cross_entropy(student, labels)
    file.same("prograd.grad_xe", torch.autograd.grad(task, student, retain_graph=True)[0])
    for temperature in (1, 2):
        general = prograd.distillation(student, file["prograd.teacher_logits"], temperature)
        file.same(f"prograd.kl_T{temperature}", general)
        file.same(f"prograd.xe_T{temperature}", task)
        file.same(f"prograd.grad_kl_T{temperature}", torch.autograd.grad(general, student)[0])


class Linear:
    """A linear map with CLIP-SVD's change beside it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, delta: Tensor) -> None:
        self.weight, self.bias, self.change, self.given = weight, bias, clip_svd.SingularValues(weight), delta

    def __call__(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight, self.bias) + self.change(inputs)

    @torch.no_grad()
    def move(self) -> None:
        self.change.delta.zero_()[: len(self.given)] = self.given

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.change.delta, retain_graph=True)[0][: len(self.given)]


@group
def singular_values(file: Comparison) -> None:
    for kind in ("lin", "qkv", "odd"):
        name = f"clipsvd.{kind}"
        inputs = file["clipsvd.x14" if kind == "odd" else "clipsvd.x"]
        linear = Linear(file[f"{name}.weight"], file[f"{name}.bias"], file[f"{name}.delta"])
        for moved in (False, True):
            if moved:
                linear.move()
            output = linear(inputs)
            gradient = linear.gradient((file[f"{name}.cotangent"] * output).sum())
            word = "with_delta" if moved else "init"
            file.same(f"{name}.grad_s_{word}", gradient)
            if kind != "odd":
                file.same(f"{name}.output_{word}", output)
            if not moved:
                file.same(f"{name}.output_original_linear", output)
        file.same(f"{name}.singular_values", linear.change.values[: len(linear.given)])
        if kind != "odd":
            file.same(f"{name}.effective_weight_with_delta", linear.weight + linear.change.weight())
    _attention(file)


def _attention(file: Comparison) -> None:
    name, parts = "clipsvd.attn", ("q_proj", "k_proj", "v_proj", "proj")
    weight, bias = (_fused(file, name, kind) for kind in ("weight", "bias"))
    third = len(weight) // 3
    rows = {part: slice(i * third, (i + 1) * third) for i, part in enumerate(parts[:3])}
    maps = {part: Linear(weight[one], bias[one], file[f"{name}.{part}.delta"]) for part, one in rows.items()}
    maps["proj"] = Linear(file[f"{name}.proj_weight"], file[f"{name}.proj_bias"], file[f"{name}.proj.delta"])
    inputs = file[f"{name}.x"]
    for moved in (False, True):
        for one in maps.values() if moved else ():
            one.move()
        q, k, v = (maps[part](inputs).unflatten(-1, (2, -1)).transpose(1, 2) for part in parts[:3])
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        output = maps["proj"](mixed)
        word = "with_delta" if moved else "init"
        file.same(f"{name}.output_{word}", output)
        if not moved:
            file.same(f"{name}.output_before_svd", output)
        for part, one in maps.items():
            file.same(
                f"{name}.{part}.grad_s_{word}", one.gradient((file[f"{name}.cotangent"] * output).sum())
            )
            file.same(f"{name}.{part}.singular_values", one.change.values)


def _fused(file: Comparison, name: str, kind: str) -> Tensor:
    """Return the fused map of the attention, which is the one of the group 'qkv'."""
    own = f"{name}.qkv_{kind}"
    return file[own] if file.has(own) else file[f"clipsvd.qkv.{kind}"]


@group
def draws(file: Comparison) -> None:
    train, validation, test = (file[f"sampling.{part}_labels"].tolist() for part in ("train", "val", "test"))
    classes = len({*train, *validation, *test})
    for name in file.names("sampling.k"):
        if not name.endswith("train_ids"):
            continue
        stem = name.removesuffix(".train_ids")
        shots, seed, which = _parts(stem.removeprefix("sampling."))
        drawn = coop_draw(train, validation, shots, seed, repeat=which == "repeat")
        if which == "repeat":
            file.same(name, torch.tensor(drawn.train))
            continue
        rows, labels = of_half([train[row] for row in drawn.train], classes, which)  # type: ignore[arg-type]
        kept = [drawn.train[row] for row in rows]
        wanted = half(classes, which)  # type: ignore[arg-type]
        file.same(name, torch.tensor(kept))
        file.same(f"{stem}.train_new_labels", torch.tensor(labels))
        file.same(
            f"{stem}.val_ids", torch.tensor([row for row in drawn.validation if validation[row] in wanted])
        )
    for which in ("all", "base", "new"):
        rows, labels = of_half(test, classes, which)  # type: ignore[arg-type]
        file.all(f"sampling.test_{which}", ids=torch.tensor(rows), new_labels=torch.tensor(labels))
    for name in file.names("realistic_split.k"):
        shots, seed, _ = _parts(name.removeprefix("realistic_split.").replace("_support", "_x_support"))
        file.same(name, torch.tensor(realistic_draw(file["realistic_split.labels"].tolist(), shots, seed)))
    base, new = file["hmean.base"].tolist(), file["hmean.new"].tolist()
    each = [harmonic(*pair) for pair in zip(base, new, strict=True)]
    whole = harmonic(float(np.mean(base)), float(np.mean(new)))
    file.all("hmean", per_set=each, mean_of_h=np.mean(each), h_of_means=whole)


def _parts(name: str) -> tuple[int, int, str]:
    """Return shots, seed and the rest of ``k<shots>_seed<seed>_<rest>``."""
    shots, seed, rest = name.split("_")[:3]
    return int(shots[1:]), int(seed.removeprefix("seed")), rest


def reasons(file: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each output that was not compared, and why."""
    for name in file.outputs:
        if name not in file.ratios:
            known = (why for begin, why in SKIPPED.items() if name.startswith(begin))
            yield name, next(known, "nothing here makes it")


def compare(path: Path) -> Comparison:
    """Compare everything with a golden file."""
    file = Comparison.of(path)
    torch.manual_seed(0)
    for run in GROUPS:
        run(file)
    return file


def main(arguments: Sequence[str]) -> int:
    """Compare with the file of the command line.

    Returns:
        0 where everything agrees, 1 otherwise.
    """
    if len(arguments) != 1:
        print("usage: python -m tests.golden.fewshot FILE", file=sys.stderr)  # noqa: T201
        return 2
    file = compare(Path(arguments[0]))
    for name, why in reasons(file):
        print(f"skipped {name}: {why}")  # noqa: T201
    wrong = {name: ratio for name, ratio in file.ratios.items() if not ratio <= 1}
    for name, ratio in wrong.items():
        print(f"differs {name}: {ratio:.3g} times its tolerance")  # noqa: T201
    worst = max(file.ratios, key=file.ratios.__getitem__)
    print(f"{len(file.ratios)} tensors compared, worst {file.ratios[worst]:.3g} of its tolerance ({worst})")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
