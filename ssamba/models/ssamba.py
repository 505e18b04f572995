"""The bidirectional Mamba encoder of SSAMBA (arXiv 2405.11831, section 2.1, figure 1).

Shapes: B batch, L tokens, D width.
"""

from typing import Literal

from torch import Tensor, nn

from ssamba.models.mixer import BidirectionalMixer, scale_outputs
from ssamba.models.stack import Epsilon, Positive, Stack, Width

_PAPERS = {"state_size": 16, "expand": 2, "conv_kernel": 4, "residual": "doubling", "layer_norm_eps": 1e-5}


class SsambaLayer(nn.Module):
    """LayerNorm, then the mixer; the residual sum is the stack's."""

    def __init__(self, width: int, state_size: int, expand: int, conv_kernel: int, eps: float, backend: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mixer = BidirectionalMixer(width, state_size, expand, conv_kernel, backend)

    def forward(self, x: Tensor, swap_directions: bool = False) -> Tensor:
        out: Tensor = self.mixer(self.norm(x), swap_directions)
        return out


class SsambaStack(Stack):
    """SSAMBA's layers over embedded tokens, (B, L, D) -> (B, L, D); one class token leads.

    residual="doubling" is what the original computes, and what its published weights need. It runs its layers in
    pairs, both members of a pair on the same input, the second on the reversed tokens, and adds up the residuals of
    both as well as their outputs: x <- 2 x + first(x) + second(x). Reversing a bidirectional layer's tokens is the
    same as exchanging its two directions, so nothing is flipped here. The final norm is applied twice.

    residual="plain" is the stack that the paper draws: x <- x + layer(x), one layer after another, one final norm.
    It is as deep as it has layers (the doubling stack is half as deep, and after k pairs its input weighs 2^k against
    the last pair's output, so late layers move it little), at the same cost.
    """

    sizes = {
        "nano": {"hidden_size": 96, "num_hidden_layers": 6, **_PAPERS, "state_size": 8},
        "tiny": {"hidden_size": 192, "num_hidden_layers": 24, **_PAPERS},
        "small": {"hidden_size": 384, "num_hidden_layers": 24, **_PAPERS},
        "base": {"hidden_size": 768, "num_hidden_layers": 24, **_PAPERS},
    }
    num_class_tokens = 1
    scans = True

    def __init__(
        self,
        hidden_size: Width,
        num_hidden_layers: Positive,
        state_size: Positive,
        expand: Positive,
        conv_kernel: Positive,
        residual: Literal["doubling", "plain"],
        layer_norm_eps: Epsilon,
        scan_backend: str,
    ) -> None:
        super().__init__()
        if residual not in ("doubling", "plain"):
            raise ValueError(f"residual is {residual!r}; expected 'doubling' or 'plain'")
        if residual == "doubling" and num_hidden_layers % 2:
            raise ValueError(f"num_hidden_layers is {num_hidden_layers}; the doubling residual takes layers in pairs")
        self.residual = residual
        self.layers = nn.ModuleList(
            SsambaLayer(hidden_size, state_size, expand, conv_kernel, layer_norm_eps, scan_backend)
            for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        scale_outputs(self.layers)

    @property
    def num_hidden_states(self) -> int:
        return len(self.layers) // (2 if self.residual == "doubling" else 1) + 1

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None, kept: Tensor | None = None) -> Tensor:
        if self.residual == "plain":
            x = self.norm(self.add_layers(x, hidden_states, kept))
        else:
            kept = None if kept is None else kept[:, 0]
            for pair, (first, second) in enumerate(zip(self.layers[::2], self.layers[1::2], strict=True)):
                # Each pair makes the residual twice as large: halved as often, exactly, the states keep one scale.
                self.keep(hidden_states, x if hidden_states is None else x / 2**pair)
                x = (
                    2 * x
                    + self.branch(self.run_layer(first, x), kept, 2 * pair)
                    + self.branch(self.run_layer(second, x, True), kept, 2 * pair + 1)
                )
            x = self.norm(self.norm(x))
        self.keep(hidden_states, x)
        return x
