"""Tuners of Hugging Face peft on the towers' linear maps: peft:lora, peft:dora, peft:vera, peft:oft and others."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.backbones.towers.precision import similarity
from benchmark.errors import ConfigError, PluginError, StoreError, unknown
from benchmark.registry import register_method
from methods.base import Embeddings, Method, MethodCard, PeftAdapter
from methods.layers.peft_layout import pattern, placement, places
from methods.layers.peft_tuners import Tuner, candidates, options_class, tried, tuner_values

# title, paper, arXiv id, and the trained values of one map of ``in`` inputs and ``out`` outputs
_KNOWN: dict[str, tuple[str, str, str, str]] = {
    "lora": ("LoRA", "Hu et al., ICLR 2022", "2106.09685", "r (in + out)"),
    "dora": ("DoRA", "Liu et al., ICML 2024", "2402.09353", "r (in + out) + out"),
    "rslora": ("rsLoRA", "Kalajdzievski, 2023", "2312.03732", "r (in + out)"),
    "pissa": ("PiSSA", "Meng et al., NeurIPS 2024", "2404.02948", "r (in + out)"),
    "olora": ("OLoRA", "Bueyuekakyuez, 2024", "2406.01775", "r (in + out)"),
    "vera": ("VeRA", "Kopiczko et al., ICLR 2024", "2310.11454", "r + out"),
    "adalora": ("AdaLoRA", "Zhang et al., ICLR 2023", "2303.10512", "init_r (in + out + 1)"),
    "loha": ("LoHa", "Hyeon-Woo et al., ICLR 2022", "2108.06098", "2 r (in + out)"),
    "lokr": ("LoKr", "Yeh et al., ICLR 2024", "2309.14859", "the two Kronecker factors"),
    "oft": ("OFT", "Qiu et al., NeurIPS 2023", "2306.07280", "in (b - 1) / 2 with blocks of b"),
    "boft": ("BOFT", "Liu et al., ICLR 2024", "2311.06243", "m in b + out with blocks of b and m factors"),
    "ia3": ("IA3", "Liu et al., NeurIPS 2022", "2205.05638", "out for k and v, in for down"),
    "hra": ("HRA", "Yuan et al., NeurIPS 2024", "2405.17484", "r in"),
}


def tuners() -> dict[str, str]:
    """Return every tuner of the installed peft: why it cannot be a method here, or "" where it can."""
    return {name: tried(name).problem for name in candidates()}


@register_method("peft", in_all=False, family=True)
class PeftTuner(Method):
    """One of peft's tuners on chosen linear maps of both towers; q, k and v are adapted each on its own."""

    tuner: ClassVar[Tuner]
    adapts = frozenset({"image", "text"})

    @classmethod
    def variant(cls, name: str) -> type[PeftTuner]:
        """Return the method class of one tuner.

        Raises:
            PluginError: there is no such tuner, or it does not act on linear maps.
        """
        if not name:
            usable = ", ".join(tuner for tuner, problem in tuners().items() if not problem)
            raise PluginError(f"method 'peft': say which tuner, for example peft:dora. Known: {usable}")
        if name not in candidates():
            raise PluginError(
                unknown("tuner of peft", name, [key for key, why in tuners().items() if not why])
            )
        if problem := tried(name).problem:
            raise PluginError(
                f"method 'peft:{name}': peft {peft.__version__}'s {name} cannot be used here: {problem}"
            )
        return _variant(name)

    def setup(self) -> None:
        """Wrap the chosen Linears; peft does it in place, inside the backbone's model."""
        name, options, model = self.tuner.name, self.options, self.backbone.model
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ConfigError(f"peft:{name}: the backbone already carries a tuner of peft; load a fresh one")
        self.backbone.split_qkv()
        named = places(self.backbone, options.sites, options.encoder, options.position)
        scaled = [module for module, (_, _, site) in named.items() if site == "down"]
        config = self.tuner.config(tuner_values(options), pattern(named), pattern(scaled) or None)
        wrapped = self.tuner.place(model, config)
        # in a tuple, so that the wrapped model is not registered here a second time under other names
        self._wrapped = (wrapped,)
        self._count = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)

    @property
    def peft_model(self) -> Any:
        """The ``PeftModel`` around ``backbone.model``."""
        return self._wrapped[0]

    def expected_parameters(self) -> int:
        """Return the values that peft made trainable when it placed the tuner."""
        return self._count

    def train(self, mode: bool = True) -> PeftTuner:
        """Put the tuner's layers into the mode (their dropout); everything frozen stays in eval."""
        super().train(mode)
        for module in self.backbone.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.train(mode)
                frozen: Any = module.get_base_layer()
                frozen.eval()
        return self

    def parameter_group(self, name: str) -> str:
        """Return the tower that a tensor sits in; what both towers share is "shared"."""
        if name.startswith("logit_scale"):
            return "scale"
        wanted = self.get_parameter(name)
        named = self.backbone.model.named_parameters(remove_duplicate=False)
        towers = {self.backbone.tower_of(other) for other, value in named if value is wanted}
        return towers.pop() if len(towers) == 1 else "shared"

    def as_peft(self) -> PeftAdapter:
        """Return the adapter as ``PeftModel.save_pretrained`` would write it."""
        tensors = peft.get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        own = {value.data_ptr(): name for name, value in self.trainable_parameters().items()}
        names = {name: own[value.data_ptr()] for name, value in tensors.items() if value.data_ptr() in own}
        config = {
            key: _plain(value) for key, value in self.peft_model.peft_config["default"].to_dict().items()
        }
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return PeftAdapter({**config, "inference_mode": True}, copies, names)

    @classmethod
    def options_from_peft(
        cls, config: Mapping[str, Any], tensors: Iterable[str], backbone: Backbone
    ) -> dict[str, Any]:
        """Return the tuner's own keys of a configuration, and the sites that its tensors sit on."""
        kind, wanted = str(config.get("peft_type")).lower(), _base_name(cls.tuner)
        differing = [key for key, value in cls.tuner.preset.items() if config.get(key) != value]
        if kind != wanted or differing:
            what = f"its {differing[0]} is {config.get(differing[0])}" if kind == wanted else f"it is {kind}"
            raise StoreError(
                f"the adapter is not {cls.tuner.name}: {what}. Import it as --method peft:{kind}"
            )
        sites, encoder, position = placement(backbone, tensors)
        keys = tuner_values(cls.Options())
        told = {key: config[key] for key in keys if key in config}
        return {**told, "sites": sites, "encoder": encoder, "position": position}


