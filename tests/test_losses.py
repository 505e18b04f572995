"""The pretraining objectives against their definitions, a number at a time."""

import math

import pytest
import torch
from torch import Tensor

from ssamba.losses import info_nce, reconstruction_mse


def pair(
    batch: int = 3, masked: int = 7, pixels: int = 5, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(batch, masked, pixels, generator=generator) for _ in range(2))
    return (scale * prediction).to(dtype), target.to(dtype)


def by_hand(prediction: Tensor, target: Tensor) -> tuple[float, float]:
    """(loss, accuracy): each true patch i looks for its own among the clip's predictions j; each prediction's column
    of those shares is won by the true patch with the largest."""
    losses, matches = [], []
    for clip in range(len(prediction)):
        shares = []
        for truth in target[clip].tolist():
            scores = [sum(a * b for a, b in zip(truth, guess, strict=True)) for guess in prediction[clip].tolist()]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            shares.append([weight / sum(weights) for weight in weights])
            losses.append(-math.log(shares[-1][len(shares) - 1]))
        for j, column in enumerate(zip(*shares, strict=True)):
            matches.append(column.index(max(column)) == j)
    return sum(losses) / len(losses), sum(matches) / len(matches)


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 1, 4), (2, 30, 3)])
def test_info_nce_is_its_definition(shape: tuple[int, int, int]) -> None:
    prediction, target = pair(*shape)
    contrast = info_nce(prediction, target)
    loss, accuracy = by_hand(prediction, target)
    assert contrast.loss.item() == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert contrast.accuracy.item() == pytest.approx(accuracy, abs=1e-6)


def test_the_softmax_runs_over_the_predictions_for_each_true_patch() -> None:
    prediction, target = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [2.0]]])  # scores (0, 2) and (0, 4)
    over_predictions = (math.log(1 + math.exp(2)) + math.log(1 + math.exp(-4))) / 2
    over_true_patches = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert abs(over_predictions - over_true_patches) > 0.5
    assert info_nce(prediction, target).loss.item() == pytest.approx(over_predictions, rel=1e-6)


def test_accuracy_is_that_of_the_softmaxed_rows_and_not_of_the_scores() -> None:
    # Scores (1, 0) and (5, 9): the second patch has the larger score in both columns, but of its row the first
    # column has next to nothing, so prediction 0 goes to patch 0.
    prediction = torch.tensor([[[1.0, 5.0], [0.0, 9.0]]])
    target = torch.eye(2).unsqueeze(0)
    assert (target @ prediction.transpose(1, 2)).tolist() == [[[1, 0], [5, 9]]]
    assert info_nce(prediction, target).accuracy.item() == 1.0


def test_patches_are_contrasted_within_their_clip_only() -> None:
    prediction, target = pair(4, 6, 5)
    clips = [info_nce(prediction[i : i + 1], target[i : i + 1]) for i in range(4)]
    together = info_nce(prediction, target)
    assert together.loss.item() == pytest.approx(sum(c.loss.item() for c in clips) / 4, rel=1e-6)
    assert together.accuracy.item() == pytest.approx(sum(c.accuracy.item() for c in clips) / 4, abs=1e-6)


def test_perfect_predictions_match_and_equal_ones_cost_the_logarithm_of_their_number() -> None:
    target = torch.eye(6).unsqueeze(0)
    assert info_nce(50 * target, target).loss.item() < 1e-6
    assert info_nce(50 * target, target).accuracy.item() == 1
    assert info_nce(torch.ones(1, 6, 6), target).loss.item() == pytest.approx(math.log(6), rel=1e-6)
    assert info_nce(50 * target.flip(1), target).accuracy.item() == 0


