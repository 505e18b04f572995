"""Scoring a classifier on a split: every clip once, scores, confusion and predictions.

Shapes: B clips, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.stream import ClipStream
from ssamba.models.heads import AudioClassifier
from ssamba.progress import progress_bar


class Predictions(NamedTuple):
    """keys: the clips; logits: float32 (B, C); labels: int64 (B,) or float32 (B, C); all on the CPU."""

    keys: list[str]
    logits: Tensor
    labels: Tensor


def predict(
    model: AudioClassifier, log_mel: LogMel, stream: ClipStream, total: int, device: torch.device
) -> Predictions:
    """Run a classifier over a stream that ends; a progress bar over its `total` clips."""
    model.eval().to(device)
    log_mel.to(device)
    keys: list[str] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with progress_bar(total, "clip", "evaluation") as bar, torch.inference_mode():
        for batch in stream:
            lengths = batch["lengths"].to(device)
            spectrogram = log_mel(batch["waveform"].to(device), lengths)
            logits.append(model(spectrogram, log_mel.frames(lengths)).float().cpu())
            labels.append(batch["labels"])
            keys.extend(batch["keys"])
            bar.update(len(batch["keys"]))
    return Predictions(keys, torch.cat(logits), torch.cat(labels))
