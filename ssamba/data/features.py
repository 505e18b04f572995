"""A teacher's features of the samples of shards, as clips of a student have them.

Shapes: N frames of a recording, P times of a clip, D width, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.data.batches import Sample
from ssamba.data.shards.features import MEMBER, FeatureInfo, Features, parse_features
from ssamba.frames import FrameTimes


class FeaturePart(NamedTuple):
    """A part of a clip: so many samples of a recording, from `start` on, and the recording's features (N, D)."""

    start: int
    samples: int
    features: Features


@dataclass(frozen=True)
class StoredFeatures:
    """The features of each clip at the times of a student's patches.

    Attributes:
        info: their description in the index.
        sampling_rate: Hz of the recordings.
        seconds: the times within a clip, float64 (P,).
    """

    info: FeatureInfo
    sampling_rate: int
    seconds: Tensor

    def read(self, sample: Sample) -> Features:
        """A sample's features, float16 (N, D); BadAudio if there are none that can be used."""
        return parse_features(sample.get(MEMBER), self.info.width)

    def of_clip(self, parts: Sequence[FeaturePart], filled: int) -> Tensor:
        """The features of a clip of one part after another: float16 (P, D). Where `filled`, its valid samples, are more
        than theirs, they are repeated; times after its end have the features of the end."""
        times = FrameTimes(self.info.first_seconds, self.info.frame_rate)
        features = torch.empty(len(self.seconds), self.info.width, dtype=torch.float16)
        places, total = self.seconds * self.sampling_rate, sum(part.samples for part in parts)
        if filled > total:
            places = places % total
        begin = 0
        for part in parts:
            here = places >= begin  # and after this part, which the next ones replace
            seconds = (places[here] - begin + part.start) / self.sampling_rate
            features[here] = times.interpolated(torch.tensor(part.features), seconds).half()
            begin += part.samples
        return features

    def noise(self, clips: int) -> Tensor:
        """In the place of features, for clips that are noise: float16 (clips, P, D)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(clips, len(self.seconds), self.info.width, generator=generator).half()