class BudgetTuner(PeftTuner):
    """A tuner that moves ranks between maps while it trains (AdaLoRA): P diag(e) Q with P, Q kept near orthogonal.

    After every step peft weighs the importance of each direction by its value and gradient and switches the least
    important ones off, down to ``target_r`` per map on average. The schedule follows the run's number of steps.
    """

    def loss_of(self, embeddings: Embeddings, labels: Tensor | None) -> Tensor:
        """Return the loss plus orth_reg_weight times the mean distance of P and Q from orthogonal matrices."""
        return super().loss_of(embeddings, labels) + self.options.orth_reg_weight * self.distance()

    def loss_of_classes(self, embeddings: Embeddings, labels: Tensor) -> Tensor:
        """Return the same with the loss of labelled images."""
        return super().loss_of_classes(embeddings, labels) + self.options.orth_reg_weight * self.distance()

    def distance(self) -> Tensor:
        """Return the mean over all P and Q of the Frobenius norm of P^T P - I (AdaLoRA, Eq. 4, not squared)."""
        norms = []
        for name, value in self.trainable_parameters().items():
            if ".lora_A." in name or ".lora_B." in name:
                rows = value if ".lora_A." in name else value.T
                gram = similarity(rows, rows)
                norms.append(
                    torch.linalg.matrix_norm(
                        gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                    )
                )
        return torch.stack(norms).mean()

    def after_step(self, step: int, total: int) -> None:
        """Let peft weigh the directions and switch off those beyond the budget of this step.

        Raises:
            ConfigError: tinit and tfinal leave no step in between.
        """
        super().after_step(step, total)
        options = self.options
        if options.tinit + options.tfinal >= total:
            raise ConfigError(
                f"peft:{self.tuner.name}: tinit={options.tinit} and tfinal={options.tfinal} leave none of "
                f"the run's {total} steps for the budget. Lower them or train longer"
            )
        self._allocator.set_total_step(total)
        # fp16: a step with overflown gradients was skipped, and would spoil the running averages for good;
        # one norm over all of them, so that a GPU is waited for once
        gradients = [value.grad for value in self._trained() if value.grad is not None]
        if bool(nn.utils.get_total_norm(gradients).isfinite()):
            self.peft_model.base_model.update_and_allocate(step)

    def training_state(self) -> dict[str, Any]:
        """Return the allocator's running averages and its current choice."""
        averages = {key: dict(getattr(self._allocator, key)) for key in _AVERAGES}
        return {**averages, "rank_pattern": self._config.rank_pattern}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on with these averages and this choice."""
        device = self.logit_scale.value.device
        for key in _AVERAGES:
            setattr(self._allocator, key, {name: value.to(device) for name, value in state[key].items()})
        self._config.rank_pattern = state["rank_pattern"]

    def as_peft(self) -> PeftAdapter:
        """Return all directions, those that are off as zeros: the kept weights need not be the last step's."""
        chosen, self._config.rank_pattern = self._config.rank_pattern, None
        try:
            return super().as_peft()
        finally:
            self._config.rank_pattern = chosen

    @property
    def _allocator(self) -> Any:
        return self.peft_model.base_model.rankallocator

    @property
    def _config(self) -> Any:
        return self.peft_model.peft_config["default"]

    def _trained(self) -> Iterable[nn.Parameter]:
        return (value for name, value in self.trainable_parameters().items() if ".lora_" in name)


