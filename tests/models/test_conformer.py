"""The Conformer encoder: torchaudio's own, with nothing drawn and no clip that depends on another."""

import pytest
import torch
import torchaudio
from torch import Tensor, nn

from ssamba.models.conformer import ConformerStack

WIDTH, LAYERS, HEADS, INNER, TAPS = 24, 3, 2, 40, 5


@pytest.fixture
def stack() -> ConformerStack:
    torch.manual_seed(0)
    made = ConformerStack(WIDTH, LAYERS, HEADS, INNER, TAPS)
    with torch.no_grad():
        for parameter in made.parameters():  # where a norm of one or a bias of zero would hide that it is skipped
            parameter += 0.1 * torch.randn(parameter.shape)
    return made


@pytest.fixture
def theirs(stack: ConformerStack) -> nn.Module:
    """torchaudio's, with the same weights."""
    made = torchaudio.models.Conformer(WIDTH, HEADS, INNER, LAYERS, TAPS, use_group_norm=True)
    made.conformer_layers.load_state_dict(stack.layers.state_dict())
    return made


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [1, 4, 19])
def test_it_computes_what_torchaudios_does(stack: ConformerStack, theirs: nn.Module, length: int) -> None:
    x = tokens(2, length)
    wanted, _ = theirs(x, torch.tensor([length, length]))
    torch.testing.assert_close(stack(x), wanted, rtol=1e-5, atol=1e-5)


def test_its_gradients_are_those_of_torchaudios(stack: ConformerStack, theirs: nn.Module) -> None:
    ours, other = tokens(2, 9).requires_grad_(), tokens(2, 9).requires_grad_()
    dout = torch.randn(2, 9, WIDTH)
    (stack(ours) * dout).sum().backward()
    (theirs(other, torch.tensor([9, 9]))[0] * dout).sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-5)
    wanted = dict(theirs.conformer_layers.named_parameters())  # type: ignore[union-attr, operator]
    for name, parameter in stack.layers.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-4)


def test_hidden_states_are_what_each_layer_takes_and_the_output(stack: ConformerStack) -> None:
    x, states = tokens(2, 9), list[Tensor]()
    out = stack(x, states)
    assert len(states) == LAYERS + 1 == stack.num_hidden_states
    assert torch.equal(states[0], x) and torch.equal(states[-1], out)
    for layer, state, after in zip(stack.layers, states, states[1:], strict=False):
        assert torch.equal(layer(state), after)


def test_training_draws_no_random_number_and_no_clip_counts_the_others(stack: ConformerStack) -> None:
    x, before = tokens(3, 9), torch.get_rng_state()
    together = stack.train()(x)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(stack.eval()(x), together)
    for clip in range(3):
        torch.testing.assert_close(stack(x[clip : clip + 1])[0], together[clip], rtol=1e-5, atol=1e-5)
    assert not list(stack.buffers())  # a batch norm's running statistics
