"""How far a score may be off: bootstrap intervals over the clips that were scored, and of the difference of two runs.

Percentile intervals (Efron & Tibshirani 1993, chapter 13). Where clips come in groups (of a speaker, of a session),
groups are drawn, not clips: clips of one group are alike, and drawing them one by one would make intervals too narrow.

Shapes: N clips, C classes, R resamples, G groups.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 1 << 22
"""Weights of clips in memory."""
_MOST_WORK = 10**9  # clips x classes x resamples, of average precision
_FEWEST = 100  # resamples


class Interval(NamedTuple):
    """A score and what it lies between at `LEVEL`; NaN where there is one group alone, which has no variance."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{ends}"


@dataclass(frozen=True)
class Scored:
    """One run's predictions of some clips, and the part of the data (a fold) that they are of."""

    predictions: Predictions
    fold: str = ""


def score_intervals(
    predictions: Predictions, groups: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Interval]:
    """The scores of `clip_metrics` with their intervals. groups: of each clip, if groups are drawn."""
    of_key = None if groups is None else dict(zip(predictions.keys, groups, strict=True))
    return mean_intervals([Scored(predictions)], of_key, seed)


def mean_intervals(runs: Sequence[Scored], groups: dict[str, str] | None = None, seed: int = 0) -> dict[str, Interval]:
    """The mean scores of several runs: over the runs of a fold (of several seeds), then over the folds.

    Each resample draws folds, of each its runs, and of the clips (or groups) those that all runs are scored on.

    Args:
        runs: of the same classes. groups: the group of each clip by its key.
    """
    values = _mean(runs, [_scores(run.predictions) for run in runs])
    if _is_one_group(runs, groups):
        return {name: Interval(float(value), math.nan, math.nan) for name, value in values.items()}
    replicates = _replicates(runs, groups, seed)
    return {name: interval(float(values[name]), draws) for name, draws in replicates.items()}


def paired_differences(
    first: Sequence[Scored], second: Sequence[Scored], groups: dict[str, str] | None = None, seed: int = 0
) -> dict[str, Interval]:
    """`first` minus `second`: the same draws are made of both, so that what clips have in common does not widen the
    interval.

    Raises:
        UserError: they are not of the same clips with the same labels, or not of the same folds and as many runs.
    """
    ours, theirs = _folds(first), _folds(second)
    if {fold: len(places) for fold, places in ours.items()} != {fold: len(places) for fold, places in theirs.items()}:
        raise UserError("two sets of runs can be compared where they have the same folds and as many runs of each")
    for fold, places in ours.items():
        pair = first[places[0]].predictions, second[theirs[fold][0]].predictions
        if dict(_labelled(pair[0])) != dict(_labelled(pair[1])):
            raise UserError("two runs can be compared where they were scored on the same clips with the same labels")
    one, other = (_mean(runs, [_scores(run.predictions) for run in runs]) for runs in (first, second))
    if _is_one_group(first, groups):
        return {name: Interval(float(one[name] - other[name]), math.nan, math.nan) for name in one}
    draws = [_replicates(runs, groups, seed) for runs in (first, second)]
    return {name: interval(float(one[name] - other[name]), draws[0][name] - draws[1][name]) for name in one}


def _is_one_group(runs: Sequence[Scored], groups: dict[str, str] | None) -> bool:
    """Whether nothing can be drawn: all clips are of one group, and one fold."""
    return groups is not None and len(_folds(runs)) == 1 and len({groups[key] for key in runs[0].predictions.keys}) == 1


def _labelled(predictions: Predictions) -> Iterator[tuple[str, tuple[float, ...]]]:
    rows = predictions.labels.reshape(len(predictions.keys), -1).tolist()
    return ((key, tuple(row)) for key, row in zip(predictions.keys, rows, strict=True))


def interval(value: float, replicates: Tensor) -> Interval:
    """A score, and the quantiles at `LEVEL` of what it is in each of the draws, (R,)."""
    tail = (1 - LEVEL) / 2
    low, high = replicates.quantile(torch.tensor([tail, 1 - tail], dtype=replicates.dtype)).tolist()
    return Interval(value, low, high)


def _folds(runs: Sequence[Scored]) -> dict[str, list[int]]:
    folds: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        folds.setdefault(run.fold, []).append(place)
    return dict(sorted(folds.items()))


def _scores(predictions: Predictions) -> dict[str, Tensor]:
    once = torch.ones(1, len(predictions.keys))
    return {name: value[0] for name, value in weighted_metrics(predictions, once).items()}


