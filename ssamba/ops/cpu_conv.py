"""The causal depthwise convolution and its SiLU on a CPU, fused, channels last: no transposed copies.

Shapes: K directions, B batch, L tokens, E channels, W taps.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from numba import njit, types
from torch import Tensor

from ssamba.ops.kernels import as_array, run_tasks
from ssamba.ops.simd import LANES, fma, load, logistic, splat, store

GROUP = 8 * LANES


def _forward(first, last, x, weight, bias, reverse, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    directions, taps = weight.shape[0], weight.shape[1]
    groups = (width + GROUP - 1) // GROUP
    for task in range(first, last):
        clip = task // groups
        start = (task % groups) * GROUP
        for k in range(directions):
            sign = 1 if (k == 1) != reverse else -1
            for t in range(length):
                for e in range(start, min(start + GROUP, width), LANES):
                    y = load(bias, (k, e))
                    for w in range(taps):
                        source = t + sign * (taps - 1 - w)
                        if 0 <= source < length:
                            y = fma(load(weight, (k, w, e)), load(x, (clip, source, e)), y)
                    store(out, (k, clip, t, e), y * logistic(y))


def _backward(first, last, x, weight, bias, reverse, dout, dx, dweight, dbias):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    directions, taps = weight.shape[0], weight.shape[1]
    groups = (width + GROUP - 1) // GROUP
    for task in range(first, last):
        clip = task // groups
        start = (task % groups) * GROUP
        for k in range(directions):
            sign = 1 if (k == 1) != reverse else -1
            for t in range(length):
                for e in range(start, min(start + GROUP, width), LANES):
                    y = load(bias, (k, e))
                    for w in range(taps):
                        source = t + sign * (taps - 1 - w)
                        if 0 <= source < length:
                            y = fma(load(weight, (k, w, e)), load(x, (clip, source, e)), y)
                    sigma = logistic(y)
                    dy = load(dout, (k, clip, t, e)) * sigma * fma(y, splat(1.0) - sigma, splat(1.0))
                    store(dbias, (k, clip, e), load(dbias, (k, clip, e)) + dy)
                    for w in range(taps):
                        source = t + sign * (taps - 1 - w)
                        if 0 <= source < length:
                            tap = fma(dy, load(x, (clip, source, e)), load(dweight, (k, clip, w, e)))
                            store(dweight, (k, clip, w, e), tap)
                            store(dx, (clip, source, e), fma(dy, load(weight, (k, w, e)), load(dx, (clip, source, e))))


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    array = {n: types.Array(types.float32, n, "A") for n in (2, 3, 4)}
    inputs = (types.intp, types.intp, array[3], array[3], array[2], types.boolean)
    options = {"nogil": True, "cache": True, "error_model": "numpy"}
    forward = njit(types.void(*inputs, array[4]), **options)(_forward)
    return forward, njit(types.void(*inputs, array[4], array[3], array[4], array[3]), **options)(_backward)


def _arrays(x: Tensor, weight: Tensor, bias: Tensor, width: int) -> tuple[Any, ...]:
    return as_array(x, width), as_array(weight.detach().transpose(1, 2), width), as_array(bias, width)


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """See `ssamba.ops.conv`; arithmetic in float32."""
    batch, length, channels = x.shape
    width = -(-channels // LANES) * LANES
    out = torch.empty(len(weight), batch, length, width)
    run_tasks(
        _kernels()[0], batch * -(-width // GROUP), *_arrays(x, weight, bias, width), reverse, out.numpy()
    )  # fmt: skip
    return out[..., :channels].to(x.dtype)


def backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """See `ssamba.ops.conv`."""
    batch, length, channels = x.shape
    directions, _, taps = weight.shape
    width = -(-channels // LANES) * LANES
    dx = torch.zeros(batch, length, width)
    dweight, dbias = torch.zeros(directions, batch, taps, width), torch.zeros(directions, batch, width)
    run_tasks(
        _kernels()[1], batch * -(-width // GROUP), *_arrays(x, weight, bias, width), reverse, as_array(dout, width),
        dx.numpy(), dweight.numpy(), dbias.numpy(),
    )  # fmt: skip
    return (
        dx[..., :channels].to(x.dtype), dweight.sum(1)[..., :channels].transpose(1, 2).to(weight.dtype),
        dbias.sum(1)[:, :channels].to(bias.dtype),
    )  # fmt: skip
