"""The selective scan on a CPU: numba kernels over 16 channels a vector, states in registers.

Shapes: K directions, B batch, L tokens, E inner width (channels), N state size.

Both passes take the tokens in chunks of `CHUNK` and, inside one, `BLOCK` of the N states at a time, so that these stay
in registers while the chunk's tokens go by. Forward keeps, for the backward pass, the state at the start of every
chunk: as much memory as `u` when N equals CHUNK. Backward takes the chunks from the last to the first and replays each
from its saved state before it walks it in reverse, so no (B, L, E, N) tensor ever exists. The work is cut into (clip,
group of channels) tasks whose number depends on the shapes alone, so results are bitwise the same for every number of
threads; a task does both directions, since they share the output and the gate.

To change it: `GROUP` and `BACKWARD_GROUP` may be tuned, by benchmarks/scan.py. `CHUNK` also decides what forward keeps,
and `BLOCK` is written out in both passes, as states 0 to 3. The tests are tests/ops/test_scan.py, and
tests/ops/test_processes.py for the same bits on any number of threads.
"""

import numpy as np
import torch
from numba import njit
from numba.extending import register_jitable
from torch import Tensor

from ssamba.ops.kernel_cache import compile_kernel
from ssamba.ops.kernels import as_float, run_tasks
from ssamba.ops.scan import chunked
from ssamba.ops.scan.gradients import Gradients
from ssamba.ops.simd import (
    LANES,
    claim,
    exp2,
    flag,
    fma,
    integer,
    load,
    logistic,
    prefetch,
    softplus,
    splat,
    spread,
    store,
    tensor,
    total,
)

CHUNK = 16
BLOCK = 4  # states at once; N is filled up to a multiple of it with states that stay 0
GROUP = 4 * LANES  # channels a task: few enough to share one clip among cores
BACKWARD_GROUP = 8 * LANES  # the more, the fewer sums across lanes for the gradients of B and C
_LOG2E = 1.4426950408889634


@register_jitable
def _replay(step, drive, rate, h, b, at, decay, trail, i):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One token of one state as in the forward pass; its decay and new state are written down."""
    factor = exp2(step * rate)
    store(decay, (i,), factor)
    h = fma(factor, h, drive * spread(b, at))
    store(trail, (i + BLOCK * LANES,), h)
    return h


@register_jitable
def _turn_back(g, da, sums, token, rate, b, c, at, decay, trail, i, sum_b, sum_c, s):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One token of one state in reverse: g is dL/dh from the tokens after it, then for those before it."""
    y, from_input, from_decay = sums
    dy, step, drive = token
    out = spread(c, at)
    g = fma(dy, out, g)
    after = load(trail, (i + BLOCK * LANES,))
    store(sum_c, (s,), fma(dy, after, load(sum_c, (s,))))
    store(sum_b, (s,), fma(g, drive, load(sum_b, (s,))))
    y = fma(after, out, y)
    from_input = fma(g, spread(b, at), from_input)
    g = g * load(decay, (i,))
    q = g * load(trail, (i,))
    return g, fma(q, step, da), (y, from_input, fma(q, rate, from_decay))


