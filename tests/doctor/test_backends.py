"""Kernels that are wrong, raise, or are not there are told; those that are here agree with the reference."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssamba import ops
from ssamba.doctor import backends
from ssamba.doctor.findings import Finding
from ssamba.ops.conv import cpu as cpu_conv
from ssamba.ops.scan import cpu as cpu_scan


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def found() -> dict[str, Finding]:
    return {one.name: one for one in backends.backends()}


def test_those_that_are_here_are_called_and_agree() -> None:
    said = found()
    assert said["auto on cpu"].said == "means cpu"
    for backend in ("reference", "torch-chunked", "cpu"):
        for operator in ("scan", "convolution"):
            one = said[f"{operator} by {backend} on cpu"]
            error = re.fullmatch(r"as the reference, to (\S+) of its scale", one.said)
            assert one.state == "ok" and error and 0 < float(error[1]) < 2e-6
    assert said["mamba-ssm on cpu"].state == "absent"


@pytest.mark.parametrize("pass_of", ["forward", "backward"])
@pytest.mark.parametrize(("module", "operator"), [(cpu_scan, "scan"), (cpu_conv, "convolution")])
def test_one_that_is_wrong_is_told(module: Any, operator: str, pass_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(module, pass_of)

    def off(*arguments: Any) -> Any:
        """One per mille too much of the first of what is computed."""
        result = real(*arguments)
        if isinstance(result, torch.Tensor):
            return result * 1.001
        first, *rest = result
        return (first * 1.001, *rest)

    monkeypatch.setattr(module, pass_of, off)
    wrong = {name: one for name, one in found().items() if one.state == "problem"}
    assert list(wrong) == [f"{operator} by cpu on cpu"]
    (one,) = wrong.values()
    where = "the output" if pass_of == "forward" else f"the gradient of {'u' if operator == 'scan' else 'x'}"
    assert f"it is wrong: {where} is off by 1.0e-03 of its scale" in one.said and "model.scan_backend" in one.remedy


def test_one_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> Any:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(cpu_scan, "forward", raises)
    one = found()["scan by cpu on cpu"]
    assert (one.state, one.said) == ("problem", "it fails: RuntimeError: illegal instruction")


def test_one_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ops.resolve_backend

    def missing(backend: str, device: str, dtype: torch.dtype) -> str:
        if backend == "cpu":
            raise RuntimeError("scan backend 'cpu': it does not import: ImportError: numba needs NumPy 2")
        return real(backend, device, dtype)

    monkeypatch.setattr(ops, "resolve_backend", missing)
    one = found()["cpu on cpu"]
    assert one.state == "problem" and one.said.startswith("it does not import: ImportError: numba needs NumPy 2; auto")


def test_kernels_for_a_gpu_that_are_installed_must_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda package: "2.3.2")
    one = backends.missing_backend("mamba-ssm", "cuda", "it does not import: ImportError: selective_scan_cuda")
    assert one.state == "problem" and "pip install mamba-ssm" in one.remedy
    monkeypatch.setattr(backends, "installed", lambda package: None)
    assert backends.missing_backend("mamba-ssm", "cuda", "it does not import").state == "absent"
    assert backends.missing_backend("triton", "cuda", "Triton does not run").state == "problem"
    assert backends.missing_backend("triton", "cpu", "Triton does not run on cpu here").state == "absent"
