"""The Triton kernels of the causal convolution against its definition in float64, values and gradients.

On a CPU Triton's interpreter runs them, in a process of its own (see test_triton.py).
"""

import pytest
import test_triton
import torch
import torch.nn.functional as F
from test_triton import Run, on_a_gpu
from torch import Tensor

interpreted = test_triton.interpreted


def make_inputs(directions: int, batch: int, length: int, width: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, length, width), (directions, width, taps), (directions, width)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


def definition(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    outs = []
    for k in range(len(weight)):
        sign = -1 if (k == 1) != reverse else 1
        out = bias[k].expand(x.shape)
        for w in range(weight.shape[2]):
            back = weight.shape[2] - 1 - w
            padded = F.pad(x, (0, 0, back, back))
            out = out + weight[k, :, w] * padded[:, back - sign * back :][:, : x.shape[1]]
        outs.append(F.silu(out))
    return torch.stack(outs)


def found(inputs: tuple[Tensor, Tensor, Tensor], dout: Tensor, reverse: bool) -> list[Tensor]:
    from ssamba.ops import triton_conv

    return [triton_conv.forward(*inputs, reverse), *triton_conv.backward(dout, *inputs, reverse)]


def check(inputs: tuple[Tensor, Tensor, Tensor], reverse: bool, tolerance: float = 2e-6) -> None:
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y = definition(leaves[0], leaves[1], leaves[2], reverse)
    dout = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    y.backward(dout.double())
    ours = found(inputs, dout, reverse)
    assert ours[0].dtype == inputs[0].dtype
    for name, mine, wanted in zip(
        ("y", "x", "weight", "bias"), ours, (y.detach(), *(leaf.grad for leaf in leaves)), strict=True
    ):
        assert wanted is not None and mine.shape == wanted.shape and mine.is_contiguous(), name
        error = (mine.double() - wanted).abs().max().item()
        assert error <= tolerance * wanted.abs().max().item(), f"{name}: {error}"


def check_shape(directions: int, batch: int, length: int, width: int, taps: int, reverse: bool) -> None:
    check(make_inputs(directions, batch, length, width, taps), reverse)


# One token, fewer tokens than taps, one tap, whole and part tiles of 8 tokens and 128 channels, two segments of 64.
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 1, 5, 4, False), (1, 2, 3, 5, 4, True), (1, 1, 9, 5, 1, False), (2, 1, 8, 130, 3, True),
        (2, 2, 67, 3, 2, False), (1, 1, 20, 7, 4, False),
    ],
    ids=str,
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_definition(
    interpreted: Run, shape: tuple[int, int, int, int, int, bool]
) -> None:
    interpreted(check_shape, *shape)


def check_dtype(dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias = make_inputs(2, 1, 9, 5, 4)
    check((x.to(dtype), weight, bias), False, tolerance)


# Inputs are exact in both and arithmetic is float32, so only the rounding of the results differs; the interpreter cuts
# what is stored as bfloat16, where a GPU rounds.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-11)], ids=str)
def test_narrow_inputs_lose_only_the_rounding_of_the_results(
    interpreted: Run, dtype: torch.dtype, tolerance: float
) -> None:
    interpreted(check_dtype, dtype, 1.01 * tolerance)


def check_views() -> None:
    x, weight, bias = make_inputs(2, 2, 5, 4, 3)
    wide = torch.cat([x, x], -1)
    check((wide[..., 4:], weight.transpose(1, 2).contiguous().transpose(1, 2), bias.t().contiguous().t()), True)
    check((x.transpose(1, 2).contiguous().transpose(1, 2), weight, bias), False)


def test_views_of_any_strides(interpreted: Run) -> None:
    interpreted(check_views)


def check_empty(batch: int, length: int) -> None:
    y, *gradients = found(make_inputs(2, batch, length, 4, 3), torch.zeros(2, batch, length, 4), False)
    assert tuple(y.shape) == (2, batch, length, 4)
    assert [tuple(x.shape) for x in gradients] == [(batch, length, 4), (2, 4, 3), (2, 4)]
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_in_is_nothing_out(interpreted: Run, batch: int, length: int) -> None:
    interpreted(check_empty, batch, length)


def check_repeatable() -> None:
    inputs, dout = make_inputs(2, 2, 9, 5, 4), torch.randn(2, 2, 9, 5)
    assert all(map(torch.equal, found(inputs, dout, True), found(inputs, dout, True)))


def test_results_are_bitwise_repeatable(interpreted: Run) -> None:
    interpreted(check_repeatable)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (3, 67, 130, 3), (2, 512, 384, 4), (1, 9, 1536, 1)], ids=str)
def test_a_gpu_computes_the_definition(directions: int, reverse: bool, shape: tuple[int, int, int, int]) -> None:
    x, weight, bias = (tensor.cuda() for tensor in make_inputs(directions, *shape))
    check((x, weight, bias), reverse, 1e-5)
    check((x.bfloat16(), weight, bias), reverse, 1.01 * 2**-8 + 1e-5)
    dout = torch.randn(directions, *x.shape, device="cuda")
    first, second = (found((x, weight, bias), dout, reverse) for _ in range(2))
    assert all(map(torch.equal, first, second))
