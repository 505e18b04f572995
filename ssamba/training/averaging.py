"""Averages of weights: over the steps of a run, beside those that are trained, and over checkpoints."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ssamba.objectives.teacher import local_part


class WeightAverage:
    """The exponential moving average of a module's trained parameters: after each step decay * average +
    (1 - decay) * weights, in the first steps with a smaller decay, (1 + n) / (10 + n) after n steps, so that the
    weights that were drawn at first are soon forgotten.

    Parameters that are spread over ranks have averages that are spread alike.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._tensors = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.in_module = False
        """Whether the module holds the average, and this object the trained weights."""

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights as they are now; `steps` were taken in before."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(
            [local_part(tensor) for tensor in self._tensors.values()],
            [local_part(p) for p in self._parameters.values()],
            1 - decay,
        )

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average into the module, or the trained weights back, bit for bit."""
        for name, parameter in self._parameters.items():
            ours, theirs = local_part(self._tensors[name]), local_part(parameter)
            before = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(before)
        self.in_module = not self.in_module

    def whole(self) -> dict[str, Tensor]:
        """What this object holds, on the CPU, by the parameters' names; all ranks must call it."""
        return {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
            for name, tensor in self._tensors.items()
        }

    @torch.no_grad()
    def load(self, whole: Mapping[str, Tensor]) -> None:
        """Go on from what `whole` gave."""
        for name, tensor in self._tensors.items():
            average = whole[name].to(tensor.device)
            if isinstance(tensor, DTensor):
                average = local_part(distribute_tensor(average, tensor.device_mesh, tensor.placements))
            local_part(tensor).copy_(average)


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over several models of the same names, in their type."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        for name, first in states[0].items()
    }
