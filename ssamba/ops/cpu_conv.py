"""The causal depthwise convolution and its SiLU on a CPU, fused, channels last: no transposed copies.

Shapes: B batch, L tokens, E channels, K kernel.
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
    kernel = weight.shape[0]
    groups = (width + GROUP - 1) // GROUP
    sign = 1 if reverse else -1
    for task in range(first, last):
        clip = task // groups
        start = (task % groups) * GROUP
        for t in range(length):
            for e in range(start, min(start + GROUP, width), LANES):
                y = load(bias, (e,))
                for k in range(kernel):
                    source = t + sign * (kernel - 1 - k)
                    if 0 <= source < length:
                        y = fma(load(weight, (k, e)), load(x, (clip, source, e)), y)
                store(out, (clip, t, e), y * logistic(y))


def _backward(first, last, x, weight, bias, reverse, dout, dx, dweight, dbias):  # type: ignore[no-untyped-def]  # pragma: no cover
    length, width = x.shape[1], x.shape[2]
    kernel = weight.shape[0]
    groups = (width + GROUP - 1) // GROUP
    sign = 1 if reverse else -1
    for task in range(first, last):
        clip = task // groups
        start = (task % groups) * GROUP
        for t in range(length):
            for e in range(start, min(start + GROUP, width), LANES):
                y = load(bias, (e,))
                for k in range(kernel):
                    source = t + sign * (kernel - 1 - k)
                    if 0 <= source < length:
                        y = fma(load(weight, (k, e)), load(x, (clip, source, e)), y)
                sigma = logistic(y)
                dy = load(dout, (clip, t, e)) * sigma * fma(y, splat(1.0) - sigma, splat(1.0))
                store(dbias, (clip, e), load(dbias, (clip, e)) + dy)
                for k in range(kernel):
                    source = t + sign * (kernel - 1 - k)
                    if 0 <= source < length:
                        tap = fma(dy, load(x, (clip, source, e)), load(dweight, (clip, k, e)))
                        store(dweight, (clip, k, e), tap)
                        store(dx, (clip, source, e), fma(dy, load(weight, (k, e)), load(dx, (clip, source, e))))


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    vector, matrix, tensor = (types.Array(types.float32, n, "A") for n in (1, 2, 3))
    inputs = (types.intp, types.intp, tensor, matrix, vector, types.boolean)
    options = {"nogil": True, "cache": True, "error_model": "numpy"}
    forward = njit(types.void(*inputs, tensor), **options)(_forward)
    return forward, njit(types.void(*inputs, tensor, tensor, tensor, matrix), **options)(_backward)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        batch, length, channels = x.shape
        width = -(-channels // LANES) * LANES
        arrays = as_array(x, width), as_array(weight.detach().t(), width), as_array(bias, width)
        out = torch.empty(batch, length, width)
        run_tasks(_kernels()[0], batch * -(-width // GROUP), *arrays, reverse, out.numpy())
        ctx.save_for_backward(x, weight, bias)
        ctx.arrays, ctx.reverse = arrays, reverse
        return out[..., :channels].to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        batch, length, channels = x.shape
        width = ctx.arrays[0].shape[-1]
        dx, dbias = torch.zeros(batch, length, width), torch.zeros(batch, width)
        dweight = torch.zeros(batch, weight.shape[1], width)
        run_tasks(
            _kernels()[1], batch * -(-width // GROUP), *ctx.arrays, ctx.reverse, as_array(dout, width),
            dx.numpy(), dweight.numpy(), dbias.numpy(),
        )  # fmt: skip
        return (
            dx[..., :channels].to(x.dtype), dweight.sum(0)[:, :channels].t().to(weight.dtype),
            dbias.sum(0)[:channels].to(bias.dtype), None,
        )  # fmt: skip


def causal_conv_silu_cpu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """The convolution of `ssamba.ops.causal_conv_silu` by JIT-compiled kernels; on the CPU, arithmetic in float32."""
    result: Tensor = _CausalConv.apply(x, weight, bias, reverse)
    return result
