"""How time and memory grow with the tokens, and from how many tokens one encoder is faster than another.

A series is what was measured at growing numbers of tokens: of each its values, one a round.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssamba.evaluation.intervals import LEVEL, RESAMPLES

Series = Mapping[int, Sequence[float]]
"""Tokens -> values, all above 0."""


class Growth(NamedTuple):
    """Values grow with the tokens to the power of `exponent`, whose interval at `LEVEL` is `low` to `high`; fitted on
    these numbers of tokens."""

    exponent: float
    low: float
    high: float
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.exponent:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Crossing(NamedTuple):
    """From how many `tokens` on the first series is below the second at all that both have, and its interval at
    `LEVEL`.

    measured: the smallest and the largest number that both have. between: the two of these that it was interpolated
    between; None if there was nothing to interpolate. Tokens are the smallest of all where the first is always below
    (it may be so from fewer on), and infinite where it is not below at the last.
    """

    tokens: float
    low: float
    high: float
    measured: tuple[int, int]
    between: tuple[int, int] | None

    def __str__(self) -> str:
        first, last = self.measured
        if self.between is None:
            return f"at all of {first:,} to {last:,}" if self.tokens == first else f"not up to {last:,}"
        ends = [f"{end:,.0f}" if math.isfinite(end) else "more" for end in (self.low, self.high)]
        return f"{self.tokens:,.0f} [{ends[0]}, {ends[1]}], between {self.between[0]:,} and {self.between[1]:,}"


def growth(series: Series, seed: int = 0) -> Growth | None:
    """The slope of a line through the logarithms of medians and tokens, by least squares, over the larger half of the
    tokens; None of fewer than two.

    Its interval is that of the bootstrap's percentiles: each resample draws of the numbers of tokens as many as there
    are, two different ones at least, and of each its rounds.
    """
    chosen = sorted(series)
    chosen = chosen[min(len(chosen) // 2, max(0, len(chosen) - 2)) :]
    if len(chosen) < 2:
        return None
    x = np.log(chosen)
    rng = np.random.default_rng(seed)
    medians = _resampled(series, chosen, rng)  # (R, tokens)
    places = rng.integers(len(chosen), size=(RESAMPLES, len(chosen)))
    while (alike := (places == places[:, :1]).all(1)).any():
        places[alike] = rng.integers(len(chosen), size=(int(alike.sum()), len(chosen)))
    slopes = _slopes(x[places], np.take_along_axis(medians, places, 1))
    low, high = _ends(slopes)
    exponent = float(_slopes(x[None], np.log([[np.median(series[tokens]) for tokens in chosen]]))[0])
    return Growth(exponent, low, high, tuple(chosen))


def crossing(first: Series, second: Series, seed: int = 0) -> Crossing | None:
    """Where the first series falls below the second: by a line between the logarithms of their ratio at the last number
    of tokens where it is not below and at the next, over the logarithm of the tokens. None where they have none in
    common. The interval is that of drawing the rounds of each."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    rng = np.random.default_rng(seed)
    ours, theirs = (np.log([[np.median(one[tokens]) for tokens in common]]) for one in (first, second))
    tokens = float(_crossings(common, ours - theirs)[0])
    low, high = _ends(_crossings(common, _resampled(first, common, rng) - _resampled(second, common, rng)))
    last = int(_last_above(ours - theirs)[0])
    between = (common[last], common[last + 1]) if 0 <= last < len(common) - 1 else None
    return Crossing(tokens, low, high, (common[0], common[-1]), between)


def _resampled(series: Series, chosen: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The logarithm of the median of rounds that were drawn, (resamples, tokens)."""
    columns = []
    for tokens in chosen:
        values = np.asarray(series[tokens], float)
        columns.append(np.median(values[rng.integers(len(values), size=(RESAMPLES, len(values)))], axis=1))
    return np.log(np.stack(columns, 1))


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of a line through each row's points."""
    x = x - x.mean(1, keepdims=True)
    slopes: np.ndarray = (x * y).sum(1) / (x * x).sum(1)
    return slopes


def _crossings(tokens: Sequence[int], ratios: np.ndarray) -> np.ndarray:
    """Of each row of log ratios (rows, tokens), below 0 where the first series is below."""
    x, rows, last = np.log(tokens), np.arange(len(ratios)), _last_above(ratios)
    before, after = last.clip(0), (last + 1).clip(0, ratios.shape[1] - 1)
    left, right = ratios[rows, before], ratios[rows, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        estimates = np.exp(x[before] + (x[after] - x[before]) * left / (left - right))
    estimates = np.where(last < 0, float(tokens[0]), estimates)
    crossings: np.ndarray = np.where(last == ratios.shape[1] - 1, math.inf, estimates)
    return crossings


def _last_above(ratios: np.ndarray) -> np.ndarray:
    """The last place of each row where the first series is not below the second; -1 where there is none."""
    above = ratios >= 0
    places: np.ndarray = np.where(above.any(1), ratios.shape[1] - 1 - above[:, ::-1].argmax(1), -1)
    return places


def _ends(draws: np.ndarray) -> tuple[float, float]:
    """The quantiles at `LEVEL`; by a draw of its own, since some may be infinite."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], method="nearest")
    return float(low), float(high)
