"""The operators under torch.compile, torch.export and autocast: one node each, the same values and gradients."""

from typing import Any

import pytest
import torch
from test_scan import assert_equal_to_scale, in_float64, make_inputs, run
from torch import Tensor, nn
from torch.library import opcheck

from ssamba.ops import bidirectional_conv_silu, bidirectional_scan

each_of_ours = pytest.mark.parametrize("backend", ["cpu", "torch-chunked"])
OPTIONAL = ("D", "z", "delta_bias")


@pytest.mark.parametrize("missing", [(), OPTIONAL])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("keep", [True, False])
@each_of_ours
def test_the_scan_keeps_the_contract_of_an_operator(
    missing: tuple[str, ...], directions: int, keep: bool, backend: str
) -> None:
    inputs = make_inputs(2, 19, 5, 3, bidirectional=True)
    tensors = [
        None if name in missing else (x if name == "z" else x[:directions]).clone().requires_grad_(keep)
        for name, x in inputs.items()
    ]
    opcheck(torch.ops.ssamba.scan.default, (*tensors, False, backend, keep))


def test_the_scan_of_strided_inputs_keeps_the_contract_of_an_operator() -> None:
    inputs = make_inputs(2, 16, 16, 4, bidirectional=True)
    u, z = torch.stack([inputs["u"]] * 2, -1)[..., 0], inputs["z"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors = [x.detach().requires_grad_() for x in (inputs | {"u": u, "z": z}).values()]
    opcheck(torch.ops.ssamba.scan.default, (*tensors, True, "cpu", True))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("width", [5, 16])
def test_the_convolution_keeps_the_contract_of_an_operator(directions: int, width: int) -> None:
    x = torch.randn(2, width, 7, requires_grad=True).transpose(1, 2)
    weight, bias = (torch.randn(directions, width, *rest, requires_grad=True) for rest in ((4,), ()))
    opcheck(torch.ops.ssamba.conv.default, (x, weight, bias, False, "cpu"))


def test_the_state_space_model_keeps_the_contract_of_an_operator() -> None:
    x, z = (torch.randn(2, 32, 19, requires_grad=True).transpose(1, 2) for _ in "xz")
    step, log_decay = (sign * torch.rand(2, 2, 19, 2).requires_grad_() for sign in (1, -1))
    b, c, d = (torch.randn(shape, requires_grad=True) for shape in ((2, 2, 19, 3), (2, 2, 19, 3), (2,)))
    opcheck(torch.ops.ssamba.ssd.default, (x, step, log_decay, b, c, d, z, "cpu", True))


class Mixer(nn.Module):
    """A convolution and a scan in both directions."""

    def __init__(self, width: int, states: int, backend: str) -> None:
        super().__init__()
        inputs = make_inputs(2, 1, width, states, bidirectional=True)
        self.taps = nn.Parameter(torch.linspace(-1, 1, 2 * width * 4).view(2, width, 4))
        self.bias = nn.Parameter(torch.zeros(2, width))
        self.A, self.D, self.delta_bias = (nn.Parameter(inputs[name]) for name in ("A", "D", "delta_bias"))
        self.backend = backend

    def forward(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        u = bidirectional_conv_silu(x, self.taps, self.bias, backend=self.backend)
        return bidirectional_scan(u, delta, self.A, b, c, self.D, z, self.delta_bias, backend=self.backend)


def tokens(batch: int, width: int, states: int) -> tuple[Tensor, ...]:
    inputs = make_inputs(batch, 19, width, states, bidirectional=True)
    x = torch.randn(inputs["z"].shape, generator=torch.Generator().manual_seed(6))
    return x, *(inputs[name] for name in ("delta", "B", "C", "z"))


def outputs_and_gradients(module: Any, parameters: list[Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = module(*leaves)
    dout = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *parameters], dout)]


@each_of_ours
def test_compiled_values_and_gradients_are_the_same_without_a_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    mixer = Mixer(20, 3, backend)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    inputs = tokens(2, 20, 3)
    wanted = outputs_and_gradients(mixer, list(mixer.parameters()), inputs)
    ours = outputs_and_gradients(compiled, list(mixer.parameters()), inputs)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), wanted[0], rtol=1e-6, atol=1e-6)


