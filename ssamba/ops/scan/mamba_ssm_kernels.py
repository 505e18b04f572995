"""The CUDA kernels of the stock `mamba-ssm` package, where it is installed and built; its only importer.

Shapes: K directions, B batch, L tokens, E inner width, N state size; the package wants (B, E, L) and (B, N, L).

The kernels know one direction and sum nothing, so tokens are flipped for the other one and the gate is applied here.
The package brings its own autograd.
"""

import torch.nn.functional as F
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
) -> Tensor:
    """See `ssamba.ops.scan`; arithmetic in float32, the sum of two directions in u's dtype."""
    outputs = []
    for k in range(len(u)):
        tensors = [x[k].transpose(1, 2).to(u.dtype) for x in (u, delta, b, c)]
        backwards = (k == 1) != reverse
        if backwards:
            tensors = [x.flip(-1) for x in tensors]
        ones = [None if x is None else x[k].float() for x in (d, bias)]
        y = selective_scan_fn(
            tensors[0], tensors[1], a[k].float(), tensors[2], tensors[3], ones[0], None, ones[1], True
        )
        outputs.append((y.flip(-1) if backwards else y).transpose(1, 2))
    y = outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]
    return y if z is None else y * F.silu(z.to(y.dtype))
