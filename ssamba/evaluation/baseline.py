"""Features of a clip's spectrogram that need no network: the baseline beside every learned score.

Shapes: B clips, N hops of each, T frames, M mel bins, S stretches of time.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.stream import ClipStream
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.hops import fit_hops, flat_hops
from ssamba.evaluation.probes import Probe, TrainingPart, linear_probe
from ssamba.models.encoder import Encoded
from ssamba.models.pools import build_pool
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
    statistics = build_pool("statistics", bins, 1)(cells, frames)
    stretches = build_pool("segments", bins, 1, STRETCHES)(cells, frames)
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


def hop_features(spectrogram: Tensor, frames: Tensor, hop_frames: int) -> dict[str, Tensor]:
    """`log_mel_features` of each hop by itself, (B, N, ...), N = ceil(T / hop_frames).

    Args:
        spectrogram, frames: as of `log_mel_features`.
    """
    batch, length, bins = spectrogram.shape
    hops = -(-length // hop_frames)
    parts = F.pad(spectrogram, (0, 0, 0, hops * hop_frames - length)).view(batch * hops, hop_frames, bins)
    own = (frames.unsqueeze(1) - hop_frames * torch.arange(hops)).clamp(1, hop_frames).flatten()
    return {name: values.view(batch, hops, -1) for name, values in log_mel_features(parts, own).items()}


def read_statistics(stream: ClipStream, log_mel: LogMel, hop_frames: int | None = None) -> Statistics:
    """Of a stream that ends, of whole clips or of their hops; a progress bar over the clips."""
    keys: list[str] = []
    labels: list[Tensor] = []
    features: dict[str, list[Tensor]] = {name: [] for name in BASELINES}
    log_mel.cpu()
    with progress_bar(len(stream.order), "clip", "log-mel baseline") as bar, torch.inference_mode():
        for batch in stream:
            frames = log_mel.frames(batch["lengths"])
            spectrogram, names, truth = log_mel(batch["waveform"], batch["lengths"]), batch["keys"], batch["labels"]
            if hop_frames is None:
                batch_features = log_mel_features(spectrogram, frames)
            else:
                parts = hop_features(spectrogram, frames, hop_frames)
                truth = fit_hops(truth, parts["statistics"].shape[1])
                flat = {name: flat_hops(names, values, truth) for name, values in parts.items()}
                batch_features = {name: values for name, (_, values, _) in flat.items()}
                names, _, truth = flat["statistics"]
            for name, values in features.items():
                values.append(batch_features[name])
            labels.append(truth)
            keys.extend(names)
            bar.update(len(batch["keys"]))
    return Statistics(keys, torch.cat(labels), {name: torch.cat(values) for name, values in features.items()})


def choose_baseline(
    train: Statistics, scored: Statistics, classes: int, seed: int, groups: Mapping[str, str] | None = None
) -> Baseline:
    """A linear classifier on the kind of statistics that is better on held-back training clips. groups: of each
    training clip by its key, see `TrainingPart.of`."""
    of_clips = None if groups is None else [groups[key] for key in train.keys]
    part = TrainingPart.of(train.labels, classes, seed, of_clips)
    probes = {name: linear_probe(train.features[name], part) for name in BASELINES}
    name = max(BASELINES, key=lambda kind: probes[kind].score)
    logits = probes[name].logits(scored.features[name])
    return Baseline(name, probes[name], Predictions(scored.keys, logits, scored.labels), len(train.keys))
