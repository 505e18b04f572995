"""The causal depthwise convolution and its SiLU in plain torch, on any device.

Shapes: K directions, B batch, L tokens, E channels, W taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """See `ssamba.ops.conv`; float64 inputs are computed in float64, all others in float32. Autograd differentiates."""
    dtype = x.dtype
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, weight, bias = x.to(kind), weight.to(kind), bias.to(kind)
    reach, length = weight.shape[2] - 1, x.shape[1]
    outputs = []
    for k in range(len(weight)):
        backwards = (k == 1) != reverse
        padded = F.pad(x, (0, 0, 0, reach) if backwards else (0, 0, reach, 0))
        taps = (weight[k].flip(-1) if backwards else weight[k]).unbind(-1)
        y = bias[k].expand_as(x)
        for start, tap in enumerate(taps):
            y = torch.addcmul(y, padded[:, start : start + length], tap)
        outputs.append(F.silu(y))
    return torch.stack(outputs).to(dtype)
