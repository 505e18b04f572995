"""Linear classifiers against their gradients and against an independent solution, and what cross-validation chooses."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation import probes
from ssamba.evaluation.linear import Axes, Linear, Scaling, classifier_loss, fit_layer_mix
from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.neighbours import find_neighbours, vote
from ssamba.evaluation.probes import (
    TrainingPart,
    choose_setting,
    linear_probe,
    neighbour_probe,
    stratified_folds,
    weighted_probe,
)


def blobs(clips: int, features: int, classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clips around a mean a class, float32 (N, D), and their classes; the classes' means do not depend on the seed."""
    means = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % classes
    return means[labels] + spread * torch.randn(clips, features, generator=generator), labels


def hot(labels: Tensor, classes: int) -> Tensor:
    """Each class and, of even ones, the next one too."""
    several = torch.nn.functional.one_hot(labels, classes)
    return (several + several.roll(1, 1) * (labels % 2 == 0).unsqueeze(1)).clamp(max=1).float()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("clips", "features"), [(40, 12), (15, 60)])
@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_a_fit_ends_where_the_penalised_loss_has_no_gradient(
    several: bool, clips: int, features: int, strength: float
) -> None:
    x, labels = blobs(clips, features, 4, 3.0)
    x[:, 3] = 7.0  # says nothing
    y = hot(labels, 4) if several else labels
    scaled = Scaling.of(x)(x)
    assert scaled.dtype == torch.float64 and not scaled[:, 3].any()
    torch.testing.assert_close(scaled[:, :3].std(0, correction=0), torch.ones(3, dtype=torch.float64))
    axes = Axes(scaled)
    fitted = axes.unrotated(axes.fit(y, 4, strength))
    weight, bias = (one.clone().requires_grad_() for one in fitted)
    loss = classifier_loss(scaled @ weight + bias, y) + strength / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(one.abs().max()) for one in gradients) < 2e-6
    # A strictly convex loss: whatever lies elsewhere is higher.
    for seed in range(3):
        move = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = weight + 0.01 * move
        assert classifier_loss(scaled @ other + bias, y) + strength / 2 * other.square().sum() > loss


