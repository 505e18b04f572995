"""The causal convolution and its SiLU: every backend against the definition, values and gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.ops import BACKENDS, bidirectional_conv_silu, causal_conv_silu

each_direction = pytest.mark.parametrize("direction", ["forward", "reverse"])
each_backend = pytest.mark.parametrize("backend", ["reference", "torch-chunked", "cpu"])
each_order = pytest.mark.parametrize(
    "how",
    [{"direction": "forward"}, {"direction": "reverse"}, {"swap_directions": False}, {"swap_directions": True}],
    ids=["forward", "reverse", "bidirectional", "swap_directions"],
)
# (B, L, E, W): one token, fewer tokens than the kernel, one tap, whole and part vectors, more channels than one task.
SHAPES = [(2, 1, 16, 4), (1, 3, 1, 4), (3, 10, 20, 1), (2, 37, 33, 4), (1, 21, 270, 7), (2, 5, 128, 2)]


def make_inputs(
    batch: int, length: int, width: int, taps: int, bidirectional: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lead = (2,) if bidirectional else ()
    shapes = (batch, length, width), (*lead, width, taps), (*lead, width)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


def convolve(inputs: tuple[Tensor, ...], **how: Any) -> Tensor:
    """In both directions where the taps have a leading dimension for them."""
    return (bidirectional_conv_silu if inputs[1].ndim == 3 else causal_conv_silu)(*inputs, **how)


def run(inputs: tuple[Tensor, ...], dout: Tensor | None = None, **how: Any) -> list[Tensor]:
    """The output, and the gradients of (output * dout).sum() for x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = convolve(tuple(leaves), **how)
    out.backward((random_like(out) if dout is None else dout).to(out))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def in_float64(inputs: tuple[Tensor, ...], dout: Tensor | None = None, **how: Any) -> list[Tensor]:
    return run(tuple(tensor.double() for tensor in inputs), dout, backend="reference", **how)


def random_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def loop(x: Any, weight: Any, bias: Any, direction: str) -> Any:
    """The definition, a number at a time."""
    length, taps = x.shape[1], weight.shape[1]
    out = np.zeros(x.shape)
    for t in range(length):
        total = np.repeat(bias[None], len(x), 0)
        for back in range(taps):
            source = t - back if direction == "forward" else t + back
            if 0 <= source < length:
                total = total + weight[:, taps - 1 - back] * x[:, source]
        out[:, t] = total / (1 + np.exp(-total))
    return out


