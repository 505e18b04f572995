"""Exponents of growth and crossings: of series whose answer is known."""

import math

import numpy as np
import pytest

from ssamba.evaluation.efficiency_growth import crossing, growth

TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


def power(scale: float, exponent: float, noise: float = 0.0, rounds: int = 5) -> dict[int, list[float]]:
    rng = np.random.default_rng(3)
    return {n: [scale * n**exponent * math.exp(noise * rng.normal()) for _ in range(rounds)] for n in TOKENS}


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found_exactly(exponent: float) -> None:
    found = growth(power(1e-3, exponent))
    assert found is not None
    assert found[:3] == pytest.approx((exponent, exponent, exponent)) and found.tokens == TOKENS[3:]


def test_only_the_larger_half_counts() -> None:
    series = {n: [1e-6 * n**2] if n >= 4096 else [1.0] for n in TOKENS}
    found = growth(series)
    assert found is not None and found.exponent == pytest.approx(2) and found.tokens == (4096, 8192, 16384, 32768)


def test_noise_widens_the_interval_about_the_truth() -> None:
    quiet, loud = growth(power(1e-3, 1.0, 0.02)), growth(power(1e-3, 1.0, 0.3))
    assert quiet is not None and loud is not None
    assert quiet.low < 1 < quiet.high and loud.low < 1 < loud.high
    assert loud.high - loud.low > 5 * (quiet.high - quiet.low)
    assert growth(power(1e-3, 1.0, 0.3)) == loud  # the same draws
    assert str(growth(power(1e-3, 1.0))) == "1.00 [1.00, 1.00]"


def test_the_slope_is_that_of_least_squares_on_medians() -> None:
    series = power(1e-3, 1.3, 0.4)
    found = growth(series)
    x = [math.log(n) for n in TOKENS[3:]]
    y = [math.log(float(np.median(series[n]))) for n in TOKENS[3:]]
    assert found is not None and found.exponent == pytest.approx(np.polyfit(x, y, 1)[0])


def test_two_numbers_of_tokens_are_the_fewest() -> None:
    found = growth({512: [1.0], 2048: [4.0]})
    assert found is not None and found[:3] == pytest.approx((1, 1, 1)) and found.tokens == (512, 2048)
    assert growth({512: [1.0]}) is None and growth({}) is None


def test_lines_cross_where_they_are_equal() -> None:
    found = crossing(power(1e-3, 1.0), power(1e-7, 2.0))
    assert found is not None
    assert found[:3] == pytest.approx((10_000, 10_000, 10_000))
    assert found.between == (8192, 16384) and found.measured == (512, 32768)
    assert str(found) == "10,000 [10,000, 10,000], between 8,192 and 16,384"


def test_the_last_crossing_counts() -> None:
    one, other = {512: [1.0], 1024: [3.0], 2048: [1.0], 4096: [1.0]}, dict.fromkeys((512, 1024, 2048, 4096), [2.0])
    found = crossing(one, other)
    assert found is not None and found.between == (1024, 2048)
    share = math.log(1.5) / math.log(3)
    assert found.tokens == pytest.approx(1024 * 2**share)


def test_what_is_always_or_never_below() -> None:
    one, other = power(1e-3, 1.0), power(2e-3, 1.0)
    always, never = crossing(one, other), crossing(other, one)
    assert always is not None and never is not None
    assert (always.tokens, always.low, always.between) == (512, 512, None)
    assert (never.tokens, never.high, never.between) == (math.inf, math.inf, None)
    assert str(always) == "at all of 512 to 32,768" and str(never) == "not up to 32,768"
    assert crossing(one, one) == never  # as fast is not faster
    assert crossing({512: [1.0]}, {1024: [1.0]}) is None


def test_only_what_both_have_is_compared() -> None:
    found = crossing(power(1e-3, 1.0), {n: one for n, one in power(1e-7, 2.0).items() if n <= 16384})
    assert found is not None and found.measured == (512, 16384) and found.tokens == pytest.approx(10_000)


def test_rounds_that_differ_leave_the_crossing_open() -> None:
    one, other = {512: [3.0], 1024: [1.0, 1.9, 2.1, 3.0, 1.0]}, {512: [2.0], 1024: [2.0]}
    found = crossing(one, other)
    assert found is not None and 512 < found.tokens < 1024 and found.low < found.tokens
    assert found.high == math.inf and str(found).endswith("more], between 512 and 1,024")
