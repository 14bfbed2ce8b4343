"""Data as training and evaluation use them: pairs, batches and labelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.data.fewshot import Half, half, of_half
from benchmark.data.labels import POLICIES, Labels
from benchmark.data.prepared import MANIFEST, PIXELS, Array, Prepared, take
from benchmark.errors import ConfigError, DataError
from methods.supervision import PAIRS, Supervision

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["multiclass", "binary", "multilabel"]


@dataclass
class Batch:
    """One step's samples. A tower whose features are constant during training brings features instead of inputs.

    Attributes:
        images: ``[B, C, H, W]`` or None. token_ids: ``[B, L]`` or None. labels: findings ``[B, K]`` or None; in a batch
            that classes supervise, class indices ``[B]``.
        image_features, text_features: pooled, projected, un-normalised features ``[B, E]`` of the frozen towers.
        frozen_image, frozen_text: the same, beside the inputs, for losses that compare with the frozen model.
        supervision: what the loss is made of.
    """

    images: Tensor | None = None
    token_ids: Tensor | None = None
    labels: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    frozen_image: Tensor | None = None
    frozen_text: Tensor | None = None
    supervision: Supervision = PAIRS

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._tensors()[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._tensors()[0].device

    def split(self, size: int) -> list[Batch]:
        """Return parts of at most ``size`` samples, in order."""
        starts = range(0, self.size, size)
        return [self.changed(lambda value, i=start: value[i : i + size]) for start in starts]  # type: ignore[misc]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor of its samples changed."""
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def _tensors(self) -> list[Tensor]:
        found = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return [value for name, value in found.items() if name != "labels"]


@dataclass(frozen=True)
class PairData:
    """Image-report pairs to adapt on.

    Attributes:
        pixels: uint8 ``[N, H, W]`` or ``[N, H, W, C]``, memory-mapped, or a view of such rows.
        texts: N reports. labels: float32 ``[N, K]`` of 1, 0 and the states that `POLICIES` name, nan in all of a row
            without labels; or None. label_names: K names.
        ids: N image ids. digest: tells these pairs from all others. facts: what results must say about the data.
    """

    name: str
    pixels: Array
    texts: list[str]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    ids: list[str]
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pixels)


@dataclass(frozen=True)
class LabelledImages:
    """Images with the classes that a zero-shot evaluation asks for.

    Attributes:
        pixels: uint8 ``[N, H, W]`` or ``[N, H, W, C]``.
        targets: int ``[N]`` (class index; binary: 1 = positive) or ``[N, C]`` of 0/1 for multilabel.
        classes: C class texts as they enter the templates.
        clusters: N patient ids for clustered intervals, or None.
        digest: tells these images from all others. facts: what results must say about the data.
        among: the images that these were chosen from, and their rows there; None where nothing was chosen.
    """

    name: str
    title: str
    kind: Kind
    pixels: Array
    targets: np.ndarray
    classes: tuple[str, ...]
    ids: list[str]
    clusters: list[str] | None
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    among: tuple[LabelledImages, np.ndarray] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def chosen(self, rows: Sequence[int]) -> LabelledImages:
        """Return some of the images, in the order of ``rows``; what was computed for all of them serves these too."""
        order = np.asarray(rows, dtype=np.int64)
        whole, places = (self, order) if self.among is None else (self.among[0], self.among[1][order])
        return replace(
            self,
            pixels=take(self.pixels, order),
            targets=self.targets[order],
            ids=[self.ids[row] for row in order],
            clusters=None if self.clusters is None else [self.clusters[row] for row in order],
            digest=f"{whole.digest}:rows:{hashlib.sha256(places.tobytes()).hexdigest()[:16]}",
            among=(whole, places),
        )

    def of_half(self, which: Half) -> LabelledImages:
        """Return the images of a half of the classes, which are counted from 0 within it."""
        if which == "all":
            return self
        rows, targets = of_half(self.targets.tolist(), len(self.classes), which)
        wanted = half(len(self.classes), which)
        return replace(
            self.chosen(rows),
            targets=np.asarray(targets, dtype=np.int64),
            classes=self.classes[wanted.start : wanted.stop],
        )


