"""What a clip's spectrogram says by itself: features that need no network, the row beside every learned score.

Shapes: B clips, T frames, M mel bins, S stretches of time.
"""

from torch import Tensor

from ssamba.models.encoder import Encoded
from ssamba.models.pools import Pool

STRETCHES = 8
"""S, which a word of one second needs to be told from another of the same sounds."""
BASELINES = ("statistics", "stretches")


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
