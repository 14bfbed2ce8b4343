"""The contract of methods: how a frozen backbone becomes a trainable image-text model.

A method is one class in one file. It declares what it changes, builds its trained modules in :meth:`Method.setup`,
and acts on the towers through interventions and deltas (``benchmark/backbones/towers/base.py``). It never seeds,
prints, reads files, touches the optimiser or sees a dataset's name.

Shape letters: B batch, C classes, T templates, L text length, E shared embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone, Intervention
from benchmark.backbones.towers.precision import at_least_fp32, full_precision, similarity
from benchmark.errors import ConfigError, StoreError
from benchmark.settings import Given, check
from benchmark.world import World
from methods.losses import Objective

if TYPE_CHECKING:
    from methods.supervision import Classes, Support

MAX_LOG_SCALE = math.log(100.0)
Embeddings = dict[str, Tensor]
ScaleMode = Literal["log", "linear", "frozen"]
Sides = Literal["both", "vision", "text"]
SIDES: dict[str, tuple[str, ...]] = {"both": ("image", "text"), "vision": ("image",), "text": ("text",)}
"""What an option in the authors' words ("vision") means: towers."""


@dataclass(frozen=True)
class MethodCard:
    """Where a method comes from and what it does, for tables, ``list methods`` and the docs.

    Attributes:
        title: name in tables. paper: authors, venue. arxiv: id. repository: owner/name of the reference code.
        paper_row: the row of the ACE-LoRA paper's tables that stands for it, where that is not the title.
        equation: the method in one line of plain text. trains: which tensors. count: closed formula.
        deviations: where this implementation departs from the paper or the authors' code, and why.
    """

    title: str
    paper: str
    equation: str
    trains: str
    count: str
    arxiv: str = ""
    repository: str = ""
    paper_row: str = ""
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeftAdapter:
    """What a method has learnt, as an adapter of Hugging Face peft; plain data.

    Attributes:
        config: content of ``adapter_config.json``. Module names are those of ``Backbone.model`` after ``split_qkv``.
        tensors: by the names of ``adapter_model.safetensors``.
        names: for each of them that is trained, its name in :meth:`Method.trainable_state` (same shape); the others
            are frozen and follow from the configuration.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    names: dict[str, str]


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class LogitScale(nn.Module):
    """The scale that multiplies cosines; a table trains it in the same way for all its methods.

    Args:
        value: scale of the pretrained checkpoint (already exponentiated).
        mode: "log" trains its logarithm, clamped to [0, ln 100]; "linear" trains the value itself, as ACE-LoRA's code
            does; "frozen" keeps it.
    """

    def __init__(self, value: float, mode: ScaleMode = "log") -> None:
        super().__init__()
        if mode not in get_args(ScaleMode):
            raise ConfigError(f"logit_scale: expected log, linear or frozen, got '{mode}'")
        self.mode = mode
        start = value if mode == "linear" else math.log(value)
        self.value = nn.Parameter(torch.tensor(start, dtype=torch.float32), requires_grad=mode != "frozen")

    def forward(self) -> Tensor:
        """Return the scale, a scalar."""
        return self.value if self.mode == "linear" else self.value.exp()

    @torch.no_grad()
    def set(self, scale: float) -> None:
        """Set the scale, given as the number that multiplies cosines."""
        self.value.fill_(scale if self.mode == "linear" else math.log(scale))

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep a log-trained scale in [1, 100]; ACE-LoRA's linear one is not clamped."""
        if self.mode == "log":
            self.value.clamp_(0.0, MAX_LOG_SCALE)


