"""Differences that are none are not called one, those that are some are found, and what is known of them by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ssamba.comparison.bootstrap import (
    Difference,
    FoldScores,
    Sample,
    difference,
    holm,
    ratio,
    resample,
    score_interval,
    student,
)
from ssamba.evaluation.intervals import drawn

PAIRS, EXAMPLES = 600, 150


def samples(hits: Tensor, group: object = "") -> list[Sample]:
    """Of hits (N, runs); pairs with those of the other group if both are called alike."""
    ones = torch.ones(len(hits))
    return [Sample(f"{group} {seed}", ratio(own, ones)) for seed, own in enumerate(hits.T)]


def simulated(
    generator: torch.Generator, seeds: Sequence[int], spread: float, apart: float, paired: bool = False
) -> list[float]:
    """The p values of pairs of groups of so many runs each.

    Args:
        spread: standard deviation of what a seed does to the logit of every example.
        apart: by how much the logits of the second group are higher.
    """
    groups = []
    for _ in range(PAIRS):
        hard = 1.2 + 1.5 * torch.randn(EXAMPLES, 1, generator=generator)
        for number, runs in enumerate(seeds):
            logits = hard + spread * torch.randn(1, runs, generator=generator) + number * apart
            hits = torch.rand(EXAMPLES, runs, generator=generator) < logits.sigmoid()
            groups.append(samples(hits, "" if paired else number))
    found = resample(groups, [str(i) for i in range(EXAMPLES)], 400, 0)
    return [difference({"": a}, {"": b}).p for a, b in zip(found[::2], found[1::2], strict=True)]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("seeds", "spread"), [((1, 1), 0.0), ((3, 3), 0.0), ((3, 3), 0.3), ((2, 2), 0.3), ((5, 3), 0.1)]
)
def test_of_equal_models_at_most_six_in_a_hundred_are_called_different(
    seeds: tuple[int, int], spread: float, paired: bool
) -> None:
    p_values = simulated(torch.Generator().manual_seed(1), seeds, spread, 0.0, paired)
    assert sum(p <= 0.05 for p in p_values) <= 0.06 * PAIRS
    assert sum(p <= 0.5 for p in p_values) >= 0.25 * PAIRS  # and they are no p values that say nothing


@pytest.mark.parametrize(("seeds", "spread", "least"), [((1, 1), 0.0, 0.95), ((3, 3), 0.1, 0.95), ((5, 5), 0.3, 0.95)])
def test_real_differences_are_found(seeds: tuple[int, int], spread: float, least: float) -> None:
    p_values = simulated(torch.Generator().manual_seed(2), seeds, spread, 1.8)
    assert sum(p <= 0.05 for p in p_values) >= least * PAIRS


def test_a_difference_of_one_run_each_is_that_of_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.rand(400, 1, generator=generator) < chance for chance in (0.8, 0.7))
    found = resample([samples(first), samples(second)], [str(i) for i in range(400)], 2000, 0)
    got = difference({"": found[0]}, {"": found[1]})
    apart = (first.double() - second.double())[:, 0]
    deviation = apart.std() / math.sqrt(400)
    assert got.value == pytest.approx(float(apart.mean()))
    assert got.high - got.low == pytest.approx(float(2 * 1.966 * deviation), rel=0.05)  # Student's of 399
    assert (got.high + got.low) / 2 == pytest.approx(got.value)
    # The interval of the p value just reaches 0.
    times = abs(got.value) / float(deviation)
    assert got.p == pytest.approx(math.erfc(times / math.sqrt(2)), rel=0.3)


def test_examples_and_seeds_add_up_and_what_is_common_to_both_counts_once() -> None:
    """Two seeds that differ by 0.1 on all examples alike: the examples say the same of both."""
    draws = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).double() * 0.01
    values = torch.tensor([0.1, 0.2], dtype=torch.float64)
    nothing = FoldScores(("0", "1"), torch.zeros(2).double(), torch.zeros(2000, 2).double(), 1000)
    alike = FoldScores(("0", "1"), values, values + draws, 1000)
    got = difference({"": alike}, {"": nothing})
    seeds = student(1.959964, 1) ** 2 * 0.005 / 2
    examples = student(1.959964, 999) ** 2 * float(draws.var())
    assert got.high - got.value == pytest.approx(math.sqrt(seeds + examples), rel=1e-6)
    # Examples that each seed has alone are what the seeds differ by: nothing is added.
    own = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)).double() * 0.01
    got = difference({"": FoldScores(("0", "1"), values, values + own, 1000)}, {"": nothing})
    assert got.high - got.value == pytest.approx(math.sqrt(seeds), rel=1e-3)


def test_runs_of_the_same_name_are_pairs() -> None:
    """Whatever the seeds do to both groups alike is no difference of theirs."""
    generator = torch.Generator().manual_seed(5)
    common = torch.rand(300, 3, generator=generator) < torch.tensor([0.3, 0.5, 0.7])
    better = common | (torch.rand(300, 3, generator=generator) < 0.2)
    units = [str(i) for i in range(300)]
    first, second = resample([samples(better), samples(common)], units, 500, 0)
    paired = difference({"": first}, {"": second})
    alone = FoldScores(("3", "4", "5"), second.values, second.replicates, second.units)
    unpaired = difference({"": first}, {"": alone})
    assert paired.value == pytest.approx(unpaired.value) and paired.p < 0.05 < unpaired.p
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3
    # In whatever order they come.
    turned = [samples(common)[place] for place in (2, 0, 1)]
    (again,) = resample([turned], units, 500, 0)
    assert again.pairs == second.pairs and torch.equal(again.replicates, second.replicates)


def test_whole_groups_are_drawn() -> None:
    """Of 20 speakers, each of which is all right or all wrong, 200 clips say no more than 20."""
    right = (torch.arange(200) // 10 % 4 > 0).double().unsqueeze(1)
    other = (torch.arange(200) // 10 % 4 > 1).double().unsqueeze(1)
    both = [samples(right), samples(other)]
    wide, narrow = (
        difference({"": one}, {"": two})
        for one, two in (
            resample(both, units, 2000, 0) for units in ([str(i // 10) for i in range(200)], [*map(str, range(200))])
        )
    )
    assert wide.value == narrow.value == pytest.approx(0.25)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(10), rel=0.15)
    alone = resample(both, ["one"] * 200, 100, 0)
    assert all(math.isnan(value) for value in difference({"": alone[0]}, {"": alone[1]})[1:])


def test_a_few_units_are_never_enough() -> None:
    """Three recordings that one model has right and the other wrong: by chance one in four."""
    right, wrong = torch.ones(3, 1), torch.zeros(3, 1)
    found = resample([samples(right), samples(wrong)], ["a", "b", "c"], 100, 0)
    assert difference({"": found[0]}, {"": found[1]}).p == 0.25
    same = difference({"": found[0]}, {"": found[0]})
    assert same == Difference(0.0, 0.0, 0.0, 1.0)


def test_folds_that_differ_widen_the_interval() -> None:
    """Differences of 0, 0.1, 0.2 and 0.3 in four folds, each known well: Student's of their mean."""

    def fold(value: float) -> FoldScores:
        return FoldScores(("0",), torch.tensor([value]).double(), torch.full((50, 1), value).double(), 10_000)

    first = {str(number): fold(0.5 + number / 10) for number in range(4)}
    second = {str(number): fold(0.5) for number in range(4)}
    got = difference(first, second)
    deviation = math.sqrt((0.15**2 + 0.05**2) * 2 / 3) / 2
    assert got.value == pytest.approx(0.15)
    assert got.high - got.value == pytest.approx(3.182 * deviation, rel=0.02)
    # A fold counts as one, however many runs it has.
    first["0"] = FoldScores(("0", "1"), torch.tensor([0.4, 0.6]).double(), torch.full((50, 2), 0.5).double(), 10_000)
    second["0"] = FoldScores(("0", "1"), torch.tensor([0.5, 0.5]).double(), torch.full((50, 2), 0.5).double(), 10_000)
    assert difference(first, second).value == pytest.approx(0.15)


