"""The selective scan: every backend against its equations in float64, values and gradients."""

import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.ops import resolve_backend, selective_scan

DIRECTIONS = ("forward", "reverse")
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
# (B, L, E, N): one token, one channel, one state, whole and part vectors of 16 channels, one chunk of 16 tokens and
# parts of one, more channels than one task takes, odd and large state sizes.
SHAPES = [
    (2, 1, 16, 8), (1, 33, 1, 1), (2, 16, 16, 16), (3, 37, 20, 3), (2, 50, 70, 5), (1, 19, 130, 64), (2, 17, 33, 63),
]  # fmt: skip


def make_inputs(batch: int, length: int, width: int, states: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(batch, length, width), "delta": normal(batch, length, width),
        "A": -torch.exp(normal(width, states)), "B": normal(batch, length, states), "C": normal(batch, length, states),
        "D": normal(width), "z": normal(batch, length, width), "delta_bias": normal(width) - 1,
    }  # fmt: skip


def run(inputs: dict[str, Tensor], dout: Tensor | None = None, **how: str) -> dict[str, Tensor]:
    """The output as "y", and the gradient of (y * dout).sum() for every input."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y = selective_scan(**leaves, **how)
    if dout is None:
        dout = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dout.to(y.dtype))
    return {"y": y.detach()} | {name: tensor.grad for name, tensor in leaves.items()}


def in_float64(inputs: dict[str, Tensor], direction: str, dout: Tensor | None = None) -> dict[str, Tensor]:
    return run({name: x.double() for name, x in inputs.items()}, dout, direction=direction, backend="reference")


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


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@each_direction
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_scan_is_what_its_docstring_says(direction: str, backend: str) -> None:
    inputs = make_inputs(2, 19, 5, 3)
    y = selective_scan(**inputs, direction=direction, backend=backend)
    wanted = loop(**{name: tensor.double().numpy() for name, tensor in inputs.items()}, direction=direction)
    np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


@each_direction
def test_the_reference_gradients_are_its_derivatives(direction: str) -> None:
    inputs = {name: tensor.double().requires_grad_() for name, tensor in make_inputs(2, 4, 2, 3).items()}
    names = list(inputs)

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(**dict(zip(names, tensors, strict=True)), direction=direction, backend="reference")

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("shape", SHAPES)
@each_direction
def test_cpu_values_and_gradients_are_the_references(shape: tuple[int, int, int, int], direction: str) -> None:
    inputs = make_inputs(*shape)
    assert_equal_to_scale(run(inputs, direction=direction, backend="cpu"), in_float64(inputs, direction), 3e-6)


@pytest.mark.parametrize("missing", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@each_direction
def test_cpu_equals_the_reference_without_optional_inputs(missing: tuple[str, ...], direction: str) -> None:
    inputs = {name: tensor for name, tensor in make_inputs(2, 21, 24, 4).items() if name not in missing}
    assert_equal_to_scale(run(inputs, direction=direction, backend="cpu"), in_float64(inputs, direction), 3e-6)


@pytest.mark.parametrize("shape", [(0, 5, 16, 4), (2, 0, 16, 4)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_empty_batch_or_sequence_gives_empty_output_and_no_gradient(
    shape: tuple[int, int, int, int], backend: str
) -> None:
    result = run(make_inputs(*shape), backend=backend)
    assert result["y"].shape == shape[:3]
    for name in ("A", "D", "delta_bias"):
        gradient = result[name]
        assert gradient is None or not gradient.any()


@each_direction
@pytest.mark.parametrize("width", [16, 24])  # with and without room for padding to whole vectors
def test_cpu_reads_strided_inputs(direction: str, width: int) -> None:
    batch, length, states = 2, 23, 5
    plain = make_inputs(batch, length, width, states)
    u, z = torch.cat([plain["u"], plain["z"]], -1).chunk(2, -1)
    _, b, c = torch.cat([torch.ones(batch, length, 3), plain["B"], plain["C"]], -1).split([3, states, states], -1)
    strided = {
        "u": u, "z": z, "B": b, "C": c, "delta": plain["delta"].transpose(1, 2).contiguous().transpose(1, 2),
        "A": plain["A"].t().contiguous().t(), "D": torch.stack([plain["D"], plain["D"]], 1)[:, 0],
        "delta_bias": plain["delta_bias"],
    }  # fmt: skip
    assert not any(strided[name].is_contiguous() for name in ("u", "z", "B", "C", "delta", "A", "D"))
    dout = torch.randn(batch, width, length, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    ours = run(strided, dout, direction=direction, backend="cpu")
    contiguous = {name: tensor.contiguous() for name, tensor in strided.items()}
    assert_bitwise_equal(ours, run(contiguous, dout.contiguous(), direction=direction, backend="cpu"))
    assert_equal_to_scale(ours, in_float64(contiguous, direction, dout), 3e-6)


def test_cpu_takes_broadcast_inputs_and_output_gradients() -> None:
    inputs = make_inputs(1, 9, 16, 4)
    inputs["u"], inputs["B"] = torch.tensor(0.5).expand(3, 9, 16), inputs["B"].expand(3, 9, 4)
    for name in ("delta", "C", "z"):
        inputs[name] = inputs[name].expand(3, -1, -1)
    dout = torch.tensor(1.0).expand(3, 9, 16)  # what .sum().backward() passes
    assert_equal_to_scale(run(inputs, dout, backend="cpu"), in_float64(inputs, "forward", dout), 3e-6)


def test_only_what_needs_a_gradient_gets_one() -> None:
    inputs = make_inputs(2, 20, 16, 4)
    inputs["C"].requires_grad_()
    selective_scan(**inputs, backend="cpu").sum().backward()
    wanted = in_float64(inputs, "forward", torch.ones(2, 20, 16))["C"]
    torch.testing.assert_close(inputs["C"].grad.double(), wanted, rtol=1e-4, atol=1e-4)
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != "C")


@each_direction
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half_inputs_are_scanned_in_float32_and_answered_in_their_dtype(
    direction: str, dtype: torch.dtype, backend: str
) -> None:
    kept = ("A", "D", "delta_bias")  # under autocast, parameters stay float32
    inputs = {name: x if name in kept else x.to(dtype) for name, x in make_inputs(2, 40, 24, 16).items()}
    dout = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(3)).to(dtype)
    ours = run(inputs, dout, direction=direction, backend=backend)
    assert {name: ours[name].dtype for name in inputs} == {name: tensor.dtype for name, tensor in inputs.items()}
    assert ours["y"].dtype == dtype
    wanted = in_float64(inputs, direction, dout)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(ours["y"].double(), wanted["y"], rtol=rounding, atol=1e-5)
    assert_equal_to_scale({name: ours[name] for name in kept}, {name: wanted[name] for name in kept}, 1e-5)
    assert_equal_to_scale(ours, wanted, rounding)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_reversed_tokens_in_the_other_direction_give_the_reversed_output(backend: str) -> None:
    inputs = make_inputs(2, 35, 20, 4)
    per_token = ("u", "delta", "B", "C", "z")
    turned = {name: x.flip(1) if name in per_token else x for name, x in inputs.items()}
    dout = torch.randn(2, 35, 20, generator=torch.Generator().manual_seed(4))
    ahead = run(inputs, dout, direction="forward", backend=backend)
    back = run(turned, dout.flip(1), direction="reverse", backend=backend)
    for name in ahead:
        turned_back = back[name].flip(1) if name in (*per_token, "y") else back[name]
        torch.testing.assert_close(turned_back, ahead[name], rtol=1e-5, atol=1e-5)
    if backend == "cpu":
        assert torch.equal(back["y"].flip(1), ahead["y"])


@each_direction
def test_a_nan_stays_in_its_clip_and_reaches_all_later_tokens_of_its_channel(direction: str) -> None:
    inputs = make_inputs(2, 20, 16, 4)
    inputs["u"][1, 10, 3] = float("nan")
    y = selective_scan(**inputs, direction=direction, backend="cpu")
    nan = torch.zeros(2, 20, 16, dtype=torch.bool)
    nan[1, 10:, 3] = True
    if direction == "reverse":
        nan[1, :11, 3], nan[1, 11:, 3] = True, False
    assert torch.equal(y.isnan(), nan)


@each_direction
@pytest.mark.parametrize("size", [30.0, 100.0])
def test_extreme_step_sizes_and_gates_stay_finite_and_correct(direction: str, size: float) -> None:
    inputs = make_inputs(2, 40, 32, 8)
    inputs["delta"] = inputs["delta"].sign() * size
    inputs["z"] = inputs["z"].sign() * 10 * size
    inputs["z"][..., ::3] /= 100
    ours = run(inputs, direction=direction, backend="cpu")
    assert all(tensor.isfinite().all() for tensor in ours.values())
    assert_equal_to_scale(ours, in_float64(inputs, direction), 1e-5)


@pytest.mark.parametrize("level", [-100.0, -20.0, 100.0])
def test_uniformly_extreme_step_sizes_are_correct(level: float) -> None:
    inputs = make_inputs(1, 18, 16, 4)
    inputs["delta"] = inputs["delta"] * 0.1 + level
    inputs["delta_bias"] = inputs["delta_bias"] * 0
    ours, wanted = run(inputs, backend="cpu"), in_float64(inputs, "forward")
    torch.testing.assert_close(ours["y"].double(), wanted["y"], rtol=1e-4, atol=1e-5 * wanted["y"].abs().max().item())
    for name in inputs:
        # exp(-100) is no float32 of full precision: what is as small as that may vanish.
        gradient = wanted[name]
        torch.testing.assert_close(
            ours[name].double(), gradient, rtol=1e-3, atol=max(1e-34, 1e-5 * gradient.std().item())
        )


@pytest.mark.parametrize("shape", [(2, 50, 70, 5), (3, 33, 200, 16), (1, 20, 40, 3)])
@each_direction
def test_cpu_results_are_bitwise_the_same_for_any_number_of_threads_and_again(
    shape: tuple[int, int, int, int], direction: str, threads: None
) -> None:
    inputs = make_inputs(*shape)
    torch.set_num_threads(1)
    alone = run(inputs, direction=direction, backend="cpu")
    assert_bitwise_equal(run(inputs, direction=direction, backend="cpu"), alone)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bitwise_equal(run(inputs, direction=direction, backend="cpu"), alone)


def test_cpu_without_gradients_gives_the_same_output_and_keeps_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssamba.ops import cpu

    kept = []

    def spy(kernel: Any, tasks: int, *arguments: Any, run_tasks: Any = cpu.run_tasks) -> None:
        kept.append(arguments[-2].size)
        run_tasks(kernel, tasks, *arguments)

    monkeypatch.setattr(cpu, "run_tasks", spy)
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs(2, 40, 20, 4).items()}
    with_gradients = selective_scan(**inputs, backend="cpu")
    with torch.no_grad():
        without = selective_scan(**inputs, backend="cpu")
    assert torch.equal(with_gradients, without)
    assert with_gradients.requires_grad and not without.requires_grad
    assert kept == [2 * 3 * 4 * 32, 0]


def scan_in_child(connection: Any, inputs: dict[str, Any], dout: Any) -> None:
    torch.set_num_threads(2)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    result = run(tensors, torch.from_numpy(dout), direction="reverse", backend="cpu")
    connection.send({name: tensor.numpy() for name, tensor in result.items()})
    connection.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_cpu_works_in_a_child_process_after_its_parent_used_it(method: str, threads: None) -> None:
    # The inputs are made here: a forked child may hang in torch's own operators that use OpenMP, exp for one.
    inputs, dout = make_inputs(2, 33, 70, 4), torch.randn(2, 33, 70, generator=torch.Generator().manual_seed(5))
    torch.set_num_threads(2)
    here = run(inputs, dout, direction="reverse", backend="cpu")
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    child = context.Process(target=scan_in_child, args=(sender, arrays, dout.numpy()))
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child hangs"
        there = receiver.recv()
    finally:
        child.kill()
        child.join()
    assert_bitwise_equal({name: torch.from_numpy(array) for name, array in there.items()}, here)
    assert_bitwise_equal(run(inputs, dout, direction="reverse", backend="cpu"), here)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("delta", (2, 7, 5)), ("A", (5, 4)), ("B", (2, 7, 4)), ("C", (2, 6, 3)), ("D", (4,)), ("z", (1, 7, 6)),
     ("delta_bias", (6, 1))],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_shape_that_does_not_fit_is_an_error_that_names_it(name: str, shape: tuple[int, ...], backend: str) -> None:
    inputs = make_inputs(2, 7, 6, 3) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"^{name} has shape {str(shape)[:-1]}".replace("(", r"\(")):
        selective_scan(**inputs, backend=backend)


def test_u_and_a_of_other_ranks_are_an_error() -> None:
    inputs = make_inputs(2, 7, 6, 3)
    with pytest.raises(ValueError, match=r"expected \(B, L, E\) and \(E, N\)"):
        selective_scan(**inputs | {"u": torch.zeros(7, 6)})
    with pytest.raises(ValueError, match=r"expected \(B, L, E\) and \(E, N\)"):
        selective_scan(**inputs | {"A": torch.zeros(6)})


def test_an_unknown_direction_or_backend_is_an_error_that_says_what_there_is() -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"'backward'; expected 'forward' or 'reverse'"):
        selective_scan(**inputs, direction="backward")
    with pytest.raises(ValueError, match=r"'fast'; expected one of auto, reference, cpu"):
        selective_scan(**inputs, backend="fast")


def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error_with_the_cause() -> None:
    inputs = make_inputs(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="'cpu'.*torch.float64 on cpu"):
        selective_scan(**{name: tensor.double() for name, tensor in inputs.items()}, backend="cpu")
    with pytest.raises(RuntimeError, match="'cpu'.*on meta"):
        selective_scan(**{name: tensor.to("meta") for name, tensor in inputs.items()}, backend="cpu")


def test_auto_takes_the_fastest_that_keeps_the_precision_and_logs_once(caplog: pytest.LogCaptureFixture) -> None:
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="ssamba.ops.scan"):
        chosen = [resolve_backend("auto", "cpu", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
        assert chosen == ["cpu", "cpu", "reference"]
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
    assert [record.getMessage() for record in caplog.records if "float32" in record.getMessage()] == [
        "selective scan: cpu backend on cpu (torch.float32)"
    ]
    inputs = make_inputs(1, 5, 16, 4)
    assert torch.equal(selective_scan(**inputs), selective_scan(**inputs, backend="cpu"))