@each_of_ours
def test_an_exported_module_holds_each_operator_once_and_runs_at_another_batch_size(backend: str) -> None:
    mixer = Mixer(20, 3, backend).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch}, {1: batch}, {1: batch}, {1: batch}, {0: batch})
    exported = torch.export.export(mixer, tokens(2, 20, 3), dynamic_shapes=shapes)
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.ssamba.scan.default) == 1
    assert targets.count(torch.ops.ssamba.conv.default) == (1 if backend == "cpu" else 0)
    for size in (1, 2, 5):
        others = tokens(size, 20, 3)
        torch.testing.assert_close(exported.module()(*others), mixer(*others), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradients", [False, True])
def test_auto_is_decided_by_an_export_with_gradients_alone(gradients: bool) -> None:
    mixer = Mixer(20, 3, "auto").requires_grad_(gradients)
    exported = torch.export.export(mixer, tokens(2, 20, 3))
    calls = {node.target: node.args for node in exported.graph.nodes if node.op == "call_function"}
    chosen = "cpu" if gradients else "auto"
    assert calls[torch.ops.ssamba.scan.default][-2:] == (chosen, gradients)
    assert calls[torch.ops.ssamba.conv.default][-1] == chosen
    inputs = tokens(2, 20, 3)
    torch.testing.assert_close(exported.module()(*inputs), mixer(*inputs), rtol=1e-6, atol=1e-6)


def test_auto_is_compiled_without_a_graph_break() -> None:
    torch._dynamo.reset()
    mixer = Mixer(20, 3, "auto")
    compiled, inputs = torch.compile(mixer, fullgraph=True, backend="aot_eager"), tokens(2, 20, 3)
    torch.testing.assert_close(compiled(*inputs), mixer(*inputs), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), mixer(*inputs), rtol=1e-6, atol=1e-6)


@each_of_ours
def test_autocast_rounds_the_output_alone(backend: str) -> None:
    kept = ("A", "D", "delta_bias")
    inputs = make_inputs(2, 200, 24, 16, bidirectional=True)
    inputs["delta"] = inputs["delta"] * 0.5 - 2  # steps so small that states rounded to bfloat16 would stand still
    inputs = {name: x if name in kept else x.bfloat16() for name, x in inputs.items()}
    dout = torch.randn(2, 200, 24, generator=torch.Generator().manual_seed(8)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(inputs, dout, backend=backend)
    assert ours["y"].dtype == torch.bfloat16
    assert {name: ours[name].dtype for name in inputs} == {name: tensor.dtype for name, tensor in inputs.items()}
    wanted = in_float64(inputs, dout)
    half_a_place = torch.finfo(torch.bfloat16).eps / 2
    scale = wanted["y"].abs().max().item()
    torch.testing.assert_close(ours["y"].double(), wanted["y"], rtol=1.001 * half_a_place, atol=3e-6 * scale)
    assert_equal_to_scale({name: ours[name] for name in kept}, {name: wanted[name] for name in kept}, 5e-6)
    assert_equal_to_scale(ours, wanted, half_a_place)


@pytest.mark.parametrize("backend", ["cpu", "torch-chunked", "reference"])
def test_autocast_rounds_the_convolution_alone(backend: str) -> None:
    x, taps = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(9)).bfloat16(), Mixer(20, 1, "cpu").taps
    with torch.autocast("cpu", torch.bfloat16):
        y = bidirectional_conv_silu(x, taps, taps[..., 0], backend=backend)
    assert y.dtype == torch.bfloat16
    wanted = bidirectional_conv_silu(x.double(), taps.double(), taps[..., 0].double(), backend="reference")
    torch.testing.assert_close(y.double(), wanted, rtol=1.001 * torch.finfo(torch.bfloat16).eps / 2, atol=1e-6)
