"""The selective scan: every backend against its equations in float64, values and gradients."""

import logging
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.ops import (
    BACKENDS,
    backends,
    bidirectional_conv_silu,
    bidirectional_scan,
    resolve_backend,
    selective_scan,
)
from ssamba.ops.scan import chunked, operator

OURS = ("cpu", "torch-chunked")
DIRECTIONS = ("forward", "reverse")
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_backend = pytest.mark.parametrize("backend", ["reference", *OURS])
each_of_ours = pytest.mark.parametrize("backend", OURS)
each_order = pytest.mark.parametrize(
    "how",
    [{"direction": "forward"}, {"direction": "reverse"}, {"swap_directions": False}, {"swap_directions": True}],
    ids=["forward", "reverse", "bidirectional", "swap_directions"],
)
PARAMETERS, OPTIONAL = ("A", "D", "delta_bias"), ("D", "z", "delta_bias")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_combination = pytest.mark.parametrize(
    ("missing", "dtype"),
    [(missing, dtype) for count in range(4) for missing in combinations(OPTIONAL, count) for dtype in DTYPES],
    ids=lambda value: str(value).removeprefix("torch."),
)
# (B, L, E, N): one token, one channel, one state, whole and part vectors of 16 channels, one chunk of 16 tokens and
# parts of one, more channels than one task takes, odd and large state sizes.
SHAPES = [
    (2, 1, 16, 8),
    (1, 33, 1, 1),
    (2, 16, 16, 16),
    (3, 37, 20, 3),
    (2, 50, 70, 5),
    (1, 19, 130, 64),
    (2, 17, 33, 63),
]


def make_inputs(
    batch: int, length: int, width: int, states: int, seed: int = 0, bidirectional: bool = False
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead = (2,) if bidirectional else ()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(*lead, batch, length, width),
        "delta": normal(*lead, batch, length, width),
        "A": -torch.exp(normal(*lead, width, states)),
        "B": normal(*lead, batch, length, states),
        "C": normal(*lead, batch, length, states),
        "D": normal(*lead, width),
        "z": normal(batch, length, width),
        "delta_bias": normal(*lead, width) - 1,
    }


def scan(inputs: dict[str, Tensor], **how: Any) -> Tensor:
    """In both directions where u has a leading dimension for them."""
    return (bidirectional_scan if inputs["u"].ndim == 4 else selective_scan)(**inputs, **how)


def run(inputs: dict[str, Tensor], dout: Tensor | None = None, **how: Any) -> dict[str, Tensor]:
    """The output as "y", and the gradient of (y * dout).sum() for every input."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y = scan(leaves, **how)
    if dout is None:
        dout = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dout.to(y))
    return {"y": y.detach()} | {name: tensor.grad for name, tensor in leaves.items()}


def in_float64(inputs: dict[str, Tensor], dout: Tensor | None = None, **how: Any) -> dict[str, Tensor]:
    return run({name: x.double() for name, x in inputs.items()}, dout, backend="reference", **how)


def assert_equal_to_scale(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape, name
        if wanted.numel():
            error = (ours[name].double() - wanted).abs().max().item()
            assert error <= tolerance * wanted.abs().max().item(), f"{name}: {error}"


def assert_bitwise_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def loop(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, direction: str) -> Any:
    """The docstring's equations, a number at a time."""
    batch, length, width = u.shape
    y = np.zeros(u.shape)
    for b in range(batch):
        for e in range(width):
            h = [0.0] * A.shape[1]
            for t in range(length) if direction == "forward" else reversed(range(length)):
                dt = np.log1p(np.exp(delta[b, t, e] + delta_bias[e]))
                total = D[e] * u[b, t, e]
                for n in range(A.shape[1]):
                    h[n] = np.exp(dt * A[e, n]) * h[n] + dt * u[b, t, e] * B[b, t, n]
                    total += C[b, t, n] * h[n]
                y[b, t, e] = total * z[b, t, e] / (1 + np.exp(-z[b, t, e]))
    return y


