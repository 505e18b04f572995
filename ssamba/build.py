"""Config to objects: the only place that reads a whole recipe and makes models, data and trainers of it."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ssamba.audio import LogMel, frames_in, samples_for
from ssamba.config import DataConfig, FinetuneRecipe, PretrainRecipe, Recipe, described
from ssamba.data.batches import Stage
from ssamba.data.datamodule import ClipDataModule, ClipSettings, ProbeShards, TrainingShards
from ssamba.data.labels import (
    LabelCounts,
    Labels,
    balancing_weights,
    class_weights,
    count_labels,
    in_fold,
    one_name_each,
    read_asked_labels,
    read_labels,
    stratified_rows,
)
from ssamba.data.order import ClipRules, Indices, Weights
from ssamba.data.sequences import HopLabels, Transcripts, least_hops, read_texts, vocabulary
from ssamba.data.shards.finding import ShardList, find_shards, list_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.data.statistics import Statistics, measure_statistics
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.evaluation.masked import MaskedEvaluation
from ssamba.evaluation.scores import scoring_device
from ssamba.masking import Masking
from ssamba.models.checkpoint import (
    AudioSettings,
    ClassifierSettings,
    build_classifier,
    load_model,
    load_pretrained_encoder,
    read_audio_settings,
    read_config,
)
from ssamba.models.encoder import SIZES, STACKS, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.ops.scan import resolve_backend
from ssamba.training.callbacks import (
    OnlineProbe,
    ReconstructionPictures,
    SkippedSamples,
    StepProgress,
    Throughput,
    TimeEstimate,
)
from ssamba.training.checkpoints import CheckpointFiles, Checkpoints, Saved
from ssamba.training.common import OptimizerSettings
from ssamba.training.distributed import make_strategy
from ssamba.training.finetuning import Augmentation, FineTuning
from ssamba.training.interruptions import Interruptions
from ssamba.training.loggers import MetricsFile, quieten_lightning, tensorboard_logger, wandb_logger
from ssamba.training.pretraining import Pretraining
from ssamba.training.runs import RunTrainer
from ssamba.training.sequences import CtcFineTuning, HopFineTuning

log = logging.getLogger(__name__)

AnyRecipe = TypeVar("AnyRecipe", PretrainRecipe, FinetuneRecipe)

_HEARD_CLIPS = 64
_COUNTED_SAMPLES = 100_000  # whose labels are read in seconds
_BASELINE_CLIPS = 5000  # more change little of what a linear classifier finds in a spectrogram's statistics
_MEASURED_CLIPS = 2000  # enough for three digits of the statistics


@dataclass(frozen=True)
class Shards:
    """The splits of a recipe; None where it names none. With folds, test is train, of which rows are used."""

    train: ShardSet | ShardList
    validation: ShardSet | None
    test: ShardSet | None

    @property
    def indexed(self) -> ShardSet:
        """The training split, as fine-tuning has it in any case."""
        assert isinstance(self.train, ShardSet)
        return self.train

    def given(self) -> dict[str, ShardSet]:
        """Name -> shards, of the splits that there are and have an index."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: held for name, held in splits.items() if isinstance(held, ShardSet)}

    def fingerprints(self) -> dict[str, Any]:
        """For run.json: what each split holds; a fold is part of what is there already."""
        splits = {"train": self.train, **self.given()}
        return fingerprints({name: held for name, held in splits.items() if name == "train" or held is not self.train})


def fingerprints(splits: Mapping[str, ShardSet | ShardList]) -> dict[str, Any]:
    """For the record of a run: what each split holds, as `SplitRecord` has it."""
    return {name: _held(held) for name, held in splits.items()}


def _held(split: ShardSet | ShardList) -> dict[str, Any]:
    if isinstance(split, ShardList):
        return {"samples": None, "seconds": None, "fingerprint": split.fingerprint, "shards": len(split.urls)}
    return {"samples": split.samples, "seconds": round(split.seconds, 3), "fingerprint": split.fingerprint}


@dataclass(frozen=True)
class Pretrainer:
    """All of a pretraining run, ready to fit."""

    recipe: PretrainRecipe
    """With nothing left open."""
    module: Pretraining
    data: ClipDataModule
    audio: AudioSettings
    shards: Shards
    classifier: None = None


