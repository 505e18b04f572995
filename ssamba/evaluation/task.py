"""The tasks of fine-tuning: by which loss labelled clips are learned, and what scores tell that they were.

Shapes: B clips, C classes.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.errors import UserError
from ssamba.evaluation.metrics import clip_metrics
from ssamba.models.settings import Problem
from ssamba.parts import find, load_class


class Task:
    """How a labelled set becomes scores.

    Every task is a class below this one, made without arguments, and has a name in `ssamba.parts`, by which task.loss
    asks for it. It has a `loss`, and may have `scores`, a `problem_type` and a `monitor` of its own.
    """

    problem_type: ClassVar[Problem] = "single_label_classification"
    """Whether a clip has one label, and the softmax of its logits are the probabilities; or, as
    "multi_label_classification", several, by the sigmoid. An exported model keeps this, and needs the task no more."""
    monitor: ClassVar[tuple[str, str]] = ("accuracy", "max")
    """The score of validation by which the best model is kept, or "loss"; and which is the best, "max" or "min"."""

    def loss(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """What training makes small.

        Args:
            logits: float32 (B, C).
            targets: float32 (B, C), the probabilities of the classes: 0 and 1, but for mixed and smoothed ones.
            class_weights: float32 (C,), what each class's term counts; None: all alike.

        Returns:
            A scalar, the mean over the clips: those of the parts of a batch add up to that of the whole.
        """
        raise NotImplementedError

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Scores of a split under names of their own, beside those that every classifier has.

        Args:
            logits: float32 (B, C).
            labels: int64 (B,), or float32 (B, C) where clips have several.
        """
        return {}


class CrossEntropy(Task):
    """One label a clip."""

    def loss(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        # Of targets that are probabilities the weighted mean is not divided by the weights of the batch: its parts on
        # several devices add up to the whole.
        return F.cross_entropy(logits, targets, class_weights)


class BinaryCrossEntropy(Task):
    """Several labels a clip, each by itself; a class's weight is that of its positive term."""

    problem_type = "multi_label_classification"
    monitor = ("mAP", "max")

    def loss(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)


class Ctc(Task):
    """The label is a text. Its loss and its error rates need the lengths of clips and texts, which
    `ssamba.training.sequences` has."""

    problem_type = "ctc"
    monitor = ("CER", "min")


def find_task(name: str) -> Task:
    """The task of a name of `ssamba.parts`.

    Raises:
        UserError: there is none, or one of another package that cannot be used.
    """
    kind = load_class("task", name, Task)
    expected = (CrossEntropy.problem_type, BinaryCrossEntropy.problem_type)
    if kind.problem_type not in expected and kind is not Ctc:
        raise UserError(
            f"the task {name} of the package {find('task', name).package} has problem_type {kind.problem_type!r}; "
            f"expected {' or '.join(expected)}"
        )
    return kind()


def check_monitor(name: str, task: Task, classes: int) -> None:
    """UserError if validation would not give the score by which the best model is kept; asked of one clip a class."""
    labels = torch.arange(classes)
    logits = torch.eye(classes)
    if task.problem_type == BinaryCrossEntropy.problem_type:
        labels = logits.clone()
    expected = ("loss", *clip_metrics(logits, labels), *task.scores(logits, labels))
    score, best = task.monitor
    if score not in expected or best not in ("max", "min"):
        raise UserError(
            f"the task {name} of the package {find('task', name).package} has monitor {task.monitor!r}; expected max "
            f"or min of one of {', '.join(expected)}"
        )
