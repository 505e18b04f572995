"""The parts of pretraining's loss: each is a function of what one encoder pass saw, in a readable module. Imports
ssamba.models, ssamba.losses and ssamba.audio; training imports it.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ssamba.objectives.changes import Changes, ChangeSettings, changed, draw_changes
from ssamba.objectives.distillation import FeatureHead, distillation
from ssamba.objectives.latent import ClipHead, PatchHead, clip, latent
from ssamba.objectives.mixing import Mixture, draw_partners, mixed_with, retained
from ssamba.objectives.patches import contrastive, reconstruction
from ssamba.objectives.seen import Seen
from ssamba.objectives.teacher import Targets, Teacher, spread

PARTS: dict[str, Callable[[Seen], dict[str, Tensor]]] = {
    "contrastive": contrastive,
    "reconstruction": reconstruction,
    "latent": latent,
    "clip": clip,
    "distillation": distillation,
}
"""Each gives float32 scalars: the loss, by the part's own name, and what is logged beside it."""
HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "latent": PatchHead,
    "clip": ClipHead,
    "distillation": FeatureHead,
}
"""Of the parts that need a head of their own in `MaskedPatchModel.more_heads`, for an encoder of so many dimensions and
targets of so many."""
OF_PATCHES = ("contrastive", "reconstruction", "latent", "distillation")
"""Those that say something of hidden patches."""

__all__ = [
    "HEADS",
    "OF_PATCHES",
    "PARTS",
    "ChangeSettings",
    "Changes",
    "ClipHead",
    "FeatureHead",
    "Mixture",
    "PatchHead",
    "Seen",
    "Targets",
    "Teacher",
    "changed",
    "clip",
    "contrastive",
    "distillation",
    "draw_changes",
    "draw_partners",
    "latent",
    "mixed_with",
    "reconstruction",
    "retained",
    "spread",
]