class Method(nn.Module):
    """Base of all methods.

    Class attributes:
        card: provenance. Options: frozen dataclass of the method's own keys.
        adapts: towers that change inside; the features of the others are constant during training and computed once.
        identity_at_init: whether features equal the frozen backbone's before the first step.
        mergeable: whether what is learnt can be added to the frozen weights, so that it costs nothing in use.
        deterministic: nothing is trained and nothing drawn, so that one run stands for all seeds.
        splits: whether a batch may pass the towers in parts, one after another or in several processes. It may if
            :meth:`embed` treats every pair on its own and :meth:`loss_of` its result is the loss.
        frozen_targets: towers whose frozen features the loss compares with; batches bring them as ``frozen_image``
            and ``frozen_text``.
        needs_classes: there is no loss of image-report pairs: class labels must supervise.
        class_bound: what is learnt belongs to one list of classes, and others are refused; :meth:`bind` says which.
        needs_descriptions: the loss needs sentences about each class beside its prompts.
        fits: :meth:`fit` makes what is learnt from frozen features, without a training loop.
        cost_hint: rough cost of a step, CLIP-LoRA = 1; only orders the queue.
    """

    card: ClassVar[MethodCard]
    Options: ClassVar[type] = NoOptions
    adapts: frozenset[str] = frozenset()
    identity_at_init: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    splits: ClassVar[bool] = True
    frozen_targets: ClassVar[frozenset[str]] = frozenset()
    needs_classes: bool = False
    class_bound: bool = False
    needs_descriptions: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    cost_hint: ClassVar[float] = 1.0

    def __init__(
        self,
        backbone: Backbone,
        options: Any = None,
        *,
        objective: Objective | None = None,
        logit_scale: ScaleMode = "log",
    ) -> None:
        super().__init__()
        backbone.requires_grad_(False)
        self.backbone = backbone.eval()
        self.options = options if options is not None else self.Options()
        self.objective = objective or Objective()
        mode = "frozen" if self.deterministic else logit_scale
        self.logit_scale = LogitScale(float(backbone.logit_scale.detach()), mode)
        self.setup()

    # ------------------------------------------------------------------ what a method overrides
    def setup(self) -> None:
        """Create the trained modules and attach them to the towers."""

    def image_interventions(self) -> Iterable[Intervention]:
        """Return what acts on the image tower in this pass."""
        return ()

    def text_interventions(self) -> Iterable[Intervention]:
        """Return what acts on the text tower in this pass."""
        return ()

    # Heads are called outside autocast: they get and give fp32 whatever the towers compute in.
    def image_head(self, features: Tensor) -> Tensor:
        """Map the image tower's features ``[B, E]``, not normalised, to adapted ones."""
        return features

    def text_head(self, features: Tensor) -> Tensor:
        """Map the text tower's features ``[B, E]``, not normalised, to adapted ones."""
        return features

    def text_ids(self, token_ids: Tensor) -> Tensor:
        """Return the ids that enter the text tower, e.g. shortened to make room for prompt vectors."""
        return token_ids

    def expected_parameters(self) -> int:
        """Return the trained values of the card's closed formula, logit scale not counted."""
        raise NotImplementedError(f"{type(self).__name__} must declare its parameter count")

    @property
    def text_padding(self) -> Literal["longest", "context"]:
        """To what length callers pad texts."""
        return "longest"

    # ------------------------------------------------------------------ features
    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]`` of images ``[B, C, H, W]``."""
        features = self.backbone.image.features(images, interventions=self.image_interventions())
        return self.from_image_features(features)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Return unit-norm features ``[B, E]`` of token ids ``[B, L]``."""
        ids = self.text_ids(token_ids)
        features = self.backbone.text.features(ids, interventions=self.text_interventions())
        return self.from_text_features(features)

    def from_image_features(self, features: Tensor) -> Tensor:
        """Return what :meth:`encode_image` gives, from the frozen tower's features ``[B, E]``."""
        with full_precision(features.device):
            return functional.normalize(self.image_head(at_least_fp32(features)), dim=-1)

    def from_text_features(self, features: Tensor) -> Tensor:
        """Return what :meth:`encode_text` gives, from the frozen tower's features ``[B, E]``."""
        with full_precision(features.device):
            return functional.normalize(self.text_head(at_least_fp32(features)), dim=-1)

    def patch_features(self, images: Tensor) -> Tensor:
        """Return unit-norm features ``[B, N, E]`` of the patches of images, row by row of the tower's grid.

        The adapted tower's patches go the way of its global token, :meth:`image_head` included.
        """
        features = self.backbone.image.patch_features(images, interventions=self.image_interventions())
        return self.from_image_features(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Return scaled cosines ``[B_i, B_t]`` of unit-norm features ``[B_i, E]`` and ``[B_t, E]``."""
        return similarity(self.logit_scale() * at_least_fp32(image), text)

    def similarity(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Return logits ``[B_images, B_texts]``."""
        return self.logits(self.encode_image(images), self.encode_text(token_ids))

    # ------------------------------------------------------------------ training
    def embed(self, batch: Any) -> Embeddings:
        """Run the towers on a batch: named tensors with the batch in front, all that :meth:`loss_of` needs.

        Kept apart from the loss so that a batch which does not fit can pass the towers in parts, while the
        contrastive loss still sees all its negatives.
        """
        image, features = self.embed_images(batch), getattr(batch, "text_features", None)
        text = self.encode_text(batch.token_ids) if features is None else self.from_text_features(features)
        return {"image": image, "text": text}

    @torch.no_grad()
    def frozen_features(self, batch: Any, kind: Literal["image", "text"]) -> Tensor:
        """Return unit-norm features ``[B, E]`` of a frozen tower without interventions, which the batch may bring."""
        features = getattr(batch, f"frozen_{kind}", None)
        if features is None:
            inputs = batch.images if kind == "image" else batch.token_ids
            features = getattr(self.backbone, kind).features(inputs)
        return functional.normalize(at_least_fp32(features), dim=-1)

    def embed_images(self, batch: Any) -> Tensor:
        """Return unit-norm features ``[B, E]`` of a batch's images, or of the frozen features that it brings."""
        features = getattr(batch, "image_features", None)
        return self.encode_image(batch.images) if features is None else self.from_image_features(features)

    def loss_of(self, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the scalar loss of embedded pairs."""
        return self.objective(self.logits(embeddings["image"], embeddings["text"]), labels)

    def loss(self, batch: Any) -> Tensor:
        """Return the scalar loss of a batch with ``images``, ``token_ids`` and ``labels`` (or None)."""
        return self.loss_of(self.embed(batch), batch.labels)

    def loss_together(self, batch: Any, world: World) -> Tensor:
        """Return the loss of a batch that several processes hold alike, which may share the work.

        Called where a batch must not pass the towers in parts (``splits``). The processes draw the same numbers and
        must return the same loss; the mean of their gradients is used. The default computes the whole in each of them.
        """
        return self.loss(batch)

    def embed_classes(self, batch: Any, classes: Classes) -> Embeddings:
        """Return all that :meth:`loss_of_classes` needs of labelled images, with the batch in front."""
        return {"cosines": self.classify(batch, classes.prepared(self))}

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return the scalar loss of embedded images with class indices ``[B]``: cross-entropy of the scaled cosines."""
        return functional.cross_entropy(self.logit_scale() * at_least_fp32(embeddings["cosines"]), labels)

    def figures(self, some: Callable[[], Any]) -> dict[str, float]:
        """Return numbers about what was learnt, by name, that a reader of the results should see; usually none.

        Called in eval mode after training.

        Args:
            some: reads a batch of the pairs that the method was trained on.
        """
        return {}

    def bind(self, classes: Classes) -> None:
        """Belong to a list of classes from now on; called before training, and before what is learnt is loaded."""

    def fit(self, support: Support) -> None:
        """Learn from the frozen features of labelled images (``fits``), after :meth:`bind`."""
        raise NotImplementedError(f"{type(self).__name__} is trained, not fitted")

    def after_step(self, step: int, total: int) -> None:
        """Do what has to follow an optimiser step; its gradients are still there. The default bounds the logit scale.

        Args:
            step: steps made so far, this one included.
            total: steps of the whole run.
        """
        self.logit_scale.clamp()

    def training_state(self) -> dict[str, Any]:
        """Return what else an interrupted adaptation needs to go on as if nothing had happened.

        Beside the trained tensors, the optimiser and the random state, which the trainer keeps: for example running
        averages of :meth:`after_step`. Tensors and plain values, nested as you like.
        """
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`training_state` returned."""

    # ------------------------------------------------------------------ evaluation
    def class_features(self, token_ids: Tensor) -> Tensor:
        """Return unit-norm class features ``[C, E]`` of prompts ``[C, T, L]``: normalise, mean, normalise."""
        classes, templates, _ = token_ids.shape
        return ensemble(self.encode_text(token_ids.flatten(0, 1)).unflatten(0, (classes, templates)))

    def from_class_features(self, features: Tensor) -> Tensor:
        """Return what :meth:`prepare_classes` gives, from the frozen tower's features ``[C, T, E]`` of the prompts.

        Asked where the method leaves the text tower alone.
        """
        return ensemble(self.from_text_features(features.flatten(0, 1)).unflatten(0, features.shape[:2]))

    def prepare_classes(self, token_ids: Tensor) -> Tensor:
        """Return what :meth:`classify` needs of the prompts ``[C, T, L]``; computed once per class list."""
        return self.class_features(token_ids)

    def classify(self, batch: Any, classes: Tensor) -> Tensor:
        """Return cosines ``[B, C]`` of images with classes as :meth:`prepare_classes` returned them."""
        return similarity(self.embed_images(batch), classes)

    def classify_patches(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return cosines ``[B, N, C]`` of all patches with classes as :meth:`prepare_classes` returned them."""
        return similarity(self.patch_features(images), classes)

    # ------------------------------------------------------------------ trained state
    def train(self, mode: bool = True) -> Method:
        """Set the mode of the method's own modules; frozen towers stay in eval, so that their dropout is off."""
        super().train(mode)
        self.backbone.eval()
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return every tensor that trains, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def decays(self, name: str) -> bool:
        """Return whether weight decay applies to a trained tensor."""
        return not name.startswith("logit_scale")

    def parameter_group(self, name: str) -> str:
        """Return "image", "text", "shared" or "scale": where a parameter, trained or frozen, acts."""
        if name.startswith("logit_scale"):
            return "scale"
        if name.startswith("backbone.model."):
            return self.backbone.tower_of(name.removeprefix("backbone.model."))
        parts = name.split(".")
        return next((group for group in ("image", "text") if group in parts), "shared")

    def trainable_state(self) -> dict[str, Tensor]:
        """Return copies of the trained tensors: all that is needed beside the frozen backbone."""
        return {name: value.detach().clone() for name, value in self.trainable_parameters().items()}

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`trainable_state` returned.

        Raises:
            StoreError: naming the first missing, unexpected or misshapen tensor.
        """
        own = self.trainable_parameters()
        missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or extra:
            what = f"'{missing[0]}' is missing" if missing else f"'{extra[0]}' is unexpected"
            raise StoreError(
                f"adapter of {self.card.title}: {what} ({len(missing)} missing, {len(extra)} unexpected tensors); "
                "was it made with other options?"
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise StoreError(
                    f"adapter of {self.card.title}: '{name}' has shape {tuple(state[name].shape)}, "
                    f"expected {tuple(parameter.shape)}; was it made with other options?"
                )
            parameter.copy_(state[name])

    # ------------------------------------------------------------------ exchange with peft
    def as_peft(self) -> PeftAdapter | None:
        """Return what is learnt in peft's form, as far as peft has one for it; None where it has none."""
        return None

    @classmethod
    def options_from_peft(
        cls, config: Mapping[str, Any], tensors: Iterable[str], backbone: Backbone
    ) -> dict[str, Any]:
        """Return the options with which :meth:`as_peft` has the form of a given adapter.

        Args:
            config: its ``adapter_config.json``.
            tensors: names in its ``adapter_model.safetensors``.
            backbone: what it was made for.

        Raises:
            StoreError: if no options give that form.
        """
        raise StoreError(f"{cls.card.title} has no form in peft's layout")


def ensemble(prompts: Tensor) -> Tensor:
    """Return unit-norm class features ``[C, E]`` of unit-norm features ``[C, T, E]`` of the classes' prompts."""
    return functional.normalize(prompts.mean(dim=1), dim=-1)


def make_options(method: type[Method], values: Mapping[str, Any]) -> Any:
    """Build a method's ``Options`` from keys.

    Raises:
        ConfigError: with every unknown key (and the nearest name) and every impossible value.
    """
    given = [Given(key, value, f"{method.card.title}: {key}") for key, value in values.items()]
    own, problems = check(method.Options, given, "option")
    if problems:
        raise ConfigError(problems)
    return method.Options(**own)


def from_options(method: type[Method], backbone: Backbone, options: Mapping[str, Any]) -> Method:
    """Build a method from its own keys and the common ones (``logit_scale``, ``loss``, ``label_match``)."""
    own = dict(options)
    scale = own.pop("logit_scale", "log")
    try:
        objective = Objective(own.pop("loss", "label_guided"), own.pop("label_match", "equal"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    made = method(backbone, make_options(method, own), objective=objective, logit_scale=scale)
    if "image" in made.adapts:
        backbone.image.check_changeable()
    return made
