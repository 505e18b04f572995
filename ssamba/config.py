"""The schema of a recipe: dataclasses, YAML and command line merged into them, and every complaint in one error.

Nothing here imports torch, so that a mistake in a recipe is told at once.
"""

import difflib
import functools
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ssamba.errors import UserError
from ssamba.files import write_text
from ssamba.printable import masked
from ssamba.recipe_yaml import MOST_BYTES, Node, Scalar, read_yaml
from ssamba.values import (
    expected_range,
    is_remote,
    is_unicode,
    number,
    path_text,
    plain_text,
    source_text,
    truth,
    whole_number,
)

PathText = Annotated[str, path_text]
"""A path, ~ in it replaced."""
SourceText = Annotated[str, source_text]
"""A path or a pattern of paths, ~ in it replaced; or a url or a command as it is."""

SCAN_BACKENDS = ("auto", "reference", "torch-chunked", "cpu", "triton", "mamba-ssm")
MODEL_SIZES = {
    "ssamba": ("nano", "tiny", "small", "base"),
    "ssast": ("nano", "tiny", "small", "base"),
    "aum": ("nano", "tiny", "small", "base", "large"),
    "conformer": ("nano", "tiny", "small", "base"),
    "bilstm": ("nano", "tiny", "small", "base"),
}
ENCODERS = tuple(MODEL_SIZES)
AUTHORS_FORMATS = ("ssamba", "ssast", "aum")
"""Encoders whose authors publish checkpoints, which are imported and exported."""
POOLINGS = ("mean", "class", "rows", "statistics", "segments", "attentive")
MOST_SEGMENTS = 1000
SCAN_LAYOUTS = ("fo_fo", "fo_bi", "bi_bi")
AUDIO_RANGES: dict[str, tuple[float, float]] = {
    "sampling_rate": (1000, 768_000),
    "num_mel_bins": (1, 1024),
    "max_length": (1, 1_000_000),
    "mean": (-1000, 1000),
    "std": (0.001, 1000),
}
"""The lowest and the highest value of what a spectrogram is. Log-mel values lie between -16 and 30: by a deviation that
is much larger, all of them would become the same."""


def _one_of(name: str, value: object, choices: Sequence[str]) -> Iterator[str]:
    if value not in choices:
        yield f"{name} is {value!r}; expected one of {', '.join(choices)}"


def _within(name: str, value: float | None, low: float, high: float) -> Iterator[str]:
    if value is not None and (problem := expected_range(value, low, high)):
        yield f"{name} is {value}; {problem}"


def _below_one(name: str, value: float) -> Iterator[str]:
    if not 0 <= value < 1:
        yield f"{name} is {value}; expected 0 to below 1"


_MANY = 10**9  # more steps, recordings or frames than any run has
_MOST_SIDE = 1000  # of a cluster, in patches
_LONGEST_TAG = 64  # that wandb takes
_LARGE = 1e6  # more than any weight, rate or amplitude that trains


@dataclass
class AudioConfig:
    """What a spectrogram is."""

    sampling_rate: int = 16000
    """Hz; shards of another rate are refused."""
    num_mel_bins: int = 128
    max_length: int = 1024
    """Frames of a clip (10 ms each); shorter recordings are padded, longer ones cropped."""
    mean: float | None = None
    """Of the log-mel values; null: the pretrained model's, else measured on the training shards (`ssamba stats`)."""
    std: float | None = None
    """As mean. Spectrograms are (x - mean) / (2 * std)."""

    def problems(self) -> Iterator[str]:
        for name, (low, high) in AUDIO_RANGES.items():
            yield from _within(f"audio.{name}", getattr(self, name), low, high)
        if (self.mean is None) != (self.std is None):
            yield "audio.mean and audio.std: give both or neither"