def pairs(
    name: str,
    data: Prepared,
    *,
    limit: int | None = None,
    fraction: float = 1.0,
    uncertain: str = "zero",
    blank: str = "zero",
) -> PairData:
    """Read image-report pairs off a prepared dataset.

    Args:
        name: of the corpus.
        data: the prepared dataset.
        limit: keep only the first rows.
        fraction: share of the pairs, drawn before ``limit``; see :func:`share`.
        uncertain: what a label of -1 stands for: "zero" (absent, as in the authors' code), "one" (present) or
            "distinct" (a state of its own, which matches only itself).
        blank: what an empty label of a labelled row stands for: "zero" or "distinct".

    Raises:
        ConfigError: unknown policy, or an invalid share.
        DataError: if it has no report texts, or an empty one.
    """
    data = share(data, fraction)
    frame = data.manifest if limit is None else data.manifest.iloc[:limit]
    if "text" not in frame:
        raise DataError(f"{data.source}: column 'text' is missing, so '{name}' cannot be a corpus")
    texts = frame["text"].fillna("").astype(str).tolist()
    empty = [str(row) for row, text in zip(frame["image_id"], texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(f"{data.source}: {len(empty)} empty reports, first '{empty[0]}': remove the rows")
    policy = {"uncertain": uncertain, "blank": blank}
    labels = Labels.of(data, frame, policy, "corpus.")
    return PairData(
        name=name,
        pixels=take(data.pixels, np.arange(len(frame))),
        texts=texts,
        labels=labels.values() if labels.names else None,
        label_names=tuple(labels.names),
        ids=frame["image_id"].astype(str).tolist(),
        digest=_digest(data, len(frame)) + labels.digest(),
        facts=_facts(data) | labels.facts(),
    )


def blank_pairs(size: tuple[int, ...], texts: Sequence[str], count: int) -> PairData:
    """Return black images with some texts, for costs that do not depend on what images show.

    Args:
        size: of the images.
        texts: taken in turns.
        count: of the pairs.
    """
    return PairData(
        name="blank",
        pixels=np.zeros((count, *size), dtype=np.uint8),
        texts=[texts[i % len(texts)] for i in range(count)],
        labels=None,
        label_names=(),
        ids=[str(i) for i in range(count)],
        digest=f"blank:{size}:{count}",
        facts={"pairs": 0, "data_notes": ["no corpus: costs are those of blank pairs"]},
    )


def share(data: Prepared, fraction: float) -> Prepared:
    """Return a share of a dataset's rows, in their order: whole patients (else studies, else single images).

    The order in which patients join follows from their ids alone, so that a smaller share lies in every larger one,
    for every seed of a run. As many join as are needed to reach the share.

    Args:
        data: the dataset.
        fraction: of its rows, in (0, 1].

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"corpus.fraction: expected a number above 0 and up to 1, got {fraction!r}")
    if fraction == 1:
        return data
    groups = _groups(data.manifest)
    keys = {group: hashlib.sha256(f"share {group}".encode()).hexdigest() for group in groups.unique()}
    sizes = groups.value_counts()
    order = sorted(keys, key=keys.__getitem__)
    before = np.cumsum([0, *(sizes[group] for group in order[:-1])])  # rows of those who joined earlier
    joined = {group for group, rows in zip(order, before, strict=True) if rows < fraction * len(groups)}
    rows = np.flatnonzero(groups.isin(joined).to_numpy())
    return data.select(rows, f"fraction={fraction:g}")


def _groups(frame: pd.DataFrame) -> pd.Series[str]:
    """Return, per row, the patient, else the study, else the image that it belongs to."""
    groups = "image " + frame["image_id"].astype(str)
    for column in ("study_id", "patient_id"):
        if column in frame:
            ids = frame[column].astype(str)
            groups = groups.where(ids == "", f"{column} " + ids)
    return groups


def labelled_images(
    name: str, data: Prepared, spec: dict[str, Any], *, limit: int | None = None
) -> LabelledImages:
    """Read an evaluation set off a prepared dataset.

    Args:
        name: its name in results.
        data: the prepared dataset.
        spec: of the suite: ``kind``, ``classes`` (label names), ``positive`` for binary sets, optional ``prompts``
            (label name -> text in the template), optional ``title``; ``exclusive`` keeps only the images of a
            multiclass set that show one of its classes and nothing else ("No Finding": nothing at all);
            ``uncertain`` ("zero" or "one"): what a label of -1 stands for. Blanks are absent. ``subset`` keeps the
            first half of the classes ("base") or the rest ("new").
        limit: keep only the first rows.

    Raises:
        ConfigError: a policy that only a corpus can have.
        DataError: if a label column is missing or the labels contradict ``kind``.
    """
    frame = data.manifest if limit is None else data.manifest.iloc[:limit]
    kind, names = spec["kind"], [str(label) for label in spec["classes"]]
    asked = [str(spec["positive"])] if kind == "binary" else names
    labels = Labels.of(data, frame, _test_policy(spec))
    if spec.get("exclusive"):
        kept = labels.alone(names)
        frame, labels = frame[kept], labels.rows(kept)
    targets = np.stack([labels.shown(label) for label in asked], axis=1).astype(np.int64)
    if kind == "binary":
        targets = targets[:, 0]
        if names.index(asked[0]) == 0:
            names.reverse()
    elif kind == "multiclass":
        targets = _single_class(targets, data, frame, names)
    prompts = {str(label): text for label, text in (spec.get("prompts") or {}).items()}
    found = LabelledImages(
        name=name,
        title=str(spec.get("title", name)),
        kind=kind,
        pixels=take(data.pixels, frame.index.to_numpy()),
        targets=targets,
        classes=tuple(str(prompts.get(label, label)) for label in names),
        ids=frame["image_id"].astype(str).tolist(),
        clusters=_clusters(frame),
        digest=_digest(data, len(frame))
        + (f":exclusive:{names}" if spec.get("exclusive") else "")
        + labels.digest(),
        facts=_test_facts(data, labels, asked, bool(spec.get("exclusive"))),
    )
    return found.of_half(spec.get("subset", "all"))


def _test_policy(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return how -1 and blanks count in a test set, where a class is present or absent."""
    policy = {key: str(spec.get(key, "zero")) for key in POLICIES}
    for key, value in policy.items():
        if value == "distinct":
            choices = " or ".join(name for name, number in POLICIES[key].items() if number <= 1)
            raise ConfigError(f"{key}: 'distinct' is for a corpus; a test set takes {choices}")
    return policy


def _test_facts(data: Prepared, labels: Labels, asked: Sequence[str], exclusive: bool) -> dict[str, Any]:
    """Return what a result records of its data and labels: of the labels asked for, or of all if all of them count."""
    facts = _facts(data) | labels.facts(None if exclusive or not set(asked) <= set(labels.names) else asked)
    if without := facts.get("labels", {}).get("rows_without"):
        note = f"images without any label, counted as negative: {without:,}"
        facts["data_notes"] = [*facts.get("data_notes", ()), note]
    return facts


def _clusters(frame: pd.DataFrame) -> list[str] | None:
    """Return patient ids for clustered intervals; an image whose patient is not known stands for itself."""
    if "patient_id" not in frame:
        return None
    patients, images = frame["patient_id"].astype(str), frame["image_id"].astype(str)
    return patients.where(patients != "", "image " + images).tolist()


def _single_class(targets: np.ndarray, data: Prepared, frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    counts = targets.sum(axis=1)
    if (counts != 1).any():
        row = frame["image_id"].iloc[int(np.flatnonzero(counts != 1)[0])]
        raise DataError(f"{data.source}: image '{row}' has not exactly one of the classes {', '.join(names)}")
    return targets.argmax(axis=1)


def _digest(data: Prepared, rows: int) -> str:
    selection = f":{data.selection}" if data.selection else ""
    return f"{data.digests[PIXELS]}:{data.digests[MANIFEST]}:{rows}{selection}"


def _facts(data: Prepared) -> dict[str, Any]:
    """Return what every result records of prepared downloads: how images were fitted, and what is wrong with them."""
    names = {
        "data_transform": "transform",
        "data_options": "options",
        "data_split": "split",
        "data_notes": "notes",
    }
    return {key: value for key, name in names.items() if (value := data.info.get(name))}
