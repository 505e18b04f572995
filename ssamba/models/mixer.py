"""The bidirectional Mamba mixer, its parts, and how a stack of mixers starts.

Shapes: B batch, L tokens, D width, E inner width (expand * D), N state size, R rank of the step sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.ops import bidirectional_conv_silu, bidirectional_scan


class Direction(nn.Module):
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


def scale_outputs(layers: nn.ModuleList) -> None:
    """GPT-2's rule, as in Mamba: the residual stream keeps its scale at the start, however many mixers add to it."""
    for name, parameter in layers.named_parameters():
        if name.endswith("out_proj.weight"):
            parameter.data /= math.sqrt(len(layers))


class BidirectionalMixer(nn.Module):
    """A shared projection in and out, scans in both directions, the mean of both (Vision Mamba's "v2" block).

    Both directions run side by side on a leading dimension of 2: one operator or batched product for both.
    """

    def __init__(self, width: int, state_size: int, expand: int, conv_kernel: int, backend: str) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.split, self.backend = (rank, state_size, state_size), backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.ahead = Direction(inner, state_size, rank, conv_kernel)
        self.back = Direction(inner, state_size, rank, conv_kernel)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def _both(self, name: str) -> Tensor:
        """A parameter of the two directions, stacked."""
        return torch.stack([self.ahead.get_parameter(name), self.back.get_parameter(name)])

    def forward(self, x: Tensor, swap_directions: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D). `swap_directions`: the two directions swap their parameters; this equals reversing
        the tokens before and after."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        taps = self._both("conv.weight").squeeze(2)
        u = bidirectional_conv_silu(x, taps, self._both("conv.bias"), swap_directions, self.backend)  # (2, B, L, E)
        projected = torch.bmm(u.flatten(1, 2), self._both("x_proj.weight").transpose(1, 2))
        rank, b, c = projected.split(self.split, dim=-1)
        # dt_proj's bias goes into the scan, where it is added in float32.
        delta = torch.bmm(rank, self._both("dt_proj.weight").transpose(1, 2))
        shape = u.shape[:3]
        y = bidirectional_scan(
            u,
            delta.unflatten(1, shape[1:]),
            -torch.exp(self._both("A_log").float()),
            b.unflatten(1, shape[1:]),
            c.unflatten(1, shape[1:]),
            self._both("D"),
            z,
            self._both("dt_proj.bias"),
            swap_directions,
            self.backend,
        )
        return F.linear(y, 0.5 * self.out_proj.weight)  # the mean: exact, and cheaper than on y