@each_direction
@each_backend
def test_the_scan_is_what_its_docstring_says(direction: str, backend: str) -> None:
    inputs = make_inputs(2, 19, 5, 3)
    y = selective_scan(**inputs, direction=direction, backend=backend)
    wanted = loop(**{name: tensor.double().numpy() for name, tensor in inputs.items()}, direction=direction)
    np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", ["reference", "torch-chunked"])
@each_order
def test_float64_gradients_are_the_derivatives(
    backend: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 3)
    inputs = make_inputs(2, 4, 2, 3, bidirectional="swap_directions" in how)
    names = list(inputs)

    def values(*tensors: Tensor) -> Tensor:
        return scan(dict(zip(names, tensors, strict=True)), backend=backend, **how)

    assert torch.autograd.gradcheck(values, tuple(tensor.double().requires_grad_() for tensor in inputs.values()))


@pytest.mark.parametrize("shape", SHAPES)
@each_order
@each_of_ours
def test_values_and_gradients_are_the_references(
    shape: tuple[int, int, int, int], how: dict[str, Any], backend: str
) -> None:
    inputs = make_inputs(*shape, bidirectional="swap_directions" in how)
    assert_equal_to_scale(run(inputs, backend=backend, **how), in_float64(inputs, **how), 3e-6)


@pytest.fixture(scope="module", params=["initial", "slow"])
def realistic(request: pytest.FixtureRequest) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of a trained model's size and kind, in both directions, and what the equations give in float64."""
    inputs = make_inputs(2, 512, 384, 16, bidirectional=True)
    if request.param == "initial":
        inputs["A"] = -torch.arange(1.0, 17).expand(2, 384, 16)
    inputs["delta"] = 0.5 * inputs["delta"] - 2.5
    inputs["delta_bias"] = 0.5 * inputs["delta_bias"]
    return inputs, in_float64(inputs)


