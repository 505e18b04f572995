"""What every encoder's stack of layers can do.

Shapes: B batch, L tokens, D width, N layers, R residual branches of a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stack(nn.Module):
    """Layers in turn, (B, L, D) -> (B, L, D): `forward(x, hidden_states, kept)`.

    To the list `hidden_states`, if one is given, `forward` appends what each layer takes (of SSAMBA's original stack,
    each pair of layers) and what the stack gives: n + 1 tensors (B, L, D) of n layers, in the scale of the input.

    `kept`, float32 (N, R, B), is what each clip's residual branches are multiplied by: see `draw_kept`.

    `recompute`: of each layer only its input is kept for the backward pass, which runs the layer a second time: the
    memory of one layer instead of all, for about a third more time.
    """

    num_class_tokens: int
    scans = False
    """Whether it takes a `scan_backend`."""
    branches = 1
    """R."""
    recompute = False
    layers: nn.ModuleList

    @property
    def num_hidden_states(self) -> int:
        """How many tensors `forward` appends to `hidden_states`."""
        return len(self.layers) + 1

    @staticmethod
    def keep(hidden_states: list[Tensor] | None, x: Tensor) -> None:
        """Append x, where hidden states are asked for."""
        if hidden_states is not None:
            hidden_states.append(x)

    def class_token_index(self, patches: int) -> int:
        """How many of the patch tokens come before the class tokens."""
        return 0

    def draw_kept(self, drop_path: float, generators: Sequence[torch.Generator]) -> Tensor:
        """Stochastic depth (arXiv 1603.09382), each clip by a generator of its own: of a branch that is left out 0, of
        one that is kept 1 / its chance to be, so that what is expected of it stays. The chance to be left out rises
        along a line from 0 of the first layer to `drop_path`, below 1, of the last. On the CPU."""
        layers = len(self.layers)
        keeps = 1 - torch.linspace(0, drop_path, layers).view(-1, 1, 1)
        chance = torch.stack([torch.rand(layers, self.branches, generator=one) for one in generators], 2)
        return (chance < keeps) / keeps

    @staticmethod
    def branch(x: Tensor, kept: Tensor | None, number: int) -> Tensor:
        """A residual branch (B, L, D), each clip times what row `number` of `kept` (branches, B) has for it."""
        return x if kept is None else x * kept[number].view(-1, 1, 1)

    def add_layers(self, x: Tensor, hidden_states: list[Tensor] | None, kept: Tensor | None) -> Tensor:
        """x <- x + layer(x), one layer after another, each with one branch; what each takes is kept."""
        for number, layer in enumerate(self.layers):
            self.keep(hidden_states, x)
            x = x + self.branch(self.run_layer(layer, x), None if kept is None else kept[number], 0)
        return x

    def run_layers(self, x: Tensor, hidden_states: list[Tensor] | None, kept: Tensor | None) -> Tensor:
        """x <- layer(x), one layer after another, each of which adds its branches itself; what each takes is kept."""
        for number, layer in enumerate(self.layers):
            self.keep(hidden_states, x)
            x = self.run_layer(layer, x, None if kept is None else kept[number])
        return x

    def run_layer(self, layer: nn.Module, *arguments: Any) -> Tensor:
        out: Tensor
        if self.recompute and torch.is_grad_enabled():
            # No layer draws random numbers (`kept` is drawn before), so there is no generator's state to keep.
            out = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            out = layer(*arguments)
        return out


class ResidualStack(Stack):
    """x <- x + layer(x), one layer after another, and a final norm. One class token stands in the middle, where either
    direction has seen as much."""

    num_class_tokens = 1
    norm: nn.Module

    def class_token_index(self, patches: int) -> int:
        return patches // 2

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None, kept: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(self.add_layers(x, hidden_states, kept))
        self.keep(hidden_states, out)
        return out
