"""The Mamba-2 encoder: what each layer computes, and how it starts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.models.ssd import SsdLayer, SsdStack
from ssamba.ops.ssd import reference

WIDTH, STATES, HEAD_DIM, TAPS = 24, 3, 16, 4
HEADS, INNER = 3, 48


@pytest.fixture
def stack() -> SsdStack:
    torch.manual_seed(0)
    made = SsdStack(WIDTH, 3, STATES, 2, HEAD_DIM, TAPS, 1e-5)
    with torch.no_grad():
        for parameter in made.parameters():  # where a norm of one or a bias of zero would hide that it is skipped
            parameter += 0.1 * torch.randn(parameter.shape)
    return made


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


def described(layer: SsdLayer, x: Tensor) -> Tensor:
    """The block's equations."""
    x = F.layer_norm(x, (WIDTH,), layer.norm.weight, layer.norm.bias, 1e-5)
    z, x, delta = (x @ layer.in_proj.weight.T).split([INNER, INNER + 4 * STATES, 2 * HEADS], -1)
    taps, past = layer.conv.weight[:, 0], F.pad(x, (0, 0, TAPS - 1, 0))
    x = F.silu(sum(past[:, i : i + x.shape[1]] * taps[:, i] for i in range(TAPS)) + layer.conv.bias)
    x, b_ahead, b_back, c_ahead, c_back = x.split([INNER, STATES, STATES, STATES, STATES], -1)
    step = F.softplus(torch.stack(delta.split(HEADS, -1)) + layer.dt_bias.view(2, 1, 1, HEADS))
    log_decay = step * -layer.A_log.exp().view(2, 1, 1, HEADS)
    b, c = torch.stack([b_ahead, b_back]), torch.stack([c_ahead, c_back])
    heads = (*x.shape[:2], HEADS, HEAD_DIM)
    y = reference.ssd(x.reshape(heads), step, log_decay, b, c, layer.D, z.reshape(heads))
    return y.flatten(2) @ layer.out_proj.weight.T


def test_each_layer_adds_what_its_equations_give(stack: SsdStack) -> None:
    x, states = tokens(2, 37), list[Tensor]()
    out, wanted = stack(x, states), x
    for place, layer in enumerate(stack.layers):
        torch.testing.assert_close(states[place], wanted, rtol=1e-4, atol=1e-4)
        wanted = wanted + described(layer, wanted)
    torch.testing.assert_close(out, stack.norm(wanted), rtol=1e-4, atol=1e-4)
    assert torch.equal(states[-1], out) and len(states) == stack.num_hidden_states == 4


def test_gradients_are_those_of_the_equations(stack: SsdStack) -> None:
    layer, x = stack.layers[0], tokens(2, 37)
    leaves = [x.requires_grad_(), *layer.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), leaves)
    wanted = torch.autograd.grad(described(layer, x).square().sum(), leaves)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_layers_that_are_recomputed_give_the_same(stack: SsdStack) -> None:
    x = tokens(2, 37)
    results = []
    for recompute in (False, True):
        stack.recompute = recompute
        out = stack(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(stack.parameters()))))
    assert all(map(torch.equal, *results))


def test_every_token_sees_the_whole_clip(stack: SsdStack) -> None:
    x = tokens(1, 90).requires_grad_()
    layer = stack.layers[0]
    with torch.no_grad():
        layer.A_log -= 5  # decays slow enough to see as far in float32
    out = layer(x)
    for place in (0, 45, 89):
        (grad,) = torch.autograd.grad(out[0, place].sum(), x, retain_graph=True)
        assert (grad[0].abs().amax(1) > 0).all()


def test_bfloat16_autocast_stays_near_float32(stack: SsdStack) -> None:
    x = tokens(2, 200)
    plain = stack(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = stack(x)
        out.float().square().sum().backward()
    assert (out.float() - plain).abs().mean() < 0.02 * plain.abs().mean()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())


def test_layers_start_with_mamba_2s_step_sizes_and_decays() -> None:
    torch.manual_seed(0)
    layer = SsdLayer(512, 8, 2, 16, 4, 1e-5)
    step = F.softplus(layer.dt_bias)
    assert step.shape == (2, 64) and step.min() >= 0.99e-3 and step.max() <= 1.01e-1
    assert step.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.2)  # log-uniform
    rates = layer.A_log.exp()
    assert rates.min() >= 1 and rates.max() <= 16.001
    assert rates.mean().item() == pytest.approx(8.5, rel=0.1)  # uniform
    assert torch.equal(layer.D, torch.ones(64))


def test_projections_start_small_so_that_the_sum_keeps_its_scale() -> None:
    torch.manual_seed(0)
    one, four = (SsdStack(64, layers, 4, 2, 32, 4, 1e-5).layers[0].out_proj.weight.std() for layers in (1, 4))
    assert (one / four).item() == pytest.approx(2, rel=0.05)


def test_the_class_token_stands_in_the_middle(stack: SsdStack) -> None:
    assert [stack.class_token_index(patches) for patches in (1, 2, 24, 25)] == [0, 1, 12, 12]


def test_heads_that_do_not_fill_the_inner_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="an inner width of 48 is not a multiple of head_dim 32"):
        SsdLayer(WIDTH, STATES, 2, 32, TAPS, 1e-5)
