"""Scores against counts made by hand and against torchmetrics."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from ssamba.evaluation.metrics import clip_metrics, confusion_matrix


def logits_for(predicted: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    # Class 0: 4 clips, 3 right; class 1: 1 clip, wrong; class 2: 1 clip, right; class 3 does not occur.
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    scores = clip_metrics(logits_for([0, 0, 3, 0, 0, 2], 4), labels)
    assert scores == {"accuracy": pytest.approx(4 / 6), "balanced_accuracy": pytest.approx((3 / 4 + 0 + 1) / 3)}
    assert confusion_matrix(logits_for([0, 0, 3, 0, 0, 2], 4), labels).tolist() == [
        [3, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_accuracies_are_those_of_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    scores = clip_metrics(logits, labels)
    for name, average in (("accuracy", "micro"), ("balanced_accuracy", "macro")):
        assert scores[name] == pytest.approx(float(multiclass_accuracy(logits, labels, 7, average=average)))  # type: ignore[arg-type]


def average_precision(scores: list[float], relevant: list[int]) -> float:
    """The mean, over the relevant clips, of the precision down to each of them."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for place, i in enumerate(order, 1):
        if relevant[i]:
            hits += 1
            total += hits / place
    return total / hits


def test_mean_average_precision_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0], [1.0, 0.5], [0.0, 3.0], [-1.0, -2.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    # Class 0: right at places 1 and 3; class 1: at places 2 and 4.
    assert clip_metrics(logits, labels) == {"mAP": pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2)}


@pytest.mark.parametrize("seed", range(4))
def test_mean_average_precision_by_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(60, 5, generator=generator)
    labels = (torch.rand(60, 5, generator=generator) < 0.3).float()
    wanted = sum(average_precision(logits[:, c].tolist(), labels[:, c].int().tolist()) for c in range(5)) / 5
    assert clip_metrics(logits, labels)["mAP"] == pytest.approx(wanted, abs=1e-6)
