"""What the parts of pretraining's loss are given.

Shapes: B clips, V masks of each, P columns of patches, L patches, D width of a teacher's features.
"""

from typing import NamedTuple

from torch import Tensor

from ssamba.models.heads import MaskedPrediction
from ssamba.objectives.teacher import Targets


class Seen(NamedTuple):
    """A step's clips, and what one encoder pass says of them.

    Attributes:
        prediction: of the clips, each behind V masks, the V of a clip one after another: its first size is B * V.
        masks: V.
        targets: what a teacher that follows the student says of the B clips, if a part needs one.
        features: (B, P, D), what another model says of them at the times of their columns, if a part needs that.
        own: bool (B * V, L), the patches that are no padding; None: all.
    """

    prediction: MaskedPrediction
    masks: int = 1
    targets: Targets | None = None
    features: Tensor | None = None
    own: Tensor | None = None
