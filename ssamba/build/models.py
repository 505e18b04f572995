"""The encoder of a recipe, what it leaves open settled, and what the machine has for it."""

import logging
import os
import shutil
from dataclasses import replace
from typing import TypeVar

import torch

from ssamba.audio import LogMel
from ssamba.build.shards import MEASURED_CLIPS, Shards, at_most, build_clip_settings, build_training_shards
from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe
from ssamba.data.datamodule import ClipDataModule
from ssamba.data.shards.finding import ShardList
from ssamba.data.statistics import measure_statistics
from ssamba.errors import UserError
from ssamba.evaluation.task import find_task
from ssamba.models.checkpoint import load_pretrained_encoder
from ssamba.models.encoder import AudioEncoder, find_stack
from ssamba.models.pools import find_pool
from ssamba.models.settings import AudioSettings, read_audio_settings, read_config
from ssamba.ops import resolve_backend
from ssamba.training.finetuning import FineTuning
from ssamba.training.pretraining import Pretraining

log = logging.getLogger(__name__)

AnyRecipe = TypeVar("AnyRecipe", PretrainRecipe, FinetuneRecipe)


_CHECKED_CLIPS = 64


VARIANTS = {"patch_order": "frequency", "residual": "plain", "scan_layout": "fo_bi"}
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
        UserError: the pretrained model is of another sampling rate, or the recordings are silent.
    """
    audio, pretrained = recipe.audio, recipe.model.pretrained
    if pretrained:
        settings = read_audio_settings(pretrained)
        if settings.sampling_rate != audio.sampling_rate:
            raise UserError(
                f"the pretrained model in {pretrained} hears {settings.sampling_rate} Hz; "
                f"audio.sampling_rate is {audio.sampling_rate}"
            )
        if audio.mean is None:
            audio = replace(audio, mean=settings.mean, std=settings.std)
    train = shards.train
    local = train.local if isinstance(train, ShardList) else all(shard.url is None for shard in train.shards)
    if audio.mean is None or local:
        data = ClipDataModule(build_clip_settings(recipe), train=build_training_shards(recipe, train))
        # Where they are known, too, a few clips are read, to check that they are not silent.
        clips = MEASURED_CLIPS if audio.mean is None else _CHECKED_CLIPS
        measured = measure_statistics(data.training_stream(), audio.num_mel_bins, at_most(clips, train))
        if audio.mean is None:
            audio = replace(audio, mean=round(measured.mean, 4), std=round(measured.std, 4))
    return replace(recipe, audio=audio)


def build_encoder(recipe: Recipe) -> AudioEncoder:
    """The encoder of a settled recipe, from its pretrained weights if it names some."""
    model, audio = recipe.model, recipe.audio
    options = dict(find_stack(model.encoder).sizes[model.size])
    options |= {name: getattr(model, name) for name in VARIANTS if name in options}
    encoder = AudioEncoder(
        model.encoder,
        options,
        audio.num_mel_bins,
        audio.max_length,
        model.fshape,
        model.tshape,
        model.frequency_stride or model.fshape,
        model.time_stride or model.tshape,
        model.patch_order or VARIANTS["patch_order"],
        model.scan_backend,
    )
    if model.pretrained:
        load_pretrained_encoder(encoder, model.pretrained)
    encoder.stack.recompute = recipe.trainer.recompute
    return encoder


def build_audio(recipe: Recipe) -> AudioSettings:
    """What the model of a settled recipe hears."""
    audio, short = recipe.audio, recipe.data.short
    assert audio.mean is not None and audio.std is not None
    # Packed clips have no end to be filled.
    return AudioSettings(audio.sampling_rate, audio.mean, audio.std, "keep" if short == "pack" else short)


def build_log_mel(recipe: Recipe, audio: AudioSettings) -> LogMel:
    return LogMel(audio.sampling_rate, recipe.audio.num_mel_bins, audio.mean, audio.std)


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
    check_parts(recipe)
    if not find_stack(model.encoder).scans:
        return
    device = "cuda" if gpus and trainer.accelerator != "cpu" else "cpu"
    try:
        resolve_backend(model.scan_backend, device, _TYPES[trainer.precision])
    except RuntimeError as error:
        raise UserError(
            f"model.scan_backend is {model.scan_backend}: {error}; expected auto, or one that is here"
        ) from error


def check_parts(recipe: Recipe) -> None:
    """Whether the parts that a recipe names are as it asks for them, which they alone know.

    Raises:
        UserError: they are not, or one of another package cannot be used.
    """
    model = recipe.model
    if model.size not in (sizes := find_stack(model.encoder).sizes):
        raise UserError(f"model.size is {model.size!r}; expected one of {', '.join(sizes)} for encoder {model.encoder}")
    if isinstance(recipe, FinetuneRecipe):
        problem_type = find_task(recipe.task.loss).problem_type
        if recipe.task.label_smoothing and problem_type != "single_label_classification":
            raise UserError(
                f"task.label_smoothing is for one label a clip; task.loss is {recipe.task.loss}, which is for several"
            )
        pool = find_pool(recipe.task.pooling)
        if recipe.task.is_sequence and not pool.in_time:
            raise UserError(
                f"task.pooling is {recipe.task.pooling}, which has no place in time; task.hop_ms and task.loss=ctc "
                "need another"
            )


_TYPES = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def backend_here(recipe: Recipe, device: torch.device) -> str:
    """The recipe's scan backend for evaluation on a device; "auto" where that one is not here, for a run may have been
    made elsewhere."""
    backend = recipe.model.scan_backend
    if not find_stack(recipe.model.encoder).scans:
        return "auto"
    try:
        resolve_backend(backend, device.type, torch.float32)
    except RuntimeError as error:
        log.warning("%s; auto takes its place", error)
        return "auto"
    return backend


def compile_model(recipe: Recipe, module: Pretraining | FineTuning) -> None:
    """Compile the model in place, so that the names of its tensors stay, if the recipe asks for it."""
    trainer = recipe.trainer
    if not trainer.compile:
        return
    on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
    compiler = os.environ.get("CXX", "c++")
    if on_cpu and shutil.which(compiler) is None:
        raise UserError(f"trainer.compile needs a C++ compiler on a CPU, and there is no {compiler}; leave it false")
    module.model.compile()
