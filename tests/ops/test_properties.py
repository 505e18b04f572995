"""What holds for every shape, dtype and layout: equal to the equations, turned around, cut in two, both directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan import make_inputs
from torch import Tensor

from ssamba.ops import bidirectional_conv_silu, bidirectional_scan, causal_conv_silu, selective_scan

PER_TOKEN = ("u", "delta", "B", "C", "z", "x", "y")
PARAMETERS = ("A", "D", "delta_bias")
OPTIONAL = ("D", "z", "delta_bias")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_of_ours = pytest.mark.parametrize("backend", ["cpu", "torch-chunked"])


def examples(count: int) -> Callable[..., Any]:
    return settings(derandomize=True, deadline=None, max_examples=count, database=None)


def strided(x: Tensor) -> Tensor:
    """The same values, every other element of a tensor twice as wide."""
    wide = torch.stack([x, torch.full_like(x, float("nan"))], -1)
    return wide[..., 0]


class Case(NamedTuple):
    operator: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    bidirectional: bool
    backwards: bool

    def run(self, backend: str, **other: Any) -> dict[str, Tensor]:
        """The output as "y" and every gradient; `other` inputs or `backwards` than the case's own."""
        case = self._replace(**other)
        turn: dict[str, Any] = {"direction": "reverse" if case.backwards else "forward"}
        if case.bidirectional:
            turn = {"swap_directions": case.backwards}
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.inputs.items()}
        y = case.operator(**leaves, **turn, backend=backend)
        # The same from either end, and whole numbers, which every dtype holds.
        tokens, channels = torch.arange(y.shape[-2]), torch.arange(y.shape[-1])
        dout = (torch.minimum(tokens, tokens.flip(0)).unsqueeze(-1) + 2 * channels) % 5 - 2
        y.backward(dout.to(y.dtype).expand_as(y))
        return {"y": y.detach()} | {name: tensor.grad for name, tensor in leaves.items()}


