"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable

from torch import nn

# Besides every vector: A_log and Mamba-2's dt_bias are matrices, positions and tokens are stored with the shape of
# their grid.
_UNDECAYED = ("A_log", "dt_bias", "positions", "class_tokens", "class_positions", "mask_token")


def parameter_groups(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layers_above: Callable[[str], int] = lambda name: 0,
) -> list[dict[str, object]]:
    """AdamW's groups of the trainable parameters, two for each rate: decayed matrices, and what must not shrink towards
    zero.

    Without decay: norms, biases and D (all vectors), A_log, dt_bias, positional grids, class and mask tokens. The rate
    of a parameter is learning_rate * layer_decay ** layers_above(its name); the highest rate comes first.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            undecayed = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _UNDECAYED
            above = layers_above(name) if layer_decay != 1 else 0
            groups.setdefault((above, undecayed), []).append(parameter)
    return [
        {"params": chosen, "lr": learning_rate * layer_decay**above, "weight_decay": 0.0 if undecayed else weight_decay}
        for (above, undecayed), chosen in sorted(groups.items(), key=lambda group: group[0])
    ]


def warmup_then_constant(warmup_steps: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step (0-based): a line from 1 / warmup_steps up to 1, then 1."""
    return lambda step: min(1.0, (step + 1) / max(1, warmup_steps))


def warmup_then_cosine(warmup_steps: int, max_steps: int, final_fraction: float) -> Callable[[int], float]:
    """The factor of the learning rate at a step (0-based): warm-up as above, then half a cosine to `final_fraction`."""
    rise = warmup_then_constant(warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return rise(step)
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
