"""What the parts of pretraining's loss are given.

Shapes: B clips, V masks of each, L patches.
"""

from typing import NamedTuple

from ssamba.models.heads import MaskedPrediction
from ssamba.objectives.teacher import Targets


class Seen(NamedTuple):
    """A step's clips, and what one encoder pass says of them.

    Attributes:
        prediction: of the clips, each behind V masks, the V of a clip one after another: its first size is B * V.
        masks: V.
        targets: what a teacher says of the B clips, if a part needs one.
    """

    prediction: MaskedPrediction
    masks: int = 1
    targets: Targets | None = None