def test_a_fit_is_that_of_newtons_method() -> None:
    """For two classes the problem is a binary one, of half the penalty, which few Newton steps solve."""
    x, labels = blobs(50, 6, 2, 3.0)
    strength, scaled = 0.05, Scaling.of(x)(x)
    axes = Axes(scaled)
    fitted = axes.unrotated(axes.fit(labels, 2, strength))
    design = torch.cat([scaled, torch.ones(50, 1, dtype=torch.float64)], 1)
    penalty = torch.diag(torch.tensor([strength / 2] * 6 + [0.0], dtype=torch.float64))
    w = torch.zeros(7, dtype=torch.float64)
    for _ in range(30):
        p = (design @ w).sigmoid()
        gradient = design.T @ (p - labels) / 50 + penalty @ w
        w = w - torch.linalg.solve(design.T @ ((p * (1 - p)).unsqueeze(1) * design) / 50 + penalty, gradient)
    torch.testing.assert_close(fitted.weight[:, 1] - fitted.weight[:, 0], w[:6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.bias[1] - fitted.bias[0], w[6], atol=1e-4, rtol=1e-4)


def test_a_fit_that_begins_elsewhere_ends_at_the_same_place() -> None:
    x, labels = blobs(60, 8, 3, 2.0)
    axes = Axes(Scaling.of(x)(x))
    everything = torch.ones(1, 60, dtype=torch.bool)
    first = axes.fit_parts(everything, labels, 3, 1e-2)
    again = axes.fit_parts(everything, labels, 3, 1e-2, start=axes.fit_parts(everything, labels, 3, 10.0))
    torch.testing.assert_close(again.weight, first.weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_parts_that_are_fitted_at_once_are_those_of_each_alone(several: bool) -> None:
    """Also of unequal size, and with few clips, whose classes a weak penalty tells apart for sure."""
    x, labels = blobs(60, 8, 3, 2.0)
    y = hot(labels, 3) if several else labels
    scaled = Scaling.of(x)(x)
    axes = Axes(scaled)
    parts = torch.stack([torch.arange(60) % 2 == 0, torch.arange(60) < 9, torch.arange(60) >= 0])
    for strength in (10.0, 1e-2, 1e-4):
        together = axes.fit_parts(parts, y, 3, strength, tolerance=1e-10)
        logits = together(axes.places)
        assert logits.shape == (3, 60, 3)
        for number, part in enumerate(parts):
            alone = Axes(scaled[part])
            ours = axes.unrotated(Linear(together.weight[number], together.bias[number]))
            (weight,), (bias,) = alone.fit_parts(part[part].unsqueeze(0), y[part], 3, strength, tolerance=1e-10)
            theirs = alone.unrotated(Linear(weight, bias))
            torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(logits[number], ours(scaled))


def test_folds_are_even_and_stratified_and_of_the_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 7)
    folds = stratified_folds(labels, 5, seed=0)
    assert folds.bincount().tolist() == [16, 16, 15, 15, 15]
    for number, count in enumerate((10, 4, 1.4)):
        assert all(abs(int(folds[labels == number].eq(fold).sum()) - count) < 1 for fold in range(5))
    assert torch.equal(folds, stratified_folds(labels, 5, seed=0))
    assert not torch.equal(folds, stratified_folds(labels, 5, seed=1))
    # Of several labels a clip, by the rarest.
    rare = torch.zeros(20, 2)
    rare[:, 0], rare[:5, 1] = 1, 1
    assert stratified_folds(rare, 5, 0)[:5].sort().values.tolist() == [0, 1, 2, 3, 4]


def test_cross_validation_chooses_what_held_back_clips_say() -> None:
    """As many features as clips, most of which say nothing: a weak penalty learns them by heart."""

    def clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
        x, labels = blobs(count, 12, 3, 2.0, seed)
        return torch.cat([x, torch.randn(count, 40, generator=torch.Generator().manual_seed(seed + 1))], 1), labels

    (x, labels), (held_out, truth) = clips(60, 0), clips(600, 5)
    part = TrainingPart.of(labels, 3, 0)
    probe = linear_probe(x, part)
    assert probe.setting >= 0.1
    accuracy = clip_metrics(probe.logits(held_out), truth)["accuracy"]
    assert accuracy == pytest.approx(probe.score, abs=0.15)
    axes = Axes(Scaling.of(x)(x))
    weak = axes.unrotated(axes.fit(labels, 3, 1e-5))
    assert accuracy > clip_metrics(weak(Scaling.of(x)(held_out)), truth)["accuracy"] + 0.03
    again = linear_probe(x, TrainingPart.of(labels, 3, 0))
    assert torch.equal(again.logits(held_out), probe.logits(held_out)) and again.setting == probe.setting


def test_of_many_clips_one_fold_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = blobs(60, 4, 3, 1.0)
    part = TrainingPart.of(labels, 3, 0)
    splits = part.held_back()
    assert len(splits) == 5 and torch.cat([out for _, out in splits]).sort().values.tolist() == list(range(60))
    assert all(sorted(torch.cat(split).tolist()) == list(range(60)) for split in splits)
    monkeypatch.setattr(probes, "MANY_CLIPS", 59)
    ((rows, out),) = part.held_back()
    assert (len(rows), len(out)) == (48, 12)


def test_whole_groups_are_held_back() -> None:
    """What tells apart the clips of a speaker that was heard is no help with another: held-back speakers say so."""
    generator = torch.Generator().manual_seed(0)
    speakers = torch.arange(120) % 6
    labels = torch.randint(0, 2, (120,), generator=generator)
    # Of each speaker another feature says which class it is.
    x = 0.1 * torch.randn(120, 6, generator=generator)
    x[torch.arange(120), speakers] += 3.0 * (2 * labels - 1) * torch.tensor([1, -1, 1, -1, 1, -1])[speakers]
    names = [f"speaker {number}" for number in speakers.tolist()]
    part = TrainingPart.of(labels, 2, 0, names)
    assert part.folds.unique().tolist() == [0, 1, 2, 3, 4] and part.groups == 6
    for rows, out in part.held_back():
        assert not {names[row] for row in rows.tolist()} & {names[row] for row in out.tolist()}
    assert linear_probe(x, TrainingPart.of(labels, 2, 0)).score > 0.95
    assert linear_probe(x, part).score < 0.8
    assert TrainingPart.of(labels, 2, 0, ["one"] * 120).groups == 0


def test_no_weaker_penalty_is_tried_behind_the_best() -> None:
    part = TrainingPart(torch.tensor([0, 1, 0, 1]), 2, torch.tensor([0, 0, 1, 1]))
    right = torch.nn.functional.one_hot(part.labels[:2], 2).double()
    asked: list[int] = []

    def held_back() -> Iterator[list[Tensor]]:
        # At the second one the surest; the fourth and the fifth are no better, and the sixth would be.
        for number, sure in enumerate((1.0, 3.0, 2.0, 1.0, 0.5, 9.0)):
            asked.append(number)
            yield [sure * right] * 2

    settings = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
    assert choose_setting(part, settings, held_back(), 2) == (1.0, 1.0)
    assert max(asked) == 3
    assert choose_setting(part, settings, held_back()) == (1e-4, 1.0)


def test_labels_of_chance_are_not_predicted() -> None:
    """What is held back is never fitted: without a relation its score is that of chance."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 50, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    part = TrainingPart.of(labels, 2, 0)
    assert 0.35 < linear_probe(x, part).score < 0.65
    assert 0.35 < neighbour_probe(x, part, k=5).score < 0.65
    assert 0.35 < weighted_probe(x.unflatten(1, (2, 25)), part).score < 0.65


def test_several_labels_are_scored_by_map() -> None:
    x, labels = blobs(60, 6, 4, 1.0)
    y = hot(labels, 4)
    part = TrainingPart.of(y, 4, 0)
    held_out, truth = blobs(100, 6, 4, 1.0, seed=3)
    for probe in (linear_probe(x, part), neighbour_probe(x, part)):
        assert probe.score > 0.8 and clip_metrics(probe.logits(held_out), hot(truth, 4))["mAP"] > 0.8
    scaled = Scaling.of(x)(x)
    axes = Axes(scaled)
    alone, mixed = axes.unrotated(axes.fit(y, 4, 0.1)), fit_layer_mix(scaled.unsqueeze(1), y, 4, 0.1)
    torch.testing.assert_close(mixed.linear.weight, alone.weight, atol=1e-4, rtol=0)


def test_the_layers_sum_finds_the_layer_that_knows() -> None:
    x, labels = blobs(90, 8, 3, 2.0)
    noise = torch.randn(90, 2, 8, generator=torch.Generator().manual_seed(4))
    layers = torch.cat([noise, 100 * x.unsqueeze(1)], 1)  # standardised, its scale does not matter
    part = TrainingPart.of(labels, 3, 0)
    probe = weighted_probe(layers, part)
    assert sum(probe.layer_weights) == pytest.approx(1)
    assert probe.layer_weights[2] > 0.6
    # One layer is the linear classifier, and its minimum has no gradient.
    scaled = Scaling.of(x)(x)
    mixed = fit_layer_mix(scaled.unsqueeze(1), labels, 3, 0.1)
    axes = Axes(scaled)
    torch.testing.assert_close(mixed.linear.weight, axes.unrotated(axes.fit(labels, 3, 0.1)).weight, atol=1e-4, rtol=0)


def test_neighbours_by_hand() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    near = find_neighbours(train, torch.tensor([[5.0, 0.1]]), 3)
    assert near.rows.tolist() == [[0, 2, 1]]
    assert near.cosines[0].tolist() == pytest.approx([0.9998, 0.7211, 0.0200], abs=1e-3)
    labels = torch.tensor([0, 1, 1, 2])
    votes = (near.cosines[0].double() / 0.5).exp()
    wanted = [float(votes[0] / votes.sum()), float(votes[1:].sum() / votes.sum())]
    assert vote(near, labels, 3, 3, 0.5).exp()[0, :2].tolist() == pytest.approx(wanted)
    assert vote(near, labels, 3, 1, 0.5).argmax(1).tolist() == [0]
    # A high temperature lets all count alike: two against one.
    assert vote(near, labels, 3, 3, 100.0).argmax(1).tolist() == [1]
    assert vote(near, labels, 3, 3, 0.01).argmax(1).tolist() == [0]
    multi = vote(near, torch.nn.functional.one_hot(labels, 3), 3, 3, 0.5)
    assert multi.sigmoid()[0, :2].tolist() == pytest.approx(wanted)


def test_the_number_of_neighbours_is_chosen_where_none_is_named() -> None:
    x, labels = blobs(120, 5, 3, 3.0)
    part = TrainingPart.of(labels, 3, 0)
    chosen = neighbour_probe(x, part)
    assert chosen.setting > 1 and chosen.score >= neighbour_probe(x, part, k=1).score
    assert neighbour_probe(x, part, k=7).setting == 7


def test_one_training_clip_is_too_few() -> None:
    with pytest.raises(UserError, match="there are 1 training clips"):
        TrainingPart.of(torch.tensor([0]), 2, 0)