@dataclass(frozen=True)
class Finetuner:
    """All of a fine-tuning run, ready to fit."""

    recipe: FinetuneRecipe
    """With nothing left open."""
    module: FineTuning
    data: ClipDataModule
    audio: AudioSettings
    classifier: ClassifierSettings
    shards: Shards
    groups: dict[str, str] | None
    """Of the test recordings, for intervals."""


def build_shards(recipe: Recipe) -> Shards:
    """Find every shard that a recipe names; UserError for what is missing, damaged or of another sampling rate."""
    data = recipe.data
    train = find_training(recipe)
    validation = find_shards(data.validation, data.cache) if data.validation else None
    test = find_shards(data.test, data.cache) if data.test else None
    if data.fold_by and isinstance(train, ShardSet):
        test = train
    shards = Shards(train, validation, test)
    for name, held in shards.given().items():
        _check_rate(recipe, f"data.{name}", held)
    return shards


def find_training(recipe: Recipe) -> ShardSet | ShardList:
    """The shards that a recipe trains on, as its data.order reads them."""
    data = recipe.data
    return list_shards(data.train) if data.order == "streaming" else find_shards(data.train, data.cache)


def _check_rate(recipe: Recipe, option: str, shards: ShardSet) -> None:
    if shards.sampling_rate != recipe.audio.sampling_rate:
        raise UserError(
            f"{option} holds audio at {shards.sampling_rate} Hz; audio.sampling_rate is {recipe.audio.sampling_rate}. "
            "Write the shards again, or change the recipe"
        )


def build_encoder(recipe: Recipe) -> AudioEncoder:
    """The encoder of a settled recipe, from its pretrained weights if it names some."""
    model, audio = recipe.model, recipe.audio
    options = dict(SIZES[model.encoder][model.size])
    options |= {name: getattr(model, name) for name in VARIANTS if name in options}
    encoder = AudioEncoder(
        model.encoder, options, audio.num_mel_bins, audio.max_length, model.fshape, model.tshape,
        model.frequency_stride or model.fshape, model.time_stride or model.tshape, model.scan_backend,
    )  # fmt: skip
    if model.pretrained:
        load_pretrained_encoder(encoder, model.pretrained)
    encoder.stack.recompute = recipe.trainer.recompute
    return encoder


VARIANTS = {"residual": "plain", "scan_layout": "fo_bi"}
"""What a recipe may leave open of its encoder, and what that is then."""


def settle(recipe: AnyRecipe, shards: Shards) -> AnyRecipe:
    """The recipe with what it leaves open: the variant of its encoder, and the statistics of its spectrograms."""
    return settle_statistics(settle_variant(recipe), shards)


def settle_variant(recipe: AnyRecipe) -> AnyRecipe:
    """With the encoder's variant: the pretrained model's, else the default."""
    model = recipe.model
    config = read_config(model.pretrained) if model.pretrained else {}
    left = {name: config.get(name, default) for name, default in VARIANTS.items() if getattr(model, name) is None}
    return replace(recipe, model=replace(model, **left))


def settle_statistics(recipe: AnyRecipe, shards: Shards) -> AnyRecipe:
    """With the mean and the standard deviation of its spectrograms: the pretrained model's, else those measured on the
    training shards.

    Raises:
        UserError: the pretrained model hears another sampling rate, or the recordings say nothing.
    """
    audio, pretrained = recipe.audio, recipe.model.pretrained
    if pretrained:
        heard = read_audio_settings(pretrained)
        if heard.sampling_rate != audio.sampling_rate:
            raise UserError(
                f"the pretrained model in {pretrained} hears {heard.sampling_rate} Hz; "
                f"audio.sampling_rate is {audio.sampling_rate}"
            )
        if audio.mean is None:
            audio = replace(audio, mean=heard.mean, std=heard.std)
    train = shards.train
    local = train.local if isinstance(train, ShardList) else all(shard.url is None for shard in train.shards)
    if audio.mean is None or local:
        data = ClipDataModule(build_clip_settings(recipe), train=build_training_shards(recipe, train))
        # Where they are known, too, a few clips are heard: whether they say anything.
        clips = _MEASURED_CLIPS if audio.mean is None else _HEARD_CLIPS
        measured = measure_statistics(data.training_stream(), audio.num_mel_bins, _at_most(clips, train))
        if audio.mean is None:
            audio = replace(audio, mean=round(measured.mean, 4), std=round(measured.std, 4))
    return replace(recipe, audio=audio)


