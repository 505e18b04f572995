"""Training a classifier of hops as a LightningModule: a label for each hop, or the characters that are said (CTC).

Clips count alike in a loss, however long they are. Shapes: B batch, N hops, C classes, W characters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.data.batches import Batch
from ssamba.data.labels import NO_LABEL
from ssamba.evaluation.hops import fit_hops
from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.transcripts import Errors, count_errors, greedy, spell
from ssamba.models.heads import TokenClassifier
from ssamba.training.distributed import gathered
from ssamba.training.finetuning import FineTuning


class HopFineTuning(FineTuning):
    """Cross-entropy of each hop's label, int64 (B, N)."""

    model: TokenClassifier

    def clip_losses(
        self, logits: Tensor, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        """logits (B, N, C) and labels (B, N or another) -> float32 (B,), the mean over a clip's labelled hops."""
        labels = fit_hops(labels, logits.shape[1])
        losses = F.cross_entropy(
            logits.float().transpose(1, 2),
            labels,
            class_weights,
            ignore_index=NO_LABEL,
            reduction="none",
            label_smoothing=smoothing,
        )
        return losses.sum(1) / (labels != NO_LABEL).sum(1)

    def objectives(self, logits: Tensor, targets: Tensor, frames: Tensor) -> dict[str, Tensor]:
        losses = self.clip_losses(logits, targets, self.label_smoothing, self.class_weights)
        labels = fit_hops(targets, logits.shape[1])
        right = (logits.detach().argmax(2) == labels).sum(1) / (labels != NO_LABEL).sum(1)
        return {"loss": losses.mean(), "accuracy": right.mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.model(self.log_mel(batch["waveform"], batch["lengths"]), self.log_mel.frames(batch["lengths"]))
        labels = fit_hops(batch["labels"], logits.shape[1])
        self._scored.append((torch.tensor(batch["positions"]), logits.float().cpu(), labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        parts = [part for rank in gathered(self._scored) for part in rank]
        self._scored.clear()
        order = torch.cat([positions for positions, _, _ in parts]).argsort()
        logits, labels = (torch.cat([part[column] for part in parts])[order] for column in (1, 2))
        self.log("val/loss", self.clip_losses(logits, labels).mean())
        own = labels != NO_LABEL
        self.log_dict({f"val/{name}": value for name, value in clip_metrics(logits[own], labels[own]).items()})


class CtcFineTuning(FineTuning):
    """Connectionist temporal classification (Graves et al. 2006) of the characters, int64 (B, W).

    Args:
        names: of the classes, the blank first.
        options: of `FineTuning`.
    """

    model: TokenClassifier

    def __init__(self, *arguments: Any, names: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.names = names
        self._counted: list[tuple[list[int], Tensor]] = []

    def hops(self, frames: Tensor) -> Tensor:
        """int64 (B,) of clips of so many frames (B,)."""
        return self.model.hops(frames, self.model.encoder.grid[1])

    def clip_losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        """logits (B, N, C), labels (B, W) and frames (B,) -> float32 (B,), divided by the number of characters."""
        lengths = (labels != NO_LABEL).sum(1)
        hops = self.hops(frames).to(labels.device)
        chances = logits.float().log_softmax(2).transpose(0, 1)
        return F.ctc_loss(chances, labels.clamp(min=0), hops, lengths, reduction="none") / lengths

    def objectives(self, logits: Tensor, targets: Tensor, frames: Tensor) -> dict[str, Tensor]:
        return {"loss": self.clip_losses(logits, targets, frames).mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        frames, labels = self.log_mel.frames(batch["lengths"]), batch["labels"]
        logits = self.model(self.log_mel(batch["waveform"], batch["lengths"]), frames)
        losses = self.clip_losses(logits, labels, frames).double().cpu()
        predicted = [spell(path, self.names) for path in greedy(logits, self.hops(frames))]
        errors = count_errors(predicted, [spell(row[row != NO_LABEL].tolist(), self.names) for row in labels])
        self._counted.append((batch["positions"], torch.stack([losses, *errors], 1)))

    def on_validation_epoch_end(self) -> None:
        parts = [part for rank in gathered(self._counted) for part in rank]
        self._counted.clear()
        order = torch.tensor([position for positions, _ in parts for position in positions]).argsort()
        losses, *counts = torch.cat([values for _, values in parts])[order].unbind(1)
        self.log("val/loss", losses.mean().float())
        self.log_dict({f"val/{name}": value for name, value in Errors(*counts).rates().items()})
