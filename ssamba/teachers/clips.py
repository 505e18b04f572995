"""What a teacher says of training clips, at the times of a student's patches.

Shapes: B clips, S samples, P columns of a student's patches, D width of the features.
"""

import torch
from torch import Tensor

from ssamba.data.batches import Batch
from ssamba.teachers.teacher import FeatureTeacher


class ClipFeatures:
    """The features of a batch's clips: each is heard whole, without its padding, and whatever is hidden of it.

    Args:
        sampling_rate: Hz of the clips.
        seconds: the times within a clip, float64 (P,).
    """

    def __init__(self, teacher: FeatureTeacher, sampling_rate: int, seconds: Tensor) -> None:
        self.teacher, self.sampling_rate, self.seconds = teacher, sampling_rate, seconds

    def __call__(self, batch: Batch) -> Tensor:
        """float32 (B, P, D), on the device of the clips."""
        self.teacher.to(batch["waveform"].device)
        clips = zip(batch["waveform"].cpu().numpy(), batch["lengths"].tolist(), strict=True)
        waveforms = [waveform[:length] for waveform, length in clips]
        frames = self.teacher.features(waveforms, self.sampling_rate)
        return torch.stack([self.teacher.times.interpolated(one, self.seconds) for one in frames])
