"""State space duality on a CPU: numba kernels over 16 channels a vector, states in registers.

Shapes: B batch, L tokens, H heads, P channels of a head, E = H P, N state size.

They walk as the scan's kernels do (ssamba/ops/scan/cpu.py): in chunks of `CHUNK` tokens, of which backward replays
each from the state that forward kept at its start, `BLOCK` of the N states at a time. But a head has one decay a token,
made before, where that scan takes an exponential for each channel and state: a state costs its multiply-adds alone. At
the N of these encoders that is less than the dual form's products of matrices cost, which read and write every tensor
again and again. The work is cut into (clip, head or heads) tasks by the shapes alone, so results are bitwise the same
for every number of threads; a task does both directions, since they share input, output and gate.
"""

import numpy as np
import torch
from numba import njit
from numba.extending import register_jitable
from torch import Tensor

from ssamba.ops.kernel_cache import compile_kernel
from ssamba.ops.kernels import as_float, run_tasks
from ssamba.ops.simd import (
    LANES,
    claim,
    flag,
    fma,
    integer,
    load,
    logistic,
    prefetch,
    splat,
    spread,
    store,
    tensor,
    total,
)

CHUNK = 16
BLOCK = 4  # states at once; N is filled up to a multiple of it with states that stay 0
GROUP = 16 * LANES  # channels of a backward task: the more, the fewer sums across lanes for the gradients of B and C


