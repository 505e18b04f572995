"""The labels of a recipe: what they are, whether they can be learned, and which recordings of each split are used."""

import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ssamba.audio import frames_in, samples_for
from ssamba.build.shards import Shards, check_rate
from ssamba.config import FinetuneRecipe, PretrainRecipe
from ssamba.data.datamodule import ProbeShards
from ssamba.data.labels import (
    LabelCounts,
    Labels,
    count_labels,
    in_fold,
    one_name_each,
    read_asked_labels,
    read_labels,
    stratified_rows,
)
from ssamba.data.order import Indices
from ssamba.data.sequences import HopLabels, Transcripts, least_hops, read_texts, vocabulary
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError
from ssamba.evaluation.task import find_task
from ssamba.models.settings import LOSSES

log = logging.getLogger(__name__)

_COUNTED_SAMPLES = 100_000  # whose labels are read in seconds


def build_labels(recipe: FinetuneRecipe, shards: Shards) -> Labels:
    """The label list of the recipe's task, the same for all its splits; of texts, the training characters."""
    key = recipe.task.label
    lists = {}
    for name, shard_set in shards.splits().items():
        if key not in shard_set.labels:
            raise UserError(
                f"task.label is {key!r}, which data.{name} lacks; it has {', '.join(shard_set.labels) or 'no labels'}"
            )
        lists[name] = shard_set.label_list(key)
    if recipe.task.loss == "ctc":
        cache = ShardCache(recipe.data.cache_bytes)
        texts = {name: read_texts(shard_set, key, f"data.{name}", cache) for name, shard_set in shards.splits().items()}
        return Transcripts(key, vocabulary(texts))
    if not lists["train"]:
        raise UserError(
            f"task.label is {key!r}, what is said in a recording, which is no class; expected another label, or "
            "task.loss=ctc"
        )
    for name, names in lists.items():
        if unknown := [label for label in names if label not in lists["train"]]:
            raise UserError(f"data.{name} has {key} {', '.join(unknown[:8])}, which the training label list lacks")
    return labels_of(key, lists["train"], recipe, kind_of_loss(recipe))


def kind_of_loss(recipe: FinetuneRecipe) -> str:
    """The loss of this package whose labels are those of a recipe's task."""
    return LOSSES[find_task(recipe.task.loss).problem_type]


def labels_of(key: str, names: Sequence[str], recipe: FinetuneRecipe, loss: str) -> Labels:
    """What reads a label of a recipe's samples, by the names of its classes."""
    if loss == "ctc":
        return Transcripts(key, names)
    if (frames := recipe.hop_frames) is not None:
        rate = recipe.audio.sampling_rate
        hop = samples_for(frames + 1, rate) - samples_for(1, rate)
        return HopLabels(key, names, hop_samples=hop, listed_samples=frames * rate / 100)
    return Labels(key, names, loss == "bce")


def check_labels(
    recipe: FinetuneRecipe, shards: Shards, labels: Labels, rows: Mapping[str, Indices]
) -> LabelCounts | None:
    """Whether the labels of the samples can be learned, where reading them takes seconds: the index has names alone.

    Args:
        rows: the rows used, of the splits that are used in part.

    Returns:
        The counts of the training split; None where reading them would take longer and nothing needs them.

    Raises:
        UserError: labels that are not in the list, several under a loss for one, nothing to tell apart, or a held-out
            class without training recordings (several labels a clip: a warning).
    """
    key, names, loss = labels.key, labels.names, kind_of_loss(recipe)
    for split, shard_set in shards.splits().items():
        if split != "train":
            check_whole(recipe, shard_set, f"data.{split}")
    if loss == "ctc":
        return None  # `build_labels` and `build_rows` have read every text
    multi_label = labels.multi_label or recipe.task.is_sequence
    nothing = f"there is nothing to tell apart in the {key} of the training recordings"
    if len(names) == 1 and loss == "cross_entropy":
        raise UserError(f"{nothing}: {names[0]} is all; expected two or more, or task.loss=bce with some that lack it")
    cache = ShardCache(recipe.data.cache_bytes)
    if isinstance(labels, HopLabels):
        for split, shard_set in shards.splits().items():
            labels.check(shard_set, f"data.{split}", cache)
    training: LabelCounts | None = None
    for split, shard_set in shards.splits().items():
        needed = split == "train" and (recipe.task.class_weights != "none" or recipe.data.balance)
        if not needed and (
            shard_set.samples > _COUNTED_SAMPLES or any(shard.url is not None for shard in shard_set.shards)
        ):
            continue
        chosen = frozenset(rows[split].tolist()) if split in rows else None
        counts = count_labels(shard_set, key, names, cache, chosen)
        if counts.unknown:
            raise UserError(
                f"{counts.unknown} recordings of data.{split} have no {key} that is in the label list: "
                f"{', '.join(counts.unknown_examples)}; expected {'some' if multi_label else 'one'} of the "
                f"{len(names)} of the label list"
            )
        if not multi_label and counts.by_name_count[1] < counts.samples:
            examples = counts.multi_label_examples or ["with none"]
            raise UserError(
                f"{counts.samples - counts.by_name_count[1]} recordings of data.{split} have several {key}, or none: "
                f"{', '.join(examples)}; expected one of the {len(names)} of the label list, or task.loss=bce, "
                "which is for several"
            )
        if split != "train":
            if training is not None:
                _check_trained_classes(recipe, labels, split, counts, training)
            continue
        training = counts
        if not counts.samples:
            continue
        if all(counts.by_name[name] in (0, counts.samples) for name in names) and not recipe.task.is_sequence:
            alike = ", ".join(name for name in names if counts.by_name[name]) or "none"
            raise UserError(f"{nothing}: all {counts.samples} have {alike}; expected some that differ")
        if missing := [name for name in names if not counts.by_name[name]]:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            log.warning("no training recording has %s %s%s, of the label list", key, ", ".join(missing[:8]), more)
        if labels.multi_label and counts.by_name_count[1] == counts.samples:
            log.info("every training recording has one %s; task.loss=cross_entropy is for one alone", key)
    return training


