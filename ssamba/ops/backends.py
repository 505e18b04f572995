"""The choice of a backend, one for all operators, and the module in which an operator has it.

Whether a backend runs here is tried with the scan's: an operator that lacks it computes in plain torch in its place.
"""

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "torch-chunked", "cpu", "triton", "mamba-ssm")
_MODULES = {"torch-chunked": "chunked", "cpu": "cpu", "triton": "triton_kernels", "mamba-ssm": "mamba_ssm_kernels"}


def load_backend(operator: str, name: str) -> ModuleType:
    """The module of a backend in an operator's folder, "scan" for instance; raises whatever its imports raise."""
    return importlib.import_module(f"ssamba.ops.{operator}.{_MODULES[name]}")


def operator_backend(backend: str, x: Tensor, keep: bool) -> str:
    """What an operator gets as its backend: `resolve_backend`, but "auto" where a forward pass alone (not `keep`) is
    exported, since another machine may run it."""
    if backend == "auto" and not keep and torch.compiler.is_exporting():
        return backend
    chosen: str = resolve_backend(backend, x.device.type, x.dtype)
    return chosen


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
        module = load_backend("scan", backend)
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
