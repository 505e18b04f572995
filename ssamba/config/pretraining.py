"""The sections of pretraining: what is minimized, what is hidden, what is watched."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssamba.config.checks import LARGE, MANY, MOST_SIDE, SourceText, TeacherText, below_one, one_of, within
from ssamba.values import STORED

SSAMBA_PARTS = {"contrastive": 1.0, "reconstruction": 10.0}


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
    distillation: float | None = None
    """The mean squared error of what objective.distillation.teacher, another model, says of every patch (USAD)."""

    @property
    def weights(self) -> dict[str, float]:
        """Of the parts that count."""
        return {name: weight for name, weight in vars(self).items() if weight}

    @property
    def moving(self) -> list[str]:
        """Those that count whose targets move with a teacher, so that no loss says which of two models is better."""
        return [name for name in ("latent", "clip") if name in self.weights]


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
        yield from within("objective.teacher.layers", self.layers, 1, 1000)
        for name in ("decay", "final_decay"):
            yield from below_one(f"objective.teacher.{name}", getattr(self, name))


@dataclass
class ChangesConfig:
    """What becomes of training clips before the encoder hears them, of each mask of a clip by itself; 0 switches a part
    off. A teacher hears the clips as they are, so that the encoder learns to tell what they say in spite of the change;
    objective.parts.contrastive and reconstruction tell changed patches."""

    frequency_shift: int = 0
    """At most so many mel bins that a spectrogram is moved up or down, as by a shorter or longer vocal tract; the bin
    at the edge fills what is left."""
    gain: float = 0.0
    """Decibels, the standard deviation of how much louder it is."""
    tilt: float = 0.0
    """Decibels, the standard deviation of how much louder the highest bin is and how much softer the lowest, those
    between along a line, as by another microphone."""

    def problems(self) -> Iterator[str]:
        yield from within("objective.changes.frequency_shift", self.frequency_shift, 0, LARGE)
        for name in ("gain", "tilt"):
            yield from within(f"objective.changes.{name}", getattr(self, name), 0, 100)


@dataclass
class DistillationConfig:
    """The trained model whose features objective.parts.distillation learns from."""

    teacher: TeacherText | None = None
    """A run folder or its model/ folder, of any encoder, sampling rate and number of mel bins; hf:FOLDER or hf:NAME, an
    audio encoder of transformers (extra `transformers`); or shards: the features that `ssamba embed --into-shards` has
    put into those of data.train and data.validation."""
    layer: int = -1
    """Of the teacher: 0 is the embedded patches, -1 what it gives; of teacher=shards it is that of `ssamba embed`."""

    def problems(self) -> Iterator[str]:
        yield from within("objective.distillation.layer", self.layer, -1000, 1000)
        if self.teacher == STORED and self.layer != -1:
            yield (
                f"objective.distillation.layer is {self.layer}; with teacher=shards the layer is the one of `ssamba "
                "embed --layer`: leave it -1"
            )


@dataclass
class ObjectiveConfig:
    """Masked-patch pretraining."""

    parts: PartsConfig = field(default_factory=PartsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mix: float = 0.0
    """The chance that a training clip is heard mixed with another of its batch, on the same device; what a teacher says
    of it is then the mean of what it says of both by themselves (SSLAM). Where batches are divided among other devices
    or by another trainer.accumulate, partners are others."""
    changes: ChangesConfig = field(default_factory=ChangesConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def problems(self) -> Iterator[str]:
        for name, weight in vars(self.parts).items():
            yield from within(f"objective.parts.{name}", weight, 0, LARGE)
        if not self.parts.weights:
            yield "objective.parts leaves every part out; expected some with weights above 0, such as latent: 1"
        yield from self.teacher.problems()
        yield from within("objective.mix", self.mix, 0, 1)
        yield from self.changes.problems()
        yield from self.distillation.problems()


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
        yield from one_of("mask.kind", self.kind, ("cluster", "random", "ssast"))
        if not 0 < self.share < 1:
            yield f"mask.share is {self.share}; expected more than 0 and less than 1"
        for name in ("smallest", "largest"):
            yield from within(f"mask.{name}", getattr(self, name), 1, MOST_SIDE)
        if self.smallest > self.largest:
            yield f"mask.smallest is {self.smallest}; expected at most mask.largest, {self.largest}"
        yield from within("mask.per_clip", self.per_clip, 1, 64)


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
    """loss | probe: whose best validation is kept and exported: that of the lowest val/loss, or of the best probe.
    Where targets move with a teacher (objective.parts.latent, clip) val/loss ranks nothing: loss keeps the last
    model."""

    def problems(self) -> Iterator[str]:
        yield from one_of("evaluation.best", self.best, ("loss", "probe"))
        yield from within("evaluation.probe_clips", self.probe_clips, 2, 100_000)
        yield from within("evaluation.every_validations", self.every_validations, 1, MANY)
        if self.best == "probe" and not self.probe:
            yield "evaluation.best is probe; evaluation.probe is empty"