@each_of_ours
def test_errors_at_a_realistic_size_are_those_of_float32(
    backend: str, realistic: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    inputs, wanted = realistic
    ours = run(inputs, backend=backend)
    assert_equal_to_scale({"y": ours["y"]}, {"y": wanted["y"]}, 5e-7)
    assert_equal_to_scale(ours, wanted, 2e-6)


@each_backend
def test_a_state_lasts_through_thousands_of_tokens_with_no_step(backend: str) -> None:
    length = 2000
    inputs = make_inputs(1, length, 16, 1)
    del inputs["D"], inputs["z"], inputs["delta_bias"]
    inputs["delta"][:, 1:] = -40.0
    y = selective_scan(**inputs, backend=backend) / inputs["C"]
    torch.testing.assert_close(y[:, -1], y[:, 0], rtol=1e-6, atol=0)


def check_combination(
    missing: tuple[str, ...],
    dtype: torch.dtype,
    how: dict[str, Any],
    backend: str,
    shape: tuple[int, int, int, int],
    places: float = 0.5,
) -> None:
    """Under autocast parameters stay float32; all else comes, and is answered, in `dtype`. Inputs are exact in float64
    and arithmetic is float32, so what is narrower is off by rounding alone: by `places` of its last place."""
    inputs = make_inputs(*shape, bidirectional="swap_directions" in how)
    inputs = {name: x if name in PARAMETERS else x.to(dtype) for name, x in inputs.items() if name not in missing}
    dout = torch.randn(shape[:3], generator=torch.Generator().manual_seed(3)).to(dtype)
    ours, wanted = run(inputs, dout, backend=backend, **how), in_float64(inputs, dout, **how)
    assert ours.keys() == wanted.keys() == {"y", *inputs}
    for name, exact in wanted.items():
        assert ours[name].dtype == (dtype if name == "y" else inputs[name].dtype), name
        rounding = 0.0 if ours[name].dtype == torch.float32 else 1.001 * places * torch.finfo(dtype).eps
        allowed = rounding * exact.abs() + 3e-6 * exact.abs().max()
        error = (ours[name].double() - exact).abs()
        assert (error <= allowed).all(), f"{name}: {(error / allowed).max()} times what is allowed"


@each_combination
@each_order
@each_backend
def test_every_combination_of_inputs_and_dtypes(
    missing: tuple[str, ...], dtype: torch.dtype, how: dict[str, Any], backend: str
) -> None:
    check_combination(missing, dtype, how, backend, (2, 21, 24, 5))


def check_empty(shape: tuple[int, int, int, int], missing: tuple[str, ...], how: dict[str, Any], backend: str) -> None:
    inputs = make_inputs(*shape, bidirectional="swap_directions" in how)
    inputs = {name: x for name, x in inputs.items() if name not in missing}
    result = run(inputs, backend=backend, **how)
    assert result["y"].shape == shape[:3]
    for name, tensor in inputs.items():
        assert result[name].shape == tensor.shape and not result[name].any(), name


@pytest.mark.parametrize("shape", [(0, 5, 16, 4), (2, 0, 16, 4), (2, 5, 0, 4)])
@pytest.mark.parametrize("missing", [(), OPTIONAL], ids=str)
@each_order
@each_backend
def test_nothing_in_is_nothing_out_and_no_gradient(
    shape: tuple[int, int, int, int], missing: tuple[str, ...], how: dict[str, Any], backend: str
) -> None:
    check_empty(shape, missing, how, backend)


@each_direction
@each_of_ours
@pytest.mark.parametrize("width", [16, 24])  # with and without room for padding to whole vectors
def test_strided_inputs_give_what_contiguous_ones_give(direction: str, width: int, backend: str) -> None:
    batch, length, states = 2, 23, 5
    plain = make_inputs(batch, length, width, states)
    u, z = torch.cat([plain["u"], plain["z"]], -1).chunk(2, -1)
    _, b, c = torch.cat([torch.ones(batch, length, 3), plain["B"], plain["C"]], -1).split([3, states, states], -1)
    strided = {
        "u": u,
        "z": z,
        "B": b,
        "C": c,
        "delta": plain["delta"].transpose(1, 2).contiguous().transpose(1, 2),
        "A": plain["A"].t().contiguous().t(),
        "D": torch.stack([plain["D"], plain["D"]], 1)[:, 0],
        "delta_bias": plain["delta_bias"],
    }
    assert not any(strided[name].is_contiguous() for name in ("u", "z", "B", "C", "delta", "A", "D"))
    dout = torch.randn(batch, width, length, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    ours = run(strided, dout, direction=direction, backend=backend)
    contiguous = {name: tensor.contiguous() for name, tensor in strided.items()}
    if backend == "cpu":  # the sums of plain torch have other orders for other strides
        assert_bitwise_equal(ours, run(contiguous, dout.contiguous(), direction=direction, backend=backend))
    assert_equal_to_scale(ours, in_float64(contiguous, dout, direction=direction), 3e-6)


@each_of_ours
def test_inputs_and_output_gradients_may_be_broadcast(backend: str) -> None:
    inputs = make_inputs(1, 9, 16, 4)
    inputs["u"], inputs["B"] = torch.tensor(0.5).expand(3, 9, 16), inputs["B"].expand(3, 9, 4)
    for name in ("delta", "C", "z"):
        inputs[name] = inputs[name].expand(3, -1, -1)
    dout = torch.tensor(1.0).expand(3, 9, 16)  # what .sum().backward() passes
    assert_equal_to_scale(run(inputs, dout, backend=backend), in_float64(inputs, dout), 3e-6)


@each_backend
def test_only_what_needs_a_gradient_gets_one(backend: str) -> None:
    inputs = make_inputs(2, 20, 16, 4)
    inputs["C"].requires_grad_()
    selective_scan(**inputs, backend=backend).sum().backward()
    wanted = in_float64(inputs, torch.ones(2, 20, 16))["C"]
    torch.testing.assert_close(inputs["C"].grad.double(), wanted, rtol=1e-4, atol=1e-4)
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != "C")


@each_direction
@each_of_ours
def test_a_nan_stays_in_its_clip_and_reaches_all_later_tokens_of_its_channel(direction: str, backend: str) -> None:
    inputs = make_inputs(2, 20, 16, 4)
    inputs["u"][1, 10, 3] = float("nan")
    y = selective_scan(**inputs, direction=direction, backend=backend)
    nan = torch.zeros(2, 20, 16, dtype=torch.bool)
    nan[1, 10:, 3] = True
    if direction == "reverse":
        nan[1, :11, 3], nan[1, 11:, 3] = True, False
    assert torch.equal(y.isnan(), nan)


@each_direction
@each_of_ours
@pytest.mark.parametrize("size", [30.0, 100.0])
def test_extreme_step_sizes_and_gates_stay_finite_and_correct(direction: str, backend: str, size: float) -> None:
    inputs = make_inputs(2, 40, 32, 8)
    inputs["delta"] = inputs["delta"].sign() * size
    inputs["z"] = inputs["z"].sign() * 10 * size
    inputs["z"][..., ::3] /= 100
    ours = run(inputs, direction=direction, backend=backend)
    assert all(tensor.isfinite().all() for tensor in ours.values())
    assert_equal_to_scale(ours, in_float64(inputs, direction=direction), 1e-5)


def check_growing(how: dict[str, Any], backend: str) -> None:
    inputs = make_inputs(2, 19, 20, 3, bidirectional="swap_directions" in how)
    inputs["A"] = inputs["A"].sign() * torch.tensor([0.5, -1.0, 0.25])
    assert_equal_to_scale(run(inputs, backend=backend, **how), in_float64(inputs, **how), 5e-6)


@each_order
@each_of_ours
def test_states_may_grow(how: dict[str, Any], backend: str) -> None:
    check_growing(how, backend)


def check_beyond_float32(bidirectional: bool, backend: str) -> None:
    """Decays of 2 ** 125 to 2 ** 130 at the second token: some states are as large, the others infinite."""
    inputs = make_inputs(1, 2, 11, 1, bidirectional=bidirectional)
    inputs["delta"], inputs["delta_bias"] = torch.full_like(inputs["delta"], 50.0), inputs["delta_bias"] * 0
    inputs["A"] = torch.linspace(125, 130, 11).unsqueeze(1).expand_as(inputs["A"]) * (0.6931471805599453 / 50)
    inputs["u"], inputs["B"] = inputs["u"].sign() * 0.01, inputs["B"].sign()
    wanted, ours = scan(inputs, backend="reference"), scan(inputs, backend=backend)
    assert 0 < wanted.isfinite().sum() < wanted.numel()
    # An error of 2 ** -24 in the exponent is one of 130 times that in the decay.
    torch.testing.assert_close(ours, wanted, rtol=5e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("bidirectional", [False, True])
@each_of_ours
def test_a_state_that_outgrows_float32_is_infinite(bidirectional: bool, backend: str) -> None:
    check_beyond_float32(bidirectional, backend)


@pytest.mark.parametrize("level", [-100.0, -20.0, 100.0])
@each_of_ours
def test_uniformly_extreme_step_sizes_are_correct(level: float, backend: str) -> None:
    inputs = make_inputs(1, 18, 16, 4)
    inputs["delta"] = inputs["delta"] * 0.1 + level
    inputs["delta_bias"] = inputs["delta_bias"] * 0
    ours, wanted = run(inputs, backend=backend), in_float64(inputs)
    torch.testing.assert_close(ours["y"].double(), wanted["y"], rtol=1e-4, atol=1e-5 * wanted["y"].abs().max().item())
    for name in inputs:
        # exp(-100) is no float32 of full precision: what is as small as that may vanish.
        gradient = wanted[name]
        torch.testing.assert_close(
            ours[name].double(), gradient, rtol=1e-3, atol=max(1e-34, 1e-5 * gradient.std().item())
        )


@each_order
@each_of_ours
def test_without_gradients_the_output_is_the_same_and_no_states_are_kept(
    how: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, kept = backends.load_backend("scan", backend), []

    def spy(*arguments: Any) -> tuple[Tensor, Tensor]:
        y, saved = module.forward(*arguments)
        kept.append(saved.numel())
        return y, saved

    monkeypatch.setattr(operator, "load_backend", lambda *_: type("Spy", (), {"forward": staticmethod(spy)}))
    inputs = make_inputs(2, 40, 20, 4, bidirectional="swap_directions" in how)
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    with_gradients = scan(inputs, backend=backend, **how)
    with torch.no_grad():
        without = scan(inputs, backend=backend, **how)
    detached = scan({name: tensor.detach() for name, tensor in inputs.items()}, backend=backend, **how)
    assert torch.equal(with_gradients, without) and torch.equal(with_gradients, detached)
    assert with_gradients.requires_grad and not without.requires_grad
    width = {"cpu": 32, "torch-chunked": 20}[backend]
    assert kept == [(2 if "swap_directions" in how else 1) * 2 * 3 * 4 * width, 0, 0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 7, 5)),
        ("A", (5, 4)),
        ("B", (2, 7, 4)),
        ("C", (2, 6, 3)),
        ("D", (4,)),
        ("z", (1, 7, 6)),
        ("delta_bias", (6, 1)),
    ],
)
@pytest.mark.parametrize("bidirectional", [False, True])
@each_backend
def test_a_shape_that_does_not_fit_is_an_error_that_names_it(
    name: str, shape: tuple[int, ...], bidirectional: bool, backend: str
) -> None:
    shape = (2, *shape) if bidirectional and name != "z" else shape
    inputs = make_inputs(2, 7, 6, 3, bidirectional=bidirectional) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"^{name} has shape {re.escape(str(shape))}; expected \("):
        scan(inputs, backend=backend)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
