"""The selective scan in plain torch, without a JIT: any device, float32 or float64, backward in O(L) time.

Shapes: K directions, B batch, L tokens, E inner width, N state size, S tokens of a chunk.

Everything but the recurrence itself is computed for a chunk of tokens at once; the recurrence is one fused
multiply-add a token. The backward pass keeps the state at the start of each chunk, takes the chunks from the last to
the first and replays each: no (B, L, E, N) tensor ever exists.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.scan.gradients import Gradients

CHUNK = 16  # of 8, 16, 32 and 64 the fastest on a CPU, where a chunk's tensors should stay in the cache


def saved_shape(u: Tensor, a: Tensor) -> tuple[int, ...]:
    """Of what `forward` keeps: the states before each chunk, (K, chunks, B, E, N)."""
    directions, batch, length, width = u.shape
    return directions, -(-length // CHUNK), batch, width, a.shape[2]


def _chunks(length: int, backwards: bool) -> Iterator[tuple[int, slice, list[int]]]:
    """(number, tokens, order inside) of the chunks in the order of their visit."""
    for index, start in enumerate(range(0, length, CHUNK)):
        size = min(CHUNK, length - start)
        tokens = slice(length - start - size, length - start) if backwards else slice(start, start + size)
        yield index, tokens, list(reversed(range(size))) if backwards else list(range(size))


class _Chunk:
    """One chunk of one direction, tokens first: its step sizes, decays and states."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        tokens: slice,
        order: list[int],
        start: Tensor,
    ) -> None:
        kind = a.dtype
        self.u, self.b = (x[:, tokens].transpose(0, 1).to(kind) for x in (u, b))  # (S, B, E), (S, B, N)
        self.raw = delta[:, tokens].transpose(0, 1).to(kind)
        if bias is not None:
            self.raw = self.raw + bias.to(kind)
        self.step = F.softplus(self.raw, threshold=40)
        self.decay = (self.step.unsqueeze(-1) * a).exp_()  # (S, B, E, N)
        self.states = (self.step * self.u).unsqueeze(-1) * self.b.unsqueeze(2)
        last = start
        for t in order:
            last = self.states[t].addcmul_(self.decay[t], last)
        self.last = last

    def read(self, c: Tensor, d: Tensor | None) -> Tensor:
        """y of these tokens before the gate, (S, B, E), from their C (S, B, N) and D (E,)."""
        y = (self.states @ c.unsqueeze(-1)).squeeze(-1)
        return y if d is None else y.addcmul_(self.u, d)


def _dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def forward(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """See `ssamba.ops.scan`."""
    kind = _dtype(u)
    directions, batch, length, width = u.shape
    y = u.new_zeros(batch, length, width, dtype=kind)
    saved = u.new_empty(saved_shape(u, a) if keep else 0, dtype=kind)
    for k in range(directions):
        rates = a[k].to(kind)
        state = u.new_zeros(batch, width, a.shape[2], dtype=kind)
        for index, tokens, order in _chunks(length, (k == 1) != reverse):
            if keep:
                saved[k, index] = state
            chunk = _Chunk(u[k], delta[k], rates, b[k], None if bias is None else bias[k], tokens, order, state)
            state = chunk.last
            out = chunk.read(c[k][:, tokens].transpose(0, 1).to(kind), None if d is None else d[k].to(kind))
            y[:, tokens] += out.transpose(0, 1)
    if z is not None:
        y *= F.silu(z.to(kind))
    return y.to(u.dtype), saved


def backward(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    reverse: bool,
) -> Gradients:
    """See `ssamba.ops.scan`."""
    kind = _dtype(u)
    directions, batch, length, width = u.shape
    du, ddelta, db, dc = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, b, c))
    da, dd, dbias = (u.new_zeros(shape, dtype=kind) for shape in (a.shape, a.shape[:2], a.shape[:2]))
    dy = dout.to(kind)
    total = torch.zeros_like(dy)  # y before the gate
    gate = None
    if z is not None:
        gate = z.to(kind)
        dy = dy * F.silu(gate)
    for k in range(directions):
        rates = a[k].to(kind)
        grad = u.new_zeros(batch, width, a.shape[2], dtype=kind)  # of the state, before the token that follows
        for index, tokens, order in reversed(list(_chunks(length, (k == 1) != reverse))):
            start = saved[k, index]
            chunk = _Chunk(u[k], delta[k], rates, b[k], None if bias is None else bias[k], tokens, order, start)
            rate = c[k][:, tokens].transpose(0, 1).to(kind)
            slope = dy[:, tokens].transpose(0, 1)
            if gate is not None:
                total[:, tokens] += chunk.read(rate, None if d is None else d[k].to(kind)).transpose(0, 1)
            g = slope.unsqueeze(-1) * rate.unsqueeze(2)  # (S, B, E, N)
            for t in reversed(order):
                grad = chunk.decay[t] * g[t].add_(grad)
            dc[k][:, tokens] = (slope.unsqueeze(2) @ chunk.states).squeeze(2).transpose(0, 1).to(c.dtype)
            db[k][:, tokens] = ((chunk.step * chunk.u).unsqueeze(2) @ g).squeeze(2).transpose(0, 1).to(b.dtype)
            from_input = (g @ chunk.b.unsqueeze(-1)).squeeze(-1)
            # g becomes the gradient of each exponent: g * decay * (the state before the token).
            g *= chunk.decay
            before = [start, *(chunk.states[t] for t in order[:-1])]
            for t, state in zip(order, before, strict=True):
                g[t] *= state
            from_decay = (g * rates).sum(-1)
            da[k] += torch.einsum("sben,sbe->en", g, chunk.step)
            change = (from_input * chunk.u + from_decay) * torch.sigmoid(chunk.raw)
            dbias[k] += change.sum((0, 1))
            ddelta[k][:, tokens] = change.transpose(0, 1).to(delta.dtype)
            du_chunk = from_input * chunk.step
            if d is not None:
                du_chunk.addcmul_(slope, d[k].to(kind))
                dd[k] += (slope * chunk.u).sum((0, 1))
            du[k][:, tokens] = du_chunk.transpose(0, 1).to(u.dtype)
    dz = None
    if z is not None and gate is not None:
        sigma = torch.sigmoid(gate)
        dz = (dout.to(kind) * total * sigma * (1 + gate * (1 - sigma))).to(z.dtype)
    return Gradients(
        du,
        ddelta,
        da.to(a.dtype),
        db,
        dc,
        None if d is None else dd.to(d.dtype),
        dz,
        None if bias is None else dbias.to(bias.dtype),
    )
