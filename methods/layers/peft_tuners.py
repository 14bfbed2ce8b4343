"""The tuners of the installed peft: which of them act on linear maps, found by trying, and their options.

Every tuner is tried on two small Linears: it must apply, pass gradients to everything that it trains, and be restored
from its trained tensors alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmark.backbones.towers.base import SITES
from benchmark.errors import ConfigError
from benchmark.settings import setting
from methods.base import Sides
from methods.layers.lora import Position, Site

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"use_dora": True}),
    "rslora": ("lora", {"use_rslora": True}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    "olora": ("lora", {"init_lora_weights": "olora"}),
}
"""Named forms of a tuner: the tuner, and the keys of its configuration that make the form."""

_EXCLUDED = {"ln_tuning": "is for LayerNorms; on a linear map it is plain fine-tuning"}
_OWNED = {item.name for item in dataclasses.fields(peft.PeftConfig)} | {
    # where the tuner sits is said by sites, position and encoder
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "target_parameters", "trainable_token_indices", "layer_replication", "feedforward_modules",
    # of other libraries, of language models, or without effect on torch's Linear
    "fan_in_fan_out", "megatron_config", "megatron_core", "alora_invocation_tokens", "ensure_weight_tying",
    # follows from the run, or is what the tuner keeps there itself
    "total_step", "progressbar",
}  # fmt: skip
# what a tuner with a budget inherits from LoRA and does not read
_UNREAD_WITH_BUDGET = set(
    ["r", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "use_qalora"]
)
_NEEDS_DATA = ("eva", "corda", "loftq", "lora_ga")
_WIDTH = 256  # of the trial Linears: a multiple of all default block sizes


@dataclass(frozen=True)
class Trial:
    """What trying a tuner showed.

    Attributes:
        problem: why it cannot be a method; empty when it can.
        identity: whether the adapted maps start as the frozen ones, to rounding.
        mergeable: whether it can be added into the weights.
    """

    problem: str = ""
    identity: bool = False
    mergeable: bool = False


@dataclass(frozen=True)
class Tuner:
    """One tuner or preset: its configuration class, and the keys that the preset fixes."""

    name: str
    config_class: type
    preset: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """Fields of the configuration by name."""
        return {item.name: item for item in dataclasses.fields(self.config_class)}

    @property
    def has_budget(self) -> bool:
        """Whether it moves ranks about while it trains, by a schedule over all steps."""
        return "total_step" in self.fields

    def config(self, values: Mapping[str, Any], target: str, feedforward: str | None) -> peft.PeftConfig:
        """Return peft's configuration.

        Args:
            values: plain options of the tuner.
            target: pattern that the names of all adapted modules match.
            feedforward: the same for those whose input is scaled, where a tuner knows such.

        Raises:
            ConfigError: peft refuses the values.
        """
        given = {**values, **self.preset, "target_modules": target}
        if "feedforward_modules" in self.fields:
            given["feedforward_modules"] = feedforward or []
        if self.has_budget:  # the real number is told with the first step
            given["total_step"] = int(given.get("tinit", 0)) + int(given.get("tfinal", 0)) + 1
        if "progressbar" in self.fields:
            given["progressbar"] = False
        with refused(self.name):
            made: peft.PeftConfig = self.config_class(**given)
        return made

    def place(self, model: nn.Module, config: peft.PeftConfig) -> peft.PeftModel:
        """Return the wrapper around a model whose chosen Linears peft has replaced in place.

        Raises:
            ConfigError: peft refuses the model, for example a width that is no multiple of a block size.
        """
        with refused(self.name), warnings.catch_warnings():
            if getattr(config, "boft_n_butterfly_factor", None) == 1:  # its CUDA code is for other factors
                for useless in ("Failed to load the CUDA extension", "Setting boft_n_butterfly_factor"):
                    warnings.filterwarnings("ignore", useless)
            wrapped = peft.get_peft_model(model, config)
        for layer in wrapped.modules():
            # peft re-wraps these where it copies them to another device or type, and torch's dictionaries make
            # what they wrap trainable (AdaLoRA's ranknum)
            if isinstance(layer, BaseTunerLayer):
                for name in layer.other_param_names:
                    if isinstance(kept := getattr(layer, name, None), nn.Module):
                        kept.requires_grad_(False)
        return wrapped


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """Turn what peft raises for impossible values into one line.

    Raises:
        ConfigError: with the first line of peft's own words.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"peft:{name}: {reason}") from error