def _check_trained_classes(
    recipe: FinetuneRecipe, labels: Labels, split: str, counts: LabelCounts, training: LabelCounts
) -> None:
    """Whether every class of a held-out split has training recordings."""
    if not (missing := [name for name in labels.names if counts.by_name[name] and not training.by_name[name]]):
        return
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    problem = (
        f"data.{split} has recordings with {labels.key} {', '.join(missing[:8])}{more}, which no training recording "
        "has: it cannot be learned"
    )
    if labels.multi_label:
        log.warning("%s", problem)
        return
    fraction = ", or a larger data.label_fraction" if recipe.data.label_fraction < 1 else ""
    raise UserError(f"{problem}. Expected some of each in data.train{fraction}, or splits without these recordings")


def build_rows(recipe: FinetuneRecipe, shards: Shards) -> dict[str, Indices]:
    """The rows of the table that are used, of the splits that are used in part: by the fold, and of the training
    recordings the share whose labels are used."""
    data, rows = recipe.data, dict[str, Indices]()
    cache = ShardCache(data.cache_bytes)
    if data.fold is not None and data.fold_by is None:
        raise UserError(f"data.fold is {data.fold!r}, a name of the label data.fold_by, which is null")
    if data.fold_by is not None:
        folds = read_folds(recipe, shards.indexed)
        if data.fold is None:
            raise UserError(
                f"data.fold is null; expected one of the {len(set(folds.values()))} names of data.fold_by "
                f"{data.fold_by}, or `ssamba finetune --folds all`"
            )
        outside, inside = in_fold(folds, data.fold, f"data.fold_by {data.fold_by}")
        rows |= {"train": np.array(outside, np.int64), "test": np.array(inside, np.int64)}
        if shards.validation is not None and data.fold_by in shards.validation.labels:
            # Validation uses recordings of the fold no more than training does.
            fold_labels = read_labels(shards.validation, data.fold_by, cache)
            others = [row for row, (_, name) in fold_labels.items() if name != json.dumps(data.fold)]
            if not others:
                raise UserError(f"all recordings of data.validation are in the fold {data.fold!r}; expected others")
            rows["validation"] = np.array(others, np.int64)
    if data.label_fraction < 1:
        labels = read_labels(shards.indexed, recipe.task.label, cache)
        if "train" in rows:
            kept = frozenset(rows["train"].tolist())
            labels = {row: label for row, label in labels.items() if row in kept}
        chosen = stratified_rows(labels, data.label_fraction, recipe.seed)
        if not chosen:
            raise UserError(f"data.label_fraction {data.label_fraction} leaves none of the training recordings")
        rows["train"] = np.array(chosen, np.int64)
    if recipe.task.loss == "ctc":
        rows |= build_spoken_rows(recipe, shards, rows)
    return rows


def check_whole(recipe: FinetuneRecipe, shards: ShardSet, option: str) -> None:
    """Whether clips cover held-out recordings to their end, where their hops have answers; UserError if not."""
    if not recipe.task.is_sequence:
        return
    audio, lengths = recipe.audio, shards.table["length"]
    if longer := int((lengths > samples_for(audio.max_length, audio.sampling_rate)).sum()):
        frames = frames_in(int(lengths.max()) - 1, audio.sampling_rate) + 1
        raise UserError(
            f"{option} has {longer} recordings of more than audio.max_length, {audio.max_length} frames; expected at "
            f"least {frames}, so that they are scored to their end, or shorter recordings"
        )


def build_spoken_rows(recipe: FinetuneRecipe, shards: Shards, rows: Mapping[str, Indices]) -> dict[str, Indices]:
    """Of the training recordings, or of their `rows`, those that a model can learn to write down: no longer than the
    clip, with no more characters than there are answers. The others are counted and reported.

    Raises:
        UserError: there is none.
    """
    audio, patch, cache = recipe.audio, recipe.model, ShardCache(recipe.data.cache_bytes)
    longest, stride = samples_for(audio.max_length, audio.sampling_rate), patch.time_stride or patch.tshape
    texts = read_texts(shards.indexed, recipe.task.label, "data.train", cache)
    some = rows["train"].tolist() if "train" in rows else range(shards.indexed.samples)
    lengths, kept = shards.indexed.table["length"], []
    for row in some:
        columns = max(0, frames_in(int(lengths[row]), audio.sampling_rate) - patch.tshape) // stride + 1
        if lengths[row] <= longest and least_hops(texts[row]) <= columns // (recipe.hop_columns or 1):
            kept.append(row)
    if not kept:
        raise UserError(
            f"all {len(some)} recordings of data.train are longer than audio.max_length, {audio.max_length} frames, or "
            f"have more characters than answers of {10 * (recipe.hop_frames or 1)} ms; expected a larger "
            "max_length, or a smaller model.time_stride or task.hop_ms"
        )
    if len(kept) < len(some):
        log.warning(
            "%d of %d training recordings are left out: longer than audio.max_length, or of more characters than there "
            "are answers",
            len(some) - len(kept),
            len(some),
        )
    return {"train": np.array(kept, np.int64)}


def read_folds(recipe: FinetuneRecipe, train: ShardSet) -> dict[int, str]:
    """The fold of each training recording, by its row; UserError for a label that is not there, or not one of each."""
    named = _read_names(train, recipe.data.fold_by or "", "data.fold_by", recipe)
    return {row: name for row, (_, name) in named.items()}


def build_groups(recipe: FinetuneRecipe, test: ShardSet | None) -> dict[str, str] | None:
    """The group of each test recording by its name; None where the recipe asks for none."""
    key = recipe.evaluation.group_by
    if key is None or test is None:
        return None
    return dict(_read_names(test, key, "evaluation.group_by", recipe).values())


def read_training_groups(recipe: FinetuneRecipe, train: ShardSet) -> dict[str, str] | None:
    """The fold of each training recording by its name; None without folds."""
    key = recipe.data.fold_by
    return dict(_read_names(train, key, "data.fold_by", recipe).values()) if key else None


def _read_names(shards: ShardSet, key: str, option: str, recipe: FinetuneRecipe) -> dict[int, tuple[str, str]]:
    """Of each recording, by its row, its own name and that of its one label `key`."""
    labels = read_asked_labels(shards, key, option, ShardCache(recipe.data.cache_bytes))
    names = one_name_each(labels, shards.samples, key, option)
    return {row: (labels[row][0], name) for row, name in names.items()}


def build_probe(recipe: PretrainRecipe) -> ProbeShards | None:
    """The labelled clips that pretraining watches; UserError for labels that are all the same."""
    evaluation = recipe.evaluation
    if not evaluation.probe:
        return None
    shards = find_shards(evaluation.probe, recipe.data.cache)
    check_rate(recipe, "evaluation.probe", shards)
    labels = read_asked_labels(shards, evaluation.label, "evaluation.label", ShardCache(recipe.data.cache_bytes))
    if len({value for _, value in labels.values()}) < 2:
        raise UserError(
            f"{len(labels)} recordings of evaluation.probe have {evaluation.label}, and there is nothing to tell "
            "apart; expected two labels or more"
        )
    multi_label = any(not isinstance(json.loads(value), str) for _, value in labels.values())
    fraction = min(1.0, evaluation.probe_clips / len(labels))
    rows = np.array(stratified_rows(labels, fraction, recipe.seed), np.int64)
    return ProbeShards(shards, rows, Labels(evaluation.label, shards.label_list(evaluation.label), multi_label))