def check_machine(recipe: Recipe) -> None:
    """Whether what a recipe asks for by name is here, before anything is read.

    Raises:
        UserError: it is not.
    """
    trainer, model = recipe.trainer, recipe.model
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if trainer.accelerator == "gpu" and not gpus:
        raise UserError("trainer.accelerator is gpu, but torch finds none; expected a CUDA device, or auto")
    if trainer.accelerator != "cpu" and 0 < gpus < trainer.devices:
        raise UserError(f"trainer.devices is {trainer.devices}, but torch finds {gpus} on this machine")
    if not STACKS[model.encoder].scans:
        return
    device = "cuda" if gpus and trainer.accelerator != "cpu" else "cpu"
    try:
        resolve_backend(model.scan_backend, device, _TYPES[trainer.precision])
    except RuntimeError as error:
        raise UserError(
            f"model.scan_backend is {model.scan_backend}: {error}; expected auto, or one that is here"
        ) from error


_TYPES = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def backend_here(recipe: Recipe, device: torch.device) -> str:
    """The recipe's scan backend for evaluation on a device; "auto" where that one is not here, for a run may have been
    made elsewhere."""
    backend = recipe.model.scan_backend
    if not STACKS[recipe.model.encoder].scans:
        return "auto"
    try:
        resolve_backend(backend, device.type, torch.float32)
    except RuntimeError as error:
        log.warning("%s; auto takes its place", error)
        return "auto"
    return backend


def _compile(recipe: Recipe, module: Pretraining | FineTuning) -> None:
    """Compile the model in place, so that the names of its tensors stay, if the recipe asks for it."""
    trainer = recipe.trainer
    if not trainer.compile:
        return
    on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
    compiler = os.environ.get("CXX", "c++")
    if on_cpu and shutil.which(compiler) is None:
        raise UserError(f"trainer.compile needs a C++ compiler on a CPU, and there is no {compiler}; leave it false")
    module.model.compile()


def build_clip_settings(recipe: Recipe) -> ClipSettings:
    """How the recipe's recordings become clips."""
    audio, data, trainer = recipe.audio, recipe.data, recipe.trainer
    clip_samples = samples_for(audio.max_length, audio.sampling_rate)
    rules = ClipRules(clip_samples, data.short, shuffle_buffer=data.shuffle_buffer, seed=recipe.seed)
    batch_size = data.batch_size // (trainer.ranks * trainer.accumulate)
    return ClipSettings(
        rules, audio.sampling_rate, batch_size, data.max_bad_fraction, data.cache_bytes, data.num_workers
    )  # fmt: skip


def build_training_shards(
    recipe: Recipe, train: ShardSet | ShardList, rows: Indices | None = None, balance: Weights | None = None
) -> TrainingShards | ShardList:
    """All training shards, or some rows of their table, with the recipe's weights."""
    if isinstance(train, ShardList):
        return train
    weights = recipe.data.weights
    sources = [len(find_shards(source, recipe.data.cache).shards) for source in recipe.data.train] if weights else None
    return TrainingShards(train, rows, sources, weights, balance)


def build_audio(recipe: Recipe) -> AudioSettings:
    """What the model of a settled recipe hears."""
    audio, short = recipe.audio, recipe.data.short
    assert audio.mean is not None and audio.std is not None
    # Packed clips have no end to be filled.
    return AudioSettings(audio.sampling_rate, audio.mean, audio.std, "keep" if short == "pack" else short)


def _at_most(clips: int, train: ShardSet | ShardList) -> int:
    """So many, or all that there are if they are fewer and can be known."""
    return clips if isinstance(train, ShardList) else min(clips, train.samples)


