"""The public operator `selective_scan` and the choice of its backend.

Shapes: B batch, L tokens, E inner width, N state size.
"""

import functools
import importlib
import logging
from typing import Literal

import torch
from torch import Tensor

from ssamba.ops.reference import selective_scan_reference

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "cpu")


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
        A: (E, N), negative for a stable scan.
        B: input projections, (B, L, N).
        C: output projections, (B, L, N).
        D: skip weights, (E,), or None for no skip.
        z: gate, (B, L, E), or None for no gate.
        delta_bias: (E,) or None.
        direction: the order in which the tokens are visited; no tensor is flipped.
        backend: one of `BACKENDS`; "auto" takes the fastest that is available for the device.

    Returns:
        y, (B, L, E), in u's dtype; states are float32 (float64 only in the reference, for float64 inputs).

    Raises:
        ValueError: shapes that do not fit, an unknown direction or backend.
        RuntimeError: a backend that was asked for by name and cannot run here, with the cause.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is {direction!r}; expected 'forward' or 'reverse'")
    chosen = resolve_backend(backend, u.device.type, u.dtype)
    reverse = direction == "reverse"
    if chosen == "cpu":
        from ssamba.ops.cpu import selective_scan_cpu

        return selective_scan_cpu(u, delta, A, B, C, D, z, delta_bias, reverse)
    return selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, reverse)


def _check(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
           delta_bias: Tensor | None) -> None:  # fmt: skip
    if u.ndim != 3 or a.ndim != 2:
        raise ValueError(f"u has shape {tuple(u.shape)} and A {tuple(a.shape)}; expected (B, L, E) and (E, N)")
    batch, length, width = u.shape
    states = a.shape[1]
    wanted = {
        "delta": (delta, (batch, length, width)), "A": (a, (width, states)), "B": (b, (batch, length, states)),
        "C": (c, (batch, length, states)), "D": (d, (width,)), "z": (z, (batch, length, width)),
        "delta_bias": (delta_bias, (width,)),
    }  # fmt: skip
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape} beside u {tuple(u.shape)}")


@functools.cache
def _cpu_kernels_missing() -> Exception | None:
    try:
        importlib.import_module("ssamba.ops.cpu")
    except ImportError as error:
        return error
    return None


@functools.cache
def resolve_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that `backend` means on a device type ("cpu", "cuda", ...) and for a dtype; "auto" is logged once."""
    if backend not in BACKENDS:
        raise ValueError(f"scan backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    usable = device == "cpu" and dtype != torch.float64
    if backend == "cpu":
        if not usable:
            raise RuntimeError(
                f"scan backend 'cpu' takes float32 or narrower tensors on a CPU, not {dtype} on {device}"
            )
        if error := _cpu_kernels_missing():
            raise RuntimeError(f"scan backend 'cpu' needs numba, which does not import: {error}") from error
        return backend
    chosen = "cpu" if usable and _cpu_kernels_missing() is None else "reference"
    log.info("selective scan: %s backend on %s (%s)", chosen, device, dtype)
    return chosen