@pytest.mark.parametrize("bidirectional", [False, True])
@each_backend
def test_a_dtype_that_is_not_floating_point_or_another_device_is_an_error_that_names_it(
    name: str, bidirectional: bool, backend: str
) -> None:
    inputs = make_inputs(2, 7, 6, 3, bidirectional=bidirectional)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"^{name} has dtype {dtype}; expected a floating-point one"):
            scan(inputs | {name: inputs[name].to(dtype)}, backend=backend)
    odd, others = ("delta", "cpu") if name == "u" else (name, "meta")
    with pytest.raises(ValueError, match=rf"^{odd} is on {others}; expected .*, where u is"):
        scan(inputs | {name: inputs[name].to("meta")}, backend=backend)


def test_u_and_a_of_other_ranks_are_an_error() -> None:
    inputs = make_inputs(2, 7, 6, 3)
    for other in ({"u": torch.zeros(7, 6)}, {"A": torch.zeros(6)}):
        with pytest.raises(ValueError, match=r"expected \(B, L, E\) and \(E, N\)"):
            selective_scan(**inputs | other)
    inputs = make_inputs(2, 7, 6, 3, bidirectional=True)
    for other in ({"u": torch.zeros(2, 7, 6)}, {"u": torch.zeros(1, 2, 7, 6)}, {"A": torch.zeros(6, 3)}):
        with pytest.raises(ValueError, match=r"expected \(2, B, L, E\) and \(2, E, N\)"):
            bidirectional_scan(**inputs | other)