@njit(nogil=True, error_model="numpy")
def _forward(call, u, delta, a2, b, c, d, z, bias, gated, reverse, out, saved, keep):  # type: ignore[no-untyped-def]  # pragma: no cover
    directions, length, width = u.shape[0], u.shape[2], u.shape[3]
    states = a2.shape[1]
    groups = (width + GROUP - 1) // GROUP
    h = np.empty(GROUP * states, np.float32)
    steps = np.empty(CHUNK * LANES, np.float32)
    drives = np.empty(CHUNK * LANES, np.float32)
    ys = np.empty(CHUNK * LANES, np.float32)
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // groups
        start = (task % groups) * GROUP
        stop = min(start + GROUP, width)
        for k in range(directions):
            backwards = (k == 1) != reverse
            for i in range(0, GROUP * states, LANES):
                store(h, (i,), splat(0.0))
            for begin in range(0, length, CHUNK):
                count = min(CHUNK, length - begin)
                for e in range(start, stop, LANES):
                    own = (e - start) * states
                    if keep:
                        for n in range(states):
                            store(saved, (k, clip, begin // CHUNK, n, e), load(h, (own + n * LANES,)))
                    for j in range(count):
                        t = length - 1 - begin - j if backwards else begin + j
                        upcoming = t - CHUNK if backwards else t + CHUNK
                        prefetch(u, (k, clip, upcoming, e))
                        prefetch(delta, (k, clip, upcoming, e))
                        if k > 0:
                            prefetch(out, (clip, upcoming, e))
                        if gated and k == directions - 1:
                            prefetch(z, (clip, upcoming, e))
                        value = load(u, (k, clip, t, e))
                        step = softplus(load(delta, (k, clip, t, e)) + load(bias, (k, e)))
                        store(steps, (j * LANES,), step)
                        store(drives, (j * LANES,), step * value)
                        y = load(d, (k, e)) * value
                        store(ys, (j * LANES,), y if k == 0 else y + load(out, (clip, t, e)))
                    for n in range(0, states, BLOCK):
                        at = own + n * LANES
                        a_0, a_1 = load(a2, (k, n, e)), load(a2, (k, n + 1, e))
                        a_2, a_3 = load(a2, (k, n + 2, e)), load(a2, (k, n + 3, e))
                        h_0, h_1 = load(h, (at,)), load(h, (at + LANES,))
                        h_2, h_3 = load(h, (at + 2 * LANES,)), load(h, (at + 3 * LANES,))
                        for j in range(count):
                            t = length - 1 - begin - j if backwards else begin + j
                            step, drive = load(steps, (j * LANES,)), load(drives, (j * LANES,))
                            h_0 = fma(exp2(step * a_0), h_0, drive * spread(b, (k, clip, t, n)))
                            h_1 = fma(exp2(step * a_1), h_1, drive * spread(b, (k, clip, t, n + 1)))
                            h_2 = fma(exp2(step * a_2), h_2, drive * spread(b, (k, clip, t, n + 2)))
                            h_3 = fma(exp2(step * a_3), h_3, drive * spread(b, (k, clip, t, n + 3)))
                            y = fma(h_0, spread(c, (k, clip, t, n)), load(ys, (j * LANES,)))
                            y = fma(h_1, spread(c, (k, clip, t, n + 1)), y)
                            y = fma(h_2, spread(c, (k, clip, t, n + 2)), y)
                            store(ys, (j * LANES,), fma(h_3, spread(c, (k, clip, t, n + 3)), y))
                        store(h, (at,), h_0)
                        store(h, (at + LANES,), h_1)
                        store(h, (at + 2 * LANES,), h_2)
                        store(h, (at + 3 * LANES,), h_3)
                    for j in range(count):
                        t = length - 1 - begin - j if backwards else begin + j
                        y = load(ys, (j * LANES,))
                        if gated and k == directions - 1:
                            gate = load(z, (clip, t, e))
                            y = y * gate * logistic(gate)
                        store(out, (clip, t, e), y)


@njit(nogil=True, error_model="numpy")
def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    call,
    u,
    delta,
    a2,
    b,
    c,
    d,
    z,
    bias,
    gated,
    reverse,
    saved,
    dout,
    du,
    ddelta,
    da,
    db,
    dc,
    dd,
    dz,
    dbias,
):
    directions, length, width = u.shape[0], u.shape[2], u.shape[3]
    states = a2.shape[1]
    groups = (width + BACKWARD_GROUP - 1) // BACKWARD_GROUP
    chunks = (length + CHUNK - 1) // CHUNK
    row = CHUNK * LANES
    zero = splat(0.0)
    grads = np.empty(BACKWARD_GROUP * states, np.float32)  # dL/dh, carried from chunk to chunk
    sum_b = np.empty(states * row, np.float32)
    sum_c = np.empty(states * row, np.float32)
    steps, drives, dys = np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32)
    ys, from_inputs, from_decays = np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32)
    decay = np.empty(BLOCK * row, np.float32)
    trail = np.empty(BLOCK * (row + LANES), np.float32)  # the states of one chunk, the entering ones first
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // groups
        group = task % groups
        start = group * BACKWARD_GROUP
        stop = min(start + BACKWARD_GROUP, width)
        for k in range(directions):
            backwards = (k == 1) != reverse
            for i in range(0, BACKWARD_GROUP * states, LANES):
                store(grads, (i,), zero)
            for e in range(start, stop, LANES):
                store(dd, (k, clip, e), zero)
                store(dbias, (k, clip, e), zero)
                for n in range(states):
                    store(da, (k, clip, n, e), zero)
            for chunk in range(chunks - 1, -1, -1):
                begin = chunk * CHUNK
                count = min(CHUNK, length - begin)
                for i in range(0, states * row, LANES):
                    store(sum_b, (i,), zero)
                    store(sum_c, (i,), zero)
                for e in range(start, stop, LANES):
                    for j in range(count):
                        t = length - 1 - begin - j if backwards else begin + j
                        upcoming = t + CHUNK if backwards else t - CHUNK
                        prefetch(u, (k, clip, upcoming, e))
                        prefetch(delta, (k, clip, upcoming, e))
                        prefetch(dout, (clip, upcoming, e))
                        if gated:
                            prefetch(z, (clip, upcoming, e))
                        if j < states:
                            prefetch(saved, (k, clip, chunk - 1, j, e))
                        value = load(u, (k, clip, t, e))
                        step = softplus(load(delta, (k, clip, t, e)) + load(bias, (k, e)))
                        store(steps, (j * LANES,), step)
                        store(drives, (j * LANES,), step * value)
                        dy = load(dout, (clip, t, e))
                        if gated:
                            gate = load(z, (clip, t, e))
                            dy = dy * gate * logistic(gate)
                        store(dys, (j * LANES,), dy)
                        store(ys, (j * LANES,), load(d, (k, e)) * value)
                        store(from_inputs, (j * LANES,), zero)
                        store(from_decays, (j * LANES,), zero)
                    for n in range(0, states, BLOCK):
                        a_0, a_1 = load(a2, (k, n, e)), load(a2, (k, n + 1, e))
                        a_2, a_3 = load(a2, (k, n + 2, e)), load(a2, (k, n + 3, e))
                        h_0, h_1 = load(saved, (k, clip, chunk, n, e)), load(saved, (k, clip, chunk, n + 1, e))
                        h_2, h_3 = load(saved, (k, clip, chunk, n + 2, e)), load(saved, (k, clip, chunk, n + 3, e))
                        store(trail, (0,), h_0)
                        store(trail, (LANES,), h_1)
                        store(trail, (2 * LANES,), h_2)
                        store(trail, (3 * LANES,), h_3)
                        for j in range(count):
                            t = length - 1 - begin - j if backwards else begin + j
                            i = j * BLOCK * LANES
                            step, drive = load(steps, (j * LANES,)), load(drives, (j * LANES,))
                            h_0 = _replay(step, drive, a_0, h_0, b, (k, clip, t, n), decay, trail, i)
                            h_1 = _replay(step, drive, a_1, h_1, b, (k, clip, t, n + 1), decay, trail, i + LANES)
                            h_2 = _replay(step, drive, a_2, h_2, b, (k, clip, t, n + 2), decay, trail, i + 2 * LANES)
                            h_3 = _replay(step, drive, a_3, h_3, b, (k, clip, t, n + 3), decay, trail, i + 3 * LANES)
                        at = (e - start) * states + n * LANES
                        g_0, g_1 = load(grads, (at,)), load(grads, (at + LANES,))
                        g_2, g_3 = load(grads, (at + 2 * LANES,)), load(grads, (at + 3 * LANES,))
                        da_0, da_1 = load(da, (k, clip, n, e)), load(da, (k, clip, n + 1, e))
                        da_2, da_3 = load(da, (k, clip, n + 2, e)), load(da, (k, clip, n + 3, e))
                        for j in range(count - 1, -1, -1):
                            t = length - 1 - begin - j if backwards else begin + j
                            i = j * BLOCK * LANES
                            s = n * row + j * LANES
                            token = load(dys, (j * LANES,)), load(steps, (j * LANES,)), load(drives, (j * LANES,))
                            sums = (
                                load(ys, (j * LANES,)),
                                load(from_inputs, (j * LANES,)),
                                load(from_decays, (j * LANES,)),
                            )
                            g_0, da_0, sums = _turn_back(
                                g_0,
                                da_0,
                                sums,
                                token,
                                a_0,
                                b,
                                c,
                                (k, clip, t, n),
                                decay,
                                trail,
                                i,
                                sum_b,
                                sum_c,
                                s,
                            )
                            g_1, da_1, sums = _turn_back(
                                g_1,
                                da_1,
                                sums,
                                token,
                                a_1,
                                b,
                                c,
                                (k, clip, t, n + 1),
                                decay,
                                trail,
                                i + LANES,
                                sum_b,
                                sum_c,
                                s + row,
                            )
                            g_2, da_2, sums = _turn_back(
                                g_2,
                                da_2,
                                sums,
                                token,
                                a_2,
                                b,
                                c,
                                (k, clip, t, n + 2),
                                decay,
                                trail,
                                i + 2 * LANES,
                                sum_b,
                                sum_c,
                                s + 2 * row,
                            )
                            g_3, da_3, sums = _turn_back(
                                g_3,
                                da_3,
                                sums,
                                token,
                                a_3,
                                b,
                                c,
                                (k, clip, t, n + 3),
                                decay,
                                trail,
                                i + 3 * LANES,
                                sum_b,
                                sum_c,
                                s + 3 * row,
                            )
                            store(ys, (j * LANES,), sums[0])
                            store(from_inputs, (j * LANES,), sums[1])
                            store(from_decays, (j * LANES,), sums[2])
                        store(grads, (at,), g_0)
                        store(grads, (at + LANES,), g_1)
                        store(grads, (at + 2 * LANES,), g_2)
                        store(grads, (at + 3 * LANES,), g_3)
                        store(da, (k, clip, n, e), da_0)
                        store(da, (k, clip, n + 1, e), da_1)
                        store(da, (k, clip, n + 2, e), da_2)
                        store(da, (k, clip, n + 3, e), da_3)
                    sum_d, sum_bias = load(dd, (k, clip, e)), load(dbias, (k, clip, e))
                    for j in range(count):
                        t = length - 1 - begin - j if backwards else begin + j
                        value, dy = load(u, (k, clip, t, e)), load(dys, (j * LANES,))
                        from_input = load(from_inputs, (j * LANES,))
                        slope = logistic(load(delta, (k, clip, t, e)) + load(bias, (k, e)))
                        from_decay = load(from_decays, (j * LANES,)) * splat(0.6931471805599453)  # a2 is A / ln 2
                        change = fma(from_input, value, from_decay) * slope
                        store(ddelta, (k, clip, t, e), change)
                        sum_bias = sum_bias + change
                        store(du, (k, clip, t, e), fma(from_input, load(steps, (j * LANES,)), dy * load(d, (k, e))))
                        sum_d = fma(dy, value, sum_d)
                        if gated:
                            gate = load(z, (clip, t, e))
                            sigma = logistic(gate)
                            change = load(dout, (clip, t, e)) * load(ys, (j * LANES,)) * sigma
                            change = change * fma(gate, splat(1.0) - sigma, splat(1.0))
                            store(dz, (clip, t, e), change if k == 0 else change + load(dz, (clip, t, e)))
                    store(dd, (k, clip, e), sum_d)
                    store(dbias, (k, clip, e), sum_bias)
                for j in range(count):
                    t = length - 1 - begin - j if backwards else begin + j
                    for n in range(states):
                        db[group, k, clip, t, n] = total(load(sum_b, (n * row + j * LANES,)))
                        dc[group, k, clip, t, n] = total(load(sum_c, (n * row + j * LANES,)))


