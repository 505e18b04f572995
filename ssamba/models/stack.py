"""What every encoder's stack of layers can do.

Shapes: B batch, L tokens, D width, N layers, R residual branches of a layer.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, get_type_hints

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# What options of a stack may be. They come from untrusted config.json files: the bounds are far above the largest
# published model, and low enough that whatever is within them is refused or built without harm.
Width = Annotated[int, Meta(ge=1, le=65_536)]
Positive = Annotated[int, Meta(ge=1, le=1024)]
Epsilon = Annotated[float, Meta(ge=1e-12, le=1)]
_BOUNDED: dict[Any, Any] = {
    int: Annotated[int, Meta(ge=0, le=65_536)],
    float: Annotated[float, Meta(ge=-1e6, le=1e6)],
}


class Stack(nn.Module):
    """Layers in turn, (B, L, D) -> (B, L, D): `forward(x, hidden_states, kept)`.

    Every encoder is a class below this one, and has a name in `ssamba.parts`. It has

    - `sizes`: by the name of a size the arguments of its `__init__`, `hidden_size` (D) and `num_hidden_layers` among
      them. They have types: a model's config.json has them, and what is not of its type is refused. A number without
      bounds of its own is at most 65,536, or 1e6 if it is a float. Of `residual` and `scan_layout` recipes have keys.
    - `layers` and `num_class_tokens`, which stand where `class_token_index` says.
    - `forward`, by `add_layers` or `run_layers` and `keep`; `ResidualStack` has one.

    Arguments that cannot be are a ValueError.

    To the list `hidden_states`, if one is given, `forward` appends what each layer takes (of SSAMBA's original stack,
    each pair of layers) and what the stack gives: n + 1 tensors (B, L, D) of n layers, in the scale of the input.

    `kept`, float32 (N, R, B), is what each clip's residual branches are multiplied by: see `draw_kept`.

    `recompute`: of each layer only its input is kept for the backward pass, which runs the layer a second time: the
    memory of one layer instead of all, for about a third more time.
    """

    sizes: ClassVar[Mapping[str, dict[str, Any]]] = {}
    """The papers' sizes, where there are any; "nano", of half a million parameters, is for CPUs and tests."""
    num_class_tokens: int
    scans = False
    """Whether it takes a `scan_backend`."""
    branches = 1
    """R."""
    recompute = False
    layers: nn.ModuleList

    @classmethod
    def option_types(cls) -> dict[str, Any]:
        """The type of each argument that its sizes have, with bounds."""
        hints = get_type_hints(cls.__init__, include_extras=True)
        names = dict.fromkeys(name for options in cls.sizes.values() for name in options)
        return {name: _BOUNDED.get(hints[name], hints[name]) for name in names}

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
        """Stochastic depth (arXiv 1603.09382), each clip by a generator of its own: 0 for a branch that is left out,
        for one that is kept 1 / its probability to be kept, so that its expectation stays. The probability to be left
        out rises along a line from 0 of the first layer to `drop_path`, below 1, of the last. On the CPU."""
        layers = len(self.layers)
        keeps = 1 - torch.linspace(0, drop_path, layers).view(-1, 1, 1)
        chance = torch.stack([torch.rand(layers, self.branches, generator=one) for one in generators], 2)
        return (chance < keeps) / keeps

    @staticmethod
    def branch(x: Tensor, kept: Tensor | None, index: int) -> Tensor:
        """A residual branch (B, L, D), each clip times what row `index` of `kept` (branches, B) has for it."""
        return x if kept is None else x * kept[index].view(-1, 1, 1)

    def add_layers(self, x: Tensor, hidden_states: list[Tensor] | None, kept: Tensor | None) -> Tensor:
        """x <- x + layer(x), one layer after another, each with one branch; what each takes is kept."""
        for index, layer in enumerate(self.layers):
            self.keep(hidden_states, x)
            x = x + self.branch(self.run_layer(layer, x), None if kept is None else kept[index], 0)
        return x

    def run_layers(self, x: Tensor, hidden_states: list[Tensor] | None, kept: Tensor | None) -> Tensor:
        """x <- layer(x), one layer after another, each of which adds its branches itself; what each takes is kept."""
        for index, layer in enumerate(self.layers):
            self.keep(hidden_states, x)
            x = self.run_layer(layer, x, None if kept is None else kept[index])
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
