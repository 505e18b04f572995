"""What every encoder's stack of layers can do.

Shapes: B batch, L tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stack(nn.Module):
    """Layers in turn, (B, L, D) -> (B, L, D): `forward(x, hidden_states)`.

    To the list `hidden_states`, if one is given, `forward` appends what each layer takes (of SSAMBA's original stack,
    each pair of layers) and what the stack gives: n + 1 tensors (B, L, D) of n layers, in the scale of the input.

    `recompute`: of each layer only its input is kept for the backward pass, which runs the layer a second time: the
    memory of one layer instead of all, for about a third more time.
    """

    num_class_tokens: int
    scans = False
    """Whether it takes a `scan_backend`."""
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

    def run_layer(self, layer: nn.Module, *arguments: Any) -> Tensor:
        out: Tensor
        if self.recompute and torch.is_grad_enabled():
            # No layer draws random numbers, so there is no generator's state to keep.
            out = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            out = layer(*arguments)
        return out
