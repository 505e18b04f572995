"""What a clip's spectrogram says by itself: features that need no network, the row beside every learned score.

Shapes: B clips, T frames, M mel bins, S stretches of time.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.stream import ClipStream
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.probes import Probe, TrainingPart, linear_probe
from ssamba.models.encoder import Encoded
from ssamba.models.pools import Pool
from ssamba.progress import progress_bar

STRETCHES = 8
"""S, which a word of one second needs to be told from another of the same sounds."""
BASELINES = {
    "statistics": "mean and standard deviation over time of each mel bin",
    "stretches": f"means of {STRETCHES} equal stretches of time of each mel bin",
}
"""Kinds of features, and what they are."""


def log_mel_features(spectrogram: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Statistics over time of each mel bin, by the names of `BASELINES`.

    A spectrogram is pooled as tokens are: of M rows with one number each, so padding does not enter. A normalisation of
    the spectrogram does not matter to a classifier that standardises its features.

    Args:
        spectrogram: (B, T, M), log-mel.
        frames: int64 (B,), those that are a clip's own, at least 1.

    Returns:
        "statistics": mean and standard deviation, (B, 2 * M); "stretches": the means of S equal stretches, (B, S * M).
    """
    bins = spectrogram.shape[2]
    cells = Encoded(spectrogram.transpose(1, 2).flatten(1).unsqueeze(2), spectrogram.new_zeros(len(spectrogram), 0, 1))
    statistics = Pool("statistics", bins, 1)(cells, frames)
    stretches = Pool("segments", bins, 1, STRETCHES)(cells, frames)
    return {"statistics": statistics, "stretches": stretches}


class Statistics(NamedTuple):
    """Of the clips of a stream: keys, labels, and `log_mel_features`."""

    keys: list[str]
    labels: Tensor
    features: dict[str, Tensor]


class Baseline(NamedTuple):
    """name: of `BASELINES`, the kind with the best score on held-back training clips; probe: the classifier on it;
    predictions: of the clips to be scored; training_clips: how many it has learned from."""

    name: str
    probe: Probe
    predictions: Predictions
    training_clips: int


def read_statistics(stream: ClipStream, log_mel: LogMel) -> Statistics:
    """Of a stream that ends; a progress bar over its clips."""
    keys: list[str] = []
    labels: list[Tensor] = []
    features: dict[str, list[Tensor]] = {name: [] for name in BASELINES}
    log_mel.cpu()
    with progress_bar(len(stream.order), "clip", "log-mel baseline") as bar, torch.inference_mode():
        for batch in stream:
            frames = log_mel.frames(batch["lengths"])
            found = log_mel_features(log_mel(batch["waveform"], batch["lengths"]), frames)
            for name, values in features.items():
                values.append(found[name])
            labels.append(batch["labels"])
            keys.extend(batch["keys"])
            bar.update(len(batch["keys"]))
    return Statistics(keys, torch.cat(labels), {name: torch.cat(values) for name, values in features.items()})


def choose_baseline(train: Statistics, scored: Statistics, classes: int, seed: int,
                    groups: Mapping[str, str] | None = None) -> Baseline:  # fmt: skip
    """A linear classifier on the kind of statistics that is better on held-back training clips. groups: of each
    training clip by its key, see `TrainingPart.of`."""
    of_clips = None if groups is None else [groups[key] for key in train.keys]
    part = TrainingPart.of(train.labels, classes, seed, of_clips)
    probes = {name: linear_probe(train.features[name], part) for name in BASELINES}
    name = max(BASELINES, key=lambda kind: probes[kind].score)
    logits = probes[name].logits(scored.features[name])
    return Baseline(name, probes[name], Predictions(scored.keys, logits, scored.labels), len(train.keys))
