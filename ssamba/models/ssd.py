"""A bidirectional Mamba-2 encoder: state space duality (arXiv 2405.21060) in the place of the selective scan.

Shapes: B batch, L tokens, D width, E inner width (expand * D), H heads of P channels, N state size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.mixer import scale_outputs
from ssamba.models.stack import Epsilon, Positive, ResidualStack, Width
from ssamba.ops import bidirectional_ssd, causal_conv_silu

# SSAMBA's widths, and as many parameters within 5 %.
_ALL = {"expand": 2, "conv_kernel": 4, "layer_norm_eps": 1e-5}


class SsdLayer(nn.Module):
    """LayerNorm, then Mamba-2's block (section 7, figure 6); the residual sum is the stack's.

    One projection makes the gate, the input and, for each direction, B, C and the step sizes: B and C are shared by the
    heads, a step size and a decay are one number a head. Both directions go over one input, behind one causal
    convolution, as in AuM's encoder; no tensor is flipped. The block's second norm, which its authors have for
    large models, is left out.
    """

    def __init__(self, width: int, state_size: int, expand: int, head_dim: int, conv_kernel: int, eps: float) -> None:
        super().__init__()
        inner = expand * width
        if inner % head_dim:
            raise ValueError(f"an inner width of {inner} is not a multiple of head_dim {head_dim}")
        heads, convolved = inner // head_dim, inner + 4 * state_size
        self.projected = (inner, convolved, 2 * heads)
        self.shapes = (heads, state_size)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.in_proj = nn.Linear(width, sum(self.projected), bias=False)
        self.conv = nn.Conv1d(convolved, convolved, conv_kernel, groups=convolved)
        self.dt_bias = nn.Parameter(torch.empty(2, heads))
        self.A_log = nn.Parameter(torch.empty(2, heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba-2's own start: step sizes log-uniform in [0.001, 0.1], rates of decay uniform in [1, 16]."""
        step = torch.exp(torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        heads, states = self.shapes
        z, x, delta = self.in_proj(self.norm(x)).split(self.projected, dim=-1)
        x = causal_conv_silu(x, self.conv.weight.squeeze(1), self.conv.get_parameter("bias"))
        x, projections = x.split([x.shape[-1] - 4 * states, 4 * states], dim=-1)
        b, c = projections.unflatten(-1, (2, 2, states)).permute(2, 3, 0, 1, 4)  # (2, B, L, N)
        delta = delta.float().unflatten(-1, (2, heads)).permute(2, 0, 1, 3)
        step = F.softplus(delta + self.dt_bias[:, None, None])
        log_decay = step * -self.A_log.float().exp()[:, None, None]
        x, z = (tensor.unflatten(-1, (heads, -1)) for tensor in (x, z))
        out: Tensor = self.out_proj(bidirectional_ssd(x, step, log_decay, b, c, self.D, z).flatten(2))
        return out


class SsdStack(ResidualStack):
    """Layers over embedded tokens, (B, L, D) -> (B, L, D), x <- x + layer(x), and a final norm.

    One class token stands in the middle, where either direction has seen as much.
    """

    sizes = {
        "nano": {"hidden_size": 96, "num_hidden_layers": 7, "state_size": 8, "head_dim": 32, **_ALL},
        "tiny": {"hidden_size": 192, "num_hidden_layers": 28, "state_size": 16, "head_dim": 64, **_ALL},
        "small": {"hidden_size": 384, "num_hidden_layers": 27, "state_size": 16, "head_dim": 64, **_ALL},
        "base": {"hidden_size": 768, "num_hidden_layers": 26, "state_size": 16, "head_dim": 64, **_ALL},
    }

    def __init__(
        self,
        hidden_size: Width,
        num_hidden_layers: Positive,
        state_size: Positive,
        expand: Positive,
        head_dim: Width,
        conv_kernel: Positive,
        layer_norm_eps: Epsilon,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SsdLayer(hidden_size, state_size, expand, head_dim, conv_kernel, layer_norm_eps)
            for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        scale_outputs(self.layers)