@dataclass
class ModelConfig:
    """The encoder and its patches."""

    encoder: str = "ssamba"
    """ssamba | ssast | aum | conformer | bilstm: the one word that switches the network."""
    size: str = "tiny"
    """nano | tiny | small | base, and large of aum."""
    fshape: int = 16
    """Mel bins of a patch."""
    tshape: int = 16
    """Frames of a patch."""
    frequency_stride: int | None = None
    """Mel bins from one patch to the next; null: fshape."""
    time_stride: int | None = None
    """Frames from one patch to the next; null: tshape."""
    residual: str | None = None
    """plain | doubling, of ssamba: the stack as the paper draws it, or the original's residual, which its weights need;
    null: the pretrained model's, else plain."""
    scan_layout: str | None = None
    """fo_fo | fo_bi | bi_bi, of aum: directions of the convolution and of the scan (fo: forward, bi: both); null: the
    pretrained model's, else fo_bi."""
    scan_backend: str = "auto"
    """auto | reference | torch-chunked | cpu | triton | mamba-ssm, of ssamba and aum: what computes the scan."""
    drop_path: float = 0.0
    """In training a layer's residual branch is left out of a clip by this chance at the last layer, by less and less
    before it, down to none at the first (stochastic depth); SSAMBA's scripts have 0.1."""
    pretrained: PathText | None = None
    """A run folder or its model/ folder: weights to start from; the encoder and patch shape must agree."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("model.encoder", self.encoder, ENCODERS)
        for complaint in _one_of("model.size", self.size, MODEL_SIZES.get(self.encoder, (self.size,))):
            yield f"{complaint} for encoder {self.encoder}"
        if self.residual is not None:
            yield from _one_of("model.residual", self.residual, ("plain", "doubling"))
        if self.scan_layout is not None:
            yield from _one_of("model.scan_layout", self.scan_layout, SCAN_LAYOUTS)
        yield from _one_of("model.scan_backend", self.scan_backend, SCAN_BACKENDS)
        for name in ("fshape", "tshape", "frequency_stride", "time_stride"):
            yield from _within(f"model.{name}", getattr(self, name), 1, _MANY)
        yield from _below_one("model.drop_path", self.drop_path)


@dataclass
class DataConfig:
    """Where clips come from. A source is a split's folder (with its index.json) or a pattern of shards in one."""

    train: list[SourceText] = field(default_factory=list)
    """Here (FOLDER/train, FOLDER/train/{000000..000009}.tar), at the same urls (s3://BUCKET/train, gs://, az://, hf://,
    https://HOST/train/ and others, by fsspec's drivers), or wherever a command reads them from: `pipe:` and the command
    that writes one of the folder's files to its stdout, with its name in it ("pipe:ssh HOST cat train/index.json";
    index.json stands for all shards). The commands of a recipe are executed: read a stranger's first."""
    weights: list[float] | None = None
    """Of the sources in train: their shares of the clips, to a thousandth; null: every recording equally often."""
    order: str = "indexed"
    """indexed | streaming, of train: one order for any workers and devices, in which a run goes on exactly where it
    was; or, in pretraining, shards of which there is no index (a folder of .tar, their names or urls), read from front
    to back: a run that goes on hears what is left of an epoch in another order."""
    validation: list[SourceText] = field(default_factory=list)
    """Held-out clips; null: no validation."""
    test: list[SourceText] = field(default_factory=list)
    """Scored once, at the end of fine-tuning and by `ssamba evaluate`; null: nothing is."""
    batch_size: int = 32
    """Clips of one optimizer step, over all devices and accumulated batches: how a run is spread changes neither the
    step nor its learning rate. Each device takes batch_size / (devices * num_nodes * accumulate) clips at a time."""
    num_workers: int = 0
    """Processes that decode, for each device; 0: the training process itself."""
    shuffle_buffer: int = 2000
    """Shards come in an order of chance; so many recordings at least (whole shards) are mixed at a time. Streaming, so
    many are in memory on each device, as they were read."""
    short: str = "pad"
    """What fills the clip of a short recording: pad | repeat (it again) | pack (pretraining: the next ones)."""
    label_fraction: float = 1.0
    """Fine-tuning: share of the labelled training recordings, stratified by label, chosen by the seed."""
    balance: bool = False
    """Fine-tuning: recordings are drawn with replacement, each by the sum over its labels of 1 / the recordings that
    have this label, as SSAST and AuM do for AudioSet, so that rare labels are heard as often as common ones. An epoch
    is as long as without. A recording that is drawn several times in an epoch comes within one shuffle_buffer."""
    fold_by: str | None = None
    """Fine-tuning: a label of the training recordings, such as speaker or session, whose names are folds; null: the
    test split is data.test."""
    fold: str | None = None
    """The name of fold_by whose recordings are the test split, and are left out of training and validation; `ssamba
    finetune --folds all` takes each in turn."""
    max_bad_fraction: float = 0.01
    """More bad recordings than this share end the run."""
    cache: PathText | None = None
    """Folder for shards that lie elsewhere, on a local disk, shared by all processes and runs of a machine; null:
    XDG_CACHE_HOME/ssamba/shards, else ~/.cache/ssamba/shards. Nothing there needs keeping: it is fetched again."""
    cache_gigabytes: float = 100.0
    """The most that it may hold (10^9 bytes); what was used least recently goes first. An epoch is fetched once if all
    shards fit, each epoch anew if not."""

    @property
    def cache_bytes(self) -> int:
        return round(self.cache_gigabytes * 1e9)

    def problems(self) -> Iterator[str]:
        yield from _within("data.batch_size", self.batch_size, 1, 1_000_000)
        yield from _one_of("data.order", self.order, ("indexed", "streaming"))
        if self.order == "streaming" and self.weights is not None:
            yield (
                "data.weights mixes sources by their recordings, which data.order=streaming does not know; expected "
                "null, or data.order=indexed"
            )
        yield from _one_of("data.short", self.short, ("pad", "repeat", "pack"))
        yield from _within("data.num_workers", self.num_workers, 0, 1024)
        yield from _within("data.shuffle_buffer", self.shuffle_buffer, 1, _MANY)
        yield from _within("data.max_bad_fraction", self.max_bad_fraction, 0, 1)
        yield from _within("data.cache_gigabytes", self.cache_gigabytes, 1e-9, _LARGE)
        sources, weights = len(self.train), self.weights
        if weights is not None and (len(weights) != sources or not all(0 < weight <= _LARGE for weight in weights)):
            yield (
                f"data.weights is {weights}; expected {sources} numbers above 0 and at most {_LARGE:.15g}, one for "
                "each of data.train"
            )
        if self.fold_by is not None and self.test:
            yield f"data.fold_by is {self.fold_by!r}; expected one of it, whose fold is the test split, and data.test"
        if not 0 < self.label_fraction <= 1:
            yield f"data.label_fraction is {self.label_fraction}; expected more than 0 and at most 1"


_SSAMBA_PARTS = {"contrastive": 1.0, "reconstruction": 10.0}


