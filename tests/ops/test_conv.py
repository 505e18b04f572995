"""The causal convolution and its SiLU: both backends against the definition, values and gradients."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.ops import causal_conv_silu

each_direction = pytest.mark.parametrize("direction", ["forward", "reverse"])
each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])
# (B, L, E, K): one token, fewer tokens than the kernel, one tap, whole and part vectors, more channels than one task.
SHAPES = [(2, 1, 16, 4), (1, 3, 1, 4), (3, 10, 20, 1), (2, 37, 33, 4), (1, 21, 270, 7), (2, 5, 128, 2)]


def make_inputs(batch: int, length: int, width: int, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, length, width), (width, kernel), (width,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


def run(inputs: tuple[Tensor, ...], dout: Tensor, direction: str, backend: str) -> list[Tensor]:
    """The output, and the gradients of (output * dout).sum() for x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = causal_conv_silu(*leaves, direction, backend)
    out.backward(dout.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


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


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


@each_direction
def test_the_reference_gradients_are_its_derivatives(direction: str) -> None:
    inputs = tuple(tensor.double().requires_grad_() for tensor in make_inputs(2, 5, 3, 4))
    assert torch.autograd.gradcheck(lambda *tensors: causal_conv_silu(*tensors, direction, "reference"), inputs)


@pytest.mark.parametrize("shape", SHAPES)
@each_direction
def test_cpu_values_and_gradients_are_the_references(shape: tuple[int, int, int, int], direction: str) -> None:
    inputs = make_inputs(*shape)
    dout = random_like(inputs[0])
    wanted = run(tuple(tensor.double() for tensor in inputs), dout, direction, "reference")
    assert_equal_to_scale(run(inputs, dout, direction, "cpu"), wanted, 2e-6)


@each_backend
@pytest.mark.parametrize("shape", [(0, 5, 16, 4), (0, 5, 20, 4)])
def test_an_empty_batch_gives_empty_output_and_no_gradient(shape: tuple[int, int, int, int], backend: str) -> None:
    inputs = make_inputs(*shape)
    out, dx, dweight, dbias = run(inputs, random_like(inputs[0]), "forward", backend)
    assert out.shape == dx.shape == shape[:3]
    assert not dweight.any() and not dbias.any()


@each_direction
@pytest.mark.parametrize("width", [16, 24])
def test_cpu_reads_strided_inputs(direction: str, width: int) -> None:
    x, weight, bias = make_inputs(2, 19, width, 4)
    dout = torch.randn(2, width, 19, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    wanted = run((x, weight, bias), dout.contiguous(), direction, "cpu")
    chunk = torch.cat([x, x + 1], -1).chunk(2, -1)[0]
    strided_bias = torch.stack([bias, bias], 1)[:, 0]
    for other in (chunk, x.transpose(1, 2).contiguous().transpose(1, 2)):
        assert not other.is_contiguous()
        ours = run((other, weight.t().contiguous().t(), strided_bias), dout, direction, "cpu")
        assert all(torch.equal(one, two) for one, two in zip(ours, wanted, strict=True))


@each_direction
def test_cpu_takes_half_inputs_and_answers_in_their_dtype(direction: str) -> None:
    x, weight, bias = make_inputs(2, 30, 24, 4)
    x, dout = x.bfloat16(), random_like(x).bfloat16()
    ours = run((x, weight, bias), dout, direction, "cpu")
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    wanted = run((x.double(), weight.double(), bias.double()), dout, direction, "reference")
    rounding = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(ours[0].double(), wanted[0], rtol=rounding, atol=1e-6)
    torch.testing.assert_close(ours[1].double(), wanted[1], rtol=rounding, atol=1e-5)
    assert_equal_to_scale(ours[2:], wanted[2:], 2e-6)


@each_direction
def test_the_reference_takes_half_inputs_beside_float32_parameters(direction: str) -> None:
    x, weight, bias = make_inputs(2, 30, 24, 4)
    out = causal_conv_silu(x.bfloat16(), weight, bias, direction, "reference")
    assert out.dtype == torch.bfloat16
    wanted = causal_conv_silu(x, weight, bias, direction, "reference")
    torch.testing.assert_close(out.float(), wanted, rtol=0.03, atol=0.03)


@each_backend
def test_reversed_tokens_in_the_other_direction_give_the_reversed_output(backend: str) -> None:
    x, weight, bias = make_inputs(2, 19, 20, 4)
    dout = random_like(x)
    ahead = run((x, weight, bias), dout, "forward", backend)
    back = run((x.flip(1), weight, bias), dout.flip(1), "reverse", backend)
    for number, (one, other) in enumerate(zip(ahead, back, strict=True)):
        torch.testing.assert_close(other.flip(1) if number < 2 else other, one, rtol=1e-5, atol=1e-5)


def test_cpu_extreme_inputs_stay_finite_and_correct() -> None:
    inputs = make_inputs(2, 19, 20, 4)
    inputs = (inputs[0] * 300, *inputs[1:])
    ours = run(inputs, random_like(inputs[0]), "forward", "cpu")
    assert all(tensor.isfinite().all() for tensor in ours)
    wanted = run(tuple(tensor.double() for tensor in inputs), random_like(inputs[0]), "forward", "reference")
    assert_equal_to_scale(ours, wanted, 1e-5)


@each_direction
def test_cpu_results_are_bitwise_the_same_for_any_number_of_threads_and_again(direction: str, threads: None) -> None:
    inputs = make_inputs(3, 40, 300, 4)
    dout = random_like(inputs[0])
    torch.set_num_threads(1)
    alone = run(inputs, dout, direction, "cpu")
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        again = run(inputs, dout, direction, "cpu")
        assert all(torch.equal(one, other) for one, other in zip(again, alone, strict=True))


def convolve_in_child(connection: Any, arrays: list[Any]) -> None:
    torch.set_num_threads(2)
    *inputs, dout = (torch.from_numpy(array) for array in arrays)
    connection.send([tensor.numpy() for tensor in run(tuple(inputs), dout, "reverse", "cpu")])


def test_cpu_works_in_a_forked_child_after_its_parent_used_it(threads: None) -> None:
    inputs = make_inputs(2, 19, 130, 4)
    dout = random_like(inputs[0])
    torch.set_num_threads(2)
    here = run(inputs, dout, "reverse", "cpu")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=convolve_in_child, args=(sender, [tensor.numpy() for tensor in (*inputs, dout)]))
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child hangs"
        there = receiver.recv()
    finally:
        child.kill()
        child.join()
    assert all(torch.equal(torch.from_numpy(one), other) for one, other in zip(there, here, strict=True))


@each_backend
@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((5, 6), (6, 4), (6,), r"x has shape \(5, 6\)"),
        ((2, 5, 6), (7, 4), (6,), r"weight \(7, 4\); expected \(B, L, E\) and \(E, K\)"),
        ((2, 5, 6), (6, 1, 4), (6,), r"weight \(6, 1, 4\)"),
        ((2, 5, 6), (6, 4), (5,), r"bias has shape \(5,\); expected \(6,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_says_which(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv_silu(torch.zeros(x), torch.zeros(weight), torch.zeros(bias), backend=backend)


def test_an_unknown_direction_or_backend_or_a_backend_that_cannot_run_is_an_error() -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"'backward'; expected 'forward' or 'reverse'"):
        causal_conv_silu(*inputs, direction="backward")
    with pytest.raises(ValueError, match=r"'fast'; expected one of auto, reference, cpu"):
        causal_conv_silu(*inputs, backend="fast")
    with pytest.raises(RuntimeError, match=r"torch\.float64"):
        causal_conv_silu(*(tensor.double() for tensor in inputs), backend="cpu")
