"""CLAP: ZS-LP that is held near the class prompts, each class as strongly as zero-shot knows it."""

from __future__ import annotations

from benchmark.registry import register_method
from methods.base import MethodCard
from methods.zs_lp import ProbeOptions, ZeroShotProbe


@register_method("clap", in_all=False, groups=("fewshot",))
class Clap(ZeroShotProbe):
    """The penalty's weights are fixed before the fit, so that nothing is tuned."""

    card = MethodCard(
        title="CLAP",
        paper="Silva-Rodriguez et al., CVPR 2024",
        arxiv="2312.12730",
        repository="jusiro/CLAP",
        equation="min_w CE(s cos(f, w_c)) + mean_c a_c |w_c - t_c|^2, a_c: class c's mean zero-shot probability",
        trains="w [C, E]",
        count="C E",
        deviations=(
            "all images in every step, not augmented (the code draws 256 of 20 augmented passes)",
            "a class without images takes the mean of the other multipliers (the code stops there)",
            "multipliers per class, as in CLAP's own code (SS-Text's copy takes their mean by mistake)",
        ),
    )
    Options = ProbeOptions
    penalised = True
