"""Whether groups of runs differ: the bootstrap over examples, what seeds and folds add to it, and Holm's correction.

A difference d of two groups is off by independent parts, each with a variance V of its own, known with so many degrees
of freedom: other examples, other seeds and other folds. The interval is

    d +- sqrt(sum of V t(z, f)^2 over the parts),  t(z, f) Student's quantile, z the normal one (1.96 of 95 %)

and its p value is that of the z whose interval just reaches 0. Of a single part it is Student's own.

- examples: the variance of d over resamples of them (of whole groups of recordings, where those are drawn), the same
  for all runs; less the part that every seed has for itself, which is in the next one already (drawn together without
  this, examples and seeds count it up to three times: Owen 2007, "The pigeonhole bootstrap").
- seeds: of n runs the variance over them, s^2 / n. Drawn with replacement they would have (n - 1) / n of that, far too
  little of the two or three that there are. Runs are pairs where a seed draws the same data for both groups: where it
  draws starts and orders alone, pairs would halve the degrees of freedom. Of one run nothing is known of others.
- folds: what they vary by beyond the other two, with one degree less than there are.

Shapes: R resamples, N examples, n runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.evaluation.intervals import AT_ONCE, LEVEL, Interval, drawn, interval

_NORMAL = NormalDist()
_BISECTIONS = 60
_LARGEST_Z = 38.0  # whose p value is the smallest number above 0


@dataclass(frozen=True)
class Sample:
    """One run's predictions for the examples of a fold. `pair`: its name, which a run of another group has, too, if
    both are a pair. `score`: weights of the examples, sorted by their keys, float64 (R, N) -> scores (R,)."""

    pair: str
    score: Callable[[Tensor], Tensor]


def ratio(numerator: Tensor, denominator: Tensor) -> Callable[[Tensor], Tensor]:
    """The score of a `Sample` that is a sum over the examples by a sum over them, (N,) each: hits by examples, edits by
    characters."""
    numerator, denominator = numerator.double(), denominator.double()
    return lambda weights: (weights @ numerator) / (weights @ denominator)


@dataclass(frozen=True)
class FoldScores:
    """Of a group's runs in one fold: their names, as of `Sample`, their scores (n,), what these are in the resamples
    (R, n), and how many units (examples, or groups of them) were drawn."""

    pairs: tuple[str, ...]
    values: Tensor
    replicates: Tensor
    units: int

    @property
    def mean(self) -> float:
        return float(self.values.mean())


Scores = Mapping[str, FoldScores]
"""Of a group: fold ("" without folds) -> its runs there."""


def resample(groups: Sequence[Sequence[Sample]], units: Sequence[str], count: int, seed: int) -> list[FoldScores]:
    """Scores of groups of runs that have all seen the same examples, in the same `count` resamples.

    Args:
        groups: the runs of each.
        units: of each example, sorted by keys, what is drawn as a whole: itself, its speaker, its recording.
    """
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    of_example = torch.tensor([places[unit] for unit in units])
    generator = torch.Generator().manual_seed(seed)
    samples = [sample for group in groups for sample in group]
    parts = []
    for some in torch.empty(count).split(max(1, AT_ONCE // len(units))):
        weights = drawn(len(some), len(places), generator)[:, of_example].double()
        parts.append(torch.stack([sample.score(weights) for sample in samples], 1))
    once = torch.ones(1, len(units), dtype=torch.float64)
    values = torch.cat([sample.score(once) for sample in samples])
    sizes = [len(group) for group in groups]
    scores = []
    for group, own, columns in zip(groups, values.split(sizes), torch.cat(parts).split(sizes, 1), strict=True):
        order = sorted(range(len(group)), key=lambda place: group[place].pair)
        names = tuple(group[place].pair for place in order)
        scores.append(FoldScores(names, own[order], columns[:, order], len(places)))
    return scores


def score_interval(scores: Scores, seed: int) -> Interval:
    """The mean over a group's folds and their runs, and the percentiles of what it is in the resamples, in each of
    which the runs are drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for fold in scores.values():
        runs = fold.replicates.shape[1]
        draws.append((drawn(len(fold.replicates), runs, generator).double() / runs * fold.replicates).sum(1))
    value = sum(fold.mean for fold in scores.values()) / len(scores)
    return interval(value, torch.stack(draws).mean(0))


