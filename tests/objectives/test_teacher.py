"""The teacher that follows its student: its targets, number by number, its weights, and how spread is measured."""

import math

import pytest
import torch
from torch import Tensor

from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.objectives import Teacher, spread

OPTIONS = {**SIZES["ssamba"]["nano"], "num_hidden_layers": 3, "residual": "plain"}


def make(bins: int = 32, seed: int = 0) -> AudioEncoder:
    torch.manual_seed(seed)
    return AudioEncoder("ssamba", OPTIONS, bins, 48, 16, 16, 16, 16)


def log_mels(clips: int = 3, bins: int = 32) -> Tensor:
    return torch.randn(clips, 48, bins, generator=torch.Generator().manual_seed(5))


def normalised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in values]


def means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("layers", [1, 2, 9])
@pytest.mark.parametrize("own", [None, 3])
def test_targets_are_the_last_layers_normalised_and_averaged(layers: int, own: int | None) -> None:
    teacher = Teacher(make(), layers, 0.9, 0.9)
    clips = log_mels()
    mask = None if own is None else (torch.arange(6) < own).repeat(3, 1)
    targets = teacher(clips, mask)
    states = teacher.encoder.hidden_states(clips)[-min(layers, 4) :]
    count = 6 if own is None else own
    for clip in range(3):
        by_layer = [state.tokens[clip, :count].tolist() for state in states]
        # Each dimension over the clip's patches, then the mean over layers, then each patch over its dimensions.
        over_patches = [[normalised(list(column)) for column in zip(*layer, strict=True)] for layer in by_layer]
        for patch in range(count):
            mean = means([[column[patch] for column in layer] for layer in over_patches])
            assert targets.patches[clip, patch].tolist() == pytest.approx(normalised(mean), abs=2e-3)
        pooled = means([means([normalised(token) for token in layer]) for layer in by_layer])
        assert targets.clips[clip].tolist() == pytest.approx(normalised(pooled), abs=2e-3)
    assert not targets.patches.requires_grad and not targets.clips.requires_grad


def test_padding_changes_no_target() -> None:
    """What is said of padding is in no statistic: of the same states, other ones at the end change nothing."""
    teacher = Teacher(make(), 2, 0.9, 0.9)
    own = (torch.arange(6) < 4).repeat(3, 1)
    states = teacher.encoder.hidden_states

    def disturbed(log_mel: Tensor) -> list:
        return [one._replace(tokens=one.tokens + 100.0 * ~own.unsqueeze(-1)) for one in states(log_mel)]

    wanted = teacher(log_mels(), own)
    teacher.encoder.hidden_states = disturbed  # type: ignore[method-assign]
    found = teacher(log_mels(), own)
    torch.testing.assert_close(found.patches[:, :4], wanted.patches[:, :4])
    torch.testing.assert_close(found.clips, wanted.clips)
    torch.testing.assert_close(found.spread, wanted.spread)


def test_the_teacher_follows_by_a_decay_that_grows_along_a_line() -> None:
    student, teacher = make(seed=1), Teacher(make(seed=2), 2, 0.5, 0.9)
    start = {name: tensor.clone() for name, tensor in teacher.encoder.named_parameters()}
    wanted = dict(student.named_parameters())
    for done, decay in ((0.0, 0.5), (0.25, 0.6), (1.0, 0.9), (1.5, 0.9)):
        teacher.follow(student, done)
        for name, tensor in teacher.encoder.named_parameters():
            expected = decay * start[name] + (1 - decay) * wanted[name]
            torch.testing.assert_close(tensor.detach(), expected.detach())
            start[name] = tensor.detach().clone()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_begins_as_its_student_and_shares_nothing_with_it() -> None:
    student = make()
    teacher = Teacher(student, 2, 0.9, 0.9)
    ours = dict(teacher.encoder.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, ours[name]) and parameter.data_ptr() != ours[name].data_ptr()
        assert parameter.requires_grad


# Spread


def test_spread_is_none_of_equal_vectors_and_one_of_centred_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    assert spread(torch.randn(1, 8, generator=generator).expand(4, 5, 8)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(500, 4, 8, generator=generator)).item() == pytest.approx(1, abs=0.01)
    # A common part of the same size halves the square.
    x = torch.randn(4000, 1, 8, generator=generator)
    assert spread(x + torch.ones(8)).item() == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_what_positions_alone_tell_is_no_spread() -> None:
    positions = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    assert spread(positions.expand(3, 6, 8)).item() == pytest.approx(0, abs=1e-6)
    # Of one clip nothing else is known: all of its places are compared.
    assert spread(positions).item() > 0.8


def test_padding_has_no_part_in_the_spread() -> None:
    x = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    own = torch.arange(6) < torch.tensor([6, 2, 3, 6, 1]).unsqueeze(1)
    wanted = spread(x, own)
    x[~own] = 1e6
    torch.testing.assert_close(spread(x, own), wanted)
