"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable

from torch import nn

# Besides every vector: the scan's A_log is a matrix, positions and tokens are stored with the shape of their grid.
_UNDECAYED = ("A_log", "positions", "class_tokens", "class_positions", "mask_token")


def parameter_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, object]]:
    """Two AdamW groups of the trainable parameters: decayed matrices, and what must not shrink towards zero.

    Without decay: norms, biases and D (all vectors), A_log, positional grids, class and mask tokens.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            undecayed = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _UNDECAYED
            (kept if undecayed else decayed).append(parameter)
    groups = [(decayed, weight_decay), (kept, 0.0)]
    return [{"params": chosen, "lr": learning_rate, "weight_decay": decay} for chosen, decay in groups if chosen]


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