def test_edits_are_counted_by_characters() -> None:
    edits, characters = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([10.0, 10.0, 30.0])
    score = ratio(edits, characters)
    weights = torch.tensor([[1.0, 1, 1], [0, 3, 0], [2, 0, 1]]).double()
    assert score(weights).tolist() == pytest.approx([5 / 50, 0.4, 2 / 50])
    (found,) = resample([[Sample("0", score)]], ["a", "b", "c"], 2000, 0)
    value, low, high = score_interval({"": found}, 0)
    assert value == pytest.approx(0.1) and low == 0 and high == pytest.approx(0.4)
    assert torch.equal(
        drawn(2000, 3, torch.Generator().manual_seed(0)).double()
        @ edits.double()
        / (drawn(2000, 3, torch.Generator().manual_seed(0)).double() @ characters.double()),
        found.replicates[:, 0],
    )


@pytest.mark.parametrize(
    ("freedom", "quantile", "off"),
    [(1, 12.706, 0.39), (2, 4.303, 0.05), (4, 2.776, 0.01), (10, 2.228, 0.002), (1e6, 1.960, 1e-3)],
)
def test_students_quantiles(freedom: float, quantile: float, off: float) -> None:
    assert quantile * 0.999 <= student(1.959964, freedom) <= quantile * (1 + off)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the example of many textbooks
    assert holm([]) == [] and holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    first, second, third = holm([0.02, math.nan, 0.03])
    assert (first, third) == pytest.approx((0.04, 0.04)) and math.isnan(second)
