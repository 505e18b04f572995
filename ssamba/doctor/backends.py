"""The operators' backends: each is called on a small input and compared with the reference."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssamba.doctor.findings import LOCK, Finding, absent, cause_of, ok, problem
from ssamba.doctor.installation import installed

_LARGEST_ERROR = 1e-4  # of a tensor's scale, in float32
# Backend -> the device that it is for, and the package that brings it. Without any other the one in plain torch is
# taken, which is many times slower.
_MADE_FOR = {"cpu": ("cpu", "numba"), "triton": ("cuda", "triton"), "mamba-ssm": ("cuda", "mamba-ssm")}
_OPTIONAL = "mamba-ssm"


def backends() -> Iterator[Finding]:
    """Scan and convolution by each backend, forward and backward, on a CPU and on a GPU if there is one."""
    import torch

    from ssamba.ops import BACKENDS, bidirectional_conv_silu, bidirectional_scan, resolve_backend

    operators: dict[str, tuple[Callable[..., Any], Callable[[str], tuple[dict[str, Any], Any]]]] = {
        "scan": (bidirectional_scan, _of_scan),
        "convolution": (bidirectional_conv_silu, _of_conv),
    }
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield ok(f"auto on {device}", f"means {resolve_backend('auto', device, torch.float32)}")
        for backend in BACKENDS[1:]:
            try:
                resolve_backend(backend, device, torch.float32)
            except RuntimeError as error:
                yield missing_backend(backend, device, str(error).partition(": ")[2])
                continue
            for name, (operator, inputs) in operators.items():
                yield _compared(f"{name} by {backend} on {device}", operator, backend, *inputs(device))


def missing_backend(backend: str, device: str, cause: str) -> Finding:
    """A backend that does not run on a device: a fault where it is made for it, and its package is there."""
    name, (made_for, package) = f"{backend} on {device}", _MADE_FOR[backend]
    if device != made_for or (backend == _OPTIONAL and not installed(package)):
        return absent(name, cause)
    mends = f"pip install {package}, for the torch and the CUDA that are here" if backend == _OPTIONAL else LOCK
    return problem(name, f"{cause}; auto takes another, slower one", mends)


def _compared(name: str, operator: Callable[..., Any], backend: str, inputs: Mapping[str, Any], dout: Any) -> Finding:
    from ssamba.evaluation.efficiency import relative_errors, value_and_gradients

    remedy = (
        "model.scan_backend names another one; remove the compiled kernels (see the caches above) and try again, or "
        f"{LOCK}"
    )
    by, reference = (functools.partial(operator, backend=one) for one in (backend, "reference"))
    exact = value_and_gradients(reference, {key: x.double() for key, x in inputs.items()}, dout.double())
    try:
        errors = relative_errors(value_and_gradients(by, inputs, dout), exact)
    except Exception as error:  # whatever a kernel or its compiler raises
        return problem(name, f"it fails: {cause_of(error)}", remedy)
    worst = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))  # what is no number is the worst
    where = "the output" if worst == "y" else f"the gradient of {worst}"
    if not errors[worst] <= _LARGEST_ERROR:
        return problem(name, f"it is wrong: {where} is off by {errors[worst]:.1e} of its scale", remedy)
    return ok(name, f"as the reference, to {errors[worst]:.1e} of its scale")


def _of_scan(device: str) -> tuple[dict[str, Any], Any]:
    import torch

    from ssamba.evaluation.efficiency import ScanShape, scan_inputs

    inputs = scan_inputs(ScanShape(2, 2, 37, 24, 8), device=device)
    return inputs, torch.cos(torch.arange(2 * 37 * 24.0, device=device)).view(2, 37, 24)


def _of_conv(device: str) -> tuple[dict[str, Any], Any]:
    import torch

    x = torch.sin(torch.arange(2 * 37 * 24.0)).view(2, 37, 24)
    inputs = {"x": x, "weight": torch.cos(torch.arange(2 * 24 * 4.0)).view(2, 24, 4), "bias": x[:, 0]}
    dout = torch.cos(torch.arange(2 * 2 * 37 * 24.0)).view(2, 2, 37, 24)
    return {key: tensor.to(device) for key, tensor in inputs.items()}, dout.to(device)
