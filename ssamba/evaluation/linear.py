"""Linear classifiers on features that stay as they are: convex problems, solved to their minimum.

Multinomial logistic regression for one label a clip, one-vs-rest for several, with an L2 penalty; fitted in float64, so
that the result is a function of the features and labels alone.

Shapes: N clips, D features, C classes, R principal axes, H layers, K parts of the clips.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_MOST_NEWTON_STEPS, _MOST_PRODUCTS = 100, 500
_LEAST_GAIN = 1e-4  # of a Newton step: the share of what its slope promises, below which the step is halved
_EXACT = 0.05  # of a Newton step: the share of the squared gradient that is left, at most
_ROUNDING = 1e-14  # of a loss: what a step may seem to make worse


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
    """weight: float64 (..., D, C); bias: float64 (..., C)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, D) -> logits, float64 (..., N, C)."""
        return x.double() @ self.weight + self.bias.unsqueeze(-2)


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

    def fit(self, labels: Tensor, classes: int, strength: float) -> Linear:
        """Minimise `classifier_loss` + strength / 2 * the sum of the squared weights (not of the biases).

        Args:
            labels: of the clips, int64 (N,) or float32 (N, C).
        """
        everything = torch.ones(1, len(labels), dtype=torch.bool)
        fitted = self.fit_parts(everything, labels, classes, strength)
        return Linear(fitted.weight[0], fitted.bias[0])

    def fit_parts(
        self,
        parts: Tensor,
        labels: Tensor,
        classes: int,
        strength: float,
        start: Linear | None = None,
        tolerance: float = _TOLERANCE,
    ) -> Linear:
        """As `fit`, of K parts of the clips, all at once: weight (K, R, C), bias (K, C).

        Args:
            parts: bool (K, N): which clips each is fitted on.
            start: in the coordinates of the axes, as what is returned.
        """
        hot = (F.one_hot(labels, classes) if labels.ndim == 1 else labels).double()
        shares = hot.mean(0)
        # A Newton step of the penalised problem at equal shares has this scale along each axis.
        bend = (shares * (1 - shares)).mean().clamp(min=1e-3)
        scale = (bend * torch.cat([self.curvature, self.curvature.new_ones(1)]) + strength).rsqrt()
        x = F.pad(self.places, (0, 1), value=1.0) * scale  # the last column is the bias's
        penalty = strength * scale.square()
        penalty[-1] = 0.0
        weight = x.new_zeros(x.shape[1], len(parts), classes)
        if start is not None:
            weight = torch.cat([start.weight, start.bias.unsqueeze(1)], 1).transpose(0, 1) / scale.view(-1, 1, 1)
        problem = _Problem(x, hot, parts.double() / parts.sum(1, keepdim=True), penalty, labels.ndim == 1)
        weight = problem.minimum(weight, tolerance) * scale.view(-1, 1, 1)
        return Linear(weight[:-1].transpose(0, 1), weight[-1])

    def unrotated(self, linear: Linear) -> Linear:
        """A classifier of the axes -> the same of the features."""
        return Linear(self.axes @ linear.weight, linear.bias)


@dataclass(frozen=True)
class _Problem:
    """K penalised classifiers of the same features, minimised together, as every product is of one matrix of features.

    Newton's method, its steps by conjugate gradients.

    Attributes:
        x: (N, R).
        targets: (N, C).
        shares: (K, N), of each clip in the mean.
        penalty: (R,).
        one_label: whether classes exclude one another.
    """

    x: Tensor
    targets: Tensor
    shares: Tensor
    penalty: Tensor
    one_label: bool

    def minimum(self, weight: Tensor, tolerance: float) -> Tensor:
        """From weight (R, K, C) on, until no gradient is above `tolerance`."""
        logits = self._logits(weight)
        value = self._value(logits, weight)
        for _ in range(_MOST_NEWTON_STEPS):
            likely = logits.softmax(2) if self.one_label else logits.sigmoid()
            gradient = self._products(likely - self.targets.unsqueeze(1)) + self._penalised(weight)
            open_ = gradient.abs().amax((0, 2)) > tolerance
            if not open_.any():
                return weight
            step = self._step(gradient * open_.view(1, -1, 1), likely)
            slope, moved, size = (gradient * step).sum((0, 2)), self._logits(step), open_.double()
            while True:
                there, then = weight + size.view(1, -1, 1) * step, logits + size.view(1, -1, 1) * moved
                reached = self._value(then, there)
                worse = reached > value + _LEAST_GAIN * size * slope + _ROUNDING * (1 + value.abs())
                if not worse.any():
                    break
                size = torch.where(worse, size / 2, size)
            weight, logits, value = there, then, reached
        log.warning("a linear classifier has not come to its minimum in %d steps", _MOST_NEWTON_STEPS)
        return weight

    def _logits(self, weight: Tensor) -> Tensor:
        """(R, K, C) -> (N, K, C)."""
        return (self.x @ weight.flatten(1)).unflatten(1, weight.shape[1:])

    def _products(self, errors: Tensor) -> Tensor:
        """Of the clips' shares in (N, K, C) with the features: (R, K, C)."""
        return (self.x.T @ (errors * self.shares.T.unsqueeze(2)).flatten(1)).unflatten(1, errors.shape[1:])

    def _penalised(self, weight: Tensor) -> Tensor:
        return self.penalty.view(-1, 1, 1) * weight

    def _value(self, logits: Tensor, weight: Tensor) -> Tensor:
        """The K losses."""
        known = (logits * self.targets.unsqueeze(1)).sum(2)
        total = logits.logsumexp(2) if self.one_label else F.softplus(logits).sum(2)
        losses = ((total - known) * self.shares.T).sum(0)
        return losses + (self._penalised(weight) * weight).sum((0, 2)) / 2

    def _step(self, gradient: Tensor, likely: Tensor) -> Tensor:
        """Of Newton's method, so exactly that it converges faster than linearly. (R, K, C)."""
        spread = likely * (1 - likely)
        # The Hessian's diagonal: what is sure already bends the loss no more.
        bend = (self.x.square().T @ (spread * self.shares.T.unsqueeze(2)).flatten(1)).view_as(gradient)
        bend = (bend + self.penalty.view(-1, 1, 1)).clamp(min=1e-12)
        step, left = torch.zeros_like(gradient), -gradient
        ahead = left / bend
        size = (left * ahead).sum((0, 2))
        enough = size * size.sqrt().clamp(max=_EXACT)
        for _ in range(_MOST_PRODUCTS):
            going = size > enough
            if not going.any():
                break
            change = self._logits(ahead)
            if self.one_label:
                bent = likely * change
                bent = bent - likely * bent.sum(2, keepdim=True)
            else:
                bent = spread * change
            image = self._products(bent) + self._penalised(ahead)
            length = torch.where(going, size / (ahead * image).sum((0, 2)), 0.0).view(1, -1, 1)
            step, left = step + length * ahead, left - length * image
            turned = left / bend
            before, size = size, (left * turned).sum((0, 2))
            ahead = turned + torch.where(going, size / before, 0.0).view(1, -1, 1) * ahead
        return step


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
