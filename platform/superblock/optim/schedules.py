"""The learning rate as a pure function of the step, so that a resumed run needs nothing but its step.

Steps count from 0; `factor` multiplies each parameter group's peak rate. After a linear warm-up of w steps the shape
runs over progress p = (step - w) / (total - w) in [0, 1):

    constant    1
    linear      1 - (1 - final) p
    cosine      final + (1 - final) (1 + cos(pi p)) / 2
    polynomial  final + (1 - final) (1 - p)^power
    wsd         1, then linear to `final` over the last `decay` share of all steps (arXiv 2404.06395)
"""

import math

from superblock.config.optim import ScheduleConfig


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The share of the peak rate that step `step` of `total_steps` uses.

    The first step is not 0 (warm-up step i of w has (i + 1) / w), and the step after the last one would be exactly
    `final`, except under `constant`. Steps outside the run, such as those of a measurement, are clamped to it.
    """
    total = max(1, total_steps)
    step = min(max(0, step), total - 1)
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    return _after_warmup(config, step, warmup, total)


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Steps of the warm-up; `warmup` below 1 is a share of all steps, and never more than all of them."""
    steps = config.warmup * total_steps if config.warmup < 1 else config.warmup
    return min(math.ceil(steps - 1e-9), total_steps)


def _after_warmup(config: ScheduleConfig, step: int, warmup: int, total: int) -> float:
    final, progress = config.final, (step - warmup) / (total - warmup)
    if config.name == "constant":
        return 1.0
    if config.name == "linear":
        return 1 - (1 - final) * progress
    if config.name == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    if config.name == "polynomial":
        return final + (1 - final) * (1 - progress) ** config.power
    assert config.name == "wsd", config.name
    decay = min(max(1.0, config.decay * total), total - warmup)
    return final + (1 - final) * min(1.0, (total - step) / decay)
