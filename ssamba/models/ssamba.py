"""The bidirectional Mamba encoder of SSAMBA (arXiv 2405.11831, section 2.1, figure 1).

Shapes: B batch, L tokens, D width, E inner width (expand * D), N state size, R rank of the step sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.stack import Stack
from ssamba.ops import bidirectional_conv_silu, bidirectional_scan


class _Direction(nn.Module):
    """What one direction of a mixer owns: convolution, projections to step size, B and C, and the scan's A and D."""

    def __init__(self, inner: int, state_size: int, rank: int, conv_kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, inner, conv_kernel, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's own start (arXiv 2312.00752, section 3.6): step sizes log-uniform in [0.001, 0.1]."""
        bound = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        step = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(1e-1))).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


class BidirectionalMixer(nn.Module):
    """A shared projection in and out, scans in both directions, the mean of both (Vision Mamba's "v2" block).

    Both directions run side by side on a leading dimension of 2: one operator or batched product for both.
    """

    def __init__(self, width: int, state_size: int, expand: int, conv_kernel: int, backend: str) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.split, self.backend = (rank, state_size, state_size), backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.ahead = _Direction(inner, state_size, rank, conv_kernel)
        self.back = _Direction(inner, state_size, rank, conv_kernel)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def _both(self, name: str) -> Tensor:
        """A parameter of the two directions, stacked."""
        return torch.stack([self.ahead.get_parameter(name), self.back.get_parameter(name)])

    def forward(self, x: Tensor, exchanged: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D). `exchanged`: the two directions swap their parameters; this equals reversing the
        tokens before and after."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        taps = self._both("conv.weight").squeeze(2)
        u = bidirectional_conv_silu(x, taps, self._both("conv.bias"), exchanged, self.backend)  # (2, B, L, E)
        projected = torch.bmm(u.flatten(1, 2), self._both("x_proj.weight").transpose(1, 2))
        rank, b, c = projected.split(self.split, dim=-1)
        # dt_proj's bias goes into the scan, where it is added in float32.
        delta = torch.bmm(rank, self._both("dt_proj.weight").transpose(1, 2))
        shape = u.shape[:3]
        y = bidirectional_scan(
            u, delta.unflatten(1, shape[1:]), -torch.exp(self._both("A_log").float()), b.unflatten(1, shape[1:]),
            c.unflatten(1, shape[1:]), self._both("D"), z, self._both("dt_proj.bias"), exchanged, self.backend,
        )  # fmt: skip
        return F.linear(y, 0.5 * self.out_proj.weight)  # the mean: exact, and cheaper than on y


class SsambaLayer(nn.Module):
    """LayerNorm, then the mixer; the residual sum is the stack's."""

    def __init__(self, width: int, state_size: int, expand: int, conv_kernel: int, eps: float, backend: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mixer = BidirectionalMixer(width, state_size, expand, conv_kernel, backend)

    def forward(self, x: Tensor, exchanged: bool = False) -> Tensor:
        out: Tensor = self.mixer(self.norm(x), exchanged)
        return out


class SsambaStack(Stack):
    """SSAMBA's layers over embedded tokens, (B, L, D) -> (B, L, D); one class token at the front is the caller's.

    residual="doubling" is what the original computes, and what its published weights need. It runs its layers in
    pairs, both members of a pair on the same input, the second on the reversed tokens, and adds up the residuals of
    both as well as their outputs: x <- 2 x + first(x) + second(x). Reversing a bidirectional layer's tokens is the
    same as exchanging its two directions, so nothing is flipped here. The final norm is applied twice.

    residual="plain" is the stack that the paper draws: x <- x + layer(x), one layer after another, one final norm.
    It is as deep as it has layers (the doubling stack is half as deep, and after k pairs its input weighs 2^k against
    the last pair's output, so late layers move it little), at the same cost.
    """

    num_class_tokens = 1

    def __init__(self, hidden_size: int, num_hidden_layers: int, state_size: int, expand: int, conv_kernel: int,
                 residual: str, layer_norm_eps: float, scan_backend: str) -> None:  # fmt: skip
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
        for name, parameter in self.layers.named_parameters():
            if name.endswith("out_proj.weight"):
                # GPT-2's rule, as in Mamba: the residual stream keeps its scale however deep the stack.
                parameter.data /= math.sqrt(num_hidden_layers)

    @property
    def num_hidden_states(self) -> int:
        return len(self.layers) // (2 if self.residual == "doubling" else 1) + 1

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        if self.residual == "plain":
            for layer in self.layers:
                self.keep(hidden_states, x)
                x = x + self.run_layer(layer, x)
            x = self.norm(x)
        else:
            for pair, (first, second) in enumerate(zip(self.layers[::2], self.layers[1::2], strict=True)):
                # Each pair makes the residual twice as large: halved as often, exactly, the states keep one scale.
                self.keep(hidden_states, x if hidden_states is None else x / 2**pair)
                x = 2 * x + self.run_layer(first, x) + self.run_layer(second, x, True)
            x = self.norm(self.norm(x))
        self.keep(hidden_states, x)
        return x
