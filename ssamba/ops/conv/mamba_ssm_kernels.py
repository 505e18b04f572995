"""The CUDA kernels of the stock `causal-conv1d` package beside those of `mamba-ssm`; its only importer.

Shapes: K directions, B batch, L tokens, E channels, W taps; the package wants (B, E, L) and 2 to 4 taps.
"""

import torch
from torch import Tensor

from ssamba.ops.conv import reference

try:
    from causal_conv1d import causal_conv1d_fn
except ImportError:  # mamba-ssm does without it
    causal_conv1d_fn = None


def conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """See `ssamba.ops.conv`; in plain torch where the package or its kernel for so many taps is missing."""
    if causal_conv1d_fn is None or not 2 <= weight.shape[2] <= 4:
        return reference.conv(x, weight, bias, reverse)
    outputs = []
    for k in range(len(weight)):
        backwards = (k == 1) != reverse
        visited = x.flip(1) if backwards else x
        y = causal_conv1d_fn(visited.transpose(1, 2), weight[k].to(x.dtype), bias[k].to(x.dtype), activation="silu")
        outputs.append(y.transpose(1, 2).flip(1) if backwards else y.transpose(1, 2))
    return torch.stack(outputs)
