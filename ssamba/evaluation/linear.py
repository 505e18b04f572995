"""Linear classifiers on features that stay as they are: convex problems, solved to their minimum.

Multinomial logistic regression for one label a clip, one-vs-rest for several, with an L2 penalty; fitted in float64, so
that the result is a function of the features and labels alone.

Shapes: N clips, D features, C classes, R principal axes, H layers.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Of the L2 penalty, among which cross-validation chooses: from the strongest on, each fit begins where the one before
it ended."""
CHOOSING = 1e-4
"""The largest gradient that is left while a strength is chosen."""
_LEAST_DEVIATION = 1e-6  # of a feature, relative to the largest: below it the feature is one number, and says nothing
_TOLERANCE = 1e-6  # as `CHOOSING`, of the classifier itself
_MOST_STEPS = 2000
_HISTORY = 20


class Scaling(NamedTuple):
    """Means and deviations of the features of a training part, float64 (..., D)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Scaling":
        """Of the rows of x (N, ..., D). A feature that is the same in all clips becomes 0."""
        mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
        dead = deviation <= _LEAST_DEVIATION * deviation.amax(-1, keepdim=True)
        return cls(mean, deviation.masked_fill(dead, torch.inf))

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise x (N, ..., D): float64."""
        return (x.double() - self.mean) / self.deviation


class Linear(NamedTuple):
    """weight: float64 (D, C); bias: float64 (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, D) -> logits, float64 (N, C)."""
        return x.double() @ self.weight + self.bias


def classifier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the clips: cross-entropy for int64 labels (N,), the sum of the classes' binary ones for (N, C)."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(labels)


class Axes:
    """The features of training clips along their principal axes: the minimum over those is the minimum over all.

    A penalised weight has no part outside of what the clips span, and no axis is preferred to another by the penalty;
    so neither many features and few clips nor features that depend on one another make a fit slow.

    Args:
        x: (N, D), standardised.
    """

    def __init__(self, x: Tensor) -> None:
        left, lengths, axes = torch.linalg.svd(x.double(), full_matrices=False)
        spans = lengths > 1e-9 * lengths.amax().clamp(min=1e-30)
        self.axes = axes[spans].T  # (D, R)
        self.places = left[:, spans] * lengths[spans]  # (N, R)
        self.curvature = lengths[spans].square() / len(x)

    def fit(
        self,
        labels: Tensor,
        classes: int,
        strength: float,
        rows: Tensor | None = None,
        start: Linear | None = None,
        tolerance: float = _TOLERANCE,
    ) -> Linear:
        """Minimise `classifier_loss` + strength / 2 * the sum of the squared weights (not of the biases).

        Args:
            labels: of the clips that are fitted, int64 (n,) or float32 (n, C).
            rows: those clips among the N; None: all.
            start: in the coordinates of the axes, as what is returned.
        """
        x = self.places if rows is None else self.places[rows]
        shares = F.one_hot(labels, classes).double().mean(0) if labels.ndim == 1 else labels.double().mean(0)
        # A Newton step of the penalised problem at equal shares has this scale along each axis.
        bend = (shares * (1 - shares)).mean().clamp(min=1e-3)
        scale = (bend * self.curvature + strength).rsqrt().unsqueeze(1)
        weight = x.new_zeros(x.shape[1], classes) if start is None else start.weight / scale
        bias = x.new_zeros(classes) if start is None else start.bias
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        scaled = x * scale.T

        def loss() -> Tensor:
            penalty = (scale * weight).square().sum()
            return classifier_loss(scaled @ weight + bias, labels) + strength / 2 * penalty

        minimise(loss, [weight, bias], tolerance)
        return Linear(scale * weight.detach(), bias.detach())

    def unrotated(self, linear: Linear) -> Linear:
        """A classifier of the axes -> the same of the features."""
        return Linear(self.axes @ linear.weight, linear.bias)


def minimise(loss: Callable[[], Tensor], parameters: Sequence[Tensor], tolerance: float) -> None:
    """Bring a smooth loss to its minimum by LBFGS: until no gradient is above `tolerance`, or no step makes it less."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MOST_STEPS,
        max_eval=2 * _MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    steps = optimizer.state[parameters[0]]["n_iter"]
    if steps >= _MOST_STEPS:
        log.warning("a linear classifier has not come to its minimum in %d steps", steps)


class LayerMix(NamedTuple):
    """weights: float64 (H,), of the layers, sum 1; linear: of their weighted sum."""

    weights: Tensor
    linear: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, H, D) -> logits, float64 (N, C)."""
        return self.linear(torch.einsum("h,nhd->nd", self.weights, x.double()))


def fit_layer_mix(
    x: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    start: LayerMix | None = None,
    tolerance: float = _TOLERANCE,
) -> LayerMix:
    """A weighted sum of layers, softmax of learned numbers, before a linear classifier, learned together (SUPERB,
    arXiv 2105.01051, section 2).

    Args:
        x: (N, H, D), each layer standardised.
        labels, strength: as of `Axes.fit`. The numbers of the layers are not penalised; they begin alike.
        start: where to begin.
    """
    x = x.double()
    mix = x.new_zeros(x.shape[1]) if start is None else start.weights.log()
    weight = x.new_zeros(x.shape[2], classes) if start is None else start.linear.weight
    bias = x.new_zeros(classes) if start is None else start.linear.bias
    mix, weight, bias = (one.clone().requires_grad_() for one in (mix, weight, bias))

    def loss() -> Tensor:
        logits = LayerMix(mix.softmax(0), Linear(weight, bias))(x)
        return classifier_loss(logits, labels) + strength / 2 * weight.square().sum()

    minimise(loss, [mix, weight, bias], tolerance)
    return LayerMix(mix.detach().softmax(0), Linear(weight.detach(), bias.detach()))
