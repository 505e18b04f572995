"""Scoring a classifier on a split: every clip once, scores, confusion and predictions.

Shapes: B clips, C classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.batches import Batch
from ssamba.data.stream import BatchStream
from ssamba.models.heads import AudioClassifier
from ssamba.progress import progress_bar


class Predictions(NamedTuple):
    """keys: the clips; logits: float32 (B, C); labels: int64 (B,) or float32 (B, C); all on the CPU."""

    keys: list[str]
    logits: Tensor
    labels: Tensor


@torch.inference_mode()
def answers(
    model: AudioClassifier, log_mel: LogMel, stream: BatchStream, total: int, device: torch.device
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """What a classifier says of a stream that ends, batch by batch, with a progress bar over its `total` clips: the
    batch, the logits, float32, and how many frames each clip has, int64 (B,), both on the CPU."""
    model.eval().to(device)
    log_mel.to(device)
    with progress_bar(total, "clip", "evaluation") as bar:
        for batch in stream:
            lengths = batch["lengths"].to(device)
            frames = log_mel.frames(lengths)
            logits = model(log_mel(batch["waveform"].to(device), lengths), frames)
            yield batch, logits.float().cpu(), frames.cpu()
            bar.update(len(batch["keys"]))


def predict(
    model: AudioClassifier, log_mel: LogMel, stream: BatchStream, total: int, device: torch.device
) -> Predictions:
    """Run a classifier over a stream that ends; a progress bar over its `total` clips."""
    keys: list[str] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for batch, values, _ in answers(model, log_mel, stream, total, device):
        keys.extend(batch["keys"])
        logits.append(values)
        labels.append(batch["labels"])
    return Predictions(keys, torch.cat(logits), torch.cat(labels))
