"""The selective scan as its equations read, one token after another: the reference for every other backend.

Shapes: K directions, B batch, L tokens, E inner width, N state size.
"""

import torch
import torch.nn.functional as F
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
    """See `ssamba.ops.scan`; float64 inputs are computed in float64, all others in float32.

    Differentiated by autograd, not by hand, which makes it the reference for gradients too: it keeps every state,
    O(K B L E N) memory.
    """
    dtype = u.dtype
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, a, b, c = (x.to(kind) for x in (u, delta, a, b, c))
    y = u.new_zeros(u.shape[1:])
    for k in range(len(u)):
        step = F.softplus(delta[k] if bias is None else delta[k] + bias[k].to(kind), threshold=40)
        decay = torch.exp(step.unsqueeze(-1) * a[k]).unbind(1)  # L of (B, E, N); slices would cost O(L^2) backward
        drive = ((step * u[k]).unsqueeze(-1) * b[k].unsqueeze(2)).unbind(1)
        rate = c[k].unsqueeze(2).unbind(1)
        state = u.new_zeros(u.shape[1], u.shape[3], a.shape[2])
        outputs: dict[int, Tensor] = {}
        for t in reversed(range(len(decay))) if (k == 1) != reverse else range(len(decay)):
            state = decay[t] * state + drive[t]
            outputs[t] = (state * rate[t]).sum(-1)
        if outputs:
            y = y + torch.stack([outputs[t] for t in range(len(outputs))], 1)
        else:  # of no tokens there is no output either, but one that depends on all inputs
            y = y + torch.einsum("ble,en,bln,bln->ble", step * u[k], a[k], b[k], c[k])
        if d is not None:
            y = y + u[k] * d[k].to(kind)
    return (y if z is None else y * F.silu(z.to(kind))).to(dtype)
