"""The features that a recipe's student learns from: a teacher computes them for each batch, or the shards have them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ssamba.build.shards import Shards
from ssamba.config import PretrainRecipe
from ssamba.data.batches import Batch
from ssamba.data.features import StoredFeatures
from ssamba.data.shards.features import FeatureInfo
from ssamba.errors import UserError
from ssamba.features import column_times
from ssamba.models.patches import PatchShape
from ssamba.models.settings import model_folder
from ssamba.teachers import ClipFeatures, load_teacher
from ssamba.values import STORED, TRANSFORMERS


@dataclass(frozen=True)
class Distilled:
    """The features that a student learns from.

    Attributes:
        width: D.
        of_batch: a batch -> (B, P, D).
        teacher_sha256: of the weights of the model that computes or computed them, in hex.
        stored: what is read of them with each clip; None: a teacher computes them.
    """

    width: int
    of_batch: Callable[[Batch], Tensor]
    teacher_sha256: str
    stored: StoredFeatures | None = None


def build_distilled(recipe: PretrainRecipe, shards: Shards) -> Distilled | None:
    """The features of `objective.distillation`; None where no part of the loss needs them.

    Raises:
        UserError: no such teacher or layer, or shards without features, or with those of different teachers.
    """
    distillation, model, audio = recipe.objective.distillation, recipe.model, recipe.audio
    if not recipe.objective.parts.distillation:
        return None
    assert distillation.teacher is not None
    patch = PatchShape(
        model.fshape, model.tshape, model.frequency_stride or model.fshape, model.time_stride or model.tshape
    )
    _, columns = patch.grid(audio.num_mel_bins, audio.max_length)
    seconds = column_times(patch, audio.sampling_rate).seconds(columns)
    if distillation.teacher == STORED:
        info = _stored_info(shards)
        stored = StoredFeatures(info, audio.sampling_rate, seconds)
        return Distilled(info.width, _stored, info.teacher_sha256, stored)
    try:
        if not distillation.teacher.startswith(TRANSFORMERS):
            model_folder(distillation.teacher)  # or a folder that is not there would be looked for on the Hub
        teacher = load_teacher(distillation.teacher, distillation.layer)
    except UserError as error:
        raise UserError(f"objective.distillation.teacher: {error}") from error
    return Distilled(teacher.width, ClipFeatures(teacher, audio.sampling_rate, seconds), teacher.fingerprint)


def _stored(batch: Batch) -> Tensor:
    return batch["teacher_features"]


def _stored_info(shards: Shards) -> FeatureInfo:
    """The description of the stored features, the same in the indexes of the training and validation shards."""
    infos: dict[str, FeatureInfo] = {}
    for name in ("train", "validation"):
        shard_set = shards.splits().get(name)
        for place, index in shard_set.indexes.items() if shard_set else ():
            if index.features is None:
                raise UserError(
                    f"objective.distillation.teacher is shards, and {place} of data.{name} has no features; `ssamba "
                    "embed TEACHER SHARDS --into-shards OUT` makes shards that have"
                )
            infos[place] = index.features
    first, info = next(iter(infos.items()))
    for place, other in infos.items():
        if replace(other, teacher=info.teacher) != info:
            raise UserError(
                f"the features in {first} are of layer {info.layer} of {info.teacher} ({info.teacher_sha256[:12]}), "
                f"those in {place} of layer {other.layer} of {other.teacher} ({other.teacher_sha256[:12]}); expected "
                "one teacher and layer: make them with one call of `ssamba embed --into-shards`"
            )
    return info
