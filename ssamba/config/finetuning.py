"""The sections of fine-tuning: the task, its scores, and what becomes of training clips."""

from collections.abc import Iterator
from dataclasses import dataclass

from ssamba.config.checks import LARGE, MANY, MOST_SEGMENTS, below_one, known_part, one_of, within


@dataclass
class TaskConfig:
    """Fine-tuning on labelled clips."""

    label: str = "label"
    """Which label of the shards: digit, speaker, word, ..."""
    loss: str = "cross_entropy"
    """cross_entropy (one label a clip, or a hop) | bce (several) | ctc (the label is a text, whose characters are
    learned: speech to text) | a task of another package (CONTRIBUTING.md, Adding parts)."""
    hop_ms: float | None = None
    """Of cross_entropy, milliseconds: an answer for each such hop, and the label is a list of names, one for each; of
    ctc, of a character at most, null: a column of patches. Whole columns, of model.time_stride frames. Null: one answer
    a clip."""
    pooling: str = "statistics"
    """Of a clip's tokens, or of a hop's: mean of all patch tokens | class token | rows: mean over time of each row of
    patches | statistics: mean and standard deviation of each row | segments: each row's means over equal stretches of
    time | attentive: mean and standard deviation of each row, weighted by learned attention over time; or one of
    another package."""
    segments: int = 4
    """Stretches of time, of pooling=segments."""
    head_norm: str = "layer"
    """Before the head's linear layer: layer (a LayerNorm, as in SSAST and SSAMBA) | batch (each feature less its mean
    and over its deviation in the clips of a step; of whole clips) | none (as in AuM)."""
    freeze_encoder: bool = False
    """Train the head alone."""
    freeze_steps: int = 0
    """Train the head alone for so many steps, then all; of pretrained weights, from scratch all is trained at once. By
    several processes the encoder's gradients are made all the same, and not used."""
    unfreeze_every: int = 0
    """After freeze_steps the encoder's last layer is trained, and one more after each so many steps, down to patches
    and positions; 0, and from scratch: all at once."""
    label_smoothing: float = 0.0
    """Of one label a clip, in training: this share of each target is spread evenly over all classes."""
    class_weights: str = "none"
    """none | balanced: in training each class's term of the loss counts n / (classes * recordings of the class) of n
    recordings (cross_entropy), or a label's positive term as often as there are recordings without it for one with it
    (bce)."""

    @property
    def is_sequence(self) -> bool:
        """Whether there are several answers a clip, one after another."""
        return self.hop_ms is not None or self.loss == "ctc"

    def problems(self) -> Iterator[str]:
        yield from known_part("task.loss", "task", self.loss)
        yield from within("task.hop_ms", self.hop_ms, 10, LARGE)
        if self.hop_ms is not None and self.loss not in ("cross_entropy", "ctc"):
            yield f"task.hop_ms is of one label a hop; task.loss is {self.loss}, which is of whole clips"
        if self.is_sequence and self.pooling == "class":
            yield "task.pooling is class, which has no place in time; task.hop_ms and task.loss=ctc need another"
        for name in ("freeze_steps", "unfreeze_every"):
            yield from within(f"task.{name}", getattr(self, name), 0, MANY)
            if self.freeze_encoder and getattr(self, name):
                yield f"task.{name} is {getattr(self, name)}, but task.freeze_encoder=true never trains the encoder"
        yield from one_of("task.head_norm", self.head_norm, ("layer", "batch", "none"))
        if self.head_norm == "batch" and self.is_sequence:
            yield "task.head_norm is batch, which is of whole clips; task.hop_ms and task.loss=ctc need layer or none"
        yield from one_of("task.class_weights", self.class_weights, ("none", "balanced"))
        yield from below_one("task.label_smoothing", self.label_smoothing)
        if self.label_smoothing and self.loss in ("bce", "ctc"):
            yield f"task.label_smoothing is for cross_entropy; task.loss is {self.loss}"
        if self.class_weights != "none" and self.is_sequence:
            yield "task.class_weights counts recordings; expected none with task.hop_ms and task.loss=ctc"
        yield from known_part("task.pooling", "pool", self.pooling)
        yield from within("task.segments", self.segments, 1, MOST_SEGMENTS)


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
        yield from one_of("evaluation.baseline", self.baseline, ("log-mel", "none"))


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
    gain: float = 0.0
    """Decibels, the standard deviation of how much louder a spectrogram is."""
    tilt: float = 0.0
    """Decibels, the standard deviation of how much louder the highest mel bin is and how much softer the lowest, those
    between along a line, as by another microphone."""

    def problems(self) -> Iterator[str]:
        yield from within("augmentation.mixup", self.mixup, 0, 1)
        yield from one_of("augmentation.mixup_from", self.mixup_from, ("batch", "set"))
        yield from below_one("augmentation.time_stretch", self.time_stretch)
        for name in ("frequency_mask", "time_mask", "noise", "time_shift", "frequency_shift"):
            yield from within(f"augmentation.{name}", getattr(self, name), 0, LARGE)
        for name in ("gain", "tilt"):
            yield from within(f"augmentation.{name}", getattr(self, name), 0, 100)