def assert_equal_to_scale(ours: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(ours, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max().item() <= tolerance * other.abs().max().item()


@pytest.mark.parametrize("shape", SHAPES)
@each_direction
@each_backend
def test_each_token_sees_itself_and_the_tokens_visited_before_it(
    shape: tuple[int, int, int, int], direction: str, backend: str
) -> None:
    inputs = make_inputs(*shape)
    wanted = loop(*(tensor.double().numpy() for tensor in inputs), direction=direction)
    out = causal_conv_silu(*inputs, direction, backend)
    np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-4, atol=2e-6)


@each_order
def test_the_reference_gradients_are_its_derivatives(how: dict[str, Any]) -> None:
    inputs = make_inputs(2, 5, 3, 4, "swap_directions" in how)
    inputs = tuple(tensor.double().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(lambda *tensors: convolve(tensors, backend="reference", **how), inputs)


@pytest.mark.parametrize("shape", SHAPES)
@each_order
def test_cpu_values_and_gradients_are_the_references(shape: tuple[int, int, int, int], how: dict[str, Any]) -> None:
    inputs = make_inputs(*shape, "swap_directions" in how)
    assert_equal_to_scale(run(inputs, backend="cpu", **how), in_float64(inputs, **how), 2e-6)


@each_backend
def test_errors_at_a_realistic_size_are_those_of_float32(backend: str) -> None:
    inputs = make_inputs(2, 512, 384, 4, True)
    wanted, ours = in_float64(inputs), run(inputs, backend=backend)
    assert_equal_to_scale(ours[:1], wanted[:1], 5e-7)
    assert_equal_to_scale(ours, wanted, 2e-6)


def check_empty(shape: tuple[int, int, int, int], how: dict[str, Any], backend: str) -> None:
    inputs = make_inputs(*shape, "swap_directions" in how)
    out, *gradients = run(inputs, backend=backend, **how)
    assert out.shape == ((2, *shape[:3]) if "swap_directions" in how else shape[:3])
    for tensor, gradient in zip(inputs, gradients, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize("shape", [(0, 5, 16, 4), (0, 5, 20, 1), (2, 0, 16, 4), (2, 0, 20, 1), (2, 5, 0, 4)])
@each_order
@each_backend
def test_nothing_in_is_nothing_out_and_no_gradient(
    shape: tuple[int, int, int, int], how: dict[str, Any], backend: str
) -> None:
    check_empty(shape, how, backend)


@each_direction
@pytest.mark.parametrize("width", [16, 24])
def test_cpu_reads_strided_inputs(direction: str, width: int) -> None:
    x, weight, bias = make_inputs(2, 19, width, 4)
    how = {"direction": direction, "backend": "cpu"}
    dout = torch.randn(2, width, 19, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    wanted = run((x, weight, bias), dout.contiguous(), **how)
    chunk = torch.cat([x, x + 1], -1).chunk(2, -1)[0]
    strided_bias = torch.stack([bias, bias], 1)[:, 0]
    for other in (chunk, x.transpose(1, 2).contiguous().transpose(1, 2)):
        assert not other.is_contiguous()
        ours = run((other, weight.t().contiguous().t(), strided_bias), dout, **how)
        assert all(torch.equal(one, two) for one, two in zip(ours, wanted, strict=True))


def check_dtype(
    dtype: torch.dtype, how: dict[str, Any], backend: str, shape: tuple[int, int, int, int], places: float = 0.5
) -> None:
    """Taps and bias stay float32; what comes and is answered in `dtype` is off by `places` of its last place."""
    x, weight, bias = make_inputs(*shape, "swap_directions" in how)
    inputs = x.to(dtype), weight, bias
    dout = random_like(convolve(inputs, backend="reference", **how)).to(dtype)
    ours, wanted = run(inputs, dout, backend=backend, **how), in_float64(inputs, dout, **how)
    assert [tensor.dtype for tensor in ours] == [dtype, dtype, torch.float32, torch.float32]
    rounding = 0.0 if dtype == torch.float32 else 1.001 * places * torch.finfo(dtype).eps
    for one, exact, relative in zip(ours, wanted, (rounding, rounding, 0.0, 0.0), strict=True):
        assert one.shape == exact.shape
        assert ((one.double() - exact).abs() <= relative * exact.abs() + 2e-6 * exact.abs().max()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("taps", [1, 4])
@each_order
@each_backend
def test_every_dtype_is_convolved_in_float32_and_answered_as_it_came(
    dtype: torch.dtype, taps: int, how: dict[str, Any], backend: str
) -> None:
    check_dtype(dtype, how, backend, (2, 30, 24, taps))


def test_cpu_extreme_inputs_stay_finite_and_correct() -> None:
    x, weight, bias = make_inputs(2, 19, 20, 4)
    inputs = x * 300, weight, bias
    ours = run(inputs, backend="cpu")
    assert all(tensor.isfinite().all() for tensor in ours)
    assert_equal_to_scale(ours, in_float64(inputs), 1e-5)


@each_backend
@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((), (6, 4), (6,), r"x has shape \(\)"),
        ((5, 6), (6, 4), (6,), r"x has shape \(5, 6\)"),
        ((2, 5, 6), (7, 4), (6,), r"weight \(7, 4\); expected \(B, L, E\) and \(E, W\)"),
        ((2, 5, 6), (6, 1, 4), (6,), r"weight \(6, 1, 4\)"),
        ((2, 5, 6), (6, 4), (5,), r"bias has shape \(5,\); expected \(6,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_says_which(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv_silu(torch.zeros(x), torch.zeros(weight), torch.zeros(bias), backend=backend)


@each_backend
def test_a_dtype_that_is_not_floating_point_or_another_device_is_an_error_that_names_it(backend: str) -> None:
    inputs = make_inputs(1, 2, 3, 4)
    for place, name in enumerate(("x", "weight", "bias")):
        for other in (inputs[place].long(), inputs[place].to(torch.complex64)):
            with pytest.raises(ValueError, match=rf"^{name} has dtype {other.dtype}; expected a floating-point one"):
                causal_conv_silu(*inputs[:place], other, *inputs[place + 1 :], backend=backend)
    with pytest.raises(ValueError, match="^bias is on meta; expected cpu, where x is"):
        causal_conv_silu(*inputs[:2], inputs[2].to("meta"), backend=backend)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((6, 4), (6,), r"weight \(6, 4\); expected \(B, L, E\) and \(2, E, W\)"),
        ((1, 6, 4), (2, 6), r"weight \(1, 6, 4\)"),
        ((2, 6, 0), (2, 6), r"weight \(2, 6, 0\)"),
        ((2, 6, 4), (6,), r"bias has shape \(6,\); expected \(2, 6\)"),
    ],
)
def test_taps_that_are_not_for_two_directions_are_an_error_that_says_so(
    weight: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bidirectional_conv_silu(torch.zeros(2, 5, 6), torch.zeros(weight), torch.zeros(bias))


def test_an_unknown_direction_or_backend_or_a_backend_that_cannot_run_is_an_error() -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"'backward'; expected 'forward' or 'reverse'"):
        causal_conv_silu(*inputs, direction="backward")
    with pytest.raises(ValueError, match=rf"'fast'; expected one of {', '.join(BACKENDS)}$"):
        causal_conv_silu(*inputs, backend="fast")
    with pytest.raises(RuntimeError, match="'cpu': it computes in float32"):
        causal_conv_silu(*(tensor.double() for tensor in inputs), backend="cpu")
