"""The Triton kernels of the scan against its equations in float64, values and gradients.

On a CPU Triton's interpreter runs them, in a process of its own: TRITON_INTERPRET has to be set before anything imports
triton, and would break torch.compile in this one.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

CHUNK = 16
NAMES = ("u", "delta", "a", "b", "c", "d", "z", "bias")
Run = Callable[..., None]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Calls a function of this module where Triton interprets; what it raises is raised here."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(torch.set_num_threads, 1).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def make_inputs(directions: int, batch: int, length: int, width: int, states: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(directions, batch, length, width), "delta": normal(directions, batch, length, width),
        "a": -torch.exp(normal(directions, width, states)), "b": normal(directions, batch, length, states),
        "c": normal(directions, batch, length, states), "d": normal(directions, width),
        "z": normal(batch, length, width), "bias": normal(directions, width) - 1,
    }  # fmt: skip


def definition(inputs: dict[str, Tensor | None], reverse: bool) -> Tensor:
    u, delta, a, b, c, d, z, bias = (inputs[name] for name in NAMES)
    assert u is not None and delta is not None and a is not None and b is not None and c is not None
    total = torch.zeros_like(u[0])
    for k in range(len(u)):
        # Above the threshold softplus(x) is x, to the last bit of a float64.
        dt = F.softplus(delta[k] if bias is None else delta[k] + bias[k], threshold=40)
        h = torch.zeros_like(a[k])
        ys = {}
        for t in range(u.shape[2])[:: -1 if (k == 1) != reverse else 1]:
            h = torch.exp(dt[:, t, :, None] * a[k]) * h + (dt[:, t] * u[k, :, t])[..., None] * b[k, :, t, None]
            ys[t] = (h * c[k, :, t, None]).sum(-1)
        y = torch.stack([ys[t] for t in range(u.shape[2])], 1)
        total = total + (y if d is None else y + d[k] * u[k])
    return total if z is None else total * F.silu(z)


def expected(inputs: dict[str, Tensor | None], dout: Tensor, reverse: bool) -> list[Tensor | None]:
    """y and the gradients of (y * dout).sum(), in float64."""
    leaves = {name: None if x is None else x.detach().double().requires_grad_() for name, x in inputs.items()}
    y = definition(leaves, reverse)
    y.backward(dout.double())
    return [y.detach(), *(None if x is None else x.grad for x in leaves.values())]


def found(inputs: dict[str, Tensor | None], dout: Tensor, reverse: bool) -> list[Tensor | None]:
    from ssamba.ops import triton

    y, saved = triton.forward(*inputs.values(), reverse, True)  # type: ignore[arg-type]
    assert tuple(saved.shape) == triton.saved_shape(inputs["u"], inputs["a"])  # type: ignore[arg-type]
    without, nothing = triton.forward(*inputs.values(), reverse, False)  # type: ignore[arg-type]
    assert torch.equal(without, y) and nothing.numel() == 0
    return [y, *triton.backward(dout, *inputs.values(), saved, reverse)]  # type: ignore[arg-type]


def check(inputs: dict[str, Tensor | None], reverse: bool, tolerance: float = 2e-6) -> None:
    """Errors against the largest value; float32 sums of some hundred terms lose less than 2e-6 of that."""
    shape = inputs["u"].shape[1:]  # type: ignore[union-attr]
    u = inputs["u"]
    dout = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(u)  # type: ignore[arg-type]
    ours, theirs = found(inputs, dout, reverse), expected(inputs, dout, reverse)
    for name, mine, wanted, given in zip(("y", *NAMES), ours, theirs, (u, *inputs.values()), strict=True):
        if wanted is None or given is None:
            assert mine is None, name
            continue
        assert mine is not None and mine.shape == wanted.shape and mine.dtype == given.dtype and mine.is_contiguous()
        error = (mine.double() - wanted).abs().max().item()
        assert error <= tolerance * wanted.abs().max().item() + 1e-30, f"{name}: {error}"


def check_shape(directions: int, batch: int, length: int, width: int, states: int, reverse: bool) -> None:
    check(make_inputs(directions, batch, length, width, states), reverse)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 1, 5, 2, False), (1, 1, CHUNK - 1, 5, 2, True), (2, 1, CHUNK, 5, 1, True),
        (1, 2, CHUNK + 1, 5, 3, False), (2, 1, 3 * CHUNK + 5, 3, 2, False), (1, 1, 3 * CHUNK + 5, 3, 2, True),
        (2, 1, 3, 33, 16, False), (2, 1, 3, 130, 1, True),
    ],
    ids=str,
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_definition(interpreted: Run, shape: tuple[Any, ...]) -> None:
    interpreted(check_shape, *shape)


def check_absent(directions: int, *absent: str) -> None:
    inputs = make_inputs(directions, 1, 5, 4, 2)
    check({name: None if name in absent else x for name, x in inputs.items()}, False)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("absent", [("d", "z", "bias"), ("z",), ("d", "bias")], ids=str)
def test_skip_gate_and_bias_may_be_absent(interpreted: Run, directions: int, absent: tuple[str, ...]) -> None:
    interpreted(check_absent, directions, *absent)


def check_dtype(dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(2, 1, CHUNK + 1, 5, 3)
    narrow = {
        name: x.to(dtype) for name, x in inputs.items() if x is not None and name in ("u", "delta", "b", "c", "z")
    }
    check(inputs | narrow, False, tolerance)


# Inputs are exact in both and arithmetic is float32, so only the rounding of the results differs: half a unit in the
# last of 11 binary places; the interpreter cuts what is stored as bfloat16, of 8 places, where a GPU rounds.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-11)], ids=str)
def test_narrow_inputs_lose_only_the_rounding_of_the_results(
    interpreted: Run, dtype: torch.dtype, tolerance: float
) -> None:
    interpreted(check_dtype, dtype, 1.01 * tolerance)


def check_views() -> None:
    inputs = {name: x for name, x in make_inputs(2, 2, 5, 4, 2).items() if x is not None}
    both = torch.cat([inputs["u"][0], inputs["z"]], -1)
    mixed = torch.cat([inputs["delta"], inputs["b"], inputs["c"]], -1)
    inputs["u"] = both[..., :4].unsqueeze(0).expand(2, -1, -1, -1)
    inputs["z"] = both[..., 4:]
    inputs["delta"], inputs["b"], inputs["c"] = mixed.split([4, 2, 2], -1)
    inputs["a"] = inputs["a"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["d"] = inputs["d"].t().contiguous().t()
    check(dict(inputs), True)
    inputs["u"] = inputs["delta"].transpose(2, 3).contiguous().transpose(2, 3)
    check(dict(inputs), False)


def test_views_of_any_strides(interpreted: Run) -> None:
    interpreted(check_views)


def check_empty(batch: int, length: int) -> None:
    inputs = make_inputs(2, batch, length, 4, 3)
    y, *gradients = found(inputs, torch.zeros(batch, length, 4), False)
    assert y is not None and tuple(y.shape) == (batch, length, 4)
    for x, gradient in zip(inputs.values(), gradients, strict=True):
        assert x is not None and gradient is not None
        assert gradient.shape == x.shape and not gradient.any()


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_in_is_nothing_out(interpreted: Run, batch: int, length: int) -> None:
    interpreted(check_empty, batch, length)


def check_repeatable() -> None:
    inputs = make_inputs(2, 1, 3, 33, 2)
    dout = torch.randn(1, 3, 33)
    for first, second in zip(found(inputs, dout, False), found(inputs, dout, False), strict=True):
        assert first is not None and second is not None and torch.equal(first, second)


def test_results_are_bitwise_repeatable(interpreted: Run) -> None:
    interpreted(check_repeatable)


def check_extremes() -> None:
    inputs = make_inputs(1, 1, 6, 4, 3)
    assert inputs["delta"] is not None
    inputs["delta"] = torch.tensor([60.0, -60.0, 60.0, 0.0, -60.0, 60.0])[:, None].expand(1, 1, 6, 4)
    check(inputs, False)


def test_step_sizes_of_any_magnitude(interpreted: Run) -> None:
    interpreted(check_extremes)


def check_small_steps() -> None:
    from ssamba.ops import triton

    # With one token and no skip, y = C . dt * u * B: softplus itself, to relative precision where it is smallest.
    delta = torch.linspace(-60, 60, 41).reshape(1, 1, 1, -1)
    ones, one = torch.ones_like(delta), torch.ones(1, 1, 1, 1)
    y, _ = triton.forward(ones, delta, -torch.ones(1, 41, 1), one, one, None, None, None, False, False)
    torch.testing.assert_close(y.double().flatten(), torch.log1p(delta.double().exp()).flatten(), rtol=1e-5, atol=0)


def test_small_steps_keep_their_precision(interpreted: Run) -> None:
    interpreted(check_small_steps)


def check_usable() -> None:
    from ssamba.ops import triton

    assert triton.usable("cpu") and not triton.usable("mps")
    assert triton.usable("cuda") == torch.cuda.is_available()


def test_a_cpu_will_do_under_the_interpreter_only(interpreted: Run) -> None:
    from ssamba.ops import triton

    assert not triton.usable("cpu")
    interpreted(check_usable)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 3), (3, 53, 33, 16), (2, 512, 384, 16), (1, 40, 1536, 16), (2, 33, 130, 64)], ids=str
)
def test_a_gpu_computes_the_definition(directions: int, reverse: bool, shape: tuple[int, ...]) -> None:
    inputs = {name: x.cuda() for name, x in make_inputs(directions, *shape).items() if x is not None}
    # ex2.approx is off by up to 2 ** -22, and a state's decays multiply: looser than on a CPU.
    check(dict(inputs), reverse, 2e-5)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_a_gpu_takes_narrow_inputs(dtype: torch.dtype, tolerance: float) -> None:
    inputs = {name: x.cuda() for name, x in make_inputs(2, 2, 100, 200, 16).items() if x is not None}
    narrow = {name: inputs[name].to(dtype) for name in ("u", "delta", "b", "c", "z")}
    check(dict(inputs | narrow), False, 1.01 * tolerance + 2e-5)
    first, second = (found(dict(inputs | narrow), narrow["z"], False) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))  # type: ignore[arg-type]
