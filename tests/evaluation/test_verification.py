"""Error rates of trials, against their definitions, torchmetrics and draws made one by one."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_eer

from ssamba.evaluation.linear import Scaling
from ssamba.evaluation.verification import (
    Trials,
    compare,
    cosines,
    detection_cost,
    equal_error_rate,
    error_rates,
    verification_intervals,
    verification_scores,
)


def scores_of(trials: int, gap: float, seed: int = 0, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores of trials, and which are of one speaker; rounded to `steps`, many are equal."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(trials) % 3 == 0
    scores = torch.randn(trials, generator=generator, dtype=torch.float64) + gap * target
    return (scores if steps is None else (scores * steps).round() / steps), target


def plain_rates(scores: Tensor, target: Tensor, weights: Tensor) -> list[tuple[float, float]]:
    """Misses and false alarms of what is at least each score, by their definition."""
    found = [(1.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        missed = weights[target & ~accepted].sum() / weights[target].sum()
        found.append((float(missed), float(weights[~target & accepted].sum() / weights[~target].sum())))
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("trials", "gap", "steps"), [(60, 1.0, None), (60, 1.0, 2), (2, 1.0, None), (9, -3.0, 1)])
def test_rates_are_those_of_the_definition(trials: int, gap: float, steps: int | None, weighted: bool) -> None:
    scores, target = scores_of(trials, gap, steps=steps)
    weights = torch.arange(trials) % 4 + 1 if weighted else torch.ones(trials)
    rates = error_rates(scores, target, weights if weighted else None)
    expected = torch.tensor(plain_rates(scores, target, weights.double()), dtype=torch.float64)
    torch.testing.assert_close(torch.stack(list(rates), 1), expected, rtol=0, atol=1e-12)
    for prior in (0.01, 0.5, 0.9):
        cost = min(prior * missed + (1 - prior) * alarms for missed, alarms in expected.tolist())
        assert detection_cost(rates, prior) == pytest.approx(cost / min(prior, 1 - prior), abs=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.5])
def test_the_equal_error_rate_is_torchmetrics_to_a_step(gap: float) -> None:
    """Which takes the mean of both rates at the nearest threshold, where this takes the line through it."""
    scores, target = scores_of(3000, gap)
    theirs = float(binary_eer(scores.sigmoid(), target.long()))
    assert equal_error_rate(error_rates(scores, target)) == pytest.approx(theirs, abs=1 / 1000)


@pytest.mark.parametrize(
    ("scores", "target", "rate"),
    [
        ([2.0, 1.0, -1.0, -2.0], [1, 1, 0, 0], 0.0),
        ([2.0, 1.0, -1.0, -2.0], [0, 0, 1, 1], 1.0),
        ([1.0, 1.0, 1.0, 1.0], [1, 0, 1, 0], 0.5),
        ([3.0, 2.0, 1.0, 0.0], [1, 0, 1, 0], 0.5),
        ([3.0, 2.0, 1.0], [1, 0, 1], 0.5),
    ],
)
def test_equal_error_rates_of_few_trials(scores: list[float], target: list[int], rate: float) -> None:
    rates = error_rates(torch.tensor(scores), torch.tensor(target, dtype=torch.bool))
    assert equal_error_rate(rates) == pytest.approx(rate)
    assert 0 <= detection_cost(rates, 0.01) <= 1


def trials_of(recordings: int) -> Trials:
    """Every pair of recordings of four speakers."""
    first, second = torch.triu_indices(recordings, recordings, 1)
    return Trials([f"{number}.wav" for number in range(recordings)], first, second, first % 4 == second % 4)


def vectors(recordings: int, noise: float) -> Tensor:
    means = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    own = torch.randn(recordings, 6, generator=torch.Generator().manual_seed(2))
    return means[torch.arange(recordings) % 4] + noise * own


def test_cosines_are_those_of_standardised_vectors() -> None:
    x, trials = vectors(12, 0.5) * torch.tensor([1.0, 100, 1, 1, 0, 1]) + 7, trials_of(12)
    scaled = Scaling.of(x)(x)
    assert not scaled[:, 4].any()  # a number that never changes says nothing
    alive = torch.tensor([0, 1, 2, 3, 5])
    expected = (x.double() - x.double().mean(0))[:, alive] / x.double().std(0, correction=0)[alive]
    torch.testing.assert_close(scaled[:, alive], expected)
    for place, score in enumerate(cosines(scaled, trials).tolist()):
        one, other = expected[trials.first[place]], expected[trials.second[place]]
        assert score == pytest.approx(float(one @ other / (one.norm() * other.norm())))
    zero = cosines(torch.zeros(12, 3), trials)
    assert not zero.any()


def test_intervals_are_of_draws_of_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = trials_of(24)
    ours, theirs = (cosines(vectors(24, noise), trials) for noise in (0.5, 2.0))
    found = compare(ours, theirs, trials)
    assert {name: interval.value for name, interval in found.ours.items()} == verification_scores(ours, trials.target)
    for name, gap in found.difference.items():
        assert gap.value == pytest.approx(found.ours[name].value - found.theirs[name].value)
        assert gap.low < gap.value < gap.high
    assert found.difference["EER"].high < 0  # half of the noise
    assert verification_intervals(ours, trials) == found.ours  # the same draws
    # A draw of the recordings repeats some: the trials of one that is drawn twice count twice.
    drawn = torch.randint(24, (24,), generator=torch.Generator().manual_seed(0))
    counts = [int((drawn == number).sum()) for number in range(24)]
    copies = [
        place
        for place in range(len(trials.target))
        for _ in range(counts[int(trials.first[place])] * counts[int(trials.second[place])])
    ]
    expected = verification_scores(ours[copies], trials.target[copies])
    weights = torch.tensor(counts)[trials.first] * torch.tensor(counts)[trials.second]
    assert verification_scores(ours, trials.target, weights) == pytest.approx(expected)


def test_too_few_recordings_have_no_interval() -> None:
    trials = Trials(["a", "b", "c"], torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([True, False]))
    assert math.isnan(verification_intervals(torch.tensor([0.9, 0.1]), trials)["EER"].low)


def test_intervals_cover_as_often_as_they_say() -> None:
    """Of many sets of recordings of many speakers, one pair of the same speaker each; the truth is that of a large
    set."""

    def scored(pairs: int, seed: int) -> tuple[Tensor, Trials]:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(pairs, 4, generator=generator)
        x = torch.stack([means + 0.9 * torch.randn(pairs, 4, generator=generator) for _ in range(2)], 1).flatten(0, 1)
        first, second = torch.triu_indices(2 * pairs, 2 * pairs, 1)
        trials = Trials([""] * (2 * pairs), first, second, first // 2 == second // 2)
        return cosines(x, trials), trials

    large, held = scored(400, 10_000)
    truth = verification_scores(large, held.target)["EER"]
    covered = 0
    for seed in range(24):
        interval = verification_intervals(*scored(20, seed))["EER"]
        covered += interval.low <= truth <= interval.high
    assert covered >= 20  # 95 % of 24 is 23
