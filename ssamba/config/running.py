"""The sections of how a run goes: its optimizer, where and how long it trains, where it is logged."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssamba.config.checks import LARGE, LONGEST_TAG, MANY, below_one, one_of, within


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
        yield from one_of("optimizer.schedule", self.schedule, ("cosine", "plateau", "constant"))
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "gradient_clip"):
            yield from within(f"optimizer.{name}", getattr(self, name), 0, LARGE)
        for name in ("warmup_steps", "plateau_patience"):
            yield from within(f"optimizer.{name}", getattr(self, name), 0, MANY)
        if not 0 < self.layer_decay <= 1:
            yield f"optimizer.layer_decay is {self.layer_decay}; expected more than 0 and at most 1"
        for name in ("beta1", "beta2"):
            yield from below_one(f"optimizer.{name}", getattr(self, name))
        yield from within("optimizer.final_fraction", self.final_fraction, 0, 1)
        if self.ema_decay is not None:
            yield from below_one("optimizer.ema_decay", self.ema_decay)
        yield from one_of("optimizer.bad_steps", self.bad_steps, ("stop", "skip"))
        if self.spike_factor != 0:
            yield from within("optimizer.spike_factor", self.spike_factor, 1, LARGE)


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
        yield from one_of("trainer.precision", self.precision, ("32", "bf16-mixed", "16-mixed"))
        yield from one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        yield from one_of("trainer.strategy", self.strategy, ("auto", "ddp", "fsdp"))
        for name in (
            "max_steps",
            "accumulate",
            "validate_every_steps",
            "checkpoint_every_steps",
            "log_every_steps",
            "patience",
        ):
            yield from within(f"trainer.{name}", getattr(self, name), 1, MANY)
        yield from within("trainer.average_checkpoints", self.average_checkpoints, 1, 1000)
        for name in ("devices", "num_nodes"):
            yield from within(f"trainer.{name}", getattr(self, name), 1, 100_000)
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
        yield from one_of("wandb.mode", self.mode, ("off", "online", "offline"))
        for tag in self.tags:
            if len(tag) > LONGEST_TAG:
                yield f"wandb.tags has {tag[:200]!r}; expected tags of at most {LONGEST_TAG} letters"
