"""The mutants: one broken formula each, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Attributes:
        name: area and what is broken. file: relative to the project. old: occurs there exactly once. new: its
            replacement. tests: what pytest is called with.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the file with the mutant in it.

        Raises:
            ValueError: the fragment does not occur exactly once; the table has to follow the code.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: the fragment occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)


def _of(file: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(name, file, old, new, tuple(tests.split())) for name, old, new in changes)


MUTANTS: tuple[Mutant, ...] = (
    *_of(
        "benchmark/run/checks/image_hashes.py",
        "tests/run/checks/test_leaks.py::test_near_copies_are_those_of_the_plain_formula",
        ("near copies: cosine of grey levels", "values -= values.mean(axis=1, keepdims=True)", ""),
        ("near copies: bound too tight", "< 2 - 2 * NEAR + 1e-4", "< (2 - 2 * NEAR) / 4"),
        ("near copies: means too long", "np.full((4, 1), 0.5)", "np.full((4, 1), 1.0)"),
        ("near copies: at half the correlation", ".sum(axis=1) > NEAR", ".sum(axis=1) > NEAR / 2"),
    ),
    *_of(
        "methods/losses.py",
        "tests/methods/test_losses.py",
        ("loss: one direction only", "return (image_to_text + text_to_image) / 2", "return image_to_text"),
        ("loss: sum instead of mean", "(image_to_text + text_to_image) / 2", "image_to_text + text_to_image"),
        ("loss: not transposed", "cross_entropy(logits.T, targets)", "cross_entropy(logits, targets)"),
        ("loss: mask the other way round", "masked_fill(~keep,", "masked_fill(keep,"),
        ("loss: mask of any equal column", "[None, :, :]).all(dim=-1)", "[None, :, :]).any(dim=-1)"),
        ("loss: diagonal left out", "return ~same | torch.eye(", "return ~same & ~torch.eye("),
        (
            "loss: uncertain counts as present",
            "torch.where(labels > 0, labels, 0.0)",
            "labels.abs().nan_to_num()",
        ),
        ("loss: shared positive off by one", "positive.float().T) > 0", "positive.float().T) > 1"),
        ("loss: unlabelled rows match", "& ~unlabelled[:, None] & ~unlabelled[None, :]", ""),
    ),
    *_of(
        "benchmark/metrics/classification.py",
        "tests/metrics/test_classification.py",
        ("auroc: ties lose", "cumulated[below] + cumulated[up_to]) / 2", "cumulated[below] * 2) / 2"),
        (
            "auroc: area below one half",
            'searchsorted(scores[~positive], scores[positive], side="left")',
            'searchsorted(-scores[~positive][::-1], -scores[positive], side="left")',
        ),
        (
            "auroc: denominator of positives alone",
            "chosen.sum(axis=0) * cumulated[-1])",
            "chosen.sum(axis=0))",
        ),
        ("auroc: undefined classes count as zero", "defined += ~np.isnan(values)", "defined += 1"),
        (
            "auroc: class without negatives is scored",
            "& (positives < len(targets))",
            "& (positives <= len(targets))",
        ),
        ("auroc: min-max not shifted", "np.divide(exponential - low, width", "np.divide(exponential, width"),
        (
            "auroc: min-max over images",
            "exponential.min(axis=1, keepdims=True)",
            "exponential.min(axis=0, keepdims=True)",
        ),
        ("auroc: log odds keep the own class", "np.delete(logits, column, axis=1)", "logits"),
        (
            "accuracy: lowest score wins",
            "correct = np.argmax(similarity, axis=1)",
            "correct = np.argmin(similarity, axis=1)",
        ),
        (
            "accuracy: recall without members",
            "_ratio((member * values) @ weights, member @ weights)",
            "_ratio(values @ weights, weights.sum(axis=0))",
        ),
        ("accuracy: rarest class as majority", "labels[np.argmax(counts)]", "labels[np.argmin(counts)]"),
        ("auroc: softmax without the scale", "log_odds(similarity * float(scale))", "log_odds(similarity)"),
        ("auroc: softmax of final scores", "odds = similarity if final else", "odds ="),
    ),
    *_of(
        "benchmark/metrics/bootstrap.py",
        "tests/metrics/test_bootstrap.py",
        (
            "bootstrap: images instead of patients",
            "return counts[codes]",
            "return counts[np.arange(len(codes)) % len(counts)]",
        ),
        ("bootstrap: one-sided interval", "[(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]", "[1 - _LEVEL, 1.0]"),
        ("bootstrap: one draw too few", "size=num_clusters)", "size=num_clusters - 1)"),
        ("bootstrap: missing ids are one patient", "len(found) + np.arange(missing.sum())", "len(found)"),
    ),
    *_of(
        "benchmark/metrics/paired_tests.py",
        "tests/metrics/test_paired_tests.py",
        ("holm: factors upside down", "len(order) - np.arange(len(order))", "1.0 + np.arange(len(order))"),
        (
            "holm: not monotone",
            "np.maximum.accumulate(p_values[order] * factors)",
            "p_values[order] * factors",
        ),
        ("ranks: lowest is best", "stats.rankdata(-np.asarray(", "stats.rankdata(np.asarray("),
        ("nemenyi: without sqrt 2", "np.inf) / np.sqrt(2)", "np.inf)"),
        ("nemenyi: k - 1", "num_methods * (num_methods + 1)", "num_methods * (num_methods - 1)"),
        (
            "friedman: methods and datasets swapped",
            "friedmanchisquare(*values.T)",
            "friedmanchisquare(*values)",
        ),
        (
            "permutation: data not counted",
            "(1.0 + extreme.sum(axis=0)) / (1.0 + flips)",
            "extreme.sum(axis=0) / flips",
        ),
        ("permutation: one-sided", "np.abs(signs @ sums) >= ", "(signs @ sums) >= "),
        (
            "permutation: every sum flipped once",
            "bits[:, : len(part)] @ (-2.0 * part)",
            "bits[:, : len(part)] @ (-1.0 * part)",
        ),
        (
            "delong: negatives' placements forgotten",
            "scaled[0] @ scaled[0] + scaled[1] @ scaled[1]",
            "scaled[0] @ scaled[0]",
        ),
        ("delong: covariance of patients forgotten", "+ shared), 0.0)", "), 0.0)"),
        ("delong: N instead of N - 1", "np.sqrt(holders / (holders - 1))", "1.0"),
        ("delong: one-sided p", "float(2 * special.ndtr(", "float(special.ndtr("),
        (
            "bootstrap test: data not counted",
            "2 * (1 + beyond) / (1 + len(drawn))",
            "2 * beyond / len(drawn)",
        ),
        ("paired: groups weigh by size", "(sizes[labels] * len(sizes))[:, None]", "float(len(labels))"),
    ),
    *_of(
        "benchmark/metrics/detection.py",
        "tests/metrics/test_detection.py",
        ("iou: union counts the overlap twice", "other_area[None, :] - shared", "other_area[None, :]"),
        ("iou: negative sides multiply", "np.clip(high - low, 0, None)", "(high - low)"),
        ("ap: a box is found twice", "free[found, best[found]] = False", "pass"),
        ("ap: overlap has to exceed", "best] >= thresholds", "best] > thresholds"),
        (
            "ap: least confident first",
            'order = np.argsort(-scores[rows], kind="stable")\n    return Matches(',
            'order = np.argsort(scores[rows], kind="stable")\n    return Matches(',
        ),
        (
            "ap: precision without envelope",
            "np.maximum.accumulate(precision[::-1], axis=0)[::-1]",
            "precision",
        ),
        ("ap: 100 recalls", "np.linspace(0, 1, 101)", "np.linspace(0, 1, 100)"),
        ("ap: false alarms forgotten", "shown = np.cumsum(shown_between @ weights, axis=0)", "shown = hits"),
        (
            "kaggle: misses forgotten",
            "np.maximum(detections + matches.num_boxes - found, 1)",
            "np.maximum(detections, 1)",
        ),
    ),
    *_of(
        "benchmark/metrics/segmentation.py",
        "tests/metrics/test_segmentation.py",
        ("dice: without the factor two", "_fractions(2 * overlaps.shared,", "_fractions(overlaps.shared,"),
        ("dice: empty masks count zero", "out=np.ones_like(wholes)", "out=np.zeros_like(wholes)"),
        ("iou: of masks, as dice", "overlaps.actual - overlaps.shared)", "overlaps.actual)"),
        (
            "dice: pooled over images as mean",
            "_fractions(shared @ weights, total @ weights)",
            "_fractions(shared, total) @ weights / weights.sum(axis=0)",
        ),
    ),
    *_of(
        "benchmark/data/datasets/siim.py",
        "tests/data/test_readers_radiology.py",
        ("rle: runs and gaps swapped", "% 2 == 1", "% 2 == 0"),
        ("rle: one pixel too long", "[*numbers, rest]", "[*numbers[:-1], numbers[-1] + 1, rest - 1]"),
        ("rle: rows first", ".reshape(width, height).T", ".reshape(height, width)"),
    ),
    *_of(
        "methods/layers/hypergraph.py",
        "tests/methods/test_hypergraph.py tests/parity/test_ace_lora.py",
        (
            "hypergraph: one neighbour too few",
            "return min(topk, num_tokens - 2)",
            "return min(topk, num_tokens - 2) - 1",
        ),
        (
            "hypergraph: own token is a neighbour",
            'cosines.scatter(2, first[..., None], float("-inf"))',
            "cosines",
        ),
        (
            "hypergraph: scores without softmax",
            ".masked_fill(~allowed, torch.finfo(values.dtype).min).softmax(dim=-1) * allowed",
            ".masked_fill(~allowed, 0.0)",
        ),
        (
            "hypergraph: centre left out of its edge",
            "network.edge(start + (weights * centres).sum(dim=1))  # e_0",
            "network.edge((weights * centres).sum(dim=1))  # e_0",
        ),
        (
            "hypergraph: way back not weighted",
            "network.node(centre_edge + (weights * other_edges).sum(dim=1))",
            "network.node(centre_edge + other_edges.sum(dim=1))",
        ),
        (
            "hypergraph: column 0 not mirrored",
            "weights * start[:, None] + centres + around",
            "centres + around",
        ),
        ("hypergraph: A not transposed", "matrix.transpose(1, 2) @ edges", "matrix @ edges"),
        (
            "hypergraph: other slope",
            "functional.leaky_relu(self.down(inputs), 0.2)",
            "functional.leaky_relu(self.down(inputs), 0.01)",
        ),
    ),
    *_of(
        "methods/layers/lora.py",
        "tests/methods/test_lora.py tests/methods/test_invariants_lora.py",
        ("lora: alpha / r", '(math.sqrt(self.r) if self.scaling == "sqrt" else self.r)', "self.r"),
        (
            "lora: A starts at zero too",
            "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))",
            "nn.init.zeros_(self.A)",
        ),
        (
            "lora: update not scaled",
            "addmm_(low, b.T, alpha=scale)",
            "addmm_(low, b.T)",
        ),
        ("lora: dropout not rescaled", "(inputs * (1 / (1 - probability)))", "(inputs * 1.0)"),
        (
            "lora: gradient of A without the mask",
            "thinned = dropped(rows, keep, probability).flatten(0, -2)",
            "thinned = rows.flatten(0, -2)",
        ),
        (
            "lora: gradient of x without the scale",
            "inner = (own @ b).mul_(scale)",
            "inner = own @ b",
        ),
        (
            "lora: gradient of x without the mask",
            "back = dropped((inner @ a).view_as(rows), keep, probability)",
            "back = (inner @ a).view_as(rows)",
        ),
    ),
    *_of(
        "methods/clip_adapter.py",
        "tests/methods/test_invariants_prompt.py tests/parity/test_authors.py",
        (
            "clip-adapter: blend the other way",
            "ratio * self.adapters[side](features) + (1 - ratio) * features",
            "(1 - ratio) * self.adapters[side](features) + ratio * features",
        ),
        (
            "clip-adapter: no last relu",
            "return self.up(self.down(features).relu()).relu()",
            "return self.up(self.down(features).relu())",
        ),
    ),
    *_of(
        "methods/taskres.py",
        "tests/methods/test_invariants_prompt.py tests/parity/test_authors.py",
        (
            "taskres: residual not scaled",
            "features + self.options.residual_scale * self.residuals[side]",
            "features + self.residuals[side]",
        ),
    ),
    *_of(
        "methods/mma.py",
        "tests/methods/test_invariants_multimodal.py tests/parity/test_authors.py",
        (
            "mma: branch subtracted",
            "after.tokens + self._branches[index]",
            "after.tokens - self._branches[index]",
        ),
        (
            "mma: without the block's norm",
            "self._branches[index](tower.block_norm(index, before.tokens))",
            "self._branches[index](before.tokens)",
        ),
    ),
    *_of(
        "methods/mmrl.py",
        "tests/methods/test_invariants_multimodal.py tests/parity/test_authors.py",
        (
            "mmrl: weights of the losses swapped",
            "contrastive = contrastive + (1 - alpha) *",
            "contrastive = contrastive + alpha *",
        ),
    ),
    *_of(
        "benchmark/backbones/towers/precision.py",
        "tests/backbones/test_precision.py",
        (
            "precision: similarities rounded",
            "    with full_precision(left.device):\n        return at_least_fp32(left) @",
            "    if True:\n        return at_least_fp32(left) @",
        ),
    ),
    *_of(
        "benchmark/data/features.py",
        "tests/data/test_features.py",
        ("features: always fp32", "with autocast(self._precision, self._device):", "if True:"),
    ),
    *_of(
        "methods/base.py",
        "tests/methods/test_invariants_prompt.py tests/parity/test_authors.py tests/tasks/test_zeroshot.py",
        (
            "prompts: ensemble not normalised",
            "functional.normalize(prompts.mean(dim=1), dim=-1)",
            "prompts.mean(dim=1)",
        ),
        (
            "logits: without the scale",
            "similarity(self.logit_scale() * at_least_fp32(image), text)",
            "similarity(at_least_fp32(image), text)",
        ),
        (
            "features: image not normalised",
            "functional.normalize(self.image_head(at_least_fp32(features)), dim=-1)",
            "self.image_head(at_least_fp32(features))",
        ),
    ),
    *_of(
        "benchmark/run/training/trainer.py",
        "tests/run/training/test_trainer.py",
        ("schedule: cosine upside down", "0.5 * (1.0 + math.cos(", "0.5 * (1.0 - math.cos("),
        (
            "schedule: warm-up off by one",
            "return step / max(1, warmup)",
            "return (step + 1) / max(1, warmup)",
        ),
        (
            "schedule: decay counts the warm-up",
            "(step - warmup) / max(1, total - warmup)",
            "step / max(1, total)",
        ),
        ("optimiser: logit scale decays", "recipe.weight_decay if decays else 0.0", "recipe.weight_decay"),
        ("selection: worst weights kept", "row[key] > progress.best[key]", "row[key] < progress.best[key]"),
    ),
    *_of(
        "benchmark/run/training/distributed.py",
        "tests/run/training/test_distributed.py",
        ("parallel: gradients summed", "flat /= self.size", "flat /= 1"),
    ),
)
