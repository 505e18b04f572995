"""The selective scan as its equations read, one token after another: the judge of every other backend.

Shapes: B batch, L tokens, E inner width, N state size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, reverse: bool,
) -> Tensor:  # fmt: skip
    """The scan of `ssamba.ops.selective_scan`: any device, differentiable by autograd.

    float64 inputs are computed in float64, all others in float32. Backward keeps every state: O(B L E N) memory.
    """
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_, delta_, a_, b_, c_ = (x.to(kind) for x in (u, delta, a, b, c))
    if delta_bias is not None:
        delta_ = delta_ + delta_bias.to(kind)
    step = F.softplus(delta_)
    decay = torch.exp(step.unsqueeze(-1) * a_)  # (B, L, E, N)
    drive = (step * u_).unsqueeze(-1) * b_.unsqueeze(2)
    state = u_.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    outputs: list[Tensor] = []
    order = range(u.shape[1] - 1, -1, -1) if reverse else range(u.shape[1])
    for t in order:
        state = decay[:, t] * state + drive[:, t]
        outputs.append((state * c_[:, t].unsqueeze(1)).sum(-1))
    if reverse:
        outputs.reverse()
    y = torch.stack(outputs, 1) if outputs else u_ * 0
    if d is not None:
        y = y + u_ * d.to(kind)
    if z is not None:
        y = y * F.silu(z.to(kind))
    return y.to(u.dtype)
