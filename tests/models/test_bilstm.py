"""The recurrent encoder: what each layer computes, step by step."""

import pytest
import torch
from torch import Tensor

from ssamba.models.bilstm import BilstmLayer, BilstmStack

WIDTH, STATES = 10, 6


@pytest.fixture
def stack() -> BilstmStack:
    torch.manual_seed(0)
    made = BilstmStack(WIDTH, 3, STATES, 1e-5)
    with torch.no_grad():
        for parameter in made.parameters():  # where a norm of one or a bias of zero would hide that it is skipped
            parameter += 0.1 * torch.randn(parameter.shape)
    return made


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


def one_way(layer: BilstmLayer, x: Tensor, end: str) -> Tensor:
    """An LSTM's equations (1997, with a forget gate), one token after another: (B, L, D) -> (B, L, N)."""
    taken, kept, bias, own_bias = (
        layer.lstm.get_parameter(f"{name}_l0{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = c = torch.zeros(len(x), STATES)
    outputs = []
    for token in x.unbind(1):
        i, f, g, o = (token @ taken.T + bias + h @ kept.T + own_bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, 1)


def test_each_layer_adds_a_projection_of_both_directions_to_what_it_takes(stack: BilstmStack) -> None:
    x, states = tokens(2, 13), list[Tensor]()
    out, wanted = stack(x, states), x
    for number, layer in enumerate(stack.layers):
        torch.testing.assert_close(states[number], wanted, rtol=1e-5, atol=1e-5)
        normed = layer.norm(wanted)
        both = torch.cat([one_way(layer, normed, ""), one_way(layer, normed.flip(1), "_reverse").flip(1)], -1)
        wanted = wanted + layer.out_proj(both)
    torch.testing.assert_close(out, stack.norm(wanted), rtol=1e-4, atol=1e-5)
    assert torch.equal(states[-1], out) and len(states) == stack.num_hidden_states == 4


def test_a_layer_is_torchs_lstm(stack: BilstmStack) -> None:
    layer = stack.layers[0]
    lstm = torch.nn.LSTM(WIDTH, STATES, batch_first=True, bidirectional=True)
    lstm.load_state_dict(layer.lstm.state_dict())
    ours, theirs = tokens(2, 13).requires_grad_(), tokens(2, 13).requires_grad_()
    layer(ours).square().sum().backward()
    layer.out_proj(lstm(layer.norm(theirs))[0]).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    for name, parameter in lstm.named_parameters():
        assert torch.equal(parameter.grad, layer.lstm.get_parameter(name).grad)  # type: ignore[arg-type]


def test_the_class_token_stands_in_the_middle(stack: BilstmStack) -> None:
    assert [stack.class_token_index(patches) for patches in (1, 2, 24, 25)] == [0, 1, 12, 12]


def test_projections_start_small_so_that_the_sum_keeps_its_scale() -> None:
    torch.manual_seed(0)
    one, four = (BilstmStack(64, layers, 64, 1e-5).layers[0].out_proj.weight.std() for layers in (1, 4))
    assert (one / four).item() == pytest.approx(2, rel=0.05)
