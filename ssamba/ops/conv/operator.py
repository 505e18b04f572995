"""The public operators `causal_conv_silu` and `bidirectional_conv_silu`.

Shapes: K directions (1 or 2), B batch, L tokens, E channels, W taps.

For our own kernels one operator of torch.library, `ssamba::conv`, as in ssamba/ops/scan/operator.py.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from ssamba.ops.backends import load_backend, operator_backend, resolve_backend
from ssamba.ops.conv import reference
from ssamba.ops.tensors import check_kinds, differentiable, separate


def causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, direction: Literal["forward", "reverse"] = "forward", backend: str = "auto"
) -> Tensor:
    """silu(depthwise convolution): each token sees itself and the W - 1 tokens visited before it.

    Args:
        x: (B, L, E), any strides. weight: (E, W), its last column meets the token itself. bias: (E,).
        direction: "reverse" visits the tokens from the last to the first; no tensor is flipped.
        backend: as for `selective_scan`.

    Returns:
        (B, L, E), in x's dtype; sums are float32.

    Raises:
        ValueError, RuntimeError: as `selective_scan`.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is {direction!r}; expected 'forward' or 'reverse'")
    _check(x, weight, bias, ())
    y: Tensor = _call(x, weight.unsqueeze(0), bias.unsqueeze(0), direction == "reverse", backend).squeeze(0)
    return y


def bidirectional_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, swap_directions: bool = False, backend: str = "auto"
) -> Tensor:
    """`causal_conv_silu` of one input in both directions, each with taps of its own.

    Args:
        x: (B, L, E). weight: (2, E, W). bias: (2, E).
        swap_directions: the first taps visit the tokens in reverse and the second forward.
        backend: as for `selective_scan`.

    Returns:
        (2, B, L, E), in x's dtype.

    Raises:
        ValueError, RuntimeError: as `selective_scan`.
    """
    _check(x, weight, bias, (2,))
    return _call(x, weight, bias, swap_directions, backend)


def _check(x: Tensor, weight: Tensor, bias: Tensor, lead: tuple[int, ...]) -> None:
    head = "".join(f"{size}, " for size in lead)
    wanted = (*lead, *x.shape[-1:])
    if x.ndim != 3 or weight.ndim != len(wanted) + 1 or tuple(weight.shape[:-1]) != wanted or weight.shape[-1] < 1:
        actual = f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(f"{actual}; expected (B, L, E) and ({head}E, W)")
    if tuple(bias.shape) != wanted:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {wanted} beside x {tuple(x.shape)}")
    check_kinds({"x": x, "weight": weight, "bias": bias})


def _call(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, backend: str) -> Tensor:
    chosen = operator_backend(backend, x, differentiable(x, weight, bias))
    if chosen in ("auto", "cpu", "triton"):
        y: Tensor = _conv(x, weight, bias, reverse, chosen)
        return y
    return _composed(x, weight, bias, reverse, chosen)


def _composed(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, chosen: str) -> Tensor:
    """By a backend without an operator of its own: autograd differentiates."""
    module = load_backend("conv", chosen) if chosen == "mamba-ssm" else reference
    with torch.autocast(x.device.type, enabled=False):
        return module.conv(x, weight, bias, reverse)


@torch.library.custom_op("ssamba::conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, backend: str) -> Tensor:
    """(K, B, L, E) in x's dtype, direction k backwards where (k == 1) != reverse."""
    chosen: str = resolve_backend(backend, x.device.type, x.dtype)
    if chosen in ("cpu", "triton"):
        y: Tensor = load_backend("conv", chosen).forward(x, weight, bias, reverse)
    else:  # what "auto" of an exported program came to, without a backward pass
        y = _composed(x, weight, bias, reverse, chosen)
    return y.contiguous()


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, backend: str) -> Tensor:
    return x.new_empty(len(weight), *x.shape)


@torch.library.custom_op("ssamba::conv_backward", mutates_args=())
def _conv_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, each in its input's shape and dtype."""
    dx, dweight, dbias = separate(load_backend("conv", backend).backward(dout, x, weight, bias, reverse))
    return dx, dweight, dbias


@_conv_backward.register_fake
def _(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *_conv_backward(dout, *ctx.saved_tensors, ctx.reverse, ctx.backend), None, None


_conv.register_autograd(_differentiate, setup_context=_setup)