@pytest.mark.parametrize("states", [0, 65])
def test_no_states_or_too_many_are_an_error(states: int) -> None:
    with pytest.raises(ValueError, match=f"A has {states} states; expected 1 to 64"):
        selective_scan(**make_inputs(1, 2, 3, states))


def test_an_unknown_direction_or_backend_is_an_error_that_says_what_there_is() -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"'backward'; expected 'forward' or 'reverse'"):
        selective_scan(**inputs, direction="backward")
    with pytest.raises(ValueError, match=rf"'fast'; expected one of {', '.join(BACKENDS)}$"):
        selective_scan(**inputs, backend="fast")


@pytest.fixture
def unresolved() -> Iterator[None]:
    """What is available is looked up anew, in the test and after it."""

    def forget() -> None:
        backends.first_backend.cache_clear()
        backends.why_missing.cache_clear()

    forget()
    yield
    forget()


def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error_with_the_cause(
    unresolved: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="'cpu': it computes in float32; float64 is for .* torch-chunked"):
        selective_scan(**{name: tensor.double() for name, tensor in inputs.items()}, backend="cpu")
    with pytest.raises(RuntimeError, match="'cpu': it does not run on meta"):
        selective_scan(**{name: tensor.to("meta") for name, tensor in inputs.items()}, backend="cpu")
    with pytest.raises(RuntimeError, match="'mamba-ssm': it does not run on cpu"):
        selective_scan(**inputs, backend="mamba-ssm")
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(RuntimeError, match="'mamba-ssm': it does not import: ModuleNotFoundError: .*mamba_ssm"):
        resolve_backend("mamba-ssm", "cuda", torch.float32)
    hide_numba(monkeypatch)
    with pytest.raises(RuntimeError, match="'cpu': it does not import: ModuleNotFoundError: .*numba"):
        selective_scan(**inputs, backend="cpu")