@njit(nogil=True, error_model="numpy")
def _forward(call, x, step, decay, b, c, d, z, out, saved, keep):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    heads, states = step.shape[3], b.shape[3]
    dim = width // heads
    row = CHUNK * LANES
    h = np.empty(dim * states, np.float32)
    drives = np.empty(row, np.float32)
    factors = np.empty(row, np.float32)
    ys = np.empty(row, np.float32)
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // heads
        head = task % heads
        start = head * dim
        for k in range(2):
            for i in range(0, dim * states, LANES):
                store(h, (i,), splat(0.0))
            for begin in range(0, length, CHUNK):
                count = min(CHUNK, length - begin)
                for j in range(count):
                    t = length - 1 - begin - j if k else begin + j
                    store(factors, (j * LANES,), spread(decay, (k, clip, t, head)))
                for e in range(start, start + dim, LANES):
                    own = (e - start) * states
                    if keep:
                        for n in range(states):
                            store(saved, (k, clip, begin // CHUNK, n, e), load(h, (own + n * LANES,)))
                    for j in range(count):
                        t = length - 1 - begin - j if k else begin + j
                        upcoming = t - CHUNK if k else t + CHUNK
                        prefetch(x, (clip, upcoming, e))
                        if k:
                            prefetch(out, (clip, upcoming, e))
                            prefetch(z, (clip, upcoming, e))
                        value = load(x, (clip, t, e))
                        store(drives, (j * LANES,), spread(step, (k, clip, t, head)) * value)
                        store(ys, (j * LANES,), load(out, (clip, t, e)) if k else load(d, (e,)) * value)
                    for n in range(0, states, BLOCK):
                        at = own + n * LANES
                        h_0, h_1 = load(h, (at,)), load(h, (at + LANES,))
                        h_2, h_3 = load(h, (at + 2 * LANES,)), load(h, (at + 3 * LANES,))
                        for j in range(count):
                            t = length - 1 - begin - j if k else begin + j
                            factor, drive = load(factors, (j * LANES,)), load(drives, (j * LANES,))
                            h_0 = fma(factor, h_0, drive * spread(b, (k, clip, t, n)))
                            h_1 = fma(factor, h_1, drive * spread(b, (k, clip, t, n + 1)))
                            h_2 = fma(factor, h_2, drive * spread(b, (k, clip, t, n + 2)))
                            h_3 = fma(factor, h_3, drive * spread(b, (k, clip, t, n + 3)))
                            y = fma(h_0, spread(c, (k, clip, t, n)), load(ys, (j * LANES,)))
                            y = fma(h_1, spread(c, (k, clip, t, n + 1)), y)
                            y = fma(h_2, spread(c, (k, clip, t, n + 2)), y)
                            store(ys, (j * LANES,), fma(h_3, spread(c, (k, clip, t, n + 3)), y))
                        store(h, (at,), h_0)
                        store(h, (at + LANES,), h_1)
                        store(h, (at + 2 * LANES,), h_2)
                        store(h, (at + 3 * LANES,), h_3)
                    for j in range(count):
                        t = length - 1 - begin - j if k else begin + j
                        y = load(ys, (j * LANES,))
                        if k:
                            gate = load(z, (clip, t, e))
                            y = y * gate * logistic(gate)
                        store(out, (clip, t, e), y)


@register_jitable
def _replay(factor, drive, h, b, at, trail, i):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One token of one state as in the forward pass; its new state is written down."""
    h = fma(factor, h, drive * spread(b, at))
    store(trail, (i,), h)
    return h


@register_jitable
def _turn_back(g, sums, token, b, c, at, trail, i, sum_b, sum_c, s):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One token of one state in reverse: g is dL/dh from the tokens after it, then for those before it."""
    y, from_input, from_decay = sums
    dy, factor, drive = token
    out = spread(c, at)
    g = fma(dy, out, g)
    after = load(trail, (i + BLOCK * LANES,))
    store(sum_c, (s,), fma(dy, after, load(sum_c, (s,))))
    store(sum_b, (s,), fma(g, drive, load(sum_b, (s,))))
    y = fma(after, out, y)
    from_input = fma(g, spread(b, at), from_input)
    from_decay = fma(g, load(trail, (i,)), from_decay)
    return g * factor, (y, from_input, from_decay)


@njit(nogil=True, error_model="numpy")
def _backward(call, x, step, decay, b, c, d, z, saved, dout, dx, dstep, ddecay, db, dc, dd, dz):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    heads, states = step.shape[3], b.shape[3]
    dim = width // heads
    task_heads = max(1, GROUP // dim)
    groups = (heads + task_heads - 1) // task_heads
    chunks = (length + CHUNK - 1) // CHUNK
    row = CHUNK * LANES
    zero = splat(0.0)
    grads = np.empty(task_heads * dim * states, np.float32)
    sum_b = np.empty(states * row, np.float32)
    sum_c = np.empty(states * row, np.float32)
    factors, drives, dys = np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32)
    ys, from_inputs, from_decays = np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32)
    from_steps = np.empty(row, np.float32)
    trail = np.empty(BLOCK * (row + LANES), np.float32)
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // groups
        group = task % groups
        first = group * task_heads
        start = first * dim
        for k in range(2):
            for i in range(0, task_heads * dim * states, LANES):
                store(grads, (i,), zero)
            for chunk in range(chunks - 1, -1, -1):
                begin = chunk * CHUNK
                count = min(CHUNK, length - begin)
                for i in range(0, states * row, LANES):
                    store(sum_b, (i,), zero)
                    store(sum_c, (i,), zero)
                for head in range(first, min(first + task_heads, heads)):
                    for j in range(count):
                        t = length - 1 - begin - j if k else begin + j
                        store(factors, (j * LANES,), spread(decay, (k, clip, t, head)))
                        store(from_steps, (j * LANES,), zero)
                        store(from_decays, (j * LANES,), zero)
                    for e in range(head * dim, (head + 1) * dim, LANES):
                        for j in range(count):
                            t = length - 1 - begin - j if k else begin + j
                            upcoming = t + CHUNK if k else t - CHUNK
                            prefetch(x, (clip, upcoming, e))
                            prefetch(dout, (clip, upcoming, e))
                            prefetch(z, (clip, upcoming, e))
                            if j < states:
                                prefetch(saved, (k, clip, chunk - 1, j, e))
                            store(drives, (j * LANES,), spread(step, (k, clip, t, head)) * load(x, (clip, t, e)))
                            gate = load(z, (clip, t, e))
                            store(dys, (j * LANES,), load(dout, (clip, t, e)) * gate * logistic(gate))
                            store(ys, (j * LANES,), zero)
                            store(from_inputs, (j * LANES,), zero)
                        for n in range(0, states, BLOCK):
                            h_0, h_1 = load(saved, (k, clip, chunk, n, e)), load(saved, (k, clip, chunk, n + 1, e))
                            h_2, h_3 = load(saved, (k, clip, chunk, n + 2, e)), load(saved, (k, clip, chunk, n + 3, e))
                            store(trail, (0,), h_0)
                            store(trail, (LANES,), h_1)
                            store(trail, (2 * LANES,), h_2)
                            store(trail, (3 * LANES,), h_3)
                            for j in range(count):
                                t = length - 1 - begin - j if k else begin + j
                                i = (j + 1) * BLOCK * LANES
                                factor, drive = load(factors, (j * LANES,)), load(drives, (j * LANES,))
                                h_0 = _replay(factor, drive, h_0, b, (k, clip, t, n), trail, i)
                                h_1 = _replay(factor, drive, h_1, b, (k, clip, t, n + 1), trail, i + LANES)
                                h_2 = _replay(factor, drive, h_2, b, (k, clip, t, n + 2), trail, i + 2 * LANES)
                                h_3 = _replay(factor, drive, h_3, b, (k, clip, t, n + 3), trail, i + 3 * LANES)
                            at = (e - start) * states + n * LANES
                            g_0, g_1 = load(grads, (at,)), load(grads, (at + LANES,))
                            g_2, g_3 = load(grads, (at + 2 * LANES,)), load(grads, (at + 3 * LANES,))
                            for j in range(count - 1, -1, -1):
                                t = length - 1 - begin - j if k else begin + j
                                i = j * BLOCK * LANES
                                s = n * row + j * LANES
                                w = j * LANES
                                token = load(dys, (w,)), load(factors, (w,)), load(drives, (w,))
                                sums = load(ys, (w,)), load(from_inputs, (w,)), load(from_decays, (w,))
                                g_0, sums = _turn_back(
                                    g_0, sums, token, b, c, (k, clip, t, n), trail, i, sum_b, sum_c, s
                                )
                                g_1, sums = _turn_back(
                                    g_1, sums, token, b, c, (k, clip, t, n + 1), trail, i + LANES, sum_b, sum_c, s + row
                                )
                                g_2, sums = _turn_back(
                                    g_2,
                                    sums,
                                    token,
                                    b,
                                    c,
                                    (k, clip, t, n + 2),
                                    trail,
                                    i + 2 * LANES,
                                    sum_b,
                                    sum_c,
                                    s + 2 * row,
                                )
                                g_3, sums = _turn_back(
                                    g_3,
                                    sums,
                                    token,
                                    b,
                                    c,
                                    (k, clip, t, n + 3),
                                    trail,
                                    i + 3 * LANES,
                                    sum_b,
                                    sum_c,
                                    s + 3 * row,
                                )
                                store(ys, (w,), sums[0])
                                store(from_inputs, (w,), sums[1])
                                store(from_decays, (w,), sums[2])
                            store(grads, (at,), g_0)
                            store(grads, (at + LANES,), g_1)
                            store(grads, (at + 2 * LANES,), g_2)
                            store(grads, (at + 3 * LANES,), g_3)
                        skip = load(d, (e,))
                        for j in range(count):
                            t = length - 1 - begin - j if k else begin + j
                            w = j * LANES
                            value, dy, from_input = load(x, (clip, t, e)), load(dys, (w,)), load(from_inputs, (w,))
                            y = load(ys, (w,))
                            store(from_steps, (w,), fma(from_input, value, load(from_steps, (w,))))
                            change = from_input * spread(step, (k, clip, t, head))
                            if k:
                                change = change + load(dx, (clip, t, e))
                            else:
                                change = fma(dy, skip, change)
                                y = fma(skip, value, y)
                                store(dd, (clip, e), fma(dy, value, load(dd, (clip, e))))
                            store(dx, (clip, t, e), change)
                            gate = load(z, (clip, t, e))
                            sigma = logistic(gate)
                            change = load(dout, (clip, t, e)) * y * sigma
                            change = change * fma(gate, splat(1.0) - sigma, splat(1.0))
                            store(dz, (clip, t, e), change + load(dz, (clip, t, e)) if k else change)
                    for j in range(count):
                        t = length - 1 - begin - j if k else begin + j
                        dstep[k, clip, t, head] = total(load(from_steps, (j * LANES,)))
                        ddecay[k, clip, t, head] = total(load(from_decays, (j * LANES,)))
                for j in range(count):
                    t = length - 1 - begin - j if k else begin + j
                    for n in range(states):
                        db[group, k, clip, t, n] = total(load(sum_b, (n * row + j * LANES,)))
                        dc[group, k, clip, t, n] = total(load(sum_c, (n * row + j * LANES,)))


@register_jitable
def _inputs(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    """x, step, decay, b, c, d, z: what both passes take first."""
    return (
        tensor(call, 0, 3),
        tensor(call, 1, 4),
        tensor(call, 2, 4),
        tensor(call, 3, 4),
        tensor(call, 4, 4),
        tensor(call, 5, 1),
        tensor(call, 6, 3),
    )


def _call_forward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _forward(call, *_inputs(call), tensor(call, 7, 3), tensor(call, 8, 5), flag(call, 9))


def _call_backward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _backward(
        call,
        *_inputs(call),
        tensor(call, 7, 5),
        tensor(call, 8, 3),
        tensor(call, 9, 3),
        tensor(call, 10, 4),
        tensor(call, 11, 4),
        tensor(call, 12, 5),
        tensor(call, 13, 5),
        tensor(call, 14, 2),
        tensor(call, 15, 3),
    )


def saved_shape(x: Tensor, b: Tensor) -> tuple[int, ...]:
    """Of what `forward` keeps: the states before each chunk, (2, B, chunks, N, E), N filled up."""
    return 2, x.shape[0], -(-x.shape[1] // CHUNK), -(-b.shape[3] // BLOCK) * BLOCK, x.shape[2]


def _inputs_of(
    x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor
) -> tuple[list[Tensor], Tensor]:
    """What both passes take first, and the decays among it."""
    width, heads, states = x.shape[2], step.shape[3], saved_shape(x, b)[3]
    decay = log_decay.detach().float().exp()
    return [
        as_float(x, width),
        as_float(step, heads),
        decay,
        as_float(b, states),
        as_float(c, states),
        d.detach().float().repeat_interleave(width // heads),
        as_float(z, width),
    ], decay


def forward(
    x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """See `ssamba.ops.ssd`; arithmetic in float32. x and z are (B, L, E)."""
    out = torch.empty(x.shape)
    saved = torch.empty(saved_shape(x, b) if keep else (0, 0, 0, 0, 0))
    inputs, _ = _inputs_of(x, step, log_decay, b, c, d, z)
    run_tasks(compile_kernel(_call_forward), len(x) * step.shape[3], [*inputs, out, saved, keep])
    return out.to(x.dtype), saved if keep else saved.flatten()


def backward(
    dout: Tensor,
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    saved: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of the seven inputs of `forward`, each in its input's shape and dtype."""
    batch, length, width = x.shape
    heads, states, own = step.shape[3], saved.shape[3], b.shape[3]
    groups = -(-heads // max(1, GROUP // (width // heads)))
    dx, dz = torch.empty(batch, length, width), torch.empty(batch, length, width)
    dstep, ddecay = torch.empty(2, batch, length, heads), torch.empty(2, batch, length, heads)
    db, dc = (torch.empty(groups, 2, batch, length, states) for _ in "bc")
    dd = torch.zeros(batch, width)
    inputs, decay = _inputs_of(x, step, log_decay, b, c, d, z)
    run_tasks(
        compile_kernel(_call_backward),
        batch * groups,
        [*inputs, saved, as_float(dout, width), dx, dstep, ddecay, db, dc, dd, dz],
    )
    return (
        dx.to(x.dtype),
        dstep.to(step.dtype),
        ddecay.mul_(decay).to(log_decay.dtype),
        db.sum(0)[..., :own].to(b.dtype),
        dc.sum(0)[..., :own].to(c.dtype),
        dd.sum(0).view(heads, -1).sum(1).to(d.dtype),
        dz.to(z.dtype),
    )
