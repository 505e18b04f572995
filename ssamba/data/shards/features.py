"""What a teacher says of each sample, kept beside its recording. Imports no torch.

`<key>.teacher.npy` is float16 (frames, width), each frame standardised over its dimensions; the index says when its
frames are and which teacher it was. Shapes: N frames, D width.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from ssamba.data.shards.arrays import parse_array
from ssamba.errors import BadAudio
from ssamba.files import Sha256

MEMBER = "teacher.npy"
"""The extension of a sample's member."""
MOST_WIDTH = 1 << 16
_DTYPE = np.dtype("<f2")

Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class FeatureInfo:
    """What the index says about `MEMBER`, which all its samples have."""

    teacher: str
    """As it was named."""
    teacher_sha256: Sha256
    """Of its weights, in hex."""
    layer: Annotated[int, msgspec.Meta(ge=-1000, le=1000)]
    width: Annotated[int, msgspec.Meta(ge=1, le=MOST_WIDTH)]
    first_seconds: Annotated[float, msgspec.Meta(ge=-1000, le=1000)]
    """The middle of a recording's first frame."""
    frame_rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    """Hz."""


def parse_features(content: bytes | None, width: int) -> Features:
    """The features in a sample's member: float16 (N, D), N at least 1.

    Raises:
        BadAudio: there is none, or none of that width and of finite numbers.
    """
    if content is None:
        raise BadAudio(f"it has no {MEMBER}, which the index of its shard tells of")
    try:
        features = parse_array(content, _DTYPE, (None, width))
    except ValueError as error:
        raise BadAudio(f"its {MEMBER} cannot be used: {error}; expected float16 (frames, {width})") from error
    if not len(features) or not np.isfinite(features).all():
        raise BadAudio(f"its {MEMBER} has no frames, or numbers that are not finite")
    return features