def _mean(runs: Sequence[Scored], scores: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    folds = _folds(runs).values()
    means = [
        {name: torch.stack([scores[place][name] for place in places]).mean(0) for name in scores[0]} for places in folds
    ]
    return {name: torch.stack([one[name] for one in means]).mean(0) for name in scores[0]}


def _replicates(runs: Sequence[Scored], groups: dict[str, str] | None, seed: int) -> dict[str, Tensor]:
    """Mean scores of the resamples, (R,) each. What is drawn is a function of the seed, the folds, how many runs each
    has and the clips' keys, not of what was predicted."""
    generator = torch.Generator().manual_seed(seed)
    folds = _folds(runs)
    count = resamples(sum(run.predictions.logits.numel() for run in runs if run.predictions.labels.ndim == 2))
    times = drawn(count, len(folds), generator) / len(folds)
    total: dict[str, Tensor] = {}
    for index, places in enumerate(folds.values()):
        shares = drawn(count, len(places), generator) / len(places)
        for name, value in _fold_replicates(
            [runs[place].predictions for place in places], shares, groups, generator
        ).items():
            total[name] = total.get(name, torch.zeros(())) + times[:, index] * value
    return total


def resamples(ranked: int) -> int:
    """R: as many as are usual; of average precision over so many logits in all fewer, where each takes long."""
    return max(_FEWEST, min(RESAMPLES, _MOST_WORK // max(1, ranked)))


def drawn(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` comes up when so many are drawn with replacement, in each row: (rows, count)."""
    picked = torch.randint(count, (rows, count), generator=generator)
    return torch.zeros(rows, count).scatter_add_(1, picked, torch.ones(rows, count))


def _fold_replicates(
    scored: Sequence[Predictions], shares: Tensor, groups: dict[str, str] | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Of runs on the same clips: in each resample the same clips for all, and of each run its share (R, runs)."""
    keys = sorted(scored[0].keys)
    units = keys if groups is None else [groups[key] for key in keys]
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    of_clip = torch.tensor([places[unit] for unit in units])
    row_of = {key: row for row, key in enumerate(keys)}
    orders = [torch.tensor([row_of[key] for key in one.keys]) for one in scored]
    parts: dict[str, list[Tensor]] = {}
    for some in shares.split(max(1, AT_ONCE // len(keys))):
        weights = drawn(len(some), len(places), generator)[:, of_clip]
        for name, value in _weighted_mean(scored, orders, weights, some).items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def _weighted_mean(
    scored: Sequence[Predictions], orders: Sequence[Tensor], weights: Tensor, shares: Tensor
) -> dict[str, Tensor]:
    metrics = [weighted_metrics(one, weights[:, order]) for one, order in zip(scored, orders, strict=True)]
    return {
        name: sum((shares[:, run] * one[name] for run, one in enumerate(metrics)), torch.zeros(()))
        for name in metrics[0]
    }


def weighted_metrics(predictions: Predictions, weights: Tensor) -> dict[str, Tensor]:
    """The scores of `clip_metrics` with each clip counted so many times: weights (R, N) -> (R,) each."""
    logits, labels = predictions.logits, predictions.labels
    weights = weights.double()
    if labels.ndim == 2:
        return {"mAP": _average_precision(logits, labels, weights)}
    hits = (logits.argmax(1) == labels).double()
    counts = weights.new_zeros(len(weights), logits.shape[1])
    right = counts.clone().index_add_(1, labels, weights * hits)
    counts.index_add_(1, labels, weights)
    recalls = (right / counts).nanmean(1)  # of classes that do not occur: nothing
    return {"accuracy": right.sum(1) / counts.sum(1), "balanced_accuracy": recalls}


def _average_precision(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean over the classes that occur, of torchmetrics' definition: steps of recall at distinct scores, (R,)."""
    added = weights.new_zeros(len(weights), logits.shape[1])
    for class_index in range(logits.shape[1]):
        scores, order = logits[:, class_index].sort(descending=True)
        last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # of clips with one score
        ordered = weights[:, order]
        positive = (ordered * labels[order, class_index].double()).cumsum(1)[:, last]
        precision = positive / ordered.cumsum(1)[:, last].clamp(min=1)
        steps = positive.diff(dim=1, prepend=positive.new_zeros(len(positive), 1))
        added[:, class_index] = (steps * precision).sum(1) / positive[:, -1]
    return added.nanmean(1)