class Difference(NamedTuple):
    """The first group's score minus the second's, its interval at `LEVEL`, and its p value, of a difference of 0; NaN
    where there is one unit alone, which has no variance."""

    value: float
    low: float
    high: float
    p: float


class _Part(NamedTuple):
    """A variance of a difference, and its degrees of freedom."""

    variance: float
    freedom: float


def difference(first: Scores, second: Scores) -> Difference:
    """Of two groups on the same examples in the same folds, by the same resamples."""
    count = len(first)
    folds = [_fold_parts(first[fold], second[fold]) for fold in first]
    values = torch.tensor([value for value, _, _ in folds], dtype=torch.float64)
    value, units = float(values.mean()), sum(scores.units for scores in first.values())
    if units < 2:
        return Difference(value, math.nan, math.nan, math.nan)
    examples = _added([examples for _, examples, _ in folds], count)
    seeds = _added([part for _, _, parts in folds for part in parts], count)
    parts = [examples, seeds]
    if count > 1:
        beyond = float(values.var()) / count - examples.variance - seeds.variance
        parts.append(_Part(max(0.0, beyond), count - 1))
    half = math.sqrt(_square(parts, _NORMAL.inv_cdf((1 + LEVEL) / 2)))
    # Of a few units the signs of their differences are the last word: all alike by chance once in 2 ** (units - 1).
    p = max(_p_value(abs(value), parts), 2.0 ** (1 - units)) if value else 1.0
    return Difference(value, value - half, value + half, p)


def _fold_parts(first: FoldScores, second: FoldScores) -> tuple[float, _Part, list[_Part]]:
    """The difference in a fold, and its parts: of examples and, for pairs of runs or for each group, of seeds."""
    if first.pairs == second.pairs:
        sides = [(first.values - second.values, first.replicates - second.replicates)]
    else:
        sides = [(first.values, first.replicates), (-second.values, -second.replicates)]
    whole = torch.stack([replicates.mean(1) for _, replicates in sides]).sum(0)
    shared = 0.0
    seeds = []
    for values, replicates in sides:
        runs = len(values)
        if runs > 1:
            own = replicates - replicates.mean(1, keepdim=True)  # what the examples do to one seed alone
            shared += float(own.var(0).mean()) / (runs - 1)
            seeds.append(_Part(float(values.var()) / runs, runs - 1))
    examples = _Part(max(0.0, float(whole.var()) - shared), max(1, first.units - 1))
    return float(sum(values.mean() for values, _ in sides)), examples, seeds


def _added(parts: Sequence[_Part], count: int) -> _Part:
    """The part of a mean over `count` folds, by those of each of them; its degrees by Satterthwaite's rule."""
    variance = sum(part.variance for part in parts)
    squares = sum(part.variance**2 / part.freedom for part in parts)
    return _Part(variance / count**2, variance**2 / squares if squares else 1.0)


def student(z: float, freedom: float) -> float:
    """Student's quantile where the normal one is z (Wallace 1959): from 4 degrees of freedom on less than 1 % too
    large, and 4 and 38 % of two and one at z = 1.96."""
    exponent = (z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom
    return math.sqrt(freedom * math.expm1(exponent)) if exponent < 700 else math.inf


def _square(parts: Sequence[_Part], z: float) -> float:
    """Of half the width of the interval whose normal quantile is z."""
    return sum(part.variance * student(z, part.freedom) ** 2 for part in parts if part.variance)


def _p_value(value: float, parts: Sequence[_Part]) -> float:
    low, high = 0.0, _LARGEST_Z
    for _ in range(_BISECTIONS):
        z = (low + high) / 2
        low, high = (z, high) if _square(parts, z) < value**2 else (low, z)
    return 2 * _NORMAL.cdf(-low)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for how many there are (Holm 1979): whoever calls those of at most 5 % differences is wrong about any
    of them in 5 % of all tables. NaN stays, and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected
