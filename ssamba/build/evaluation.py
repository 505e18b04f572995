"""What a finished run, or the baseline beside it, is scored with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssamba.audio import LogMel
from ssamba.build.labels import build_groups, build_rows, check_whole, labels_of
from ssamba.build.models import backend_here, build_log_mel
from ssamba.build.runs import Finetuner, build_masking
from ssamba.build.shards import (
    MEASURED_CLIPS,
    Shards,
    at_most,
    build_clip_settings,
    build_shards,
    build_training_shards,
)
from ssamba.config import FinetuneRecipe, PretrainRecipe
from ssamba.data.datamodule import ClipDataModule, TrainingShards
from ssamba.data.shards.finding import find_shards
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.evaluation.masked import SCORED_PARTS, MaskedEvaluation
from ssamba.evaluation.scores import scoring_device
from ssamba.models.checkpoint import load_model
from ssamba.models.heads import AudioClassifier, MaskedPatchModel

_BASELINE_CLIPS = 5000  # more change little of what a linear classifier finds in a spectrogram's statistics


@dataclass(frozen=True)
class ClassEvaluation:
    """A classifier and the clips that it is to be scored on: how many there are, and in which groups, if in any."""

    model: AudioClassifier
    log_mel: LogMel
    stream: ClipStream
    clips: int
    names: Sequence[str]
    groups: dict[str, str] | None


def build_class_evaluation(recipe: FinetuneRecipe) -> ClassEvaluation:
    """The classifier in run_dir and its test clips."""
    saved = load_model(recipe.run_dir, backend_here(recipe, scoring_device()))
    if saved.classifier is None or not isinstance(saved.model, AudioClassifier):
        raise UserError(f"{recipe.run_dir} holds a pretrained model; expected a fine-tuned one for a finetune recipe")
    data = recipe.data
    if not (data.test or data.fold_by):
        raise UserError("data.test is empty; expected the folder of the split to be scored")
    shards = find_shards(data.train if data.fold_by else data.test, data.cache)
    rows = build_rows(recipe, Shards(shards, None, shards)) if data.fold_by else {}
    key, names = saved.classifier.label, saved.classifier.labels
    spoken, hop = saved.classifier.loss == "ctc", saved.classifier.hop_columns
    if (spoken, hop) != (recipe.task.loss == "ctc", recipe.hop_columns):
        raise UserError(
            f"the model in {recipe.run_dir} has loss {saved.classifier.loss} and answers of {hop or 'all'} columns; by "
            f"the recipe it would be {recipe.task.loss} and {recipe.hop_columns or 'all'}: task.loss, task.hop_ms and "
            "model.time_stride are to be those of the run"
        )
    if key not in shards.labels:
        raise UserError(f"the model in {recipe.run_dir} says {key}, which data.test lacks")
    if unknown := [label for label in shards.label_list(key) if label not in names and not spoken]:
        raise UserError(
            f"data.test has {key} {', '.join(unknown[:8])}, which the model in {recipe.run_dir} does not know"
        )
    check_whole(recipe, shards, "data.test")
    labels = labels_of(key, names, recipe, saved.classifier.loss)
    clips = ClipDataModule(build_clip_settings(recipe), test=shards, labels=labels, rows=rows)
    stream, groups = clips.test_stream(), build_groups(recipe, shards)
    return ClassEvaluation(saved.model, build_log_mel(recipe, saved.audio), stream, len(stream.order), names, groups)


def build_baseline_streams(built: Finetuner) -> tuple[ClipStream, ClipStream]:
    """The training and the test clips for a classifier without a network: short ones not repeated to fill a clip, and
    no more training clips than it needs."""
    recipe = built.recipe
    settings = build_clip_settings(recipe)
    settings = replace(settings, rules=replace(settings.rules, short="pad"))
    train = built.shards.indexed
    rows = built.data.train.rows if isinstance(built.data.train, TrainingShards) else None
    rows = np.arange(train.samples) if rows is None else rows
    if len(rows) > _BASELINE_CLIPS:
        rows = np.sort(np.random.default_rng(recipe.seed).choice(rows, _BASELINE_CLIPS, replace=False))
    learned = ClipDataModule(settings, test=train, labels=built.data.labels, rows={"test": rows})
    scored = ClipDataModule(settings, test=built.shards.test, labels=built.data.labels, rows=built.data.rows)
    return learned.test_stream(), scored.test_stream()


def build_masked_evaluation(recipe: PretrainRecipe) -> MaskedEvaluation:
    """The pretrained model in run_dir, its training clips for the baseline and its validation clips to be scored."""
    parts = recipe.objective.parts.weights
    scored = [name for name in SCORED_PARTS if name in parts]
    if not scored:
        raise UserError(
            f"objective.parts has {', '.join(parts)} alone, and evaluate scores contrastive and reconstruction, whose "
            "heads have learned nothing; what the features are worth is told by `ssamba probe`"
        )
    saved = load_model(recipe.run_dir, backend_here(recipe, torch.device("cpu")))
    if not isinstance(saved.model, MaskedPatchModel):
        raise UserError(f"{recipe.run_dir} holds a classifier; expected a pretrained model for a pretrain recipe")
    if not recipe.data.validation:
        raise UserError("data.validation is empty; expected the folder of held-out clips to be scored")
    shards = build_shards(recipe)
    assert shards.validation is not None
    train = build_training_shards(recipe, shards.train)
    data = ClipDataModule(build_clip_settings(recipe), train=train, validation=shards.validation)
    return MaskedEvaluation(
        saved.model,
        build_log_mel(recipe, saved.audio),
        data.training_stream(),
        at_most(MEASURED_CLIPS, shards.train),
        data.validation_stream(),
        build_masking(recipe),
        recipe.seed,
        scored,
    )