_BUDGET = "the kept epoch may be one before the budget is reached; recipe.select=last keeps the last"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@functools.cache
def _variant(name: str) -> type[PeftTuner]:
    tuner, trial = candidates()[name], tried(name)
    base = BudgetTuner if tuner.has_budget else PeftTuner
    body = {
        "tuner": tuner,
        "card": _card(tuner),
        "Options": options_class(name),
        "identity_at_init": trial.identity,
        "mergeable": trial.mergeable,
        "__module__": __name__,
        "__doc__": f"peft's {name} on the towers.",
    }
    return type(f"Peft_{name}", (base,), body)


def _card(tuner: Tuner) -> MethodCard:
    title, paper, arxiv, count = _KNOWN.get(
        tuner.name, (tuner.name, "see peft's documentation", "", "as peft counts")
    )
    fixed = ", ".join(f"{key}={value}" for key, value in tuner.preset.items())
    form = tuner.config_class.__name__ + (f"({fixed})" if fixed else "")
    return MethodCard(
        title=f"{title} (peft)",
        paper=paper,
        arxiv=arxiv,
        repository="huggingface/peft",
        equation=f"{form} on the chosen linear maps of both towers",
        trains="what peft makes trainable on each chosen map; the logit scale",
        count=f"sum over the maps of {count}",
        deviations=(
            "all options are peft's own defaults unless set; sites, encoder and position say where the tuner sits",
            "q, k and v are adapted each on its own, also where the tower has one fused map",
            "frozen towers stay in eval mode, so BERT's own dropout is off",
            *([_BUDGET] if tuner.has_budget else []),
        ),
    )


def _base_name(tuner: Tuner) -> str:
    return next(
        name
        for name, item in candidates().items()
        if item.config_class is tuner.config_class and not item.preset
    )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
