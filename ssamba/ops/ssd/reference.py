"""State space duality as its equations read, one token after another: the judge of the other ways to compute it.

Shapes: B batch, L tokens, H heads, P channels of a head, N state size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd(x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor) -> Tensor:
    """See `ssamba.ops.ssd.bidirectional_ssd`; autograd differentiates, so it is the judge of the gradients too."""
    y = x * d.unsqueeze(-1)
    for k in range(2):
        state = x.new_zeros(len(x), x.shape[2], b.shape[-1], x.shape[3])
        outputs: dict[int, Tensor] = {}
        for t in reversed(range(x.shape[1])) if k else range(x.shape[1]):
            drive = torch.einsum("bh,bn,bhp->bhnp", step[k, :, t], b[k, :, t], x[:, t])
            state = log_decay[k, :, t].exp()[..., None, None] * state + drive
            outputs[t] = torch.einsum("bn,bhnp->bhp", c[k, :, t], state)
        y = y + torch.stack([outputs[t] for t in range(x.shape[1])], 1)
    return y * F.silu(z)
