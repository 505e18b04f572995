"""The public operator `bidirectional_ssd`: Mamba-2's state space model (state space duality), in both directions.

Shapes: B batch, L tokens, H heads, P channels of a head, E = H P, N state size.

On a CPU it is one operator of torch.library, `ssamba::ssd`, with kernels of its own. Elsewhere, and for float64, it is
the dual form, which autograd differentiates.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ssamba.ops.backends import load_backend, operator_backend, resolve_backend
from ssamba.ops.ssd import dual
from ssamba.ops.tensors import check_kinds, differentiable, separate

_VECTOR = 16  # channels that a kernel takes at once: it needs heads of whole vectors


def bidirectional_ssd(x: Tensor, step: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """Mamba-2's recurrence (arXiv 2405.21060, sections 5 and 7) in both directions at once, over one input.

    Of each head h, with k = 0 for t = 0 .. L-1 and k = 1 for t = L-1 .. 0, state 0 before the first token visited:

        state[k, t] = exp(log_decay[k, t]) * state[k, the token before] + step[k, t] * B[k, t] x[t]^T     (N, P)
        y[t] = (C[0, t] . state[0, t] + C[1, t] . state[1, t] + D * x[t]) * silu(z[t])                    (P,)

    A decay is one number for all of a head's states, and B and C are shared by the heads.

    Args:
        x: input, (B, L, H, P), any floating dtype.
        step: step sizes, after softplus, (2, B, L, H).
        log_decay: logarithms of decays, at most 0, (2, B, L, H): in Mamba-2 step times a negative number.
        B, C: input and output projections, (2, B, L, N).
        D: skip weights, (H,).
        z: gate, (B, L, H, P).

    Returns:
        y, (B, L, H, P), in x's dtype; states are float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit, a dtype that is not floating-point, tensors on several devices.
    """
    _check(x, step, log_decay, B, C, D, z)
    inputs = (x.flatten(2), step, log_decay, B, C, D, z.flatten(2))
    keep = differentiable(*inputs)
    chosen = operator_backend("auto", x, keep)
    if chosen == "auto" or _has_kernel(chosen, x.shape[3]):
        y: Tensor = _ssd(*inputs, chosen, keep)[0]
    else:
        with torch.autocast(x.device.type, enabled=False):
            y = dual.ssd(*inputs)
    return y.view(x.shape)


def _kernels() -> ModuleType:
    return load_backend("ssd", "cpu")


def _has_kernel(backend: str, head_dim: int) -> bool:
    return backend == "cpu" and head_dim % _VECTOR == 0


def _check(x: Tensor, step: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor) -> None:
    if x.ndim != 4 or b.ndim != 4:
        shapes = f"x has shape {tuple(x.shape)} and B {tuple(b.shape)}"
        raise ValueError(f"{shapes}; expected (B, L, H, P) and (2, B, L, N)")
    batch, length, heads, _ = x.shape
    wanted = {
        "step": (step, (2, batch, length, heads)),
        "log_decay": (log_decay, (2, batch, length, heads)),
        "B": (b, (2, batch, length, b.shape[3])),
        "C": (c, (2, batch, length, b.shape[3])),
        "D": (d, (heads,)),
        "z": (z, tuple(x.shape)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape} beside x {tuple(x.shape)}")
    check_kinds({"x": x} | {name: tensor for name, (tensor, _) in wanted.items()})


@torch.library.custom_op("ssamba::ssd", mutates_args=())
def _ssd(
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y (B, L, E) in x's dtype, what the backward pass needs beside the inputs: empty if not `keep`)."""
    chosen: str = resolve_backend(backend, x.device.type, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if _has_kernel(chosen, x.shape[2] // step.shape[3]):
            y, saved = _kernels().forward(x, step, log_decay, b, c, d, z, keep)
        else:  # what "auto" of an exported program came to, without a backward pass
            y, saved = dual.ssd(x, step, log_decay, b, c, d, z), x.new_empty(0, dtype=torch.float32)
    y, saved = separate((y, saved))
    return y, saved


@_ssd.register_fake
def _(
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    shape = _kernels().saved_shape(x, b) if keep else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("ssamba::ssd_backward", mutates_args=())
def _ssd_backward(
    dout: Tensor,
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, step, log_decay, b, c, d and z, each in its input's shape and dtype."""
    dx, dstep, dlog, db, dc, dd, dz = separate(_kernels().backward(dout, x, step, log_decay, b, c, d, z, saved))
    return dx, dstep, dlog, db, dc, dd, dz


@_ssd_backward.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dstep, dlog, db, dc, dd, dz = (tensor.new_empty(tensor.shape) for tensor in (x, step, log_decay, b, c, d, z))
    return dx, dstep, dlog, db, dc, dd, dz


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.set_materialize_grads(False)  # `saved` has no gradient: no zeros for it


def _differentiate(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 9
    return *_ssd_backward(dout, *ctx.saved_tensors), None, None


_ssd.register_autograd(_differentiate, setup_context=_setup)
