"""How well a pretrained model fills in what is hidden, beside what no model at all would reach.

Shapes: B batch, L patches, N masked patches of a clip, K pixels of a patch.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.stream import BatchStream, ClipStream
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.masking import Masking, clip_generator
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.patches import gather_patches, masked_places
from ssamba.progress import progress_bar

SCORED_PARTS = ("contrastive", "reconstruction")
"""The parts of an objective whose heads can be scored."""


class MaskedScores(NamedTuple):
    """Of held-out clips; those of a head that is not scored are None.

    Of the contrastive head, accuracy: masked patches matched to their own prediction; chance: 1 / N; row_chance: the
    mean accuracy of one who knows each patch's mel row and guesses within it; contrastive: its loss. Of the
    reconstruction, mse; mean_patch_mse: of the training clips' mean patch at each position, instead; mse_ratio: one
    over the other."""

    accuracy: float | None
    chance: float | None
    row_chance: float | None
    contrastive: float | None
    mse: float | None
    mean_patch_mse: float | None
    mse_ratio: float | None
    clips: int


class MaskedEvaluation(NamedTuple):
    """A model, the first `train_clips` clips of a training stream, a stream to be scored (it ends), its masks, each
    clip's by `seed` and its place, and which of `SCORED_PARTS` the model has learned."""

    model: MaskedPatchModel
    log_mel: LogMel
    train: BatchStream
    train_clips: int
    validation: ClipStream
    masking: Masking
    seed: int
    parts: Collection[str] = SCORED_PARTS


def mean_patches(model: MaskedPatchModel, log_mel: LogMel, stream: BatchStream, total: int) -> Tensor:
    """The mean patch at each position, (L, K), over the first `total` clips of a stream."""
    sums, clips = torch.zeros(()), 0
    with progress_bar(total, "clip", "mean patches") as bar, torch.inference_mode():
        for batch in stream:
            spectrogram = log_mel(batch["waveform"], batch["lengths"])[: total - clips]
            sums = sums + model.encoder.patch_shape.cut(spectrogram).sum(0)
            clips += len(spectrogram)
            bar.update(len(spectrogram))
            if clips >= total:
                break
    return sums / clips


@torch.inference_mode()
def score_masked(evaluation: MaskedEvaluation) -> MaskedScores:
    """Score a model on the clips of its validation stream."""
    model, log_mel = evaluation.model.eval(), evaluation.log_mel
    mean_patch = mean_patches(model, log_mel, evaluation.train, evaluation.train_clips)
    added, clips = torch.zeros(6, dtype=torch.float64), 0
    masking = evaluation.masking
    patch_shape, (rows, columns) = model.encoder.patch_shape, model.encoder.grid
    for batch in evaluation.validation:
        spectrogram = log_mel(batch["waveform"], batch["lengths"])
        size = len(spectrogram)
        generators = [clip_generator(evaluation.seed, "evaluation", position) for position in batch["positions"]]
        frames = log_mel.frames(batch["lengths"])
        mask = masking.draw(rows, columns, generators, patch_shape.own_columns(frames, columns))
        own = patch_shape.own_patches(frames, rows, columns) if masking.padded else None
        prediction = model(spectrogram, mask, masking.masked, own)
        contrast = info_nce(prediction.contrastive, prediction.target, prediction.hidden)
        baseline = gather_patches(mean_patch.expand(size, -1, -1), masked_places(mask, masking.masked))
        # Guessing among n patches, or within a row of n masked ones, is right once in n times for each: one hit.
        occupied = mask.view(size, rows, columns).any(2).sum() / mask.sum()
        added += (
            size
            * torch.stack(
                [
                    contrast.accuracy,
                    contrast.loss,
                    reconstruction_mse(prediction.reconstruction, prediction.target, prediction.hidden),
                    reconstruction_mse(baseline, prediction.target, prediction.hidden),
                    occupied,
                    size / mask.sum(),
                ]
            ).double()
        )
        clips += size
    accuracy, contrastive, mse, mean_mse, row_chance, chance = (added / clips).tolist()
    scores = MaskedScores(accuracy, chance, row_chance, contrastive, mse, mean_mse, mse / mean_mse, clips)
    if "contrastive" not in evaluation.parts:
        scores = scores._replace(accuracy=None, chance=None, row_chance=None, contrastive=None)
    if "reconstruction" not in evaluation.parts:
        scores = scores._replace(mse=None, mean_patch_mse=None, mse_ratio=None)
    return scores
