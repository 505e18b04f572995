"""The Mamba encoder of Audio Mamba, AuM (arXiv 2406.03344).

Shapes: B batch, L tokens, D width, E inner width (expand * D).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.mixer import BidirectionalMixer, Direction, scale_outputs
from ssamba.models.stack import Epsilon, Positive, ResidualStack, Width
from ssamba.ops import bidirectional_scan, causal_conv_silu, selective_scan

SCAN_LAYOUTS = ("fo_fo", "fo_bi", "bi_bi")
_PAPERS = {"state_size": 16, "expand": 2, "conv_kernel": 4, "scan_layout": "fo_bi", "rms_norm_eps": 1e-5}


class ForwardMixer(nn.Module):
    """One forward convolution, its projections, and one scan, or two over the same inputs (Vision Mamba's "v1" block).

    The scan back has a decay A of its own and nothing else: what it scans was made by a convolution that looked at
    earlier tokens only. The two outputs are added up, not averaged, so the skip D counts twice.
    """

    def __init__(self, width: int, state_size: int, expand: int, conv_kernel: int, both: bool, backend: str) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.split, self.both, self.backend = (rank, state_size, state_size), both, backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.ahead = Direction(inner, state_size, rank, conv_kernel)
        self.back = nn.ParameterDict({"A_log": self.ahead.A_log.detach().clone()} if both else {})
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        own = self.ahead
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv_silu(x, own.conv.weight.squeeze(1), own.get_parameter("conv.bias"), backend=self.backend)
        rank, b, c = own.x_proj(u).split(self.split, dim=-1)
        # dt_proj's bias goes into the scan, where it is added in float32.
        delta = F.linear(rank, own.dt_proj.weight)
        a = -torch.exp(own.A_log.float())
        if self.both:
            shared = (u, delta, b, c, own.D, own.dt_proj.bias)
            u2, delta2, b2, c2, d2, bias2 = (part.expand(2, *part.shape) for part in shared)
            rates = torch.stack([a, -torch.exp(self.back["A_log"].float())])
            y = bidirectional_scan(u2, delta2, rates, b2, c2, d2, z, bias2, backend=self.backend)
        else:
            y = selective_scan(u, delta, a, b, c, own.D, z, own.dt_proj.bias, backend=self.backend)
        out: Tensor = self.out_proj(y)
        return out


class AumLayer(nn.Module):
    """RMSNorm, then the mixer; the residual sum is the stack's."""

    def __init__(
        self, width: int, state_size: int, expand: int, conv_kernel: int, layout: str, eps: float, backend: str
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.mixer: nn.Module
        if layout == "bi_bi":
            self.mixer = BidirectionalMixer(width, state_size, expand, conv_kernel, backend)
        else:
            self.mixer = ForwardMixer(width, state_size, expand, conv_kernel, layout == "fo_bi", backend)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mixer(self.norm(x))
        return out


class AumStack(ResidualStack):
    """AuM's layers over embedded tokens, (B, L, D) -> (B, L, D), x <- x + layer(x), and a final norm.

    One class token stands in the middle, where the scans from either end have seen as much. The layouts are the three
    blocks that the paper compares, named after the directions of the convolution and of the scan:

    scan_layout="fo_fo": both forward.
    scan_layout="fo_bi": one forward convolution, scans in both directions: the paper's choice from scratch.
    scan_layout="bi_bi": both in both directions, SSAMBA's mixer: its choice from ImageNet's weights.
    """

    sizes = {
        "nano": {"hidden_size": 96, "num_hidden_layers": 6, **_PAPERS, "state_size": 8},
        "tiny": {"hidden_size": 192, "num_hidden_layers": 24, **_PAPERS},
        "small": {"hidden_size": 384, "num_hidden_layers": 24, **_PAPERS},
        "base": {"hidden_size": 768, "num_hidden_layers": 24, **_PAPERS},
        "large": {"hidden_size": 1024, "num_hidden_layers": 48, **_PAPERS},
    }
    scans = True

    def __init__(
        self,
        hidden_size: Width,
        num_hidden_layers: Positive,
        state_size: Positive,
        expand: Positive,
        conv_kernel: Positive,
        scan_layout: Literal["fo_fo", "fo_bi", "bi_bi"],
        rms_norm_eps: Epsilon,
        scan_backend: str,
    ) -> None:
        super().__init__()
        if scan_layout not in SCAN_LAYOUTS:
            raise ValueError(f"scan_layout is {scan_layout!r}; expected one of {', '.join(SCAN_LAYOUTS)}")
        self.layers = nn.ModuleList(
            AumLayer(hidden_size, state_size, expand, conv_kernel, scan_layout, rms_norm_eps, scan_backend)
            for _ in range(num_hidden_layers)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=rms_norm_eps)
        scale_outputs(self.layers)