@functools.cache
def candidates() -> dict[str, Tuner]:
    """Return every tuner of the installed peft and every preset, tried or not, by name."""
    classes = {str(kind.value).lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    found = {name: Tuner(name, cls, {}) for name, cls in classes.items()}
    found |= {name: Tuner(name, classes[base], keys) for name, (base, keys) in PRESETS.items()}
    return dict(sorted(found.items()))


@functools.cache
def tried(name: str) -> Trial:
    """Try one tuner on two Linears (once per process; the random state is left as it was)."""
    tuner = candidates()[name]
    if name in _EXCLUDED:
        return Trial(_EXCLUDED[name])
    if "target_modules" not in tuner.fields:
        return Trial("acts on prompts or tokens, not on linear maps")
    quiet = (contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet[0], quiet[1]:
        warnings.simplefilter("ignore")
        try:
            return _try(tuner)
        except Exception as error:  # a tuner for other models may raise anything
            return Trial((str(error).strip().splitlines() or [type(error).__name__])[0])


def _try(tuner: Tuner) -> Trial:
    torch.manual_seed(0)
    plain = nn.ModuleDict({name: nn.Linear(_WIDTH, _WIDTH) for name in ("first", "second")})
    inputs = torch.randn(4, _WIDTH)
    before = _run(plain, inputs)
    base = copy.deepcopy(plain)
    model: Any = tuner.place(base, tuner.config({}, "first|second", "second"))
    trained = {name: value for name, value in base.named_parameters() if value.requires_grad}
    outside = [
        n for n, v in model.named_parameters() if v.requires_grad and id(v) not in map(id, trained.values())
    ]
    _run(base.train(), inputs).square().sum().backward()
    if outside or not trained or any(value.grad is None for value in trained.values()):
        return Trial("trains tensors that the linear maps alone do not reach")
    identity = torch.allclose(_run(base.eval(), inputs), before, atol=1e-5)
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.02 * torch.randn_like(value))
    moved = _run(base, inputs)
    if not bool(moved.isfinite().all()) or torch.allclose(moved, before, atol=1e-5):
        return Trial("does not change what linear maps compute")
    if not torch.allclose(_again(tuner, plain, trained, inputs), moved, atol=1e-4):
        return Trial("draws frozen tensors anew each time, so what it trains does not determine it")
    return Trial("", identity, _merges(model, inputs, moved))


def _again(tuner: Tuner, plain: nn.Module, trained: Mapping[str, nn.Parameter], inputs: Tensor) -> Tensor:
    """Return the output of a fresh start, from another seed, that takes over the trained tensors."""
    torch.manual_seed(1)
    base = copy.deepcopy(plain)
    tuner.place(base, tuner.config({}, "first|second", "second"))
    with torch.no_grad():
        for name, value in trained.items():
            base.get_parameter(name).copy_(value)
    return _run(base.eval(), inputs)


def _run(model: Any, inputs: Tensor) -> Tensor:
    return model["second"](torch.tanh(model["first"](inputs)))


def _merges(model: Any, inputs: Tensor, expected: Tensor) -> bool:
    try:
        return torch.allclose(_run(model.merge_and_unload(), inputs), expected, atol=1e-4)
    except Exception:  # several tuners say so by raising, of different types
        return False


# ---------------------------------------------------------------------------------------------- options
def default_sites(tuner: Tuner) -> tuple[str, ...]:
    """Return what a tuner adapts unless told otherwise: q, k, v; where it scales inputs (IA3): k, v, down."""
    return ("k", "v", "down") if "feedforward_modules" in tuner.fields else ("q", "k", "v")


@functools.cache
def options_class(name: str) -> type:
    """Return the frozen dataclass of a tuner's options: where it sits, and the plain fields of its configuration."""
    tuner = candidates()[name]
    hints = typing.get_type_hints(tuner.config_class)
    left_out = _OWNED | set(tuner.preset) | (_UNREAD_WITH_BUDGET if tuner.has_budget else set())
    fields: list[Any] = [
        ("sites", tuple[Site, ...], setting(default_sites(tuner), "adapted maps of a block")),
        ("encoder", Sides, setting("both", "adapted towers")),
        ("position", Position, setting("all", "adapted blocks of a tower")),
    ]
    for key, item in tuner.fields.items():
        if key not in left_out and item.init and _is_plain(hints[key]):
            fields.append((key, hints[key], dataclasses.field(**_default(item))))
    return dataclasses.make_dataclass(
        f"{name.capitalize()}Options",
        fields,
        frozen=True,
        namespace={"__post_init__": functools.partialmethod(_check, tuner)},
    )


def tuner_values(options: Any) -> dict[str, Any]:
    """Return the options that are the tuner's own."""
    names = [item.name for item in dataclasses.fields(options)]
    return {name: getattr(options, name) for name in names if name not in ("sites", "encoder", "position")}


def _check(options: Any, tuner: Tuner) -> None:
    if not options.sites:
        raise ConfigError(f"sites: expected at least one of {', '.join(SITES)}")
    values = tuner_values(options)
    if values.get("init_lora_weights") in _NEEDS_DATA:
        raise ConfigError(
            f"init_lora_weights: '{values['init_lora_weights']}' looks at data, which a method does not see"
        )
    tuner.config(values, "any", None)


def _default(item: dataclasses.Field[Any]) -> dict[str, Any]:
    if item.default_factory is not dataclasses.MISSING:
        return {"default_factory": item.default_factory}
    if isinstance(item.default, list | dict | set):
        return {"default_factory": functools.partial(copy.deepcopy, item.default)}
    return {"default": item.default}


def _is_plain(hint: Any) -> bool:
    """Return whether a field holds JSON types only."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return True
    if not arguments:
        return hint in (int, float, bool, str, type(None), list, dict, tuple)
    return all(_is_plain(item) for item in arguments if item is not Ellipsis)
