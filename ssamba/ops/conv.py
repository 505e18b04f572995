"""The public operator `causal_conv_silu`.

Shapes: B batch, L tokens, E channels, K kernel.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.scan import resolve_backend


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, direction: Literal["forward", "reverse"] = "forward",
                     backend: str = "auto") -> Tensor:  # fmt: skip
    """silu(depthwise convolution): each token sees itself and the K - 1 tokens visited before it.

    Args:
        x: (B, L, E), any strides. weight: (E, K), its last column meets the token itself. bias: (E,).
        direction: "reverse" visits the tokens from the last to the first; no tensor is flipped.
        backend: as for `selective_scan`.

    Returns:
        (B, L, E), in x's dtype.

    Raises:
        ValueError, RuntimeError: as `selective_scan`.
    """
    if x.ndim != 3 or weight.ndim != 2 or len(weight) != x.shape[2] or weight.shape[1] < 1:
        given = f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(f"{given}; expected (B, L, E) and (E, K)")
    if tuple(bias.shape) != (x.shape[2],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {(x.shape[2],)} beside x {tuple(x.shape)}")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is {direction!r}; expected 'forward' or 'reverse'")
    reverse = direction == "reverse"
    if resolve_backend(backend, x.device.type, x.dtype) == "cpu":
        from ssamba.ops.cpu_conv import causal_conv_silu_cpu

        return causal_conv_silu_cpu(x, weight, bias, reverse)
    reach = weight.shape[1] - 1
    padded = F.pad(x.transpose(1, 2), (0, reach) if reverse else (reach, 0))
    taps = (weight.flip(-1) if reverse else weight).unsqueeze(1)
    return F.silu(F.conv1d(padded, taps.to(x.dtype), bias.to(x.dtype), groups=x.shape[-1])).transpose(1, 2)
