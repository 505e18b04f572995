"""State space duality in its dual form, in plain torch: products of matrices within chunks and between them.

Shapes: B batch, L tokens, H heads, P channels of a head, E = H P, N state size, Q tokens of a chunk, S = L / Q chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def ssd(x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor) -> Tensor:
    """See `ssamba.ops.ssd`; x, z and what comes back are (B, L, E). Autograd differentiates."""
    dtype, length, heads = x.dtype, x.shape[1], step.shape[3]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    x, step, log_decay, b, c, z = (tensor.to(kind) for tensor in (x, step, log_decay, b, c, z))
    # What fills up the last chunk has step 0: it drives nothing.
    x_in, step, log_decay, b, c = (
        F.pad(tensor, (0, 0, 0, -length % CHUNK)).unflatten(-2, (-1, CHUNK)) for tensor in (x, step, log_decay, b, c)
    )
    x_in = x_in.unflatten(-1, (heads, -1))
    forward, backward = (_one_way(x_in, step[k], log_decay[k], b[k], c[k], k == 1) for k in range(2))
    y = (forward + backward).flatten(1, 2)[:, :length] + x.unflatten(-1, (heads, -1)) * d.to(kind).unsqueeze(-1)
    return (y.flatten(2) * F.silu(z)).to(dtype)


def _one_way(x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, backwards: bool) -> Tensor:
    """x (B, S, Q, H, P), step and log_decay (B, S, Q, H), b and c (B, S, Q, N) -> (B, S, Q, H, P)."""
    drive = x * step.unsqueeze(-1)
    until = _sums(log_decay, 2, backwards)  # of a chunk's tokens up to each, itself with them
    within = _between(until, until, 0, backwards)  # from token j to token i of a chunk
    y = torch.einsum("bsin,bsjn,bsijh,bsjhp->bsihp", c, b, within, drive)
    whole = log_decay.sum(2)
    fresh = torch.einsum("bsjn,bsjh,bsjhp->bshnp", b, (whole.unsqueeze(2) - until).exp(), drive)
    through = _sums(whole, 1, backwards)
    across = _between((through - whole).unsqueeze(1), through.unsqueeze(1), 1, backwards).squeeze(1)
    entering = torch.einsum("brsh,bshnp->brhnp", across, fresh)
    return y + torch.einsum("bsin,bsih,bshnp->bsihp", c, until.exp(), entering)


def _sums(x: Tensor, dim: int, backwards: bool) -> Tensor:
    """Cumulative sums along a dimension, from its end if backwards."""
    return x.flip(dim).cumsum(dim).flip(dim) if backwards else x.cumsum(dim)


def _between(end: Tensor, start: Tensor, apart: int, backwards: bool) -> Tensor:
    """exp(end[i] - start[j]), (B, S, Q, Q, H) of (B, S, Q, H), where j is visited at least `apart` before i; else 0."""
    places = torch.arange(end.shape[2], device=end.device)
    distance = places.unsqueeze(1) - places
    unseen = (-distance if backwards else distance) < apart
    return (end.unsqueeze(3) - start.unsqueeze(2)).masked_fill(unseen.unsqueeze(-1), -torch.inf).exp()