def build_pretrainer(recipe: PretrainRecipe, stages: Sequence[Stage] = ()) -> Pretrainer:
    """Everything that `recipe` says, checked against the machine and the data, before any long work.

    Args:
        stages: of webdataset, through which every training clip passes.
    """
    check_machine(recipe)
    shards, probe = build_shards(recipe), build_probe(recipe)
    recipe = settle(recipe, shards)
    audio = build_audio(recipe)
    # One seed, one model: weights are drawn right after it is set, whatever was built before.
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    model = MaskedPatchModel(build_encoder(recipe))
    objective = recipe.objective
    module = Pretraining(
        model, _log_mel(recipe, audio), _optimizer_settings(recipe), objective=objective.name,
        reconstruction_weight=objective.reconstruction_weight, masking=build_masking(recipe),
        drop_path=recipe.model.drop_path, seed=recipe.seed,
    )  # fmt: skip
    _compile(recipe, module)
    train = build_training_shards(recipe, shards.train)
    data = ClipDataModule(
        build_clip_settings(recipe), train=train, validation=shards.validation, probe=probe, stages=stages
    )
    return Pretrainer(recipe, module, data, audio, shards)


def build_probe(recipe: PretrainRecipe) -> ProbeShards | None:
    """The labelled clips that pretraining watches; UserError for labels that say nothing."""
    told = recipe.evaluation
    if not told.probe:
        return None
    shards = find_shards(told.probe, recipe.data.cache)
    _check_rate(recipe, "evaluation.probe", shards)
    found = read_asked_labels(shards, told.label, "evaluation.label", ShardCache(recipe.data.cache_bytes))
    if len({value for _, value in found.values()}) < 2:
        raise UserError(
            f"{len(found)} recordings of evaluation.probe have {told.label}, and there is nothing to tell apart; "
            "expected two labels or more"
        )
    several = any(not isinstance(json.loads(value), str) for _, value in found.values())
    fraction = min(1.0, told.probe_clips / len(found))
    rows = np.array(stratified_rows(found, fraction, recipe.seed), np.int64)
    return ProbeShards(shards, rows, Labels(told.label, shards.label_list(told.label), several))


def build_masking(recipe: PretrainRecipe) -> Masking:
    """How a recipe's clips are masked."""
    o = recipe.objective
    sizes = o.smallest_cluster, o.largest_cluster
    return Masking(o.mask, o.masked_patches, sizes, recipe.data.short == "pad")


def build_labels(recipe: FinetuneRecipe, shards: Shards) -> Labels:
    """The label list of the recipe's task, the same for all its splits; of texts, the training characters."""
    key = recipe.task.label
    lists = {}
    for name, held in shards.given().items():
        if key not in held.labels:
            raise UserError(
                f"task.label is {key!r}, which data.{name} lacks; it has {', '.join(held.labels) or 'no labels'}"
            )
        lists[name] = held.label_list(key)
    if recipe.task.loss == "ctc":
        cache = ShardCache(recipe.data.cache_bytes)
        texts = {name: read_texts(held, key, f"data.{name}", cache) for name, held in shards.given().items()}
        return Transcripts(key, vocabulary(texts))
    if not lists["train"]:
        raise UserError(
            f"task.label is {key!r}, what is said in a recording, which is no class; expected another label, or "
            "task.loss=ctc"
        )
    for name, names in lists.items():
        if unknown := [label for label in names if label not in lists["train"]]:
            raise UserError(f"data.{name} has {key} {', '.join(unknown[:8])}, which the training label list lacks")
    return _labels_of(key, lists["train"], recipe, recipe.task.loss)


