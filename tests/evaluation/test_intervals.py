"""Bootstrap intervals: they cover as often as they say, and are wider where clips are alike."""

import math

import pytest
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation import intervals
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import (
    Scored,
    mean_intervals,
    paired_differences,
    score_intervals,
    weighted_metrics,
)
from ssamba.evaluation.metrics import clip_metrics


def predictions(hits: Tensor, keys: list[str] | None = None) -> Predictions:
    """Of two classes in turn, right where `hits`."""
    labels = torch.arange(len(hits)) % 2
    said = torch.where(hits, labels, 1 - labels)
    names = keys or [f"clip {number}" for number in range(len(hits))]
    return Predictions(names, torch.nn.functional.one_hot(said, 2).float(), labels)


def draws(probability: float | Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def test_intervals_cover_as_often_as_they_say(few: None) -> None:
    generator, inside, outside_pairs = torch.Generator().manual_seed(0), 0, 0
    trials = 250
    for trial in range(trials):
        base = torch.rand(120, generator=generator)
        first, second = predictions(base < 0.8), predictions((base + 0.1 * torch.rand(120, generator=generator)) < 0.8)
        found = score_intervals(first, seed=trial)["accuracy"]
        inside += found.low <= 0.8 <= found.high
        # Of the second the true accuracy is 0.75, on the same clips.
        pair = paired_differences([Scored(first)], [Scored(second)], seed=trial)["accuracy"]
        outside_pairs += not pair.low <= 0.05 <= pair.high
    assert 0.90 <= inside / trials <= 0.98
    assert outside_pairs / trials <= 0.11


def test_clips_of_one_speaker_are_drawn_together(few: None) -> None:
    """Each of 25 speakers has an accuracy of its own: intervals of clips promise too much, those of speakers do not."""
    generator, trials = torch.Generator().manual_seed(1), 120
    inside = {"clips": 0, "speakers": 0}
    speakers = [str(number // 16) for number in range(400)]
    for trial in range(trials):
        chances = torch.where(draws(0.5, 25, generator), 1.0, 0.5).repeat_interleave(16)
        scored = predictions(draws(chances, 400, generator))
        for name, groups in (("clips", None), ("speakers", speakers)):
            found = score_intervals(scored, groups, seed=trial)["accuracy"]
            inside[name] += found.low <= 0.75 <= found.high
    assert inside["speakers"] / trials >= 0.88
    assert inside["clips"] / trials <= 0.80


def test_one_speaker_says_nothing_of_others(few: None) -> None:
    scored, speakers = predictions(torch.arange(10) < 7), ["a"] * 10
    found = score_intervals(scored, speakers)["accuracy"]
    assert found.value == pytest.approx(0.7) and math.isnan(found.low) and math.isnan(found.high)
    assert str(found) == "0.700"
    of_clips = dict(zip(scored.keys, speakers, strict=True))
    pair = paired_differences([Scored(scored)], [Scored(scored)], of_clips)["accuracy"]
    assert pair.value == 0 and math.isnan(pair.low)
    # Several folds of one speaker each can be drawn.
    other = predictions(torch.arange(10) < 2)
    folds = [Scored(scored, "a"), Scored(other, "b")]
    assert mean_intervals(folds, of_clips)["accuracy"][1:] == (pytest.approx(0.2), pytest.approx(0.7))


def test_a_pair_is_closer_than_two_scores(few: None) -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.rand(300, generator=generator)
    first, second = predictions(base < 0.7), predictions(base < 0.75)
    pair = paired_differences([Scored(second)], [Scored(first)])["accuracy"]
    assert pair.value == pytest.approx(float((base < 0.75).double().mean() - (base < 0.7).double().mean()))
    alone = score_intervals(first)["accuracy"]
    assert pair.low > 0 and pair.high - pair.low < 0.7 * (alone.high - alone.low)
    same = paired_differences([Scored(first)], [Scored(first)])["accuracy"]
    assert same == (0, 0, 0)
    # The order of the clips does not matter.
    order = torch.randperm(300, generator=generator)
    turned = Predictions([second.keys[i] for i in order], second.logits[order], second.labels[order])
    assert paired_differences([Scored(turned)], [Scored(first)])["accuracy"] == pytest.approx(pair)


def test_other_clips_are_no_pair() -> None:
    first = predictions(torch.ones(4, dtype=torch.bool))
    for other in (
        predictions(torch.ones(5, dtype=torch.bool)),
        predictions(torch.ones(4, dtype=torch.bool), ["a", "b", "c", "d"]),
        first._replace(labels=1 - first.labels),
    ):
        with pytest.raises(UserError, match="on the same clips with the same labels"):
            paired_differences([Scored(first)], [Scored(other)])
    with pytest.raises(UserError, match="the same folds and as many runs"):
        paired_differences([Scored(first), Scored(first)], [Scored(first)])


def test_several_runs_have_one_mean_and_their_spread(few: None) -> None:
    """Runs of several seeds are scored on the same clips; where they differ, the interval is wider than one run's."""
    generator = torch.Generator().manual_seed(3)
    keys = [str(number) for number in range(200)]
    seeds = [Scored(predictions(draws(chance, 200, generator), keys)) for chance in (0.5, 0.7, 0.9)]
    found = mean_intervals(seeds)["accuracy"]
    scores = [clip_metrics(run.predictions.logits, run.predictions.labels)["accuracy"] for run in seeds]
    assert found.value == pytest.approx(sum(scores) / 3)
    one = score_intervals(seeds[1].predictions)["accuracy"]
    assert found.high - found.low > 1.5 * (one.high - one.low)
    # Folds count alike, however many runs each has.
    folds = [Scored(seeds[0].predictions, "a"), Scored(seeds[1].predictions, "a"), Scored(seeds[2].predictions, "b")]
    assert mean_intervals(folds)["accuracy"].value == pytest.approx(((scores[0] + scores[1]) / 2 + scores[2]) / 2)


@pytest.mark.parametrize("several", [False, True])
def test_weights_are_repeated_clips(several: bool) -> None:
    """A clip with the weight 2 counts as two clips of its kind, equal scores among them, as torchmetrics has it."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randint(0, 6, (40, 4), generator=generator).float()
    labels = torch.randint(0, 4, (40,), generator=generator)
    if several:
        labels = (torch.rand(40, 4, generator=generator) < 0.4).float()
    weights = torch.randint(0, 3, (3, 40), generator=generator)
    scored = Predictions([str(number) for number in range(40)], logits, labels)
    found = weighted_metrics(scored, weights.float())
    for number, row in enumerate(weights):
        wanted = clip_metrics(logits.repeat_interleave(row, 0), labels.repeat_interleave(row, 0))
        assert {name: float(value[number]) for name, value in found.items()} == pytest.approx(wanted, abs=1e-6)
