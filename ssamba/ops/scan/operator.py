"""The public operators `selective_scan` and `bidirectional_scan`.

Shapes: K directions (1 or 2), B batch, L tokens, E inner width, N state size.

With our own kernels both are one operator of torch.library, `ssamba::scan`, so torch.compile and torch.export see one
node. Such a backend is a module with two functions without autograd, `forward` and `backward` (see `_scan` and
`_scan_backward`). `reference` and `mamba-ssm` are a function `scan` that autograd differentiates, outside the operator.
All visit direction k backwards where (k == 1) != reverse. A program exported without gradients holds "auto" itself, and
the operator chooses on the machine and device that run it.

Autocast casts nothing here: u, delta, B, C and z come in the dtype that the projections before gave them (bfloat16 or
float16 under autocast), A, D and delta_bias stay float32 parameters, and every state and sum is float32.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from ssamba.ops.backends import load_backend, operator_backend, resolve_backend
from ssamba.ops.scan import reference
from ssamba.ops.tensors import check_kinds, differentiable, separate

MAX_STATES = 64


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    direction: Literal["forward", "reverse"] = "forward",
    backend: str = "auto",
) -> Tensor:
    """Selective state space scan (Mamba, arXiv 2312.00752, algorithm 2; SSAMBA section 2), in either direction.

    With dt = softplus(delta + delta_bias), for t = 0 .. L-1 (or L-1 .. 0 for direction "reverse"):

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * u[t] * B[t]        (E, N), h = 0 before the first token
        y[t] = (C[t] . h[t] + D * u[t]) * silu(z[t])

    Args:
        u: input, (B, L, E), any floating dtype and strides; so are the next ones.
        delta: step sizes before softplus, (B, L, E).
        A: (E, N), negative for a stable scan (with other ones the backend cpu takes torch-chunked's time); N up to 64.
        B: input projections, (B, L, N).
        C: output projections, (B, L, N).
        D: skip weights, (E,), or None for no skip.
        z: gate, (B, L, E), or None for no gate.
        delta_bias: (E,) or None.
        direction: the order in which the tokens are visited; no tensor is flipped.
        backend: one of `ssamba.ops.BACKENDS`; "auto" takes the fastest that is available for the device.

    Returns:
        y, (B, L, E), in u's dtype; states are float32 (float64 for float64 inputs, which two backends take).

    Raises:
        ValueError: shapes that do not fit, a dtype that is not floating-point, tensors on several devices, an unknown
            direction or backend.
        RuntimeError: a backend that was asked for by name and cannot run here, with the cause.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is {direction!r}; expected 'forward' or 'reverse'")
    _check(u, delta, A, B, C, D, z, delta_bias, ())
    first, step, rates, drive, read = (x.unsqueeze(0) for x in (u, delta, A, B, C))
    skip, bias = (None if x is None else x.unsqueeze(0) for x in (D, delta_bias))
    return _call(first, step, rates, drive, read, skip, z, bias, direction == "reverse", backend)


def bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    swap_directions: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Both directions at once: (forward scan of u[0] + reverse scan of u[1]) * silu(z), before the gate in float32.

    As `selective_scan`, with a leading dimension of 2 (one slice a direction, with parameters of its own) on all but z:

    Args:
        u, delta: (2, B, L, E). A: (2, E, N). B, C: (2, B, L, N). D, delta_bias: (2, E) or None. z: (B, L, E) or None.
        swap_directions: the first slice is scanned in reverse and the second forward.
        backend: as for `selective_scan`.

    Returns:
        (B, L, E), in u's dtype.

    Raises:
        ValueError, RuntimeError: as `selective_scan`.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, (2,))
    return _call(u, delta, A, B, C, D, z, delta_bias, swap_directions, backend)


def _call(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    backend: str,
) -> Tensor:
    # Inside the operator gradients are off, so an argument says whether a backward pass may come.
    keep = differentiable(u, delta, a, b, c, d, z, bias)
    chosen = operator_backend(backend, u, keep)
    if chosen in ("reference", "mamba-ssm"):
        module = reference if chosen == "reference" else load_backend("scan", chosen)
        with torch.autocast(u.device.type, enabled=False):
            y: Tensor = module.scan(u, delta, a, b, c, d, z, bias, reverse)
        return y
    y = _scan(u, delta, a, b, c, d, z, bias, reverse, chosen, keep)[0]
    return y


def _check(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    lead: tuple[int, ...],
) -> None:
    head = "".join(f"{size}, " for size in lead)
    if u.ndim != len(lead) + 3 or a.ndim != len(lead) + 2 or tuple(u.shape[: len(lead)]) != lead:
        actual = f"u has shape {tuple(u.shape)} and A {tuple(a.shape)}"
        raise ValueError(f"{actual}; expected ({head}B, L, E) and ({head}E, N)")
    batch, length, width = u.shape[-3:]
    states = a.shape[-1]
    wanted = {
        "delta": (delta, (*lead, batch, length, width)),
        "A": (a, (*lead, width, states)),
        "B": (b, (*lead, batch, length, states)),
        "C": (c, (*lead, batch, length, states)),
        "D": (d, (*lead, width)),
        "z": (z, (batch, length, width)),
        "delta_bias": (delta_bias, (*lead, width)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape} beside u {tuple(u.shape)}")
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"A has {states} states; expected 1 to {MAX_STATES}")
    check_kinds({"u": u} | {name: tensor for name, (tensor, _) in wanted.items()})


@torch.library.custom_op("ssamba::scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y (B, L, E) in u's dtype, what the backend's backward pass needs beside the inputs: empty if not `keep`)."""
    chosen: str = resolve_backend(backend, u.device.type, u.dtype)
    with torch.autocast(u.device.type, enabled=False):
        if chosen == "mamba-ssm":  # what "auto" of an exported program came to, without a backward pass
            y = load_backend("scan", chosen).scan(u, delta, a, b, c, d, z, bias, reverse)
            saved = u.new_empty(0, dtype=torch.float32)
        else:
            y, saved = load_backend("scan", chosen).forward(u, delta, a, b, c, d, z, bias, reverse, keep)
    y, saved = separate((y, saved))
    return y, saved


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    shape = load_backend("scan", backend).saved_shape(u, a) if keep else (0,)
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    return u.new_empty(u.shape[1:]), u.new_empty(shape, dtype=kind)


@torch.library.custom_op("ssamba::scan_backward", mutates_args=())
def _scan_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, a, b, c, d, z and bias, each in its input's shape and dtype; empty for None."""
    with torch.autocast(u.device.type, enabled=False):
        gradients = load_backend("scan", backend).backward(dout, u, delta, a, b, c, d, z, bias, saved, reverse)
    du, ddelta, da, db, dc, dd, dz, dbias = separate(u.new_empty(0) if x is None else x for x in gradients)
    return du, ddelta, da, db, dc, dd, dz, dbias


@_scan_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, da, db, dc, dd, dz, dbias = (
        u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, delta, a, b, c, d, z, bias)
    )
    return du, ddelta, da, db, dc, dd, dz, dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reverse, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)  # `saved` has no gradient: no zeros for it


def _differentiate(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 11
    *tensors, saved = ctx.saved_tensors
    gradients = _scan_backward(dout, *tensors, saved, ctx.reverse, ctx.backend)
    return *(None if x is None else grad for x, grad in zip(tensors, gradients, strict=True)), None, None, None


_scan.register_autograd(_differentiate, setup_context=_setup)
