"""Scores against counts made by hand and against torchmetrics."""

import math
import statistics

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from ssamba.evaluation.metrics import class_scores, clip_metrics, confusion_matrix, summary_metrics


def logits_for(predicted: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    # Class 0: 4 clips, 3 right; class 1: 1 clip, wrong; class 2: 1 clip, right; class 3 does not occur.
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    scores = clip_metrics(logits_for([0, 0, 3, 0, 0, 2], 4), labels)
    assert scores == {"accuracy": pytest.approx(4 / 6), "balanced_accuracy": pytest.approx((3 / 4 + 0 + 1) / 3)}
    assert confusion_matrix(logits_for([0, 0, 3, 0, 0, 2], 4), labels).tolist() == [
        [3, 0, 0, 1],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]


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


# Of each class, and their summary


def pairs_in_order(scores: list[float], relevant: list[int]) -> float:
    """The area under the ROC curve: of all pairs of a relevant and another clip, how many are in order; ties half."""
    own, others = ([s for s, r in zip(scores, relevant, strict=True) if bool(r) is kind] for kind in (True, False))
    found = [1.0 if one > other else 0.5 if one == other else 0.0 for one in own for other in others]
    return sum(found) / len(found)


def precision_of_steps(scores: list[float], relevant: list[int]) -> float:
    """The sum over the thresholds of precision times the gain in recall, as scikit-learn has average precision."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        hits = [r for s, r in zip(scores, relevant, strict=True) if s >= threshold]
        recall = sum(hits) / sum(relevant)
        total += (recall - before) * sum(hits) / len(hits)
        before = recall
    return total


def data(seed: int, several: bool, rounded: bool, clips: int = 40) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of 5 classes; the last one no clip has, the one before all have where a clip has
    several; with few different values if rounded."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(clips, 5, generator=generator)
    chances = logits.sigmoid() if several else (3 * logits).softmax(1)
    if rounded:
        chances = (4 * chances).round() / 4
        chances = chances if several else chances / chances.sum(1, keepdim=True).clamp(min=0.25)
    if not several:
        return chances, torch.randint(0, 4, (clips,), generator=generator)
    labels = (torch.rand(clips, 5, generator=generator) < 0.4).float()
    labels[:, 3:] = torch.tensor([1.0, 0.0])
    return chances, labels


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_of_each_class_are_their_formulas(seed: int, several: bool, rounded: bool) -> None:
    chances, labels = data(seed, several, rounded)
    found = class_scores(chances, labels)
    summary = summary_metrics(found, chances, labels)
    hot = labels.int() if several else torch.nn.functional.one_hot(labels, 5)
    areas, f1s = [], []
    for place, one in enumerate(found):
        truth, scores = hot[:, place].tolist(), chances[:, place].tolist()
        said = [int(score > 0.5) for score in scores] if several else (chances.argmax(1) == place).int().tolist()
        hits = sum(a * b for a, b in zip(truth, said, strict=True))
        assert one.clips == sum(truth)
        for value, over in ((one.precision, sum(said)), (one.recall, sum(truth))):
            assert value == pytest.approx(hits / over, abs=1e-6) if over else math.isnan(value)
        if sum(truth) + sum(said):
            f1s.append(2 * hits / (sum(truth) + sum(said)))
            assert one.f1 == pytest.approx(f1s[-1], abs=1e-6)
        else:
            assert math.isnan(one.f1)
        if sum(truth):
            assert one.average_precision == pytest.approx(precision_of_steps(scores, truth), abs=1e-6)
        else:
            assert math.isnan(one.average_precision)
        if 0 < sum(truth) < len(truth):
            areas.append(pairs_in_order(scores, truth))
            assert one.auc == pytest.approx(areas[-1], abs=1e-6)
        else:
            assert math.isnan(one.auc)
    assert summary["AUC"] == pytest.approx(statistics.mean(areas), abs=1e-6)
    assert summary["F1"] == pytest.approx(statistics.mean(f1s), abs=1e-6)
    deviate = math.sqrt(2) * statistics.NormalDist().inv_cdf(statistics.mean(areas))
    assert summary["d_prime"] == pytest.approx(deviate, abs=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_the_calibration_error_is_that_of_fifteen_bins(several: bool) -> None:
    chances, labels = data(0, several, rounded=False, clips=400)
    if several:
        sure, right = chances.flatten().tolist(), labels.flatten().tolist()
    else:
        sure, right = chances.amax(1).tolist(), (chances.argmax(1) == labels).float().tolist()
    expected = 0.0
    for number in range(15):
        inside = [(s, r) for s, r in zip(sure, right, strict=True) if number / 15 < s <= (number + 1) / 15]
        if inside:
            expected += abs(sum(s - r for s, r in inside)) / len(sure)
    found = summary_metrics(class_scores(chances, labels), chances, labels)["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-6) and found > 0.05


def test_one_clip_and_one_class() -> None:
    chances, label = torch.tensor([[0.2, 0.8]]), torch.tensor([1])
    found = class_scores(chances, label)
    assert found[1][:4] == (1, 1.0, 1.0, 1.0) and found[0].clips == 0
    assert all(math.isnan(value) for value in (found[0].recall, found[0].average_precision, found[0].auc, found[1].auc))
    summary = summary_metrics(found, chances, label)
    assert math.isnan(summary["AUC"]) and math.isnan(summary["d_prime"])
    assert summary["F1"] == 1 and summary["calibration_error"] == pytest.approx(0.2)
    alone = class_scores(torch.tensor([[0.9], [0.4]]), torch.tensor([[1.0], [0.0]]))
    assert alone == [(1, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert summary_metrics(alone, torch.tensor([[0.9], [0.4]]), torch.tensor([[1.0], [0.0]]))["d_prime"] == math.inf