@dataclass
class PartsConfig:
    """What pretraining minimizes: the sum of these losses, each times its weight. Those that a recipe does not name are
    left out; one that names none has SSAMBA's, contrastive: 1 and reconstruction: 10."""

    contrastive: float | None = None
    """InfoNCE: the true patch told from the clip's other hidden patches (SSAST equation 1)."""
    reconstruction: float | None = None
    """The mean squared error of hidden patches (SSAST equation 2)."""
    latent: float | None = None
    """The mean squared error of what a teacher, an exponential moving average of the encoder that hears the whole clip,
    says of hidden patches (data2vec 2.0)."""
    clip: float | None = None
    """The same of the teacher's mean over the clip, told by the class token (EAT)."""

    @property
    def weights(self) -> dict[str, float]:
        """Of the parts that count."""
        return {name: weight for name, weight in vars(self).items() if weight}


@dataclass
class TeacherConfig:
    """The moving average of the encoder that objective.parts.latent and clip learn from."""

    layers: int = 4
    """Its last layers, whose mean is the target."""
    decay: float = 0.99
    """After a step the teacher is decay * teacher + (1 - decay) * encoder, at first; along a line to:"""
    final_decay: float = 0.999
    """At the last step."""

    def problems(self) -> Iterator[str]:
        yield from _within("objective.teacher.layers", self.layers, 1, 1000)
        for name in ("decay", "final_decay"):
            yield from _below_one(f"objective.teacher.{name}", getattr(self, name))


@dataclass
class ObjectiveConfig:
    """Masked-patch pretraining."""

    parts: PartsConfig = field(default_factory=PartsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def problems(self) -> Iterator[str]:
        for name, weight in vars(self.parts).items():
            yield from _within(f"objective.parts.{name}", weight, 0, _LARGE)
        if not self.parts.weights:
            yield "objective.parts leaves every part out; expected some with weights above 0, such as latent: 1"
        yield from self.teacher.problems()


@dataclass
class MaskConfig:
    """Which patches of a clip are hidden in pretraining."""

    kind: str = "cluster"
    """cluster (squares of patches; of frame patches, which are one row, runs of time) | random | ssast (of patches
    squares of side 3 to 5, of frame patches random)."""
    share: float = 0.5
    """Of a clip's patches; of one that ends in padding, of its own patches, and none of the padding."""
    smallest: int = 3
    """Of kind=cluster: side of a square, or length of a run, in patches, drawn from this one to largest."""
    largest: int = 5
    per_clip: int = 1
    """Masks of each clip in one step: the spectrogram and a teacher's targets are made once for all of them."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("mask.kind", self.kind, ("cluster", "random", "ssast"))
        if not 0 < self.share < 1:
            yield f"mask.share is {self.share}; expected more than 0 and less than 1"
        for name in ("smallest", "largest"):
            yield from _within(f"mask.{name}", getattr(self, name), 1, _MOST_SIDE)
        if self.smallest > self.largest:
            yield f"mask.smallest is {self.smallest}; expected at most mask.largest, {self.largest}"
        yield from _within("mask.per_clip", self.per_clip, 1, 64)


@dataclass
class TaskConfig:
    """Fine-tuning on labelled clips."""

    label: str = "label"
    """Which label of the shards: digit, speaker, word, ..."""
    loss: str = "cross_entropy"
    """cross_entropy (one label a clip, or a hop) | bce (several) | ctc (the label is a text, whose characters are
    learned: speech to text)."""
    hop_ms: float | None = None
    """Of cross_entropy, milliseconds: an answer for each such hop, and the label is a list of names, one for each; of
    ctc, of a character at most, null: a column of patches. Whole columns, of model.time_stride frames. Null: one answer
    a clip."""
    pooling: str = "statistics"
    """Of a clip's tokens, or of a hop's: mean of all patch tokens | class token | rows: mean over time of each row of
    patches | statistics: mean and standard deviation of each row | segments: each row's means over equal stretches of
    time | attentive: mean and standard deviation of each row, weighted by learned attention over time."""
    segments: int = 4
    """Stretches of time, of pooling=segments."""
    head_norm: bool = True
    """A LayerNorm before the head's linear layer, as in SSAST; AuM has none."""
    freeze_encoder: bool = False
    """Train the head alone."""
    freeze_steps: int = 0
    """Train the head alone for so many steps, then all. The encoder's gradients are made all the same, and not used."""
    unfreeze_every: int = 0
    """After freeze_steps the encoder's last layer is trained, and one more after each so many steps, down to patches
    and positions; 0: all at once."""
    label_smoothing: float = 0.0
    """Of cross_entropy in training: this share of each target is spread evenly over all classes."""
    class_weights: str = "none"
    """none | balanced: in training each class's term of the loss counts n / (classes * recordings of the class) of n
    recordings (cross_entropy), or a label's positive term as often as there are recordings without it for one with it
    (bce)."""

    @property
    def is_sequence(self) -> bool:
        """Whether there are several answers a clip, one after another."""
        return self.hop_ms is not None or self.loss == "ctc"

    def problems(self) -> Iterator[str]:
        yield from _one_of("task.loss", self.loss, ("cross_entropy", "bce", "ctc"))
        yield from _within("task.hop_ms", self.hop_ms, 10, _LARGE)
        if self.hop_ms is not None and self.loss == "bce":
            yield "task.hop_ms is of one label a hop; task.loss is bce, which is for several a clip"
        if self.is_sequence and self.pooling == "class":
            yield "task.pooling is class, which has no place in time; task.hop_ms and task.loss=ctc need another"
        for name in ("freeze_steps", "unfreeze_every"):
            yield from _within(f"task.{name}", getattr(self, name), 0, _MANY)
            if self.freeze_encoder and getattr(self, name):
                yield f"task.{name} is {getattr(self, name)}, but task.freeze_encoder=true never trains the encoder"
        yield from _one_of("task.class_weights", self.class_weights, ("none", "balanced"))
        yield from _below_one("task.label_smoothing", self.label_smoothing)
        if self.label_smoothing and self.loss != "cross_entropy":
            yield f"task.label_smoothing is for cross_entropy; task.loss is {self.loss}"
        if self.class_weights != "none" and self.is_sequence:
            yield "task.class_weights counts recordings; expected none with task.hop_ms and task.loss=ctc"
        yield from _one_of("task.pooling", self.pooling, POOLINGS)
        yield from _within("task.segments", self.segments, 1, MOST_SEGMENTS)


@dataclass
class EvaluationConfig:
    """Of the scores at the end of fine-tuning."""

    baseline: str = "log-mel"
    """log-mel (the scores stand beside those of a linear classifier on log-mel statistics of at most 5,000 training
    clips, without a network; of task.loss=ctc there is none) | none."""
    group_by: str | None = None
    """A label of the test recordings, such as speaker: intervals are those of drawing whole groups; null: of drawing
    recordings."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("evaluation.baseline", self.baseline, ("log-mel", "none"))


@dataclass
class OnlineEvaluationConfig:
    """What a pretraining run watches beside its losses."""

    probe: list[SourceText] = field(default_factory=list)
    """Labelled clips, as data.train names sources, that no step learns from: at validations a ridge classifier on the
    encoder's features of at most probe_clips of them is scored, each clip by the one that was fitted on all others
    (leave-one-out). Logged as probe/accuracy, or probe/mAP where clips have several labels; null: none."""
    label: str = "label"
    """Which label of the probe's shards."""
    probe_clips: int = 1000
    """At most; of more a share is drawn, stratified by label."""
    every_validations: int = 1
    """Validations from one probe to the next."""
    best: str = "loss"
    """loss | probe: whose best validation is kept and exported: that of the lowest val/loss, or of the best probe."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("evaluation.best", self.best, ("loss", "probe"))
        yield from _within("evaluation.probe_clips", self.probe_clips, 2, 100_000)
        yield from _within("evaluation.every_validations", self.every_validations, 1, _MANY)
        if self.best == "probe" and not self.probe:
            yield "evaluation.best is probe; evaluation.probe is empty"


@dataclass
class AugmentationConfig:
    """Of training clips in fine-tuning; 0 switches a part off."""

    mixup: float = 0.0
    """Probability that a clip is mixed with another, weights from Beta(10, 10)."""
    mixup_from: str = "batch"
    """batch | set: where the other clip is from: the same batch on its device, or all training recordings, of which one
    more is read then; only so the same clips are mixed however a batch is divided."""
    frequency_mask: int = 0
    """SpecAugment: at most so many mel bins hidden."""
    time_mask: int = 0
    """SpecAugment: at most so many frames hidden."""
    noise: float = 0.0
    """Largest amplitude of uniform noise on the normalised spectrogram; each clip draws its own."""
    time_shift: int = 0
    """At most so many frames that a spectrogram is rolled, either way."""
    time_stretch: float = 0.0
    """At most this share that a spectrogram goes faster or slower, its pitch as it is."""
    frequency_shift: int = 0
    """At most so many mel bins that a spectrogram is moved up or down, as by a shorter or longer vocal tract; the bin
    at the edge fills what is left."""

    def problems(self) -> Iterator[str]:
        yield from _within("augmentation.mixup", self.mixup, 0, 1)
        yield from _one_of("augmentation.mixup_from", self.mixup_from, ("batch", "set"))
        yield from _below_one("augmentation.time_stretch", self.time_stretch)
        for name in ("frequency_mask", "time_mask", "noise", "time_shift", "frequency_shift"):
            yield from _within(f"augmentation.{name}", getattr(self, name), 0, _LARGE)


@dataclass
class OptimizerConfig:
    """AdamW; norms, biases, A_log, D, positions and tokens do not decay."""

    learning_rate: float = 1e-4
    """Of a step of data.batch_size clips, however many devices share them; nothing scales it."""
    head_learning_rate: float | None = None
    """Fine-tuning: of the classification head; null: learning_rate."""
    layer_decay: float = 1.0
    """Fine-tuning: the encoder's layer i of n learns at learning_rate * layer_decay ** (n + 1 - i), patches, positions
    and tokens as a layer 0, the final norm at learning_rate (as in BEiT and MAE). The two layers of a pair of the
    doubling residual count as one. 1: all learn alike."""
    beta1: float = 0.95
    """AdamW's decay of the running mean of gradients."""
    beta2: float = 0.999
    """As beta1, of their squares."""
    weight_decay: float = 5e-7
    schedule: str = "cosine"
    """After warm-up: cosine (to final_fraction at the end) | plateau (halved when validation stalls) | constant."""
    warmup_steps: int = 0
    final_fraction: float = 0.0
    plateau_patience: int = 2
    """Validations without a better loss before the learning rate is halved."""
    gradient_clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: float | None = None
    """After each step the average of the weights becomes ema_decay * average + (1 - ema_decay) * weights (less in the
    first steps: (1 + n) / (10 + n) after n), and the average is what is validated and exported, not the weights; null:
    no average."""
    bad_steps: str = "stop"
    """stop | skip: a step whose loss or gradient is not finite, or that spike_factor calls bad, ends the run, or is not
    taken and counted; many in a row end it all the same. Under 16-mixed the loss alone is judged."""
    spike_factor: float = 0.0
    """A step is bad if its loss is more than this times the median of the last 100; 0: never."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("optimizer.schedule", self.schedule, ("cosine", "plateau", "constant"))
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "gradient_clip"):
            yield from _within(f"optimizer.{name}", getattr(self, name), 0, _LARGE)
        for name in ("warmup_steps", "plateau_patience"):
            yield from _within(f"optimizer.{name}", getattr(self, name), 0, _MANY)
        if not 0 < self.layer_decay <= 1:
            yield f"optimizer.layer_decay is {self.layer_decay}; expected more than 0 and at most 1"
        for name in ("beta1", "beta2"):
            yield from _below_one(f"optimizer.{name}", getattr(self, name))
        yield from _within("optimizer.final_fraction", self.final_fraction, 0, 1)
        if self.ema_decay is not None:
            yield from _below_one("optimizer.ema_decay", self.ema_decay)
        yield from _one_of("optimizer.bad_steps", self.bad_steps, ("stop", "skip"))
        if self.spike_factor != 0:
            yield from _within("optimizer.spike_factor", self.spike_factor, 1, _LARGE)


@dataclass
class TrainerConfig:
    """How long, where and how precisely."""

    max_steps: int = 10000
    """Optimizer steps."""
    accumulate: int = 1
    """Batches, one after another on each device, that a step of data.batch_size clips is cut into: to save memory."""
    precision: str = "32"
    """32 | bf16-mixed | 16-mixed."""
    devices: int = 1
    """Of each node; one process each."""
    num_nodes: int = 1
    """Machines; more than one are started by srun or torchrun (recipes/slurm/)."""
    accelerator: str = "auto"
    """auto | cpu | gpu."""
    strategy: str = "auto"
    """auto (ddp, if there are several devices) | ddp (the whole model on each) | fsdp (weights, gradients and optimizer
    shared out over the devices: for models that are too large for one)."""
    recompute: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, more time."""
    compile: bool = False
    """torch.compile the model; on a CPU this needs a C++ compiler."""
    validate_every_steps: int = 1000
    checkpoint_every_steps: int | None = None
    """From one checkpoint to the next, of which the last two are kept; null: validate_every_steps."""
    average_checkpoints: int = 1
    """The exported model is the mean of the weights of so many last checkpoints, which are kept, as in AST's scripts;
    1: the model of the best validation, without validation the last one."""
    patience: int | None = None
    """Training ends after so many validations without a better score; null: with max_steps."""
    log_every_steps: int = 50
    tensorboard: bool = False
    """Log into run_dir/tensorboard, too, which `tensorboard --logdir` shows."""

    def problems(self) -> Iterator[str]:
        yield from _one_of("trainer.precision", self.precision, ("32", "bf16-mixed", "16-mixed"))
        yield from _one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        yield from _one_of("trainer.strategy", self.strategy, ("auto", "ddp", "fsdp"))
        for name in (
            "max_steps",
            "accumulate",
            "validate_every_steps",
            "checkpoint_every_steps",
            "log_every_steps",
            "patience",
        ):
            yield from _within(f"trainer.{name}", getattr(self, name), 1, _MANY)
        yield from _within("trainer.average_checkpoints", self.average_checkpoints, 1, 1000)
        for name in ("devices", "num_nodes"):
            yield from _within(f"trainer.{name}", getattr(self, name), 1, 100_000)
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            yield "trainer.precision is 16-mixed, whose loss scaling fsdp lacks; expected 32 or bf16-mixed"

    @property
    def steps_between_checkpoints(self) -> int:
        return self.checkpoint_every_steps or self.validate_every_steps

    @property
    def ranks(self) -> int:
        """Processes, one a device, over all nodes."""
        return self.devices * self.num_nodes


@dataclass
class WandbConfig:
    """A second logger beside the run folder's CSV."""

    mode: str = "off"
    """off | online | offline; wandb is imported only when it is on."""
    project: str = "ssamba"
    group: str | None = None
    """What the run is one of, such as a comparison; null: none. Of --folds and --seeds, the name of their folder."""
    tags: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        yield from _one_of("wandb.mode", self.mode, ("off", "online", "offline"))
        for tag in self.tags:
            if len(tag) > _LONGEST_TAG:
                yield f"wandb.tags has {tag[:200]!r}; expected tags of at most {_LONGEST_TAG} letters"


@dataclass
class PretrainRecipe:
    """Masked-patch pretraining on unlabelled clips."""

    run_dir: PathText
    """A new folder for everything that the run makes."""
    task_type: str = "pretrain"
    seed: int = 0
    audio: AudioConfig = field(default_factory=AudioConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: OnlineEvaluationConfig = field(default_factory=OnlineEvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def problems(self) -> Iterator[str]:
        if self.evaluation.probe and not self.data.validation:
            yield "evaluation.probe is scored at validations; data.validation is empty"
        for name, stride, shape in _strides(self.model):
            if stride is not None and stride != shape:
                yield f"model.{name} is {stride}; pretraining needs patches side by side, {shape} (or null)"
        if self.optimizer.head_learning_rate is not None:
            yield "optimizer.head_learning_rate is for fine-tuning; leave it null in pretraining"
        if self.optimizer.layer_decay != 1:
            yield "optimizer.layer_decay is for fine-tuning; leave it 1 in pretraining"
        if self.data.label_fraction != 1:
            yield "data.label_fraction is for fine-tuning; pretraining uses no labels"
        if self.data.balance:
            yield "data.balance is for fine-tuning; pretraining uses no labels"
        if self.data.fold_by is not None:
            yield "data.fold_by is for fine-tuning; pretraining uses no labels"
        patches, hidden = _patches(self.audio, self.model), self.masked_patches
        if patches and not 0 < hidden < patches:
            yield f"mask.share is {self.mask.share:g}, {hidden} of a clip's {patches} patches; expected some, not all"

    @property
    def masked_patches(self) -> int:
        """Of a whole clip."""
        return round(self.mask.share * _patches(self.audio, self.model))


@dataclass
class FinetuneRecipe:
    """Training a classifier on labelled clips, from pretrained weights or from scratch."""

    run_dir: PathText
    """A new folder for everything that the run makes."""
    task_type: str = "finetune"
    seed: int = 0
    audio: AudioConfig = field(default_factory=AudioConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def problems(self) -> Iterator[str]:
        if self.data.order == "streaming":
            yield (
                "data.order is streaming; fine-tuning needs the labels that an index lists: `ssamba shards index "
                "FOLDER --label KEY=FIELD` makes one"
            )
        if self.data.short == "pack":
            yield "data.short is pack, which joins recordings of different labels; fine-tuning takes pad or repeat"
        if self.task.is_sequence:
            yield from self._sequence_problems()

    @property
    def hop_columns(self) -> int | None:
        """Columns of patches of an answer; None: a clip has one."""
        if not self.task.is_sequence:
            return None
        return 1 if self.task.hop_ms is None else round(self.task.hop_ms / self._column_ms)

    @property
    def hop_frames(self) -> int | None:
        """Frames of an answer; None: a clip has one."""
        return None if self.hop_columns is None else self.hop_columns * self._column_ms // 10

    @property
    def _column_ms(self) -> int:
        return 10 * (self.model.time_stride or self.model.tshape)

    def _sequence_problems(self) -> Iterator[str]:
        """What several answers a clip do not go with."""
        kind = "task.loss=ctc" if self.task.loss == "ctc" else "task.hop_ms"
        hop, column = self.task.hop_ms, self._column_ms
        if hop is not None and hop % column:
            yield (
                f"task.hop_ms is {hop:g}; expected a multiple of {column}, the milliseconds of model.time_stride "
                f"{column // 10}, or a model.time_stride that divides it"
            )
        if self.data.short == "repeat":
            yield f"data.short is repeat, which says a recording's labels again; expected pad with {kind}"
        for name in ("time_shift", "time_stretch", "mixup"):
            if getattr(self.augmentation, name):
                yield f"augmentation.{name} moves or mixes what {kind} has labels of; expected 0"
        if self.data.balance:
            yield f"data.balance draws recordings by their one label, and with {kind} they have many; expected false"
        if self.data.label_fraction < 1 and self.task.loss == "ctc":
            yield "data.label_fraction is stratified by label, and texts are all different; task.loss=ctc needs 1"


Recipe = PretrainRecipe | FinetuneRecipe
_RECIPES: dict[str, type[PretrainRecipe] | type[FinetuneRecipe]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
}


@functools.cache
def recipe_keys(kind: str) -> frozenset[str]:
    """All keys of a recipe, such as trainer.max_steps."""
    schema = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(_RECIPES[kind])))
    return frozenset(name for name, _ in _leaves(schema))


def _strides(model: ModelConfig) -> list[tuple[str, int | None, int]]:
    return [
        ("frequency_stride", model.frequency_stride, model.fshape),
        ("time_stride", model.time_stride, model.tshape),
    ]


def _patches(audio: AudioConfig, model: ModelConfig) -> int:
    """Patches of a clip, 0 where the patch does not fit or a stride is no stride (said elsewhere)."""
    rows = (audio.num_mel_bins - model.fshape) // max(1, model.frequency_stride or model.fshape) + 1
    columns = (audio.max_length - model.tshape) // max(1, model.time_stride or model.tshape) + 1
    return max(0, rows) * max(0, columns)


def _sections(schema: DictConfig) -> Iterator[str]:
    """What is wrong within one section; a field whose value could not be taken has its default here."""
    for node in (schema._get_node(name) for name in schema):
        if isinstance(node, DictConfig):
            yield from cast(Any, OmegaConf.to_object(node)).problems()
    yield from _within("seed", schema.seed, 0, 2**32 - 1)


def _across(recipe: Recipe) -> Iterator[str]:
    """What is wrong between sections."""
    for name, bins, patch in (
        ("audio.num_mel_bins", recipe.audio.num_mel_bins, recipe.model.fshape),
        ("audio.max_length", recipe.audio.max_length, recipe.model.tshape),
    ):
        if bins < patch:
            yield f"{name} is {bins}; a clip must be at least one patch, {patch}"
    if not recipe.data.train:
        yield "data.train is empty; expected the folder of a training split, as a data_prep script writes it"
    batch, parts = recipe.data.batch_size, recipe.trainer.ranks * recipe.trainer.accumulate
    if batch % parts:
        t, above = recipe.trainer, batch - batch % parts + parts
        nearest = f"{above - parts} or {above}" if batch > parts else f"{above}"
        yield (
            f"data.batch_size is {batch}, the clips of a step over all devices, and trainer.devices * num_nodes * "
            f"accumulate = {t.devices} * {t.num_nodes} * {t.accumulate} does not divide it; the nearest that would do: "
            f"{nearest}"
        )
    if recipe.optimizer.schedule == "plateau" and not recipe.data.validation:
        yield "optimizer.schedule is plateau, which watches the validation loss; data.validation is empty"
    if recipe.trainer.patience is not None and not recipe.data.validation:
        yield "trainer.patience counts validations; data.validation is empty"
    t = recipe.trainer
    if t.average_checkpoints > (checkpoints := -(-t.max_steps // t.steps_between_checkpoints)):
        yield (
            f"trainer.average_checkpoints is {t.average_checkpoints}; a run of {t.max_steps} steps with a checkpoint "
            f"every {t.steps_between_checkpoints} has {checkpoints}"
        )
    yield from recipe.problems()


def load_recipe(path: str | Path, overrides: Sequence[str] = (), kind: str | None = None) -> Recipe:
    """Read a YAML recipe, apply `key=value` overrides and check all of it.

    A value is what its key's type makes of the text that was typed, in the file and in an override alike: a text is
    that text, whole numbers are decimal, numbers are finite, yes and no are true and false, and null or nothing at all
    switches off what is optional. In quotes null is a text. Nothing is put in for ${...}; \\${ is that text itself. In
    paths ~ is the home folder, and what is relative is relative to the working folder.

    Args:
        path: the recipe; a run folder stands for the recipe.yaml in it, and is its run_dir, wherever it was made.
        overrides: "section.key=value"; [a, b] is a list.
        kind: "pretrain" or "finetune" if only such a recipe will do.

    Raises:
        UserError: with every complaint at once: unknown keys (and the nearest known one), values of the wrong type or
            out of range, with what was expected.
    """
    source, run = Path(path), None
    if (source / "recipe.yaml").is_file():
        source, run = source / "recipe.yaml", source
    written = _read(source)
    task_type = written.get("task_type")
    if not isinstance(task_type, Scalar) or task_type.text not in _RECIPES:
        shown = f"task_type {_shown(task_type)}" if task_type else "no task_type"
        raise UserError(f"recipe {source} has {shown}; expected one of {', '.join(_RECIPES)}")
    if kind is not None and task_type.text != kind:
        raise UserError(
            f"recipe {source} is a {task_type.text} recipe; expected a {kind} recipe (its task_type says which)"
        )
    schema = OmegaConf.structured(_RECIPES[task_type.text])
    complaints: list[str] = []
    _merge(schema, written, "", str(source), complaints)
    if run is not None:
        schema.run_dir = _escaped(str(run))
    for text in overrides:
        _merge(schema, _override(text), "", "command line", complaints)
    refused = {complaint.partition(" ")[0] for complaint in complaints}
    if task_type.text == "pretrain":
        _fill_parts(schema.objective.parts)
    if OmegaConf.is_missing(schema, "run_dir") and "run_dir" not in refused:
        complaints.append("run_dir is missing; expected a new folder for what the run makes")
    if schema.task_type != task_type.text:
        complaints.append(
            f"task_type is {schema.task_type!r} on the command line; the recipe is a {task_type.text} recipe"
        )
    # Fields that were refused have their defaults, of which nothing need be said.
    complaints.extend(told for told in _sections(schema) if not any(name in told for name in refused))
    if not complaints:
        recipe = OmegaConf.to_object(schema)
        assert isinstance(recipe, PretrainRecipe | FinetuneRecipe)
        complaints.extend(_across(recipe))
        if not complaints:
            return recipe
    raise UserError(f"recipe {source}:", *complaints)


def _fill_parts(parts: DictConfig) -> None:
    """What `PartsConfig` says of the parts that a recipe does not name."""
    default = {} if any(weight is not None for weight in parts.values()) else _SSAMBA_PARTS
    for name, weight in parts.items():
        if weight is None:
            parts[name] = default.get(str(name), 0.0)


def _read(source: Path) -> dict[str, Node]:
    if not source.is_file():
        what = "is no file" if source.exists() else "does not exist"
        raise UserError(f"recipe {source} {what}; expected a YAML file (recipes/ has some) or a run folder")
    try:
        with source.open("rb") as file:
            written = read_yaml(file.read(MOST_BYTES + 1))
    except (ValueError, OSError) as error:
        raise UserError(f"recipe {source} cannot be read: {error}") from error
    if not isinstance(written, dict):
        raise UserError(f"recipe {source} is not a mapping of keys to values")
    return written


def _override(text: str) -> dict[str, Node]:
    """section.key=value as the YAML would say it; other values than quoted ones and lists are the text as it is."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"override {text!r} is not key=value, for instance trainer.max_steps=1000")
    node: Node | None = Scalar(value)
    if value.startswith("[") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        try:
            node = read_yaml(value)
        except ValueError as error:
            raise UserError(f"override {text} cannot be read: {error}") from error
    for name in reversed(key.split(".")):
        node = {name: node or Scalar("")}
    assert isinstance(node, dict)
    return node


def _merge(schema: DictConfig, given: Mapping[str, Node], prefix: str, origin: str, complaints: list[str]) -> None:
    """Copy the leaves of `given` into `schema`, one by one, so that every mistake is told, not the first alone."""
    types = get_type_hints(OmegaConf.get_type(schema), include_extras=True)
    for key, node in given.items():
        name = f"{prefix}{key}"
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(types)}"
            complaints.append(f"{name} ({origin}) is no key of a {schema_name(schema)}; {hint}")
        elif is_dataclass(types[key]):
            if isinstance(node, dict):
                _merge(schema[key], node, f"{name}.", origin, complaints)
            else:
                complaints.append(f"{name} ({origin}) is {_shown(node)}; expected a section of keys and values")
        else:
            try:
                value = _value(node, types[key])
            except ValueError as error:
                complaints.append(f"{name} ({origin}) is {_shown(node)}; {error}")
            else:
                OmegaConf.update(schema, key, _escaped(value))


_READERS: dict[Any, Callable[[str], Any]] = {str: plain_text, int: whole_number, float: number, bool: truth}


def _value(node: Node, kind: Any) -> Any:
    """What was typed, as the type of its field has it.

    Raises:
        ValueError: it cannot be; says what was expected.
    """
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
        if node == Scalar("~"):  # YAML's null, and a home folder in a path
            raise ValueError("expected null, or what is meant: ~/ for the home folder")
        return None if isinstance(node, Scalar) and node.is_nothing else _value(node, kind)
    if get_origin(kind) is list:
        if isinstance(node, Scalar):
            node = [] if node.is_nothing else [node]
        if not isinstance(node, list):
            raise ValueError("expected a list, such as [a, b]")
        return [_value(entry, get_args(kind)[0]) for entry in node]
    if not isinstance(node, Scalar):
        raise ValueError(
            "expected one value" + (", in quotes if it is a text" if kind not in (int, float, bool) else "")
        )
    if node.is_nothing:
        raise ValueError("expected a value, in quotes if this is a text; it is not optional")
    read = kind.__metadata__[0] if get_origin(kind) is Annotated else _READERS[kind]
    return read(_plain(node.text))


_VARIABLE = re.compile(r"(\\*)\$\{")  # with the backslashes that keep it from being one


def _plain(text: str) -> str:
    r"""The text that is meant by one with \${ in it.

    Raises:
        ValueError: it has a ${ that is to be replaced by something from elsewhere, is OmegaConf's ???, or has halves of
            characters.
    """
    if text == "???" or not is_unicode(text):
        raise ValueError("expected a value" if text == "???" else "expected a text in Unicode")
    if any(len(match[1]) % 2 == 0 for match in _VARIABLE.finditer(text)):
        raise ValueError(
            r"expected the value itself: nothing is put in for ${...}, neither of the environment nor of other keys "
            r"(\${ is that text)"
        )
    return _VARIABLE.sub(lambda match: match[1][: len(match[1]) // 2] + "${", text)


def _escaped(value: Any) -> Any:
    """A value, or the values in a section or list, whose texts OmegaConf and `_plain` take as they are."""
    if isinstance(value, Mapping):
        return {key: _escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    return _VARIABLE.sub(lambda match: 2 * match[1] + r"\${", value) if isinstance(value, str) else value


def _shown(node: Node) -> str:
    """What was typed, for messages."""
    if isinstance(node, dict):
        return "a section"
    if isinstance(node, list):
        text = f"[{', '.join(map(_shown, node))}]"
    else:
        text = (node.text or "nothing") if node.is_nothing else repr(node.text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def schema_name(schema: DictConfig) -> str:
    """The section's name in words, for messages."""
    kind = OmegaConf.get_type(schema)
    return "recipe" if kind in _RECIPES.values() else f"{kind.__name__.removesuffix('Config').lower()} section"  # type: ignore[union-attr]


# What may change while a run goes on: where, how fast and how long it is computed, and what is shown of it. Of where
# the data lie, a fingerprint tells whether they are the same.
_MAY_CHANGE = (
    "run_dir",
    "wandb",
    "trainer",
    "evaluation",
    "model.scan_backend",
    "optimizer.bad_steps",
    "optimizer.spike_factor",
    "data.train",
    "data.validation",
    "data.test",
    "data.cache",
    "data.num_workers",
    "data.max_bad_fraction",
)


def differences(saved: Recipe, given: Recipe) -> Iterator[str]:
    """What of `given` would make another run of a run by `saved`: "key is value; in the run it is value"."""
    if given.task_type != saved.task_type:
        yield f"task_type is {given.task_type}; in the run it is {saved.task_type}"
        return
    ours, theirs = flat_recipe(given), flat_recipe(saved)
    for key in sorted(ours):
        if key.startswith(_MAY_CHANGE):
            continue
        if ours[key] != theirs[key]:
            yield f"{key} is {ours[key]!r}; in the run it is {theirs[key]!r}"


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe, such as "trainer.max_steps" -> its value, as `described` has it."""
    return dict(_leaves(described(recipe)))


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe with every default filled in and its paths absolute, so that it says the same wherever it is
    read; `load_recipe` reads it back. Secrets in its urls are left out: who reads it names those again."""
    try:
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(_escaped(described(recipe)))))
    except UnicodeEncodeError as error:
        raise UserError(f"{path} cannot be written: the name of the working folder is not in Unicode") from error


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as sections of plain values: its paths no longer relative to the working folder, and without what may
    be secret in its urls."""

    def placed(value: Any, kind: Any) -> Any:
        if is_dataclass(kind):
            types = get_type_hints(kind, include_extras=True)
            return {name: placed(one, types[name]) for name, one in value.items()}
        if NoneType in get_args(kind) and value is not None:
            (kind,) = set(get_args(kind)) - {NoneType}
        if isinstance(value, list):
            return [placed(one, get_args(kind)[0]) for one in value]
        if kind == PathText:
            return os.path.join(os.getcwd(), value)
        if kind == SourceText and is_remote(value):
            return masked(value)
        if kind == SourceText:
            # What would be a pattern in the folder's name is escaped, as the source is one.
            here = re.sub(r"[\\{}]", r"\\\g<0>", glob.escape(os.getcwd()))
            return os.path.join(here, value)
        return value

    return cast(dict[str, Any], placed(asdict(recipe), type(recipe)))
