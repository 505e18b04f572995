"""Ridge classifiers that leave each clip out in turn, against fits that do."""

import pytest
import torch
from torch import Tensor

from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.ridge import leave_one_out, ridge_score


def data(clips: int, features: int, several: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(clips) % 3
    x = torch.randn(3, features, generator=generator)[labels] + 2 * torch.randn(clips, features, generator=generator)
    hot = torch.nn.functional.one_hot(labels, 3).float()
    return x, (hot + hot.roll(1, 1) * (torch.arange(clips) % 2).unsqueeze(1)).clamp(max=1) if several else labels


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("clips", "features"), [(30, 5), (20, 60)])
def test_each_clip_is_told_by_a_fit_on_all_others(clips: int, features: int, several: bool) -> None:
    x, labels = data(clips, features, several)
    targets = (labels if several else torch.nn.functional.one_hot(labels, 3)).double()
    scaled = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    # The penalties are relative to the mean of the eigenvalues, those that are 0 for more clips than features included.
    mean = scaled.square().sum() / clips
    for name, said in leave_one_out(x, labels, 3).items():
        for clip in range(clips):
            others = torch.arange(clips) != clip
            ones = torch.cat([scaled[others], torch.ones(clips - 1, 1, dtype=torch.float64)], 1)
            penalty = float(name) * mean * torch.eye(features + 1, dtype=torch.float64)
            penalty[-1, -1] = 0  # of the intercept
            weight = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ targets[others])
            expected = torch.cat([scaled[clip], torch.ones(1)]) @ weight
            torch.testing.assert_close(said[clip], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("several", "name"), [(False, "accuracy"), (True, "mAP")])
def test_the_score_is_that_of_the_best_penalty(several: bool, name: str) -> None:
    x, labels = data(30, 5, several)
    scores = [clip_metrics(said, labels)[name] for said in leave_one_out(x, labels, 3).values()]
    assert ridge_score(x, labels, 3) == (name, max(scores)) and max(scores) > min(scores)


def test_features_without_a_word_are_worth_nothing() -> None:
    x = torch.randn(90, 200, generator=torch.Generator().manual_seed(1))
    assert ridge_score(x, torch.arange(90) % 3, 3)[1] < 0.5