def _labels_of(key: str, names: Sequence[str], recipe: FinetuneRecipe, loss: str) -> Labels:
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
        rows: of the splits of which not all is used.

    Returns:
        Those of training; None where they would take longer and nothing needs them.

    Raises:
        UserError: labels that are not in the list, several under a loss for one, nothing to tell apart, or a held-out
            class that is never heard in training (several labels a clip: a warning).
    """
    key, names, loss = labels.key, labels.names, recipe.task.loss
    for split, held in shards.given().items():
        if split != "train":
            check_whole(recipe, held, f"data.{split}")
    if loss == "ctc":
        return None  # `build_labels` and `build_rows` have read every text
    several = labels.several or recipe.task.is_sequence
    nothing = f"there is nothing to tell apart in the {key} of the training recordings"
    if len(names) == 1 and loss == "cross_entropy":
        raise UserError(f"{nothing}: {names[0]} is all; expected two or more, or task.loss=bce with some that lack it")
    cache = ShardCache(recipe.data.cache_bytes)
    if isinstance(labels, HopLabels):
        for split, held in shards.given().items():
            labels.check(held, f"data.{split}", cache)
    heard: LabelCounts | None = None
    for split, held in shards.given().items():
        needed = split == "train" and (recipe.task.class_weights != "none" or recipe.data.balance)
        if not needed and (held.samples > _COUNTED_SAMPLES or any(shard.url is not None for shard in held.shards)):
            continue
        chosen = frozenset(rows[split].tolist()) if split in rows else None
        counts = count_labels(held, key, names, cache, chosen)
        if counts.unknown:
            raise UserError(
                f"{counts.unknown} recordings of data.{split} have no {key} that is in the label list: "
                f"{', '.join(counts.unknown_examples)}; expected {'some' if several else 'one'} of the "
                f"{len(names)} of the label list"
            )
        if not several and counts.by_number[1] < counts.samples:
            examples = counts.several_examples or ["with none"]
            raise UserError(
                f"{counts.samples - counts.by_number[1]} recordings of data.{split} have several {key}, or none: "
                f"{', '.join(examples)}; expected one of the {len(names)} of the label list, or task.loss=bce, "
                "which is for several"
            )
        if split != "train":
            if heard is not None:
                _check_heard(recipe, labels, split, counts, heard)
            continue
        heard = counts
        if not counts.samples:
            continue
        if all(counts.by_name[name] in (0, counts.samples) for name in names) and not recipe.task.is_sequence:
            alike = ", ".join(name for name in names if counts.by_name[name]) or "none"
            raise UserError(f"{nothing}: all {counts.samples} have {alike}; expected some that differ")
        if missing := [name for name in names if not counts.by_name[name]]:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            log.warning("no training recording has %s %s%s, of the label list", key, ", ".join(missing[:8]), more)
        if labels.several and counts.by_number[1] == counts.samples:
            log.info("every training recording has one %s; task.loss=cross_entropy is for one alone", key)
    return heard


def _check_heard(recipe: FinetuneRecipe, labels: Labels, split: str, counts: LabelCounts, heard: LabelCounts) -> None:
    """Whether every class of a held-out split is heard in training."""
    if not (unheard := [name for name in labels.names if counts.by_name[name] and not heard.by_name[name]]):
        return
    more = f" and {len(unheard) - 8} more" if len(unheard) > 8 else ""
    said = (
        f"data.{split} has recordings with {labels.key} {', '.join(unheard[:8])}{more}, which no training recording "
        "has: it cannot be learned"
    )
    if labels.several:
        log.warning("%s", said)
        return
    fraction = ", or a larger data.label_fraction" if recipe.data.label_fraction < 1 else ""
    raise UserError(f"{said}. Expected some of each in data.train{fraction}, or splits without these recordings")


def build_finetuner(recipe: FinetuneRecipe, stages: Sequence[Stage] = ()) -> Finetuner:
    """Everything that `recipe` says, checked against the machine and the data, before any long work; see
    `build_pretrainer`."""
    check_machine(recipe)
    shards = build_shards(recipe)
    labels = build_labels(recipe, shards)
    rows = build_rows(recipe, shards)
    counts = check_labels(recipe, shards, labels, rows)
    groups = build_groups(recipe, shards.test)
    recipe = settle(recipe, shards)
    audio = build_audio(recipe)
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    task = recipe.task
    classifier = ClassifierSettings(
        tuple(labels.names), task.label, task.loss, task.pooling, task.head_norm, task.segments,
        hop_columns=recipe.hop_columns,
    )  # fmt: skip
    model = build_classifier(build_encoder(recipe), classifier)
    weights = balance = None
    if task.class_weights == "balanced":
        assert counts is not None
        weights = torch.from_numpy(class_weights(counts, labels.names, labels.several)).float()
    if recipe.data.balance:
        assert counts is not None
        balance = balancing_weights(counts, shards.indexed.samples)
    augmentation = asdict(recipe.augmentation)
    mixup = augmentation["mixup"] if augmentation.pop("mixup_from") == "set" else 0.0
    if mixup:
        augmentation["mixup"] = 0.0  # those who read the clips mix them
    kind: Any = FineTuning
    if task.is_sequence:
        kind = partial(CtcFineTuning, names=labels.names) if task.loss == "ctc" else HopFineTuning
    module = kind(
        model, _log_mel(recipe, audio), _optimizer_settings(recipe), loss=task.loss,
        label_smoothing=task.label_smoothing, class_weights=weights,
        augmentation=Augmentation(**augmentation), freeze_encoder=task.freeze_encoder,
        freeze_steps=task.freeze_steps, unfreeze_every=task.unfreeze_every, drop_path=recipe.model.drop_path,
        seed=recipe.seed,
    )  # fmt: skip
    _compile(recipe, module)
    data = ClipDataModule(
        build_clip_settings(recipe), train=build_training_shards(recipe, shards.indexed, rows.get("train"), balance),
        validation=shards.validation, test=shards.test, labels=labels, mixup=mixup, rows=rows,
        stages=stages,
    )  # fmt: skip
    return Finetuner(recipe, module, data, audio, classifier, shards, groups)


def build_rows(recipe: FinetuneRecipe, shards: Shards) -> dict[str, Indices]:
    """Of the splits of which not all is used, the rows of the table that are: by the fold, and of the training
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
            # What is watched while training is no more of the fold than what is learned from.
            held = read_labels(shards.validation, data.fold_by, cache)
            others = [row for row, (_, name) in held.items() if name != json.dumps(data.fold)]
            if not others:
                raise UserError(f"all recordings of data.validation are in the fold {data.fold!r}; expected others")
            rows["validation"] = np.array(others, np.int64)
    if data.label_fraction < 1:
        found = read_labels(shards.indexed, recipe.task.label, cache)
        if "train" in rows:
            kept = frozenset(rows["train"].tolist())
            found = {row: held for row, held in found.items() if row in kept}
        chosen = stratified_rows(found, data.label_fraction, recipe.seed)
        if not chosen:
            raise UserError(f"data.label_fraction {data.label_fraction} leaves none of the training recordings")
        rows["train"] = np.array(chosen, np.int64)
    if recipe.task.loss == "ctc":
        rows |= build_spoken_rows(recipe, shards, rows)
    return rows


def check_whole(recipe: FinetuneRecipe, shards: ShardSet, option: str) -> None:
    """Whether held-out recordings are heard to their end, where their hops have answers; UserError if not."""
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
    clip, with no more characters than there are answers. The others are counted and told.

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
            "are answers", len(some) - len(kept), len(some),
        )  # fmt: skip
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
    found = read_asked_labels(shards, key, option, ShardCache(recipe.data.cache_bytes))
    names = one_name_each(found, shards.samples, key, option)
    return {row: (found[row][0], name) for row, name in names.items()}


def build_trainer(recipe: Recipe, data: ClipDataModule, start: Saved | None) -> RunTrainer:
    """The recipe's trainer; its callbacks and loggers write into run_dir."""
    folder = Path(recipe.run_dir)
    settings = recipe.trainer
    validates = bool(recipe.data.validation)
    judges, probe = None, None
    if isinstance(recipe, FinetuneRecipe):
        monitor = {"bce": ("val/mAP", "max"), "ctc": ("val/CER", "min")}.get(recipe.task.loss, ("val/accuracy", "max"))
    else:
        monitor = ("val/loss", "min")
        if data.probe is not None:
            probe = OnlineProbe(settings.validate_every_steps * recipe.evaluation.every_validations)
            if recipe.evaluation.best == "probe":
                monitor, judges = ("probe/mAP" if data.probe.labels.several else "probe/accuracy", "max"), probe.is_due
    checkpoints = Checkpoints(
        folder, settings.steps_between_checkpoints, monitor if validates else None, settings.patience,
        settings.average_checkpoints, judges,
    )  # fmt: skip
    skipped = SkippedSamples()
    command = f"ssamba {recipe.task_type} {folder} --resume {folder}"
    callbacks: list[Callback] = [
        TimeEstimate(),
        StepProgress(),
        Throughput(),
        skipped,
        Interruptions(checkpoints, command),
    ]
    if isinstance(recipe, PretrainRecipe):
        callbacks.append(ReconstructionPictures(folder / "pictures"))
    if probe is not None:
        callbacks.append(probe)
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if recipe.wandb.mode != "off":
        wandb_id = start.run["wandb_id"] if start else None
        loggers.append(
            wandb_logger(
                folder,
                **asdict(recipe.wandb),
                job_type=recipe.task_type,
                config=described(recipe),
                wandb_id=wandb_id,
            )
        )
    if settings.tensorboard:
        loggers.append(tensorboard_logger(folder, start.step if start else None))
    quieten_lightning()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        precision=settings.precision,  # type: ignore[arg-type]
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        accelerator=settings.accelerator,
        strategy=make_strategy(settings.strategy, settings.ranks),
        val_check_interval=settings.validate_every_steps * settings.accumulate if validates else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(settings.log_every_steps, settings.max_steps),
        gradient_clip_val=recipe.optimizer.gradient_clip or None,
        logger=loggers,
        callbacks=[*callbacks, checkpoints],
        plugins=[CheckpointFiles()],
        enable_model_summary=False,
        deterministic="warn",
        use_distributed_sampler=False,
    )
    # Lightning's own handlers act in the middle of a step, with a collective; `Interruptions` acts at its end.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return RunTrainer(trainer, checkpoints, skipped)


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
    held = find_shards(data.train if data.fold_by else data.test, data.cache)
    rows = build_rows(recipe, Shards(held, None, held)) if data.fold_by else {}
    key, names = saved.classifier.label, saved.classifier.labels
    spoken, hop = saved.classifier.loss == "ctc", saved.classifier.hop_columns
    if (spoken, hop) != (recipe.task.loss == "ctc", recipe.hop_columns):
        raise UserError(
            f"the model in {recipe.run_dir} has loss {saved.classifier.loss} and answers of {hop or 'all'} columns; by "
            f"the recipe it would be {recipe.task.loss} and {recipe.hop_columns or 'all'}: task.loss, task.hop_ms and "
            "model.time_stride are to be those of the run"
        )
    if key not in held.labels:
        raise UserError(f"the model in {recipe.run_dir} says {key}, which data.test lacks")
    if unknown := [label for label in held.label_list(key) if label not in names and not spoken]:
        raise UserError(
            f"data.test has {key} {', '.join(unknown[:8])}, which the model in {recipe.run_dir} does not know"
        )
    check_whole(recipe, held, "data.test")
    labels = _labels_of(key, names, recipe, saved.classifier.loss)
    clips = ClipDataModule(build_clip_settings(recipe), test=held, labels=labels, rows=rows)
    stream, groups = clips.test_stream(), build_groups(recipe, held)
    return ClassEvaluation(saved.model, _log_mel(recipe, saved.audio), stream, len(stream.order), names, groups)


def build_baseline_streams(built: Finetuner) -> tuple[ClipStream, ClipStream]:
    """The training and the test clips for a classifier without a network: as they are, short ones not filled up with
    themselves, and no more training clips than it needs."""
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
        saved.model, _log_mel(recipe, saved.audio), data.training_stream(), _at_most(_MEASURED_CLIPS, shards.train),
        data.validation_stream(), build_masking(recipe), recipe.seed,
    )  # fmt: skip


def measure(sources: Sequence[str], num_mel_bins: int, limit: int | None, cache: str | None = None) -> Statistics:
    """Statistics of all the recordings of some shards, or of `limit` of them; a minute of each at most."""
    held = find_shards(sources, cache)
    rate = held.sampling_rate
    rules, cache_bytes = ClipRules(60 * rate, "pad", shuffle_buffer=0, seed=0), DataConfig().cache_bytes
    settings = ClipSettings(rules, rate, batch_size=16, max_bad_fraction=0.01, cache_bytes=cache_bytes)
    stream = ClipDataModule(settings, test=held).test_stream()
    return measure_statistics(stream, num_mel_bins, min(limit or held.samples, held.samples))


def _log_mel(recipe: Recipe, audio: AudioSettings) -> LogMel:
    return LogMel(audio.sampling_rate, recipe.audio.num_mel_bins, audio.mean, audio.std)


def _optimizer_settings(recipe: Recipe) -> OptimizerSettings:
    fields = asdict(recipe.optimizer)
    del fields["gradient_clip"]  # the trainer's
    return OptimizerSettings(**fields, max_steps=recipe.trainer.max_steps)
