"""AuM's mixer and stack: what the three layouts compute, against loops and formulas written out here."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_encoder import move
from torch import Tensor, nn

from ssamba.models.aum import SCAN_LAYOUTS, AumStack, ForwardMixer
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.mixer import BidirectionalMixer

WIDTH, STATES, TAPS = 24, 4, 4
each_layout = pytest.mark.parametrize("layout", SCAN_LAYOUTS)
each_backend = pytest.mark.parametrize("backend", ["reference", "torch-chunked", "cpu"])


def make_mixer(both: bool, backend: str = "auto") -> ForwardMixer:
    torch.manual_seed(0)
    mixer: ForwardMixer = move(ForwardMixer(WIDTH, STATES, 2, TAPS, both, backend))
    return mixer


def make_stack(layout: str, layers: int = 3) -> AumStack:
    torch.manual_seed(0)
    stack: AumStack = move(AumStack(WIDTH, layers, STATES, 2, TAPS, layout, 1e-5, "auto"))
    return stack


def make_tokens(length: int = 19) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(2))


def loop(mixer: ForwardMixer, x: Tensor, both: bool) -> Tensor:
    """The mixer, token by token."""
    own, inner = mixer.ahead, 2 * WIDTH
    x, z = mixer.in_proj(x).chunk(2, -1)
    padded = F.pad(x.transpose(1, 2), (TAPS - 1, 0))
    u = F.silu(F.conv1d(padded, own.conv.weight, own.conv.bias, groups=inner).transpose(1, 2))
    rank, b, c = own.x_proj(u).split([2, STATES, STATES], -1)
    step = F.softplus(own.dt_proj(rank))

    def scan(a_log: Tensor, order: list[int]) -> Tensor:
        state, outputs = torch.zeros(len(u), inner, STATES), [torch.empty(0)] * len(order)
        for t in order:
            decay = torch.exp(step[:, t, :, None] * -a_log.exp())
            state = decay * state + (step[:, t] * u[:, t])[:, :, None] * b[:, t, None]
            outputs[t] = (state * c[:, t, None]).sum(-1) + own.D * u[:, t]
        return torch.stack(outputs, 1) * F.silu(z)

    tokens = list(range(x.shape[1]))
    y = scan(own.A_log, tokens)
    if both:
        y = y + scan(mixer.back["A_log"], tokens[::-1])
    out: Tensor = mixer.out_proj(y)
    return out


@pytest.mark.parametrize("both", [False, True])
@each_backend
def test_a_forward_mixer_is_its_loop_and_so_are_its_gradients(both: bool, backend: str) -> None:
    mixer, x = make_mixer(both, backend), make_tokens().requires_grad_()
    weights = torch.randn(2, 19, WIDTH, generator=torch.Generator().manual_seed(3))
    found, wanted = mixer(x), loop(mixer, x, both)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    inputs = [x, *mixer.parameters()]
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max()


def test_a_scan_back_owns_nothing_but_its_decay() -> None:
    names = {name for name, _ in make_mixer(True).named_parameters()}
    assert names - {name for name, _ in make_mixer(False).named_parameters()} == {"back.A_log"}


def test_reversed_tokens_exchange_the_two_decays_if_the_convolution_looks_at_one_token_alone() -> None:
    mixer, x = make_mixer(True), make_tokens()
    with torch.no_grad():
        mixer.back["A_log"] += 2
    turned = copy.deepcopy(mixer)
    with torch.no_grad():
        turned.ahead.A_log.copy_(mixer.back["A_log"])
        turned.back["A_log"].copy_(mixer.ahead.A_log)
        # The convolution runs forward for both scans, so with its other taps this is no symmetry.
        assert (turned(x.flip(1)).flip(1) - mixer(x)).abs().max() > 0.01
        for either in (mixer, turned):
            either.ahead.conv.weight[..., :-1] = 0
        torch.testing.assert_close(turned(x.flip(1)).flip(1), mixer(x), rtol=1e-5, atol=1e-6)
        assert (mixer(x.flip(1)).flip(1) - mixer(x)).abs().max() > 1e-3


@each_layout
def test_which_tokens_see_which(layout: str) -> None:
    stack, x = make_stack(layout), make_tokens()
    changed = x.clone()
    changed[:, 9] += 1
    with torch.no_grad():
        moved = (stack(changed) - stack(x)).abs().amax((0, 2)) > 0
    assert moved[9:].all()
    assert not moved[:9].any() if layout == "fo_fo" else moved[:9].all()


@each_layout
def test_a_stack_adds_each_mixer_of_a_normalised_input_and_ends_with_one_norm(layout: str) -> None:
    stack, x = make_stack(layout), make_tokens()

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    with torch.no_grad():
        wanted = x
        for layer in stack.layers:
            assert isinstance(layer.mixer, BidirectionalMixer if layout == "bi_bi" else ForwardMixer)
            mixed = layer.mixer if layout == "bi_bi" else lambda x, own=layer.mixer: loop(own, x, layout == "fo_bi")
            wanted = wanted + mixed(rms_norm(wanted, layer.norm.weight))
        torch.testing.assert_close(stack(x), rms_norm(wanted, stack.norm.weight), rtol=1e-4, atol=1e-5)


@each_layout
def test_a_recomputed_layer_has_the_same_output_and_gradients_bitwise(layout: str) -> None:
    stack, x = make_stack(layout), make_tokens()

    def step() -> list[Tensor]:
        stack.zero_grad()
        y = stack(x)
        y.square().sum().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in stack.parameters())]

    kept = step()
    stack.recompute = True
    runs: list[int] = []
    stack.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    again = step()
    assert len(runs) == 2
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@each_layout
def test_norms_and_the_residual_are_float32_under_autocast(layout: str) -> None:
    stack, x = make_stack(layout), make_tokens()
    seen: list[torch.dtype] = []
    for module in stack.modules():
        if isinstance(module, nn.RMSNorm):
            module.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(x)
        y.square().mean().backward()
    assert seen == [torch.float32] * 8
    plain = stack(x)
    assert (y - plain).abs().mean() < 0.03 * plain.abs().mean()
    assert all(parameter.grad.isfinite().all() for parameter in stack.parameters())


@each_layout
def test_a_stack_starts_as_ssambas_does(layout: str) -> None:
    torch.manual_seed(0)
    stack = AumStack(64, 9, 8, 2, 4, layout, 1e-5, "auto")
    for layer in stack.layers:
        bound = 128**-0.5 / math.sqrt(9)
        assert 0.99 * bound < layer.mixer.out_proj.weight.abs().max() <= bound
        step = F.softplus(layer.mixer.ahead.dt_proj.bias)
        assert step.min() >= 0.99e-3 and step.max() <= 1.01e-1
        decays = [parameter for name, parameter in layer.named_parameters() if name.endswith("A_log")]
        assert len(decays) == {"fo_fo": 1, "fo_bi": 2, "bi_bi": 2}[layout]
        for decay in decays:
            torch.testing.assert_close(decay.exp(), torch.arange(1.0, 9).expand(128, 8))


@pytest.mark.parametrize(("side", "frames", "index"), [(8, 48, 12), (16, 48, 3), (32, 96, 1), (32, 32, 0)])
def test_the_class_token_stands_in_the_middle(side: int, frames: int, index: int) -> None:
    torch.manual_seed(0)
    options = {**SIZES["aum"]["nano"], "hidden_size": 32, "num_hidden_layers": 1}
    model = AudioEncoder("aum", options, 32, frames, side, side, side, side)
    assert model.stack.class_token_index(math.prod(model.grid)) == index == math.prod(model.grid) // 2
    embedded: list[Tensor] = []
    model.stack.register_forward_hook(lambda _, inputs, output: embedded.extend((inputs[0], output)))
    encoded = model(torch.randn(2, frames, 32))
    before, after = embedded
    assert torch.equal(before[:, index], (model.class_tokens + model.class_positions).expand(2, -1))
    assert torch.equal(encoded.class_tokens[:, 0], after[:, index])
    assert torch.equal(encoded.tokens, after[:, [i for i in range(after.shape[1]) if i != index]])


def test_an_unknown_layout_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="'bi_fo'; expected one of fo_fo, fo_bi, bi_bi"):
        make_stack("bi_fo")
