"""The selective scan on a CPU: numba kernels over 16 channels a vector, states in registers and cache.

Shapes: B batch, L tokens, E inner width (channels), N state size.

Forward walks the tokens once and keeps, for the backward pass, the state at the start of every chunk of `CHUNK`
tokens: as much memory as `u` when N equals CHUNK. Backward takes the chunks from the last to the first, replays each
from its saved state and then walks it in reverse, so no (B, L, E, N) tensor ever exists. The work is cut into
(clip, group of channels) tasks whose number depends on the shapes alone; so results are bitwise the same for every
number of threads.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from ssamba.ops.kernels import as_array, run_tasks
from ssamba.ops.simd import LANES, exp2, fma, load, logistic, softplus_and_slope, splat, store, total

CHUNK = 16
GROUP = 4 * LANES  # channels a task: enough to reuse B and C from cache, few enough to share one clip among cores
_LOG2E = 1.4426950408889634


def _forward(first, last, u, delta, a2, b, c, d, z, bias, gated, reverse, out, saved, keep):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = u.shape[1], u.shape[2]
    states = a2.shape[0]
    groups = (width + GROUP - 1) // GROUP
    h = np.empty(states * LANES, np.float32)
    for task in range(first, last):
        clip = task // groups
        start = (task % groups) * GROUP
        for e in range(start, min(start + GROUP, width), LANES):
            for n in range(states):
                store(h, (n * LANES,), splat(0.0))
            for i in range(length):
                t = length - 1 - i if reverse else i
                if keep and i % CHUNK == 0:
                    for n in range(states):
                        store(saved, (clip, i // CHUNK, n, e), load(h, (n * LANES,)))
                value = load(u, (clip, t, e))
                step = softplus_and_slope(load(delta, (clip, t, e)) + load(bias, (e,)))[0]
                scaled = step * value
                even = load(d, (e,)) * value
                odd = splat(0.0)
                n = 0
                while n + 1 < states:
                    new = fma(exp2(step * load(a2, (n, e))), load(h, (n * LANES,)), scaled * splat(b[clip, t, n]))
                    store(h, (n * LANES,), new)
                    even = fma(new, splat(c[clip, t, n]), even)
                    m = n + 1
                    new = fma(exp2(step * load(a2, (m, e))), load(h, (m * LANES,)), scaled * splat(b[clip, t, m]))
                    store(h, (m * LANES,), new)
                    odd = fma(new, splat(c[clip, t, m]), odd)
                    n += 2
                if n < states:
                    new = fma(exp2(step * load(a2, (n, e))), load(h, (n * LANES,)), scaled * splat(b[clip, t, n]))
                    store(h, (n * LANES,), new)
                    even = fma(new, splat(c[clip, t, n]), even)
                y = even + odd
                if gated:
                    gate = load(z, (clip, t, e))
                    y = y * gate * logistic(gate)
                store(out, (clip, t, e), y)


def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    first, last, u, delta, a2, b, c, d, z, bias, gated, reverse, saved, dout,
    du, ddelta, da, db, dc, dd, dz, dbias,
):  # fmt: skip
    length, width = u.shape[1], u.shape[2]
    states = a2.shape[0]
    groups = (width + GROUP - 1) // GROUP
    chunks = (length + CHUNK - 1) // CHUNK
    lane_states = states * LANES
    grad = np.empty(GROUP * states, np.float32)  # dL/dh, carried from token to token (and chunk to chunk)
    decay = np.empty(CHUNK * lane_states, np.float32)
    trail = np.empty((CHUNK + 1) * lane_states, np.float32)  # the states of one chunk, the entering one first
    steps = np.empty(CHUNK * LANES, np.float32)
    slopes = np.empty(CHUNK * LANES, np.float32)
    sum_b = np.empty(CHUNK * lane_states, np.float32)
    sum_c = np.empty(CHUNK * lane_states, np.float32)
    for task in range(first, last):
        clip = task // groups
        group = task % groups
        start = group * GROUP
        stop = min(start + GROUP, width)
        for k in range(0, GROUP * states, LANES):
            store(grad, (k,), splat(0.0))
        for e in range(start, stop, LANES):
            store(dd, (clip, e), splat(0.0))
            store(dbias, (clip, e), splat(0.0))
            for n in range(states):
                store(da, (clip, n, e), splat(0.0))
        for chunk in range(chunks - 1, -1, -1):
            begin = chunk * CHUNK
            count = min(CHUNK, length - begin)
            for k in range(0, count * lane_states, LANES):
                store(sum_b, (k,), splat(0.0))
                store(sum_c, (k,), splat(0.0))
            for e in range(start, stop, LANES):
                for n in range(states):
                    store(trail, (n * LANES,), load(saved, (clip, chunk, n, e)))
                for j in range(count):
                    t = length - 1 - begin - j if reverse else begin + j
                    step, slope = softplus_and_slope(load(delta, (clip, t, e)) + load(bias, (e,)))
                    store(steps, (j * LANES,), step)
                    store(slopes, (j * LANES,), slope)
                    scaled = step * load(u, (clip, t, e))
                    for n in range(states):
                        k = j * lane_states + n * LANES
                        factor = exp2(step * load(a2, (n, e)))
                        store(decay, (k,), factor)
                        new = fma(factor, load(trail, (k,)), scaled * splat(b[clip, t, n]))
                        store(trail, (k + lane_states,), new)
                for j in range(count - 1, -1, -1):
                    t = length - 1 - begin - j if reverse else begin + j
                    value = load(u, (clip, t, e))
                    step = load(steps, (j * LANES,))
                    scaled = step * value
                    dy = load(dout, (clip, t, e))
                    gate_output = splat(0.0)
                    gate_slope = splat(0.0)
                    if gated:
                        gate = load(z, (clip, t, e))
                        sigma = logistic(gate)
                        gate_output = dy
                        gate_slope = sigma * fma(gate, splat(1.0) - sigma, splat(1.0))
                        dy = dy * gate * sigma
                    y = load(d, (e,)) * value
                    from_input = splat(0.0)
                    from_decay = splat(0.0)
                    for n in range(states):
                        k = j * lane_states + n * LANES
                        g_at = (e - start) * states + n * LANES
                        before = load(trail, (k,))
                        after = load(trail, (k + lane_states,))
                        rate = splat(c[clip, t, n])
                        g = fma(dy, rate, load(grad, (g_at,)))
                        y = fma(after, rate, y)
                        store(sum_c, (k,), fma(dy, after, load(sum_c, (k,))))
                        store(sum_b, (k,), fma(g, scaled, load(sum_b, (k,))))
                        from_input = fma(g, splat(b[clip, t, n]), from_input)
                        g = g * load(decay, (k,))
                        store(grad, (g_at,), g)
                        q = g * before
                        store(da, (clip, n, e), fma(q, step, load(da, (clip, n, e))))
                        from_decay = fma(q, load(a2, (n, e)), from_decay)
                    slope = load(slopes, (j * LANES,))
                    change = fma(from_input, value, from_decay * splat(0.6931471805599453)) * slope
                    store(ddelta, (clip, t, e), change)
                    store(dbias, (clip, e), load(dbias, (clip, e)) + change)
                    store(du, (clip, t, e), fma(from_input, step, dy * load(d, (e,))))
                    store(dd, (clip, e), fma(dy, value, load(dd, (clip, e))))
                    if gated:
                        store(dz, (clip, t, e), gate_output * y * gate_slope)
            for j in range(count):
                t = length - 1 - begin - j if reverse else begin + j
                for n in range(states):
                    k = j * lane_states + n * LANES
                    db[group, clip, t, n] = total(load(sum_b, (k,)))
                    dc[group, clip, t, n] = total(load(sum_c, (k,)))


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """(forward, backward), compiled at the first call for any strides and kept on disk for later processes."""
    vector, matrix, tensor, wide = (types.Array(types.float32, n, "A") for n in (1, 2, 3, 4))
    inputs = (types.intp, types.intp, tensor, tensor, matrix, tensor, tensor, vector, tensor, vector, types.boolean,
              types.boolean)  # fmt: skip
    forward = types.void(*inputs, tensor, wide, types.boolean)
    backward = types.void(*inputs, wide, tensor, tensor, tensor, tensor, wide, wide, matrix, tensor, matrix)
    options = {"nogil": True, "cache": True, "error_model": "numpy"}
    return njit(forward, **options)(_forward), njit(backward, **options)(_backward)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None,
                z: Tensor | None, bias: Tensor | None, reverse: bool, recording: bool) -> Tensor:  # fmt: skip
        batch, length, channels = u.shape
        states = a.shape[1]
        width = -(-channels // LANES) * LANES
        zeros = torch.zeros(channels)
        arrays = (
            as_array(u, width), as_array(delta, width), as_array(a.detach().float().t() * _LOG2E, width),
            as_array(b, states), as_array(c, states), as_array(zeros if d is None else d, width),
            as_array(u if z is None else z, width), as_array(zeros if bias is None else bias, width),
        )  # fmt: skip
        keep = recording and any(ctx.needs_input_grad)
        chunks = -(-length // CHUNK) if keep else 0
        saved = torch.empty(batch, chunks, states, width).numpy()
        out = torch.empty(batch, length, width)
        tasks = batch * -(-width // GROUP) if length else 0
        run_tasks(_kernels()[0], tasks, *arrays, z is not None, reverse, out.numpy(), saved, keep)
        if keep:
            ctx.save_for_backward(u, delta, a, b, c, d, z, bias)
            ctx.arrays, ctx.saved, ctx.reverse = arrays, saved, reverse
        return out[..., :channels].to(u.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, a, b, c, d, z, bias = ctx.saved_tensors
        batch, length, channels = u.shape
        states = a.shape[1]
        width = ctx.arrays[0].shape[-1]
        groups = -(-width // GROUP)
        per_token = [torch.empty(batch, length, width) for _ in range(2 if z is None else 3)]
        du, ddelta, dz = per_token if z is not None else [*per_token, per_token[0]]
        da = torch.zeros(batch, states, width)
        db, dc = torch.zeros(groups, batch, length, states), torch.zeros(groups, batch, length, states)
        dd, dbias = torch.zeros(batch, width), torch.zeros(batch, width)
        run_tasks(
            _kernels()[1], batch * groups if length else 0, *ctx.arrays, z is not None, ctx.reverse,
            ctx.saved, as_array(dout, width), du.numpy(), ddelta.numpy(), da.numpy(), db.numpy(),
            dc.numpy(), dd.numpy(), dz.numpy(), dbias.numpy(),
        )  # fmt: skip
        return (
            du[..., :channels].to(u.dtype), ddelta[..., :channels].to(delta.dtype),
            da.sum(0)[:, :channels].t().to(a.dtype), db.sum(0).to(b.dtype), dc.sum(0).to(c.dtype),
            None if d is None else dd.sum(0)[:channels].to(d.dtype),
            None if z is None else dz[..., :channels].to(z.dtype),
            None if bias is None else dbias.sum(0)[:channels].to(bias.dtype), None, None,
        )  # fmt: skip


def selective_scan_cpu(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
                       delta_bias: Tensor | None, reverse: bool) -> Tensor:  # fmt: skip
    """The scan of `ssamba.ops.selective_scan` by JIT-compiled kernels; inputs on the CPU, arithmetic in float32."""
    # Inside apply, gradients are off and needs_input_grad is blind to it: under no_grad nothing need be kept.
    result: Tensor = _SelectiveScan.apply(u, delta, a, b, c, d, z, delta_bias, reverse, torch.is_grad_enabled())
    return result