@register_jitable
def _inputs(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    """u, delta, a2, b, c, d, z, bias, gated, reverse: what both passes take first."""
    return (
        tensor(call, 0, 4),
        tensor(call, 1, 4),
        tensor(call, 2, 3),
        tensor(call, 3, 4),
        tensor(call, 4, 4),
        tensor(call, 5, 2),
        tensor(call, 6, 3),
        tensor(call, 7, 2),
        flag(call, 8),
        flag(call, 9),
    )


def _call_forward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _forward(call, *_inputs(call), tensor(call, 10, 3), tensor(call, 11, 5), flag(call, 12))


def _call_backward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _backward(
        call,
        *_inputs(call),
        tensor(call, 10, 5),
        tensor(call, 11, 3),
        tensor(call, 12, 4),
        tensor(call, 13, 4),
        tensor(call, 14, 4),
        tensor(call, 15, 5),
        tensor(call, 16, 5),
        tensor(call, 17, 3),
        tensor(call, 18, 3),
        tensor(call, 19, 3),
    )


def _sizes(u: Tensor, a: Tensor) -> tuple[int, int, int]:
    """(chunks, states, width), the last two filled up to what the kernels take at once."""
    return -(-u.shape[2] // CHUNK), -(-a.shape[2] // BLOCK) * BLOCK, -(-u.shape[3] // LANES) * LANES


def saved_shape(u: Tensor, a: Tensor) -> tuple[int, ...]:
    """Of what `forward` keeps: the states before each chunk, (K, B, chunks, N, E)."""
    return u.shape[0], u.shape[1], *_sizes(u, a)


def _grows(a: Tensor) -> bool:
    """Whether a state may grow: the decays of a positive A can be more than `exp2` gives, so plain torch computes them,
    in chunks as long as ours."""
    return bool((a.float() > 0).any())


def _inputs_of(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None, bias: Tensor | None
) -> list[Tensor | bool]:
    _, states, width = _sizes(u, a)
    rates = torch.nn.functional.pad(a.detach().float().transpose(1, 2) * _LOG2E, (0, 0, 0, states - a.shape[2]))
    none = torch.zeros(len(u), width)
    return [
        as_float(u, width),
        as_float(delta, width),
        as_float(rates, width),
        as_float(b, states),
        as_float(c, states),
        as_float(none if d is None else d, width),
        as_float(u[0] if z is None else z, width),
        as_float(none if bias is None else bias, width),
        z is not None,
    ]


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
    """See `ssamba.ops.scan`; arithmetic in float32."""
    batch, length, channels = u.shape[1:]
    if _grows(a):
        y, states = chunked.forward(u, delta, a, b, c, d, z, bias, reverse, keep)
        saved = u.new_zeros(saved_shape(u, a) if keep else 0, dtype=torch.float32)
        if keep:
            saved[..., : a.shape[2], :channels] = states.permute(0, 2, 1, 4, 3)
        return y, saved
    width = _sizes(u, a)[2]
    saved = torch.empty(saved_shape(u, a) if keep else (0, 0, 0, 0, 0))
    out = torch.empty(batch, length, width)
    tasks = batch * -(-width // GROUP) if length else 0
    inputs = _inputs_of(u, delta, a, b, c, d, z, bias)
    run_tasks(compile_kernel(_call_forward), tasks, [*inputs, reverse, out, saved, keep])
    return out[..., :channels].to(u.dtype), saved if keep else saved.flatten()


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
    directions, batch, length, channels = u.shape
    kept = a.shape[2]
    if _grows(a):
        before = saved[..., :kept, :channels].permute(0, 2, 1, 4, 3)
        return chunked.backward(dout, u, delta, a, b, c, d, z, bias, before, reverse)
    _, states, width = _sizes(u, a)
    groups = -(-width // BACKWARD_GROUP)
    du, ddelta = torch.empty(directions, batch, length, width), torch.empty(directions, batch, length, width)
    dz = torch.empty((batch, length, width) if z is not None else (0, 0, 0))
    tasks = batch * groups if length else 0
    new = torch.empty if tasks else torch.zeros  # the kernel fills all of them
    da, db, dc = new(directions, batch, states, width), *(new(groups, directions, batch, length, states) for _ in "bc")
    dd, dbias = new(directions, batch, width), new(directions, batch, width)
    run_tasks(
        compile_kernel(_call_backward),
        tasks,
        [
            *_inputs_of(u, delta, a, b, c, d, z, bias),
            reverse,
            saved,
            as_float(dout, width),
            du,
            ddelta,
            da,
            db,
            dc,
            dd,
            dz,
            dbias,
        ],
    )
    return Gradients(
        du[..., :channels].to(u.dtype),
        ddelta[..., :channels].to(delta.dtype),
        da.sum(1)[:, :kept, :channels].transpose(1, 2).to(a.dtype),
        db.sum(0)[..., :kept].to(b.dtype),
        dc.sum(0)[..., :kept].to(c.dtype),
        None if d is None else dd.sum(1)[:, :channels].to(d.dtype),
        None if z is None else dz[..., :channels].to(z.dtype),
        None if bias is None else dbias.sum(1)[:, :channels].to(bias.dtype),
    )
