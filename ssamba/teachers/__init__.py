"""Trained models that others learn from: what one of their layers says of recordings, by one interface.

A teacher is named by one word, of a recipe (`objective.distillation.teacher`) or a command (`ssamba embed
--into-shards`): the folder of a model of ours, or `hf:` and a model of transformers. Imported by build and the command
line.
"""

from ssamba.teachers.clips import ClipFeatures
from ssamba.teachers.own import OwnTeacher
from ssamba.teachers.teacher import FeatureTeacher
from ssamba.values import TRANSFORMERS

__all__ = ["ClipFeatures", "FeatureTeacher", "OwnTeacher", "load_teacher"]


def load_teacher(name: str, layer: int) -> FeatureTeacher:
    """The teacher of a name, on the CPU.

    Args:
        layer: 0 is the embedded patches or frames, -1 what the model gives.

    Raises:
        UserError: no such model or layer, weights that do not fit, or `transformers` is not installed.
    """
    if name.startswith(TRANSFORMERS):
        from ssamba.teachers.transformers import TransformersTeacher

        return TransformersTeacher(name.removeprefix(TRANSFORMERS), layer)
    return OwnTeacher(name, layer)