@st.composite
def scans(draw: st.DrawFn) -> Case:
    batch, length = draw(st.integers(0, 3)), draw(st.integers(1, 40))
    width, states = draw(st.integers(1, 70)), draw(st.integers(1, 64))
    bidirectional, dtype = draw(st.booleans()), draw(st.sampled_from(DTYPES))
    inputs = make_inputs(batch, length, width, states, draw(st.integers(0, 9)), bidirectional)
    for name in draw(st.sets(st.sampled_from(OPTIONAL))):
        del inputs[name]
    half_parameters, spread = draw(st.booleans()), draw(st.booleans())
    for name, tensor in inputs.items():
        if half_parameters or name not in PARAMETERS:
            tensor = tensor.to(dtype)
        inputs[name] = strided(tensor) if spread else tensor
    operator = bidirectional_scan if bidirectional else selective_scan
    return Case(operator, inputs, bidirectional, draw(st.booleans()))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    batch, length = draw(st.integers(0, 3)), draw(st.integers(1, 40))
    width, taps = draw(st.integers(1, 70)), draw(st.integers(1, 7))
    bidirectional, dtype = draw(st.booleans()), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    lead = (2,) if bidirectional else ()
    shapes = {"x": (batch, length, width), "weight": (*lead, width, taps), "bias": (*lead, width)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    half_parameters, spread = draw(st.booleans()), draw(st.booleans())
    for name, tensor in inputs.items():
        if half_parameters or name == "x":
            tensor = tensor.to(dtype)
        inputs[name] = strided(tensor) if spread else tensor
    operator = bidirectional_conv_silu if bidirectional else causal_conv_silu
    return Case(operator, inputs, bidirectional, draw(st.booleans()))


def assert_close(ours: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 5e-6) -> None:
    """Up to `tolerance` of the tensor's scale (of 1 where that is less), and rounding where it is not float32."""
    assert ours.keys() == wanted.keys()
    for name, other in wanted.items():
        one = ours[name]
        assert one.shape == other.shape, name
        if other.numel():
            rounding = 0.0 if one.dtype == torch.float32 else 0.51 * torch.finfo(one.dtype).eps
            scale = max(1.0, other.abs().max().item())
            error = (one.double() - other).abs()
            assert (error <= rounding * other.abs() + tolerance * scale).all(), f"{name}: {error.max()} of {scale}"


def turned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last token first."""
    return {name: x.flip(-2) if name in PER_TOKEN else x for name, x in tensors.items()}


def assert_turned_around(case: Case, backend: str, exact: tuple[str, ...]) -> None:
    ahead = case.run(backend)
    back = turned(case.run(backend, inputs=turned(case.inputs), backwards=not case.backwards))
    for name in ahead:
        if backend == "cpu" and name in exact:  # plain torch rounds by the place of a number in its vectors
            assert torch.equal(back[name], ahead[name]), name
    assert_close(back, {name: tensor.double() for name, tensor in ahead.items()}, 1e-5)


@each_of_ours
@examples(80)
@given(case=scans())
def test_a_scan_and_its_gradients_are_the_equations(backend: str, case: Case) -> None:
    ours = case.run(backend)
    assert all(ours[name].dtype == tensor.dtype for name, tensor in case.inputs.items())
    doubles = {name: tensor.double().contiguous() for name, tensor in case.inputs.items()}
    assert_close(ours, case.run("reference", inputs=doubles))


@each_of_ours
@examples(80)
@given(case=convolutions())
def test_a_convolution_and_its_gradients_are_the_definition(backend: str, case: Case) -> None:
    ours = case.run(backend)
    assert all(ours[name].dtype == tensor.dtype for name, tensor in case.inputs.items())
    doubles = {name: tensor.double().contiguous() for name, tensor in case.inputs.items()}
    assert_close(ours, case.run("reference", inputs=doubles))


@each_of_ours
@examples(40)
@given(case=scans())
def test_a_scan_of_turned_tokens_in_the_other_direction_is_the_turned_scan(backend: str, case: Case) -> None:
    assert_turned_around(case, backend, ("y", *case.inputs))


@each_of_ours
@examples(40)
@given(case=convolutions())
def test_a_convolution_of_turned_tokens_in_the_other_direction_is_the_turned_one(backend: str, case: Case) -> None:
    assert_turned_around(case, backend, ("y",))


@each_of_ours
@examples(25)
@given(case=scans().filter(lambda case: case.bidirectional))
def test_a_bidirectional_scan_with_its_slices_exchanged_is_the_same(backend: str, case: Case) -> None:
    swapped = {name: x if name == "z" else x.flip(0) for name, x in case.inputs.items()}
    found = case.run(backend, inputs=swapped, backwards=not case.backwards)
    found = {name: x if name in ("y", "z") else x.flip(0) for name, x in found.items()}
    assert_close(found, {name: tensor.double() for name, tensor in case.run(backend).items()}, 1e-5)


@each_of_ours
@examples(25)
@given(case=scans().filter(lambda case: case.bidirectional))
def test_a_bidirectional_scan_is_the_gated_sum_of_two(backend: str, case: Case) -> None:
    inputs = {name: tensor.float() for name, tensor in case.inputs.items()}
    gate = inputs.pop("z", None)
    order = ("reverse", "forward") if case.backwards else ("forward", "reverse")
    first, second = (
        selective_scan(**{name: x[k] for name, x in inputs.items()}, direction=order[k], backend=backend)
        for k in range(2)
    )
    wanted = (first + second).double()
    if gate is not None:
        inputs["z"] = gate
        wanted = wanted * F.silu(gate.double())
    y = bidirectional_scan(**inputs, swap_directions=case.backwards, backend=backend)
    assert_close({"y": y}, {"y": wanted})


@each_of_ours
@examples(25)
@given(case=convolutions().filter(lambda case: case.bidirectional))
def test_a_bidirectional_convolution_is_two_side_by_side(backend: str, case: Case) -> None:
    x, weight, bias = case.inputs.values()
    order = ("reverse", "forward") if case.backwards else ("forward", "reverse")
    wanted = [causal_conv_silu(x, weight[k], bias[k], order[k], backend) for k in range(2)]
    assert torch.equal(bidirectional_conv_silu(x, weight, bias, case.backwards, backend), torch.stack(wanted))


def end_state(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor) -> Tensor:
    """(B, E, N): the state after the last token, summed up in closed form."""
    step = F.softplus(delta + delta_bias)
    after = step.flip(1).cumsum(1).flip(1) - step  # the steps that follow each token
    return torch.einsum("blen,ble,bln->ben", torch.exp(after.unsqueeze(-1) * A), step * u, B)


@each_of_ours
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@examples(20)
@given(
    first=st.integers(1, 40),
    second=st.integers(1, 40),
    width=st.integers(1, 40),
    states=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_the_second_half_of_a_sequence_is_that_half_alone_and_what_the_state_carries_over(
    backend: str, direction: str, first: int, second: int, width: int, states: int, seed: int
) -> None:
    inputs = make_inputs(2, first + second, width, states, seed)
    parts = [
        {name: x[:, part] if name in PER_TOKEN else x for name, x in inputs.items()}
        for part in (slice(first), slice(first, None))
    ]
    if direction == "forward":
        whole, half = inputs, parts[1]
    else:
        whole, half = turned(inputs), turned(parts[1])
    y = selective_scan(**whole, direction=direction, backend=backend)
    alone = selective_scan(**half, direction=direction, backend=backend)
    if direction == "reverse":
        y, alone = y.flip(1), alone.flip(1)
    before, after = ({name: x.double() for name, x in part.items()} for part in parts)
    state = end_state(**{name: before[name] for name in ("u", "delta", "A", "B", "delta_bias")})
    steps = F.softplus(after["delta"] + after["delta_bias"]).cumsum(1)
    carried = torch.einsum("blen,ben,bln->ble", torch.exp(steps.unsqueeze(-1) * after["A"]), state, after["C"])
    assert_close({"y": y[:, first:]}, {"y": alone.double() + carried * F.silu(after["z"])})
    assert_close({"y": y[:, :first]}, {"y": run_first(parts[0], direction, backend)})


def run_first(part: dict[str, Tensor], direction: str, backend: str) -> Tensor:
    if direction == "forward":
        return selective_scan(**part, backend=backend).double()
    return selective_scan(**turned(part), direction="reverse", backend=backend).flip(1).double()


@each_of_ours
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@examples(20)
@given(
    first=st.integers(1, 40),
    second=st.integers(1, 40),
    width=st.integers(1, 40),
    taps=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_the_second_half_of_a_convolution_sees_of_the_first_its_last_tokens_alone(
    backend: str, direction: str, first: int, second: int, width: int, taps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(s, generator=generator) for s in ((2, first + second, width), (width, taps), (width,))
    )

    def convolve(x: Tensor) -> Tensor:
        if direction == "forward":
            return causal_conv_silu(x, weight, bias, backend=backend)
        return causal_conv_silu(x.flip(1), weight, bias, "reverse", backend).flip(1)

    start = max(0, first - taps + 1)
    whole = convolve(x)
    halves = torch.cat([convolve(x[:, :first]), convolve(x[:, start:])[:, first - start :]], 1)
    if backend == "cpu":
        assert torch.equal(whole, halves)
    assert_close({"y": whole}, {"y": halves.double()}, 1e-6)
