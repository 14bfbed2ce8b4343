"""A checked configuration: the recipe of a training, and everything that one run was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import ConfigError
from benchmark.settings import Given, check, setting


@dataclass(frozen=True)
class Recipe:
    """How a method is trained; the same for all methods of a table unless a file or flag says otherwise.

    Raises:
        ConfigError: values of a wrong type or out of bounds, all of them in one error.
    """

    epochs: int = setting(40, "passes over the corpus", low=1)
    max_steps: int | None = setting(None, "stop after this many optimiser steps", low=1)
    batch_size: int = setting(64, "image-report pairs per optimiser step", low=1)
    lr: float = setting(1e-3, "peak learning rate", above=0)
    optimiser: Literal["adamw", "adam", "sgd"] = setting("adamw", "optimiser", hashed="unless default")
    weight_decay: float = setting(
        1e-2, "weight decay, never on the logit scale; adam and sgd add it to the gradient", low=0
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "Adam's betas; the first is SGD's momentum", low=0, below=1
    )
    eps: float = setting(1e-8, "Adam's epsilon", above=0)
    warmup_epochs: float = setting(1.0, "length of the linear warm-up in epochs", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "learning rate after warm-up")
    grad_clip: float | None = setting(None, "largest gradient norm", above=0)
    loss: Literal["label_guided", "clip", "focal"] = setting(
        "label_guided", "contrastive, or focal: the corpus' labels, asked for by pairs of prompts"
    )
    label_match: Literal["equal", "shared_positive"] = setting("equal", "which pairs label_guided leaves out")
    logit_scale: Literal["log", "frozen", "linear"] = setting("log", "how the logit scale is trained")
    micro_batch: int | None = setting(None, "pairs per forward pass (same gradients)", low=1, hashed=False)
    select: Literal["best", "best_or_start", "last"] = setting(
        "best",
        "weights that are kept: of the best epoch by validation, with or without the start, or the last",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "arithmetic of the towers")
    negatives: Literal["global", "local"] = setting(
        "global", "with several processes: pairs that the loss compares", hashed="unless default"
    )
    length_bucket: int = setting(
        0, "batches whose texts are sorted by length together (0: off)", low=0, hashed="unless default"
    )
    compile: bool = setting(False, "compile the towers' blocks (torch.compile)", hashed="unless default")
    deterministic: bool = setting(
        False, "torch's deterministic algorithms alone; on a GPU they are slower", hashed="unless default"
    )
    gradient_checkpointing: bool = setting(False, "keep only the blocks' inputs for backward", hashed=False)
    log_every: int = setting(20, "steps between two rows of the history", low=1, hashed=False)
    eval_batch_size: int = setting(256, "images per forward pass in evaluation", low=1, hashed=False)

    def __post_init__(self) -> None:
        given = [Given(key, value, f"recipe.{key}") for key, value in vars(self).items()]
        problems = check(Recipe, given, "recipe key")[1]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Settings:
    """Settings of a run as a whole, each with a flag of the same name."""

    backbone: str = setting("tiny", "backbone name")
    pretrained: str | None = setting(None, "weights of the backbone: tag or path")
    data_root: Path = setting(None, "folder of prepared data sets")
    output_dir: Path = setting(Path("results"), "folder of the results")
    seeds: tuple[int, ...] = setting((0,), "random seeds, one run each", low=0, high=2**32 - 1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:<i>")
    num_workers: int = setting(0, "processes that load data, per run", low=0, high=256)
    jobs: int | None = setting(None, "runs side by side", low=1, high=256)
    engine: Literal["local", "ray"] = setting("local", "where runs are made: this machine or a Ray cluster")
    ray_address: str | None = setting(None, "HOST:PORT of the Ray cluster's head")
    cpus_per_cell: float | None = setting(None, "on Ray: cores of one run", above=0)
    gpus_per_cell: float | None = setting(None, "on Ray: GPUs of one run, or a share of one", low=0)
    limit: int | None = setting(None, "use only this many samples of every data set", low=1)
    plugins: tuple[str, ...] = setting((), "Python files or modules with more plugins")
    hash_ids: bool = setting(False, "store keyed hashes instead of image and patient ids")
    allow_overlap: bool = setting(
        False, "go on when test images are in the corpus or validation set; results say so", hashed=False
    )
    log: tuple[str, ...] = setting((), "trackers of finished runs: tensorboard, mlflow, wandb", hashed=False)
    baseline: str | None = setting(None, "method that the others are compared with")
    smallest_difference: float = setting(
        0.5, "smallest difference of two scores that matters, in points", low=0.05, high=100, hashed=False
    )
    protocol: Literal["pairs", "fewshot", "base_to_new", "cross_dataset"] = setting(
        "pairs", "what methods learn from: image-report pairs, or few labelled images of a dataset"
    )
    shots: tuple[int, ...] = setting((), "few-shot protocols: labelled images of a class", low=1)
    sampling: Literal["standard", "realistic"] = setting(
        "standard", "few-shot protocols: as many images of each class, or as many as the classes' shares say"
    )
    selection: Literal["strict", "coop"] = setting(
        "strict",
        "few-shot protocols: no validation labels, or draws and searches as CoOp's successors publish",
    )
    datasets: tuple[str, ...] = setting((), "few-shot protocols: datasets whose labels methods learn from")
    recipe_name: Literal["common", "authors"] = setting("common", "one recipe for all, or each paper's own")
    smoke: bool = setting(
        False, "a few images and steps of everything, to see that it works; kept apart", hashed=False
    )
    dry_run: bool = setting(False, "print the plan and stop")
    overwrite: bool = setting(False, "run finished cells again")
    eval_only: bool = setting(False, "evaluate existing adapters again")
    debug: bool = setting(False, "show tracebacks")


@dataclass(frozen=True)
class RunConfig(Settings):
    """Everything a run needs, resolved and checked.

    Attributes:
        methods: canonical names; those whose plugin could not be imported are in ``broken`` instead.
        tasks: canonical names.
        suite_name: name of the suite.
        suite: the suite as read, with overrides of its data entries.
        recipes: method -> its recipe.
        origins: method -> recipe key -> the layer that its value comes from, weakest layer first.
        options: method -> all options of its ``Options`` dataclass, as JSON types.
        task_options: task -> its options and its ``datasets``.
        broken: one line per plugin that raised on import.
        notes: one line per thing that is not as the user may expect.
        variants: method -> what tells its cells from the method as it is set by default; methods without are left out.
        weights: backbone -> its weights, of those that rows of experiments name.
        pools: few-shot protocols: dataset -> its labelled images, as data entries ``train`` and, where there are
            validation labels, ``val``.
        own_seeds: method -> its seeds, where the protocol and not the user says them.
        beside: whether methods may become variants where results of other settings have their names; rows of
            experiments may not, as tables look for them by name.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    suite_name: str = ""
    suite: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    task_options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    beside: bool = True

    def weights_of(self, backbone: str) -> str | None:
        """Return what the section ``weights`` names for a backbone, whatever the options in its name."""
        return self.weights.get(family_of(backbone))


def family_of(backbone: str) -> str:
    """Return the name of a backbone without the options behind its colon."""
    return backbone.partition(":")[0]