def test_info_nce_gradient_is_its_closed_form() -> None:
    prediction, target = pair()
    prediction.requires_grad_()
    info_nce(prediction, target).loss.backward()
    shares = (target.double() @ prediction.detach().double().transpose(1, 2)).softmax(2)
    wanted = (shares - torch.eye(7, dtype=torch.float64)).transpose(1, 2) @ target.double() / (3 * 7)
    torch.testing.assert_close(prediction.grad.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_scored_in_float32_without_overflow(dtype: torch.dtype) -> None:
    prediction, target = pair(2, 9, 256, scale=3000.0, dtype=dtype)  # a score of 1e5: more than float16 holds
    prediction.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        contrast = info_nce(prediction, target)
    assert contrast.loss.dtype == torch.float32
    exact = info_nce(prediction.detach().float(), target.float())
    assert contrast.loss.item() == pytest.approx(exact.loss.item(), rel=1e-6)
    assert contrast.accuracy.item() == exact.accuracy.item()
    contrast.loss.backward()
    assert prediction.grad.isfinite().all() and prediction.grad.any()


def test_accuracy_carries_no_gradient() -> None:
    prediction, target = pair()
    assert not info_nce(prediction.requires_grad_(), target).accuracy.requires_grad


def test_reconstruction_is_the_mean_squared_error_in_float32() -> None:
    prediction, target = pair()
    differences = (prediction - target).flatten().tolist()
    wanted = sum(difference**2 for difference in differences) / len(differences)
    prediction.requires_grad_()
    loss = reconstruction_mse(prediction, target)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction.detach() - target) / prediction.numel())
    half = reconstruction_mse(prediction.detach().half() * 300, target.half())  # the square leaves float16's range
    assert half.dtype == torch.float32 and half.isfinite()


def test_patches_that_are_the_same_are_no_negatives_of_one_another() -> None:
    prediction, target = pair(2, 6, 5)
    target[0, 1] = target[0, 4] = target[0, 3]  # digital silence, say; within a clip alone
    target[1, 0] = target[0, 0]
    wanted = []
    for clip in range(2):
        for i in range(6):
            others = [j for j in range(6) if j == i or not torch.equal(target[clip, i], target[clip, j])]
            scores = torch.stack([target[clip, i] @ prediction[clip, j] for j in others])
            wanted.append(float(scores.logsumexp(0) - target[clip, i] @ prediction[clip, i]))
    assert info_nce(prediction, target).loss.item() == pytest.approx(sum(wanted) / 12, rel=1e-5)
    # A clip of silence alone has nothing to learn from, and nothing that is not finite.
    prediction.requires_grad_()
    silent = info_nce(prediction, torch.zeros_like(target))
    silent.loss.backward()
    assert silent.loss.item() == 0 and silent.accuracy.item() == 1 and not prediction.grad.any()  # type: ignore[union-attr]


def test_clips_with_unequal_numbers_of_masked_patches_count_by_these() -> None:
    prediction, target = pair(3, 7, 5)
    counts = [7, 3, 1]
    hidden = torch.arange(7) < torch.tensor(counts).unsqueeze(1)
    losses, hits, errors = [], [], []
    for clip, count in enumerate(counts):
        alone = prediction[clip : clip + 1, :count], target[clip : clip + 1, :count]
        loss, accuracy = by_hand(*alone)
        losses.append(count * loss)
        hits.append(count * accuracy)
        errors.append(count * reconstruction_mse(*alone).item())
    # What stands in the place of the others does not matter, to the values or to the gradients.
    other = torch.where(hidden.unsqueeze(2), prediction, 1e3)
    for guess in (prediction, other):
        guess = guess.clone().requires_grad_()
        contrast, mse = info_nce(guess, target, hidden), reconstruction_mse(guess, target, hidden)
        assert contrast.loss.item() == pytest.approx(sum(losses) / 11, rel=1e-5)
        assert contrast.accuracy.item() == pytest.approx(sum(hits) / 11, rel=1e-5)
        assert mse.item() == pytest.approx(sum(errors) / 11, rel=1e-5)
        (contrast.loss + mse).backward()
        assert guess.grad is not None and not guess.grad[~hidden].any() and guess.grad[hidden].any(1).all()
    assert torch.allclose(
        info_nce(prediction, target, torch.ones(3, 7, dtype=torch.bool)).loss,
        info_nce(prediction, target).loss,
        rtol=1e-6,
    )
