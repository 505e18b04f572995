"""Time, memory and error of what computes, and of the scan's backends beside the machine's own peaks.

Shapes: K directions (1 or 2), B batch, L tokens, E inner width, N state size. Times of the scan are given in ns an
element: one of the K * B * L * E * N numbers that the states take on.
"""

import ctypes
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation.tables import markdown_table
from ssamba.ops import BACKENDS, bidirectional_scan, resolve_backend, selective_scan
from ssamba.ops.scan import MAX_STATES
from ssamba.progress import progress_bar

SCAN_BACKENDS = BACKENDS[1:]  # without "auto", which is one of the others
_PACKAGES = ("ssamba", "torch", "numba", "triton", "mamba-ssm")
LEAST_SECONDS = 0.02  # of one measurement; what is faster is called several times


def seconds(function: Callable[[], object], calls: int = 1, device: str = "cpu") -> float:
    """Seconds a call, over `calls` in a row; on "cuda" by events, from an idle device on."""
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            function()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000 / calls
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def calls_needed(once: float) -> int:
    """How many calls one measurement is to time of a function that takes `once` seconds."""
    return max(1, round(LEAST_SECONDS / once))


def interleaved_times(
    functions: Mapping[str, Callable[[], object]], rounds: int, desc: str = "timing", device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds a call of each function in each of `rounds`; every round calls them all in turn, so rounds are pairs.

    Before that each is called twice: kernels are compiled, memory is taken, and the second call's time gives how many
    calls one measurement needs.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    with progress_bar(len(functions) * (1 + rounds), "measurement", desc) as bar:
        calls = {}
        for name, function in functions.items():
            function()
            calls[name] = calls_needed(seconds(function, 1, device))
            bar.update()
        for _ in range(rounds):
            for name, function in functions.items():
                times[name].append(seconds(function, calls[name], device))
                bar.update()
    return times


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios of two functions' times, round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def peak_memory(function: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes by which the memory in use rose, at its highest, above what was in use before the call.

    On "cuda" what torch's allocator gave out; else the resident memory of the process, which only Linux reports: None
    on other systems. Call `function` once before: libraries keep what they take at their first call.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    # What was freed must not be resident, else taking it again is not seen.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    except OSError:
        return None
    before = _highest_resident()
    function()
    return _highest_resident() - before


def _highest_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class ScanShape(NamedTuple):
    """Of the tensors of a scan: K, B, L, E, N."""

    directions: int
    batch: int
    tokens: int
    width: int
    states: int

    @property
    def elements(self) -> int:
        return self.directions * self.batch * self.tokens * self.width * self.states

    def __str__(self) -> str:
        sizes = f"batch {self.batch}, tokens {self.tokens}, width {self.width}, states {self.states}"
        return f"{sizes}, {'one direction' if self.directions == 1 else 'both directions'}"


def scan_inputs(shape: ScanShape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    """Random arguments of `selective_scan` (K = 1) or `bidirectional_scan` (K = 2); A, D and delta_bias are float32."""
    generator = torch.Generator().manual_seed(0)
    lead = () if shape.directions == 1 else (shape.directions,)
    _, batch, tokens, width, states = shape

    def normal(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(device, kind)

    return {
        "u": normal(*lead, batch, tokens, width),
        "delta": normal(*lead, batch, tokens, width),
        "A": -torch.exp(normal(*lead, width, states, kind=torch.float32)),
        "B": normal(*lead, batch, tokens, states),
        "C": normal(*lead, batch, tokens, states),
        "D": normal(*lead, width, kind=torch.float32),
        "z": normal(batch, tokens, width),
        "delta_bias": normal(*lead, width, kind=torch.float32) - 1,
    }


def value_and_gradients(scan: Callable[..., Tensor], inputs: Mapping[str, Tensor], dout: Tensor) -> dict[str, Tensor]:
    """The output of scan(**inputs) as "y", and the gradient of (y * dout).sum() for every input by its name."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = scan(**leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), dout)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def exact(inputs: Mapping[str, Tensor], dout: Tensor) -> dict[str, Tensor]:
    """`value_and_gradients` of the operator, in float64 by its equations."""
    scan = scan_operator(inputs, "reference")
    return value_and_gradients(scan, {name: x.double() for name, x in inputs.items()}, dout.double())


def relative_errors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each tensor the largest absolute error, relative to the largest magnitude of the expected one."""
    result = {}
    for name, truth in expected.items():
        error = (actual[name].double() - truth.double()).abs().max().item()
        result[name] = error / (truth.abs().max().item() or 1.0)
    return result


def worst_gradient(errors: Mapping[str, float]) -> tuple[str, float]:
    """The input whose gradient has the largest of the `relative_errors`, and that error."""
    return max(((name, error) for name, error in errors.items() if name != "y"), key=lambda item: item[1])


def scan_operator(inputs: Mapping[str, Tensor], backend: str) -> Callable[..., Tensor]:
    """The one of the two operators that takes `scan_inputs`, on a backend."""
    operator: Callable[..., Tensor] = selective_scan if inputs["u"].ndim == 3 else bidirectional_scan
    return functools.partial(operator, backend=backend)


class Peaks(NamedTuple):
    """What the machine reaches with all its threads, ns each: a float32 multiply-add in a large matrix product, and
    torch.exp of a float32 in the cache."""

    fma: float
    exp: float

    def rooflines(self) -> dict[str, float]:
        """ns an element that the scan's arithmetic would take at these peaks."""
        # An element is one exponential and step * A, drive * B, decay * h + ... and y + C * h; its backward pass
        # does that again and adds eight multiplications and multiply-adds.
        return {"forward": self.exp + 4 * self.fma, "forward_backward": 2 * self.exp + 16 * self.fma}


def measure_peaks(rounds: int, device: str = "cpu") -> Peaks:
    """The medians of `rounds`."""
    side = 4096 if device == "cuda" else 1024
    matrix = torch.rand(side, side, device=device)
    product = torch.empty_like(matrix)
    x = -8 * torch.rand(2**21 if device == "cuda" else 2**16 * torch.get_num_threads(), device=device)
    power = torch.empty_like(x)
    functions = {
        "fma": lambda: torch.mm(matrix, matrix, out=product),
        "exp": lambda: torch.exp(x, out=power),
    }
    times = interleaved_times(functions, rounds, "peaks", device)
    return Peaks(1e9 * statistics.median(times["fma"]) / side**3, 1e9 * statistics.median(times["exp"]) / len(x))


def benchmark_scan(
    shape: ScanShape, dtype: torch.dtype, device: str, backends: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Speed and error of the backends that run on `device`.

    Returns:
        "peaks" and "rooflines": `Peaks`, in ns an element. "backends": for each its times in ns an element, medians
        and rounds, and its errors against float64, the same inputs given ("y" and, by name, the gradients).
        "unavailable": the cause for each that cannot run. What was asked for stands beside.

    Raises:
        UserError: an unknown backend, sizes out of range, no such device, or no backend that runs.
    """
    if unknown := [name for name in backends if name not in SCAN_BACKENDS]:
        raise UserError(f"unknown scan backend {', '.join(unknown)}; expected some of {', '.join(SCAN_BACKENDS)}")
    if min(*shape, rounds) < 1 or shape.states > MAX_STATES:
        raise UserError(f"{shape}, {rounds} rounds; expected at least 1 of each, and no more than {MAX_STATES} states")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here")
    unavailable = {}
    for name in backends:
        try:
            resolve_backend(name, device, dtype)
        except RuntimeError as error:
            unavailable[name] = str(error).partition(": ")[2]
    chosen = [name for name in backends if name not in unavailable]
    if not chosen:
        causes = "; ".join(f"{name}: {cause}" for name, cause in unavailable.items())
        raise UserError(f"none of these scan backends runs here: {causes}")

    inputs = scan_inputs(shape, dtype, device)
    dout = torch.randn(inputs["z"].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    scans = {name: scan_operator(inputs, name) for name in chosen}
    wanted = exact(inputs, dout)
    errors = {name: relative_errors(value_and_gradients(scan, inputs, dout), wanted) for name, scan in scans.items()}
    del wanted
    forwards = {name: functools.partial(scan, **inputs) for name, scan in scans.items()}
    steps = {name: functools.partial(value_and_gradients, scan, inputs, dout) for name, scan in scans.items()}
    times = {
        "forward": interleaved_times(forwards, rounds, "forward", device),
        "forward_backward": interleaved_times(steps, rounds, "forward + backward", device),
    }
    peaks = measure_peaks(rounds, device)

    def described(name: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for kind, measured in times.items():
            every = [1e9 * value / shape.elements for value in measured[name]]
            result[f"{kind}_ns"], result[f"{kind}_ns_rounds"] = statistics.median(every), every
        return {**result, "errors": errors[name]}

    return {
        "shape": shape._asdict(),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "rounds": rounds,
        "peaks_ns": peaks._asdict(),
        "rooflines_ns": peaks.rooflines(),
        "backends": {name: described(name) for name in chosen},
        "unavailable": unavailable,
    }


def scan_report(result: Mapping[str, Any]) -> str:
    """The result of `benchmark_scan`, as a Markdown table with its setup."""
    shape = ScanShape(**result["shape"])
    rows = [("backend", "forward", "forward + backward", "error of y", "error of gradients")]
    for name, measured in result["backends"].items():
        name_of_worst, worst = worst_gradient(measured["errors"])
        rows.append(
            (
                name,
                f"{measured['forward_ns']:.3f}",
                f"{measured['forward_backward_ns']:.3f}",
                f"{measured['errors']['y']:.1e}",
                f"{worst:.1e} ({name_of_worst})",
            )
        )
    limits = result["rooflines_ns"]
    rows.append(("at the peaks", f"{limits['forward']:.3f}", f"{limits['forward_backward']:.3f}", "", ""))
    peaks = result["peaks_ns"]
    lines = [
        f"{shape}, {result['dtype']} on {result['device']}",
        f"ns an element of {shape.elements:,}, medians of {result['rounds']} rounds; errors of each tensor's scale",
        "",
        markdown_table(rows),
        "",
        f"peaks: exp {peaks['exp']:.4f} ns, multiply-add {peaks['fma']:.4f} ns; an element is 1 exp and about 4 "
        "multiply-adds forward, 2 exp and about 16 with backward",
        *(f"{name} cannot run: {cause}" for name, cause in result["unavailable"].items()),
    ]
    return "\n".join(lines)


class Goal(NamedTuple):
    """What was asked of a quantity, relation ">=" or "<=", and what was measured."""

    quantity: str
    relation: str
    bound: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.relation == ">=" else self.measured <= self.bound


def goals_table(goals: Sequence[Goal]) -> str:
    """Asked beside measured, as a Markdown table."""
    rows = [
        (goal.quantity, f"{goal.relation} {goal.bound:g}", f"{goal.measured:.3g}", "yes" if goal.met else "no")
        for goal in goals
    ]
    return markdown_table([("quantity", "asked", "measured", "met"), *rows])


def versions(*packages: str) -> dict[str, str | None]:
    """Of what a measurement depends on, and of `packages`; None for what is not installed."""
    installed: dict[str, str | None] = {}
    for name in (*_PACKAGES, *packages):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = None
    return installed
