"""Mamba-2's recurrence in both directions: each way to compute it against its equations, values and gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import bidirectional_ssd
from ssamba.ops.ssd import dual, reference

# (B, L, H, P, N): one token, part and whole chunks of either way, part blocks of states, heads of whole vectors and
# heads that the kernels do not take, more channels than one task of the backward pass.
SHAPES = [
    (2, 1, 2, 16, 4),
    (1, 15, 1, 16, 3),
    (2, 16, 3, 32, 8),
    (1, 17, 5, 64, 1),
    (2, 64, 2, 16, 5),
    (1, 131, 3, 48, 6),
]
OTHERS = [(2, 1, 2, 3, 2), (1, 63, 2, 4, 3), (2, 65, 1, 5, 2), (1, 200, 2, 3, 4)]
NAMES = ("x", "step", "log_decay", "B", "C", "D", "z")


def make_inputs(batch: int, length: int, heads: int, dim: int, states: int, seed: int = 0) -> list[Tensor]:
    """Steps from a thousandth to ten: decays near 1 and near 0."""
    generator = torch.Generator().manual_seed(seed)
    step = F.softplus(3 * torch.randn(2, batch, length, heads, generator=generator) - 1)
    rates = torch.rand(2, 1, 1, heads, generator=generator) + 0.1
    shapes = [(batch, length, heads, dim), (2, batch, length, states), (2, batch, length, states), (heads,)]
    x, b, c, d = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x, step, -rates * step, b, c, d, torch.randn(x.shape, generator=generator)]


def run(function: object, inputs: list[Tensor], kind: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    leaves = [tensor.detach().to(kind).requires_grad_() for tensor in inputs]
    y = function(*leaves)  # type: ignore[operator]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad((y * weights.to(kind)).sum(), leaves)]


def assert_near(ours: list[Tensor], wanted: list[Tensor], error: float) -> None:
    for name, one, other in zip(("y", *NAMES), ours, wanted, strict=True):
        assert (one - other).abs().max() <= error * max(1.0, other.abs().max().item()), name


def test_the_reference_is_the_recurrence_one_number_at_a_time() -> None:
    inputs = make_inputs(2, 5, 2, 3, 4)
    x, step, log_decay, b, c, d, z = (tensor.double().numpy() for tensor in inputs)
    wanted = np.zeros(x.shape)
    for clip, head, channel in np.ndindex(2, 2, 3):
        for k, order in enumerate(([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])):
            state = [0.0] * 4
            for t in order:
                for n in range(4):
                    decay = math.exp(log_decay[k, clip, t, head])
                    drive = step[k, clip, t, head] * b[k, clip, t, n] * x[clip, t, head, channel]
                    state[n] = decay * state[n] + drive
                    wanted[clip, t, head, channel] += c[k, clip, t, n] * state[n]
    wanted = (wanted + d[:, None] * x) * z / (1 + np.exp(-z))
    ours = reference.ssd(*(tensor.double() for tensor in inputs))
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_equal_the_reference_in_values_and_gradients(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape)
    assert_near(run(bidirectional_ssd, inputs, torch.float32), run(reference.ssd, inputs, torch.float64), 3e-6)


@pytest.mark.parametrize("shape", OTHERS)
def test_the_matrices_equal_the_reference_in_values_and_gradients(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape)
    wanted = run(reference.ssd, inputs, torch.float64)
    assert_near(run(bidirectional_ssd, inputs, torch.float64), wanted, 1e-11)
    assert_near(run(bidirectional_ssd, inputs, torch.float32), wanted, 3e-5)


def test_the_gradients_of_the_matrices_are_those_of_small_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "CHUNK", 4)
    inputs = [tensor.double().requires_grad_() for tensor in make_inputs(1, 10, 2, 2, 2)]
    assert torch.autograd.gradcheck(bidirectional_ssd, inputs)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_long_clips_and_decays_that_leave_nothing_stay_finite(kind: torch.dtype) -> None:
    inputs = make_inputs(1, 3000, 2, 16, 4)
    inputs[2] = inputs[2] * torch.tensor([0.0, 1e4]).view(2, 1, 1, 1)  # one direction keeps all, one nothing
    inputs[1] = inputs[1].clamp(max=0.1)
    assert all(tensor.isfinite().all() for tensor in run(bidirectional_ssd, inputs, kind))


def test_each_direction_alone_sees_the_tokens_on_its_side() -> None:
    inputs = make_inputs(1, 90, 2, 16, 4)
    for k in range(2):
        chosen = [tensor.clone() for tensor in inputs]
        chosen[4][1 - k] = 0  # the other direction is not read
        chosen[2] = chosen[2] / 100
        before = bidirectional_ssd(*chosen)
        chosen[0][:, 40] += 1
        moved = (bidirectional_ssd(*chosen) - before).abs().amax((0, 2, 3)) > 0
        assert moved.tolist() == [t >= 40 if k == 0 else t <= 40 for t in range(90)]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(kind: torch.dtype) -> None:
    inputs = [
        tensor.to(kind) if name in "xBCz" else tensor
        for name, tensor in zip(NAMES, make_inputs(2, 40, 2, 16, 4), strict=True)
    ]
    wanted = bidirectional_ssd(*(tensor.float() for tensor in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        ours = bidirectional_ssd(*inputs)
    assert ours.dtype == kind and torch.equal(ours, wanted.to(kind))


def test_strided_inputs_and_any_number_of_threads_give_the_same_bits() -> None:
    inputs = make_inputs(3, 50, 6, 64, 8)
    wanted = run(bidirectional_ssd, inputs, torch.float32)
    strided = [torch.stack([tensor] * 2, -1)[..., 0] for tensor in inputs]
    assert all(map(torch.equal, run(bidirectional_ssd, strided, torch.float32), wanted))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert all(map(torch.equal, run(bidirectional_ssd, inputs, torch.float32), wanted))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (2, 5, 16), r"x has shape \(2, 5, 16\) and B \(2, 2, 5, 4\); expected \(B, L, H, P\) and \(2, B, L, N\)"),
        (1, (2, 2, 5, 4), r"step has shape \(2, 2, 5, 4\); expected \(2, 2, 5, 3\) beside x \(2, 5, 3, 16\)"),
        (4, (2, 2, 5, 3), r"C has shape \(2, 2, 5, 3\); expected \(2, 2, 5, 4\)"),
        (5, (4,), r"D has shape \(4,\); expected \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(place: int, shape: tuple[int, ...], message: str) -> None:
    inputs = make_inputs(2, 5, 3, 16, 4)
    inputs[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        bidirectional_ssd(*inputs)


def test_whole_numbers_are_an_error() -> None:
    inputs = make_inputs(2, 5, 3, 16, 4)
    with pytest.raises(ValueError, match=r"z has dtype torch.int64; expected a floating-point one"):
        bidirectional_ssd(*inputs[:-1], inputs[-1].long())