def hide_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "ssamba.ops.scan.cpu", raising=False)


def test_auto_takes_the_fastest_that_keeps_the_precision_and_logs_once(
    unresolved: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ssamba.ops.backends"):
        chosen = [resolve_backend("auto", "cpu", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
        assert chosen == ["cpu", "cpu", "torch-chunked"]
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
    assert [record.getMessage() for record in caplog.records if "(torch.float32)" in record.getMessage()] == [
        "selective scan: cpu backend on cpu (torch.float32)"
    ]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    inputs = make_inputs(1, 5, 16, 4)
    assert torch.equal(selective_scan(**inputs), selective_scan(**inputs, backend="cpu"))


def test_auto_without_numba_is_plain_torch_and_one_warning_with_the_cause(
    unresolved: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hide_numba(monkeypatch)
    inputs, taps = make_inputs(2, 20, 16, 4, bidirectional=True), torch.ones(2, 16, 4)
    with caplog.at_level(logging.INFO, logger="ssamba.ops.backends"):
        for _ in range(2):
            y = bidirectional_scan(**inputs)
            convolved = bidirectional_conv_silu(inputs["z"], taps, taps[..., 0])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.fullmatch(
        r"selective scan: torch-chunked backend on cpu \(torch.float32\); cpu: it does not import: .*numba.*",
        record.getMessage(),
    )
    assert torch.equal(y, bidirectional_scan(**inputs, backend="torch-chunked"))
    assert torch.equal(convolved, bidirectional_conv_silu(inputs["z"], taps, taps[..., 0], backend="torch-chunked"))


def test_auto_on_a_gpu_without_its_packages_is_plain_torch_and_one_warning_with_each_cause(
    unresolved: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ssamba.ops.scan.triton_kernels", "mamba_ssm"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "ssamba.ops.scan.mamba_ssm_kernels", raising=False)
    with caplog.at_level(logging.INFO, logger="ssamba.ops.backends"):
        assert resolve_backend("auto", "cuda", torch.bfloat16) == "torch-chunked"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(r"; triton: it does not import: .*; mamba-ssm: it does not import: ", record.getMessage())
