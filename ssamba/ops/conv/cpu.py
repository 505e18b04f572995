"""The causal depthwise convolution and its SiLU on a CPU, fused, channels last: no transposed copies.

Shapes: K directions, B batch, L tokens, E channels, W taps.
"""

import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from ssamba.ops.kernel_cache import compile_kernel
from ssamba.ops.kernels import as_float, run_tasks
from ssamba.ops.simd import LANES, claim, flag, fma, integer, load, logistic, splat, store, tensor

GROUP = 4 * LANES
WINDOW = 4  # taps in registers, all of a usual layer's: fewer are filled up with zeros, more are read again each time


@njit(nogil=True, error_model="numpy")
def _forward(call, x, weight, bias, reverse, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    directions, older = weight.shape[0], weight.shape[1] - WINDOW
    groups = (width + GROUP - 1) // GROUP
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // groups
        start = (task % groups) * GROUP
        for k in range(directions):
            backwards = (k == 1) != reverse
            for e in range(start, min(start + GROUP, width), LANES):
                w_3, w_2 = load(weight, (k, older, e)), load(weight, (k, older + 1, e))
                w_1, w_0 = load(weight, (k, older + 2, e)), load(weight, (k, older + 3, e))
                x_1, x_2, x_3 = splat(0.0), splat(0.0), splat(0.0)  # the tokens visited before
                for i in range(length):
                    t = length - 1 - i if backwards else i
                    x_0 = load(x, (clip, t, e))
                    y = fma(w_0, x_0, fma(w_1, x_1, fma(w_2, x_2, fma(w_3, x_3, load(bias, (k, e))))))
                    for w in range(max(0, older + WINDOW - 1 - i), older):
                        source = i - (older + WINDOW - 1 - w)
                        source = length - 1 - source if backwards else source
                        y = fma(load(weight, (k, w, e)), load(x, (clip, source, e)), y)
                    store(out, (k, clip, t, e), y * logistic(y))
                    x_1, x_2, x_3 = x_0, x_1, x_2


@njit(nogil=True, error_model="numpy")
def _backward(call, x, weight, bias, reverse, dout, dx, dweight, dbias):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    directions, older = weight.shape[0], weight.shape[1] - WINDOW
    groups = (width + GROUP - 1) // GROUP
    zero = splat(0.0)
    tasks = integer(call, 1)
    while True:
        task = claim(call)
        if task >= tasks:
            return
        clip = task // groups
        start = (task % groups) * GROUP
        for k in range(directions):
            backwards = (k == 1) != reverse
            for e in range(start, min(start + GROUP, width), LANES):
                w_3, w_2 = load(weight, (k, older, e)), load(weight, (k, older + 1, e))
                w_1, w_0 = load(weight, (k, older + 2, e)), load(weight, (k, older + 3, e))
                dw_0, dw_1, dw_2, dw_3, db = zero, zero, zero, zero, zero
                dy_1, dy_2, dy_3 = zero, zero, zero  # of the tokens visited after
                x_1, x_2, x_3 = zero, zero, zero
                for j in range(min(WINDOW - 1, length)):  # of the last tokens, the last one first
                    t = j if backwards else length - 1 - j
                    x_1, x_2, x_3 = x_2, x_3, load(x, (clip, t, e))
                for _ in range(length, WINDOW - 1):
                    x_1, x_2, x_3 = x_2, x_3, zero
                for i in range(length - 1, -1, -1):
                    t = length - 1 - i if backwards else i
                    x_0, x_1, x_2, x_3 = x_1, x_2, x_3, zero
                    if i >= WINDOW - 1:
                        source = i - (WINDOW - 1)
                        x_3 = load(x, (clip, length - 1 - source if backwards else source, e))
                    y = fma(w_0, x_0, fma(w_1, x_1, fma(w_2, x_2, fma(w_3, x_3, load(bias, (k, e))))))
                    for w in range(max(0, older + WINDOW - 1 - i), older):
                        source = i - (older + WINDOW - 1 - w)
                        source = length - 1 - source if backwards else source
                        y = fma(load(weight, (k, w, e)), load(x, (clip, source, e)), y)
                    sigma = logistic(y)
                    dy_0 = load(dout, (k, clip, t, e)) * sigma * fma(y, splat(1.0) - sigma, splat(1.0))
                    for w in range(max(0, older + WINDOW - 1 - i), older):
                        source = i - (older + WINDOW - 1 - w)
                        source = length - 1 - source if backwards else source
                        tap = fma(dy_0, load(x, (clip, source, e)), load(dweight, (k, clip, w, e)))
                        store(dweight, (k, clip, w, e), tap)
                        store(dx, (clip, source, e), fma(dy_0, load(weight, (k, w, e)), load(dx, (clip, source, e))))
                    db = db + dy_0
                    dw_0, dw_1 = fma(dy_0, x_0, dw_0), fma(dy_0, x_1, dw_1)
                    dw_2, dw_3 = fma(dy_0, x_2, dw_2), fma(dy_0, x_3, dw_3)
                    change = fma(w_0, dy_0, fma(w_1, dy_1, fma(w_2, dy_2, fma(w_3, dy_3, load(dx, (clip, t, e))))))
                    store(dx, (clip, t, e), change)
                    dy_1, dy_2, dy_3 = dy_0, dy_1, dy_2
                store(dweight, (k, clip, older, e), dw_3)
                store(dweight, (k, clip, older + 1, e), dw_2)
                store(dweight, (k, clip, older + 2, e), dw_1)
                store(dweight, (k, clip, older + 3, e), dw_0)
                store(dbias, (k, clip, e), db)


def _call_forward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _forward(call, tensor(call, 0, 3), tensor(call, 1, 3), tensor(call, 2, 2), flag(call, 3), tensor(call, 4, 4))


def _call_backward(call):  # type: ignore[no-untyped-def]  # pragma: no cover
    _backward(
        call,
        tensor(call, 0, 3),
        tensor(call, 1, 3),
        tensor(call, 2, 2),
        flag(call, 3),
        tensor(call, 4, 4),
        tensor(call, 5, 3),
        tensor(call, 6, 4),
        tensor(call, 7, 3),
    )


def _inputs_of(x: Tensor, weight: Tensor, bias: Tensor, width: int) -> list[Tensor]:
    taps = F.pad(weight.detach().transpose(1, 2), (0, 0, max(0, WINDOW - weight.shape[2]), 0))
    return [as_float(x, width), as_float(taps, width), as_float(bias, width)]


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """See `ssamba.ops.conv`; arithmetic in float32."""
    batch, length, channels = x.shape
    width = -(-channels // LANES) * LANES
    out = torch.empty(len(weight), batch, length, width)
    tasks = batch * -(-width // GROUP)
    run_tasks(compile_kernel(_call_forward), tasks, [*_inputs_of(x, weight, bias, width), reverse, out])
    return out[..., :channels].to(x.dtype)


def backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """See `ssamba.ops.conv`."""
    batch, length, channels = x.shape
    directions, _, taps = weight.shape
    width = -(-channels // LANES) * LANES
    dx = torch.zeros(batch, length, width)
    dweight = torch.zeros(directions, batch, max(WINDOW, taps), width)
    dbias = torch.zeros(directions, batch, width)
    run_tasks(
        compile_kernel(_call_backward),
        batch * -(-width // GROUP),
        [
            *_inputs_of(x, weight, bias, width),
            reverse,
            as_float(dout, width),
            dx,
            dweight,
            dbias,
        ],
    )
    return (
        dx[..., :channels].to(x.dtype),
        dweight.sum(1)[:, -taps:, :channels].transpose(1, 2).to(weight.dtype),
        dbias.sum(1)[:, :channels].to(bias.dtype),
    )
