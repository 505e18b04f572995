"""The Triton kernels of the causal convolution against its definition in float64; interpreted on a CPU."""

from typing import Any

import pytest
import torch
from test_conv import assert_equal_to_scale, check_dtype, check_empty, each_order, in_float64, make_inputs, run
from test_triton import Run, both_ways, on_a_gpu


def check_shape(shape: tuple[int, int, int, int], how: dict[str, Any]) -> None:
    inputs = make_inputs(*shape, "swap_directions" in how)
    assert_equal_to_scale(run(inputs, backend="triton", **how), in_float64(inputs, **how), 2e-6)


# One token, fewer tokens than taps, one tap, whole and part tiles of 8 tokens and 128 channels, two segments of 64.
@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((1, 1, 5, 4), {"swap_directions": False}),
        ((2, 3, 5, 4), {"direction": "reverse"}),
        ((1, 9, 5, 1), {"direction": "forward"}),
        ((1, 8, 130, 2), {"swap_directions": True}),
        ((2, 67, 3, 2), {"direction": "reverse"}),
        ((1, 67, 3, 2), {"swap_directions": False}),
        ((1, 20, 7, 4), {"direction": "forward"}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_definition(
    interpreted: Run, shape: tuple[int, int, int, int], how: dict[str, Any]
) -> None:
    interpreted(check_shape, shape, how)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@both_ways
def test_narrow_inputs_lose_only_the_rounding_of_the_results(
    interpreted: Run, dtype: torch.dtype, how: dict[str, Any]
) -> None:
    # The interpreter cuts what is stored as bfloat16, where a GPU rounds.
    interpreted(check_dtype, dtype, how, "triton", (1, 5, 5, 2), 1.0 if dtype == torch.bfloat16 else 0.5)


def check_views() -> None:
    x, weight, bias = make_inputs(2, 5, 4, 2, True)
    strided = torch.cat([x, x], -1)[..., 4:], weight.mT.contiguous().mT, bias.t().contiguous().t()
    dout = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(2)).transpose(2, 3)
    others = (x.mT.contiguous().mT, weight, bias), torch.ones(()).expand(2, 2, 5, 4)
    for inputs, gradient in ((strided, dout), others):
        assert_equal_to_scale(run(inputs, gradient, backend="triton"), in_float64(inputs, gradient), 2e-6)


def test_views_of_any_strides(interpreted: Run) -> None:
    interpreted(check_views)


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (0, 5, 4, 1), (2, 0, 4, 3), (2, 0, 4, 1), (2, 5, 0, 3)], ids=str)
@both_ways
def test_nothing_in_is_nothing_out_and_no_gradient(
    interpreted: Run, shape: tuple[int, int, int, int], how: dict[str, Any]
) -> None:
    interpreted(check_empty, shape, how, "triton")


def check_repeatable() -> None:
    inputs = make_inputs(2, 9, 5, 2, True)
    assert all(map(torch.equal, run(inputs, backend="triton"), run(inputs, backend="triton")))


def test_results_are_bitwise_repeatable(interpreted: Run) -> None:
    interpreted(check_repeatable)


@pytest.mark.gpu
@on_a_gpu
@each_order
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (3, 67, 130, 3), (2, 512, 384, 4), (1, 9, 1536, 1)], ids=str)
def test_a_gpu_computes_the_definition(how: dict[str, Any], shape: tuple[int, int, int, int]) -> None:
    x, weight, bias = (tensor.cuda() for tensor in make_inputs(*shape, "swap_directions" in how))
    for inputs, tolerance in (((x, weight, bias), 1e-5), ((x.bfloat16(), weight, bias), 1.01 * 2**-8 + 1e-5)):
        first, second = (run(inputs, backend="triton", **how) for _ in range(2))
        assert all(map(torch.equal, first, second))
        dout = None if tolerance == 1e-5 else first[0]
        ours = first if dout is None else run(inputs, dout, backend="triton", **how)
        assert_equal_to_scale(ours, in_float64(inputs, dout, **how), tolerance)
