"""Whether two recordings are of one speaker, by a score of each pair: error rates and what they cost.

Shapes: N trials, R recordings, V vectors' size, K thresholds, W draws.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.evaluation.intervals import Interval, interval

TARGET_PRIORS = (0.01, 0.05)
"""Of the detection cost: NIST's SRE 2010 and VoxCeleb's papers, and VoxSRC."""
_RESAMPLES, _FEWEST = 500, 100
_MOST_WORK = 5e7  # trials x resamples
_USABLE = 0.9  # of the draws


class Trials(NamedTuple):
    """names: of R recordings; first, second: int64 (N,), which of them a trial compares; target: bool (N,), whether
    they are of one speaker."""

    names: Sequence[str]
    first: Tensor
    second: Tensor
    target: Tensor


class Rates(NamedTuple):
    """misses, false_alarms: float64 (K + 1,), the shares of target trials that are refused and of others that are
    accepted, from the threshold that accepts nothing to the one that accepts all; trials of one score move together."""

    misses: Tensor
    false_alarms: Tensor


def cosines(vectors: Tensor, trials: Trials) -> Tensor:
    """Cosine of the vectors (R, V) of each trial's two recordings, float64 (N,); 0 where one is zero."""
    x = torch.nn.functional.normalize(vectors.double(), dim=1)
    return (x[trials.first] * x[trials.second]).sum(1)


def error_rates(scores: Tensor, target: Tensor, weights: Tensor | None = None) -> Rates:
    """The rates at every threshold.

    Args:
        scores: (N,), higher where one speaker is likelier. target: bool (N,), both kinds.
        weights: how often each trial counts, (N,); None: once.
    """
    order = scores.argsort(descending=True, stable=True)
    counts = torch.ones(len(scores)) if weights is None else weights
    hot, counts = target[order].double(), counts[order].double()
    accepted = torch.stack([counts * hot, counts * (1 - hot)]).cumsum(1)
    ends = torch.ones(len(scores), dtype=torch.bool)
    ends[:-1] = scores[order][1:] != scores[order][:-1]
    shares = torch.cat([accepted.new_zeros(2, 1), accepted[:, ends]], 1) / accepted[:, -1:]
    return Rates(1 - shares[0], shares[1])


def equal_error_rate(rates: Rates) -> float:
    """Where misses and false alarms are equally frequent, on the straight line between the thresholds around it."""
    gap = rates.misses - rates.false_alarms  # falls from 1 to -1
    after = int((gap <= 0).int().argmax())
    before = max(after - 1, 0)
    part = float(gap[before] / (gap[before] - gap[after])) if gap[before] > gap[after] else 0.0
    return float(rates.misses[before] + part * (rates.misses[after] - rates.misses[before]))


def detection_cost(rates: Rates, prior: float) -> float:
    """The least of prior * misses + (1 - prior) * false alarms over the thresholds, relative to the better of accepting
    all and nothing (minDCF; a miss and a false alarm cost 1)."""
    cost = prior * rates.misses + (1 - prior) * rates.false_alarms
    return float(cost.min()) / min(prior, 1 - prior)


def verification_scores(scores: Tensor, target: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """EER, and minDCF at each of `TARGET_PRIORS`."""
    rates = error_rates(scores, target, weights)
    costs = {f"minDCF_{prior:g}": detection_cost(rates, prior) for prior in TARGET_PRIORS}
    return {"EER": equal_error_rate(rates), **costs}


class Compared(NamedTuple):
    """Intervals of `verification_scores`: of some scores, of others, and of their difference."""

    ours: dict[str, Interval]
    theirs: dict[str, Interval]
    difference: dict[str, Interval]


def verification_intervals(scores: Tensor, trials: Trials, seed: int = 0) -> dict[str, Interval]:
    """`verification_scores` with 95 % intervals: recordings are drawn, and a trial counts as often as both of its own
    together (trials that share a recording are not independent)."""
    return _intervals(verification_scores(scores, trials.target), _draws([scores], trials, seed)[0])


def compare(ours: Tensor, theirs: Tensor, trials: Trials, seed: int = 0) -> Compared:
    """The intervals of two kinds of scores of the same trials, and of the first minus the second, on the same draws."""
    values = [verification_scores(scores, trials.target) for scores in (ours, theirs)]
    draws = _draws([ours, theirs], trials, seed)
    difference = [{name: one[name] - other[name] for name in one} for one, other in zip(*draws, strict=True)]
    gap = {name: values[0][name] - values[1][name] for name in values[0]}
    return Compared(_intervals(values[0], draws[0]), _intervals(values[1], draws[1]), _intervals(gap, difference))


def _draws(kinds: Sequence[Tensor], trials: Trials, seed: int) -> list[list[dict[str, float]]]:
    generator = torch.Generator().manual_seed(seed)
    replicates: list[list[dict[str, float]]] = [[] for _ in kinds]
    count = len(trials.names)
    draws = int(min(_RESAMPLES, max(_FEWEST, _MOST_WORK // len(trials.target))))
    for _ in range(draws):
        drawn = torch.randint(count, (count,), generator=generator).bincount(minlength=count)
        weights = drawn[trials.first] * drawn[trials.second]
        if not (weights[trials.target].any() and weights[~trials.target].any()):
            continue
        for scores, values in zip(kinds, replicates, strict=True):
            values.append(verification_scores(scores, trials.target, weights))
    # Too few recordings: many draws have trials of one kind alone, so there is no interval.
    return replicates if len(replicates[0]) > _USABLE * draws else [[] for _ in kinds]


def _intervals(values: dict[str, float], draws: Sequence[dict[str, float]]) -> dict[str, Interval]:
    if not draws:
        return {name: Interval(value, math.nan, math.nan) for name, value in values.items()}
    return {
        name: interval(value, torch.tensor([one[name] for one in draws], dtype=torch.float64))
        for name, value in values.items()
    }
