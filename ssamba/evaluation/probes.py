"""Protocols that score features as they are: what they leave open is chosen by cross-validation within the training
part, and what was chosen is fitted on all of it.

Shapes: N training clips, B clips, D features, C classes, H layers.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation.linear import (
    CHOOSING,
    STRENGTHS,
    Axes,
    LayerMix,
    Scaling,
    classifier_loss,
    fit_layer_mix,
)
from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, find_neighbours, vote

FOLDS = 5
MANY_CLIPS = 1000  # training clips, of which one fold is enough
_PATIENCE = 2  # strengths weaker than the best one that are tried: the weakest take the longest to fit


class TrainingPart(NamedTuple):
    """Labels of the training clips, int64 (N,) for one a clip or float32 (N, C); the number of classes; the fold of the
    cross-validation that each clip is in, int64 (N,); and of how many groups the folds are, 0: of clips."""

    labels: Tensor
    classes: int
    folds: Tensor
    groups: int = 0

    @classmethod
    def of(cls, labels: Tensor, classes: int, seed: int, groups: Sequence[str] | None = None) -> "TrainingPart":
        """With the folds of a seed.

        Args:
            groups: of each clip, such as its speaker, where the clips to be scored are of other groups: whole groups
                are held back, as what is chosen must be good for those. One group alone is none.

        Raises:
            UserError: nothing can be held back.
        """
        if len(labels) < 2:
            raise UserError(f"there are {len(labels)} training clips; expected at least two, one of them held back")
        if groups is not None and len(names := sorted(set(groups))) > 1:
            random.Random(seed).shuffle(names)
            fold_of = {name: place % FOLDS for place, name in enumerate(names)}
            return cls(labels, classes, torch.tensor([fold_of[name] for name in groups]), len(names))
        return cls(labels, classes, stratified_folds(labels, min(FOLDS, len(labels)), seed))

    def held_back(self) -> list[tuple[Tensor, Tensor]]:
        """For each fold the rows of the others and its own; of many clips for one fold, if it is not of groups."""
        one = len(self.folds) > MANY_CLIPS and not self.groups
        folds = self.folds.unique().tolist()[: 1 if one else None]
        return [
            (torch.nonzero(self.folds != fold).flatten(), torch.nonzero(self.folds == fold).flatten()) for fold in folds
        ]


@dataclass(frozen=True)
class Probe:
    """A classifier that a protocol has fitted.

    Attributes:
        setting: what was chosen: the strength of the L2 penalty, or the number of neighbours.
        score: of the held-back clips with it, by `main_metric`.
        logits: features (B, ...) as they were given, not standardised -> float64 (B, C).
        layer_weights: of the layers' sum, where the protocol learns one.
    """

    setting: float
    score: float
    logits: Callable[[Tensor], Tensor]
    layer_weights: Sequence[float] = field(default=())


def main_metric(labels: Tensor) -> str:
    """What is compared where one number must decide: accuracy, or mAP for labels (N, C)."""
    return "accuracy" if labels.ndim == 1 else "mAP"


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """A fold for each clip, int64 (N,), at random by the seed: the clips of a class (of several the rarest) are spread
    evenly, and the folds are equally large, to one clip."""
    hot = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels)
    frequency = hot.sum(0).double()
    rank = torch.where(hot > 0, frequency, torch.inf)
    kinds = torch.where(torch.isfinite(rank.amin(1)), rank.argmin(1), -1).tolist()
    rng = random.Random(seed)
    order = list(range(len(kinds)))
    rng.shuffle(order)
    order.sort(key=lambda place: kinds[place])
    result = torch.empty(len(kinds), dtype=torch.int64)
    result[torch.tensor(order)] = torch.arange(len(kinds)) % folds
    return result


def linear_probe(x: Tensor, part: TrainingPart) -> Probe:
    """Logistic regression on standardised features x (N, D), the strength of its L2 penalty chosen."""
    scaling = Scaling.of(x)
    axes, splits = Axes(scaling(x)), part.held_back()
    learned = torch.stack([torch.zeros(len(x), dtype=torch.bool).index_fill(0, rows, True) for rows, _ in splits])

    def held_back() -> Iterator[list[Tensor]]:
        fitted = None
        for strength in STRENGTHS:
            fitted = axes.fit_parts(learned, part.labels, part.classes, strength, fitted, CHOOSING)
            yield [logits[out] for logits, (_, out) in zip(fitted(axes.places), splits, strict=True)]

    strength, score = choose_setting(part, STRENGTHS, held_back(), _PATIENCE)
    fitted = axes.unrotated(axes.fit(part.labels, part.classes, strength))
    return Probe(strength, score, lambda clips: fitted(scaling(clips)))


def weighted_probe(x: Tensor, part: TrainingPart) -> Probe:
    """As `linear_probe`, on a learned weighted sum of the layers of x (N, H, D), each standardised."""
    scaling = Scaling.of(x)
    scaled = scaling(x)

    def path(rows: Tensor, strengths: Sequence[float]) -> Iterable[LayerMix]:
        fitted = None
        for strength in strengths:
            fitted = fit_layer_mix(scaled[rows], part.labels[rows], part.classes, strength, fitted, CHOOSING)
            yield fitted

    def held_back(rows: Tensor, out: Tensor) -> Iterable[Tensor]:
        yield from (fitted(scaled[out]) for fitted in path(rows, STRENGTHS))

    strength, score = choose_setting(part, STRENGTHS, each_fold(part, held_back), _PATIENCE)
    rows = torch.arange(len(x))
    begun = list(path(rows, STRENGTHS[: STRENGTHS.index(strength) + 1]))[-1]
    fitted = fit_layer_mix(scaled, part.labels, part.classes, strength, begun)
    return Probe(strength, score, lambda clips: fitted(scaling(clips)), fitted.weights.tolist())


def neighbour_probe(x: Tensor, part: TrainingPart, k: int | None = None, temperature: float = TEMPERATURE) -> Probe:
    """k nearest neighbours of standardised features x (N, D); k is chosen if it is None."""
    scaling = Scaling.of(x)
    scaled = scaling(x)
    fewest = len(x) - int(part.folds.bincount().max())
    counts = [k] if k is not None else [count for count in NEIGHBOURS if count <= fewest] or [1]

    def held_back(rows: Tensor, out: Tensor) -> Iterable[Tensor]:
        near = find_neighbours(scaled[rows], scaled[out], max(counts))
        yield from (vote(near, part.labels[rows], part.classes, count, temperature) for count in counts)

    chosen, score = choose_setting(part, counts, each_fold(part, held_back))

    def logits(clips: Tensor) -> Tensor:
        near = find_neighbours(scaled, scaling(clips), int(chosen))
        return vote(near, part.labels, part.classes, int(chosen), temperature)

    return Probe(chosen, score, logits)


def each_fold(
    part: TrainingPart, held_back: Callable[[Tensor, Tensor], Iterable[Tensor]]
) -> Iterator[Sequence[Tensor]]:
    """For each setting what the folds say of it, each by itself: held_back has rows that are fitted and rows that are
    not, and gives for each setting the logits of the latter, when asked."""
    yield from zip(*(held_back(rows, out) for rows, out in part.held_back()), strict=True)


def choose_setting(
    part: TrainingPart,
    settings: Sequence[float],
    held_back: Iterable[Sequence[Tensor]],
    patience: int | None = None,
) -> tuple[float, float]:
    """The setting with the best score of the clips that are held back (of equal ones that with the lowest loss), and
    that score.

    Args:
        held_back: for each setting the logits of each fold's clips, when asked.
        patience: how many settings after the best one are tried; None: all.
    """
    labels = torch.cat([part.labels[out] for _, out in part.held_back()])
    name = main_metric(labels)
    best = (-1.0, 0.0)
    chosen = 0
    for index, fold_logits in enumerate(held_back):
        logits = torch.cat(list(fold_logits))
        judged = (clip_metrics(logits, labels)[name], -float(classifier_loss(logits, labels)))
        if judged > best:
            best, chosen = judged, index
        elif patience is not None and index - chosen >= patience:
            break
    return settings[chosen], best[0]
