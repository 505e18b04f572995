"""The Triton kernels of the scan against its equations in float64, values and gradients; interpreted on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_scan import (
    DTYPES,
    assert_bitwise_equal,
    assert_equal_to_scale,
    check_beyond_float32,
    check_combination,
    check_empty,
    check_growing,
    each_combination,
    each_order,
    in_float64,
    make_inputs,
    run,
)
from torch import Tensor

pytest.importorskip("triton")

CHUNK = 16
Run = Callable[..., None]
both_ways = pytest.mark.parametrize(
    "how", [{"direction": "reverse"}, {"swap_directions": False}], ids=["reverse", "bidirectional"]
)


@each_combination
@both_ways
def test_every_combination_of_inputs_and_dtypes(
    interpreted: Run, missing: tuple[str, ...], dtype: torch.dtype, how: dict[str, Any]
) -> None:
    # The interpreter cuts what is stored as bfloat16, where a GPU rounds.
    places = 1.0 if dtype == torch.bfloat16 else 0.5
    interpreted(check_combination, missing, dtype, how, "triton", (1, 3, 3, 2), places)


def check_shape(shape: tuple[int, int, int, int], how: dict[str, Any]) -> None:
    inputs = make_inputs(*shape, bidirectional="swap_directions" in how)
    assert_equal_to_scale(run(inputs, backend="triton", **how), in_float64(inputs, **how), 2e-6)


# One token; less than a chunk, one, and parts of a third; one state; more than a warp of channels, and than a block.
@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((1, 1, 5, 2), {"swap_directions": False}),
        ((1, CHUNK - 1, 5, 2), {"direction": "reverse"}),
        ((1, CHUNK, 5, 1), {"swap_directions": True}),
        ((2, CHUNK + 1, 5, 3), {"direction": "forward"}),
        ((1, 2 * CHUNK + 5, 3, 2), {"swap_directions": False}),
        ((1, 2 * CHUNK + 5, 3, 2), {"direction": "reverse"}),
        ((1, 3, 33, 5), {"swap_directions": False}),
        ((1, 3, 130, 1), {"direction": "reverse"}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_definition(
    interpreted: Run, shape: tuple[int, int, int, int], how: dict[str, Any]
) -> None:
    interpreted(check_shape, shape, how)


def check_without_gradients(directions: int) -> None:
    from ssamba.ops.scan import triton_kernels

    inputs = make_inputs(1, CHUNK + 1, 3, 2, bidirectional=True)
    tensors = [x if name == "z" else x[:directions] for name, x in inputs.items()]
    y, states = torch.ops.ssamba.scan(*tensors, False, "triton", True)
    without, nothing = torch.ops.ssamba.scan(*tensors, False, "triton", False)
    assert tuple(states.shape) == triton_kernels.saved_shape(tensors[0], tensors[2]) == (directions, 1, 2, 2, 3)
    assert torch.equal(without, y) and nothing.numel() == 0


@pytest.mark.parametrize("directions", [1, 2])
def test_without_gradients_the_output_is_the_same_and_no_states_are_kept(interpreted: Run, directions: int) -> None:
    interpreted(check_without_gradients, directions)


def check_views() -> None:
    inputs = make_inputs(2, 5, 4, 2, bidirectional=True)
    both = torch.cat([inputs["u"][0], inputs["z"]], -1)
    mixed = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], -1)
    inputs["u"] = both[..., :4].unsqueeze(0).expand(2, -1, -1, -1)
    inputs["z"] = both[..., 4:]
    inputs["delta"], inputs["B"], inputs["C"] = mixed.split([4, 2, 2], -1)
    inputs["A"] = inputs["A"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["D"] = inputs["D"].t().contiguous().t()
    dout = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    assert_equal_to_scale(
        run(inputs, dout, backend="triton", swap_directions=True), in_float64(inputs, dout, swap_directions=True), 2e-6
    )
    inputs["u"] = inputs["delta"].transpose(2, 3).contiguous().transpose(2, 3)
    dout = torch.tensor(1.0).expand(2, 5, 4)
    assert_equal_to_scale(run(inputs, dout, backend="triton"), in_float64(inputs, dout), 2e-6)


def test_views_of_any_strides(interpreted: Run) -> None:
    interpreted(check_views)


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3)], ids=str)
@pytest.mark.parametrize("missing", [(), ("D", "z", "delta_bias")], ids=str)
@both_ways
def test_nothing_in_is_nothing_out_and_no_gradient(
    interpreted: Run, shape: tuple[int, int, int, int], missing: tuple[str, ...], how: dict[str, Any]
) -> None:
    interpreted(check_empty, shape, missing, how, "triton")


def check_repeatable() -> None:
    inputs = make_inputs(1, 3, 33, 2, bidirectional=True)
    assert_bitwise_equal(run(inputs, backend="triton"), run(inputs, backend="triton"))


def test_results_are_bitwise_repeatable(interpreted: Run) -> None:
    interpreted(check_repeatable)


def check_extremes() -> None:
    inputs = make_inputs(1, 6, 4, 3)
    inputs["delta"] = torch.tensor([60.0, -60.0, 60.0, 0.0, -60.0, 60.0])[:, None].expand(1, 6, 4)
    assert_equal_to_scale(run(inputs, backend="triton"), in_float64(inputs), 2e-6)


def test_step_sizes_of_any_magnitude(interpreted: Run) -> None:
    interpreted(check_extremes)


def check_growth() -> None:
    check_growing({"direction": "forward"}, "triton")
    check_beyond_float32(True, "triton")


def test_states_may_grow_until_they_outgrow_float32(interpreted: Run) -> None:
    interpreted(check_growth)


def check_small_steps() -> None:
    from ssamba.ops.scan import triton_kernels

    # With one token and no skip, y = C . dt * u * B: softplus itself, to relative precision where it is smallest.
    delta = torch.linspace(-60, 60, 41).reshape(1, 1, 1, -1)
    ones, one = torch.ones_like(delta), torch.ones(1, 1, 1, 1)
    y, _ = triton_kernels.forward(ones, delta, -torch.ones(1, 41, 1), one, one, None, None, None, False, False)
    torch.testing.assert_close(y.double().flatten(), torch.log1p(delta.double().exp()).flatten(), rtol=1e-5, atol=0)


def test_small_steps_keep_their_precision(interpreted: Run) -> None:
    interpreted(check_small_steps)


def check_usable() -> None:
    from ssamba.ops.scan import triton_kernels

    assert triton_kernels.usable("cpu") and not triton_kernels.usable("mps")
    assert triton_kernels.usable("cuda") == torch.cuda.is_available()


def test_a_cpu_will_do_under_the_interpreter_only(interpreted: Run) -> None:
    from ssamba.ops.scan import triton_kernels

    assert not triton_kernels.usable("cpu")
    interpreted(check_usable)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def on_cuda(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.cuda() for name, x in inputs.items()}


@pytest.mark.gpu
@on_a_gpu
@each_order
@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 3), (3, 53, 33, 16), (2, 512, 384, 16), (1, 40, 1536, 16), (2, 33, 130, 64)], ids=str
)
def test_a_gpu_computes_the_definition(how: dict[str, Any], shape: tuple[int, int, int, int]) -> None:
    inputs = on_cuda(make_inputs(*shape, bidirectional="swap_directions" in how))
    # ex2.approx is off by up to 2 ** -22, and a state's decays multiply: looser than on a CPU.
    assert_equal_to_scale(run(inputs, backend="triton", **how), in_float64(inputs, **how), 2e-5)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_gpu_takes_narrow_inputs(dtype: torch.dtype) -> None:
    inputs = on_cuda(make_inputs(2, 100, 200, 16, bidirectional=True))
    inputs |= {name: inputs[name].to(dtype) for name in ("u", "delta", "B", "C", "z")}
    first, second = (run(inputs, inputs["z"], backend="triton") for _ in range(2))
    assert_bitwise_equal(first, second)
    assert_equal_to_scale(first, in_float64(inputs, inputs["z"]), 0.505 * torch.finfo(dtype).eps + 2e-5)
