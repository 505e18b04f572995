"""The public operators `selective_scan` and `bidirectional_scan`, and the choice of their backend.

Shapes: K directions (1 or 2), B batch, L tokens, E inner width, N state size.

With our own kernels both are one operator of torch.library, `ssamba::scan`, so torch.compile and torch.export see one
node. Such a backend is a module with two functions without autograd, `forward` and `backward` (see `_scan` and
`_scan_backward`). `reference` and `mamba-ssm` are a function `scan` that autograd differentiates, outside the operator.
All visit direction k backwards where (k == 1) != reverse. A program exported without gradients holds "auto" itself, and
the operator chooses on the machine and device that run it.

Autocast casts nothing here: u, delta, B, C and z come in the dtype that the projections before gave them (bfloat16 or
float16 under autocast), A, D and delta_bias stay float32 parameters, and every state and sum is float32.
"""

import functools
import importlib
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from ssamba.ops import reference
from ssamba.ops.gradients import separate

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "torch-chunked", "cpu", "triton", "mamba-ssm")
MAX_STATES = 64
_MODULES = {"torch-chunked": "chunked", "cpu": "cpu", "triton": "triton", "mamba-ssm": "mamba_ssm"}


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
        backend: one of `BACKENDS`; "auto" takes the fastest that is available for the device.

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
    exchanged: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Both directions at once: (forward scan of u[0] + reverse scan of u[1]) * silu(z), before the gate in float32.

    As `selective_scan`, with a leading dimension of 2 (one slice a direction, with parameters of its own) on all but z:

    Args:
        u, delta: (2, B, L, E). A: (2, E, N). B, C: (2, B, L, N). D, delta_bias: (2, E) or None. z: (B, L, E) or None.
        exchanged: the first slice is scanned in reverse and the second forward.
        backend: as for `selective_scan`.

    Returns:
        (B, L, E), in u's dtype.

    Raises:
        ValueError, RuntimeError: as `selective_scan`.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, (2,))
    return _call(u, delta, A, B, C, D, z, delta_bias, exchanged, backend)


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
    # Inside the operator gradients are off, so it is told whether a backward pass may come.
    keep = differentiable(u, delta, a, b, c, d, z, bias)
    chosen = operator_backend(backend, u, keep)
    if chosen in ("reference", "mamba-ssm"):
        module = reference if chosen == "reference" else load_backend(chosen)
        with torch.autocast(u.device.type, enabled=False):
            y: Tensor = module.scan(u, delta, a, b, c, d, z, bias, reverse)
        return y
    y = _scan(u, delta, a, b, c, d, z, bias, reverse, chosen, keep)[0]
    return y


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def operator_backend(backend: str, x: Tensor, keep: bool) -> str:
    """What an operator gets as its backend: `resolve_backend`, but "auto" where a forward pass alone (not `keep`) is
    exported, since another machine may run it."""
    if backend == "auto" and not keep and torch.compiler.is_exporting():
        return backend
    chosen: str = resolve_backend(backend, x.device.type, x.dtype)
    return chosen


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
        given = f"u has shape {tuple(u.shape)} and A {tuple(a.shape)}"
        raise ValueError(f"{given}; expected ({head}B, L, E) and ({head}E, N)")
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


def check_kinds(tensors: Mapping[str, Tensor | None]) -> None:
    """ValueError for numbers that no kernel takes (they would be cut silently), or tensors that lie apart."""
    first, device = next((name, x.device) for name, x in tensors.items() if x is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected a floating-point one, float32 for instance")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; expected {device}, where {first} is")


def load_backend(name: str) -> ModuleType:
    return importlib.import_module(f"ssamba.ops.{_MODULES[name]}")


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
            y = load_backend(chosen).scan(u, delta, a, b, c, d, z, bias, reverse)
            saved = u.new_empty(0, dtype=torch.float32)
        else:
            y, saved = load_backend(chosen).forward(u, delta, a, b, c, d, z, bias, reverse, keep)
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
    shape = load_backend(backend).saved_shape(u, a) if keep else (0,)
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
        found = load_backend(backend).backward(dout, u, delta, a, b, c, d, z, bias, saved, reverse)
    du, ddelta, da, db, dc, dd, dz, dbias = separate(u.new_empty(0) if x is None else x for x in found)
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
    found = _scan_backward(dout, *tensors, saved, ctx.reverse, ctx.backend)
    return *(None if x is None else grad for x, grad in zip(tensors, found, strict=True)), None, None, None


_scan.register_autograd(_differentiate, setup_context=_setup)


@functools.cache
def why_missing(backend: str, device: str, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run on a device type and dtype; None where it can."""
    if backend in ("reference", "torch-chunked"):
        return None
    if dtype == torch.float64:
        return "it computes in float32; float64 is for the backends reference and torch-chunked"
    if backend == "cpu" and device != "cpu" or backend == "mamba-ssm" and device != "cuda":
        return f"it does not run on {device}"
    try:
        module = load_backend(backend)
    except Exception as error:  # mamba-ssm without its CUDA extension raises whatever its imports raise
        return f"it does not import: {type(error).__name__}: {error}"
    if backend == "triton" and not module.usable(device):
        return f"Triton does not run on {device} here"
    return None


# Decided once, not traced.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def resolve_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that `backend` means on a device type ("cpu", "cuda", ...) and for a dtype.

    "auto" is logged once: on a CPU the JIT-compiled kernels, on a GPU Triton's, then those of mamba-ssm, and plain
    torch wherever none of these runs.

    Raises:
        ValueError: an unknown backend. RuntimeError: one that cannot run here, with the cause.
    """
    return first_backend(backend, device, dtype)


@functools.cache
def first_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"scan backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend != "auto":
        if cause := why_missing(backend, device, dtype):
            raise RuntimeError(f"scan backend {backend!r}: {cause}")
        return backend
    preferred = {"cpu": ("cpu",), "cuda": ("triton", "mamba-ssm")}.get(device, ())
    causes = {name: why_missing(name, device, dtype) for name in preferred}
    chosen = next((name for name in preferred if causes[name] is None), "torch-chunked")
    passed_over = "".join(f"; {name}: {cause}" for name, cause in causes.items() if cause and name != chosen)
    level = logging.WARNING if chosen == "torch-chunked" and preferred and dtype != torch.float64 else logging.INFO
    log.log(level, "selective scan: %s backend on %s (%s)%s", chosen, device, dtype, passed_over)
    return chosen
