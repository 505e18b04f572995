"""What both training modules share: the optimizer with its schedule, and what is watched at every step."""

import itertools
import logging
import math
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ssamba.data.batches import Batch
from ssamba.errors import UserError
from ssamba.masking import clip_generators
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.schedules import parameter_groups, warmup_then_constant, warmup_then_cosine
from ssamba.training.averaging import WeightAverage
from ssamba.training.distributed import ShardedStrategy, gathered, shard
from ssamba.training.lightning_internals import leave_loops_out

log = logging.getLogger(__name__)

_REMEMBERED = 100  # losses by which a spike is judged
_JUDGED_AFTER = 10  # of them
_MOST_SKIPPED = 20  # in a row


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its schedule and what it does of bad steps; the fields are those of the recipe's optimizer section."""

    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    max_steps: int
    final_fraction: float
    plateau_patience: int
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    beta1: float = 0.95
    beta2: float = 0.999
    ema_decay: float | None = None
    bad_steps: str = "stop"
    spike_factor: float = 0.0


class TrainingModule(lightning.LightningModule):
    """Optimizer, schedule, gradient norm, and what becomes of a step that is bad: by its loss or its gradient."""

    model: MaskedPatchModel | AudioClassifier

    def __init__(self, settings: OptimizerSettings, seed: int, drop_path: float) -> None:
        super().__init__()
        self.settings, self.seed, self.drop_path = settings, seed, drop_path
        self._batches: list[tuple[Sequence[str], dict[str, Tensor]]] = []  # of the current step
        # Of the steps before it:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._skipped = self._skipped_in_a_row = 0
        self.average: WeightAverage | None = None
        """Of the weights over the steps, if the settings say so; made where training starts."""
        self._average_before: dict[str, Tensor] | None = None  # of the checkpoint that training goes on from

    def trained_parts(self) -> list[tuple[nn.Module, float]]:
        """(module, learning rate) of what is optimized."""
        raise NotImplementedError

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Those of what is optimized that the next step leaves as they are."""
        return iter(())

    def draw_kept(self, positions: Sequence[int], times: int = 1) -> Tensor | None:
        """What `Stack.draw_kept` draws for training clips, on the module's device: each clip's own, by the seed and its
        place in the order, as often as it is in the batch; None without drop path."""
        if not self.drop_path:
            return None
        generators = clip_generators(self.seed, "drop path", positions, times)
        return self.model.encoder.stack.draw_kept(self.drop_path, generators).to(self.device)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            for module, layers in self.sharded_modules():
                shard(module, layers, mesh)

    def sharded_modules(self) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
        """What is spread over ranks, each with the layers that are whole by themselves."""
        yield self.model, self.model.encoder.stack.layers

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What AdamW is given."""
        s, encoder = self.settings, self.model.encoder
        groups: list[dict[str, Any]] = []
        for part, rate in self.trained_parts():
            decay = s.layer_decay if part is encoder else 1.0
            groups += parameter_groups(part, rate, s.weight_decay, decay, encoder.layers_above)
        return groups

    def configure_optimizers(self) -> Any:
        s = self.settings
        groups = self.parameter_groups()
        # Under mixed precision Lightning clips no gradients for a fused step, which may have to unscale them first.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision == "32-true"
        optimizer = torch.optim.AdamW(groups, betas=(s.beta1, s.beta2), fused=fused)
        config: dict[str, Any] = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        if s.schedule == "plateau":
            # Lightning saves it with the run and never comes to step it, for it counts the batches of one start alone:
            # on_validation_end does.
            config |= {"frequency": sys.maxsize, "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """What sets the learning rates of `parameter_groups`."""
        s = self.settings
        if s.schedule == "plateau":
            # Warm-up is the module's own factor on the rates that the plateau rule lowers (optimizer_step below).
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=s.plateau_patience)
        factor = warmup_then_constant(s.warmup_steps)
        if s.schedule == "cosine":
            factor = warmup_then_cosine(s.warmup_steps, s.max_steps, s.final_fraction)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        optimizer, steps = self.optimizers(use_pl_optimizer=False), self.trainer.global_step
        assert isinstance(optimizer, torch.optim.Optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        if self.settings.schedule == "plateau":
            factor = warmup_then_constant(self.settings.warmup_steps)(steps)
            for group in optimizer.param_groups:
                group["lr"] *= factor
        super().optimizer_step(*arguments, **options)
        if self.settings.schedule == "plateau":
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if not self._skipped_in_a_row:
            self.after_step(steps)

    def after_step(self, steps: int) -> None:
        """Called when a step has changed the weights; so many were behind it."""
        if self.average is not None:
            self.average.update(steps)

    def check_parts(self, parts: Mapping[str, float]) -> None:
        """Raise what ends a run, by the parts of the loss of a step that is not bad, the same on all ranks."""

    def on_fit_start(self) -> None:
        if self.settings.ema_decay is not None:
            self.average = WeightAverage(self, self.settings.ema_decay)
            if self._average_before is not None:
                self.average.load(self._average_before)

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.exchange()

    def on_validation_end(self) -> None:
        # Callbacks were here before: the best model is written as it was validated.
        if self.average is not None:
            self.average.exchange()
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics["val/loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        leave_loops_out(checkpoint)
        checkpoint["judged"] = {
            "recent": list(self._recent),
            "skipped": self._skipped,
            "in_a_row": self._skipped_in_a_row,
        }
        # Of the best model, the average is all that is kept.
        if self.average is None or "optimizer_states" not in checkpoint:
            return
        average, state = self.average.whole(), checkpoint["state_dict"]
        if self.average.in_module and state:  # on the first rank, in the middle of a validation
            average, trained = {name: state[name] for name in average}, average
            state.update(trained)
        checkpoint["average"] = average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        judged = checkpoint["judged"]
        self._recent.extend(judged["recent"])
        self._skipped, self._skipped_in_a_row = judged["skipped"], judged["in_a_row"]
        self._average_before = checkpoint.get("average")
        if self.average is not None and self._average_before is not None:  # restored after the start, as by fsdp
            self.average.load(self._average_before)

    def watch(self, keys: Sequence[str], **parts: Tensor) -> None:
        """Of each batch: its samples' names, and the parts of its loss, scalars, which are logged as train/... and must
        be finite."""
        self._batches.append((keys, {name: part.detach() for name, part in parts.items()}))

    def rehearse(self, batch: Batch) -> None:
        """The forward and backward pass of a batch, of which nothing stays."""
        with self.trainer.precision_plugin.forward_context():
            loss = self.training_step(batch, 0)
        assert isinstance(loss, Tensor)
        loss.backward()
        self.zero_grad()
        self._batches.clear()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.frozen_parameters():
            parameter.grad = None  # AdamW passes over what has none
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        names = list(self._batches[0][1])
        # Batches are of one size, on all ranks: their mean is that of all clips of the step. It is taken at every step,
        # so that all ranks judge alike, and none waits for another that has ended.
        values = torch.stack([torch.stack(list(parts.values())) for _, parts in self._batches]).mean(0)
        values = self.trainer.strategy.reduce(values, reduce_op="mean")
        *scalars, gradient_norm = torch.cat([values, norm.view(1)]).tolist()  # the one wait for the device
        parts = dict(zip(names, scalars, strict=True))
        if complaint := self.judge(parts, gradient_norm):
            self._skip_or_stop(optimizer, complaint)
        else:
            self.check_parts(parts)
            self._skipped_in_a_row = 0
        self._batches.clear()
        if self.settings.bad_steps == "skip":
            self.log("skipped_steps", float(self._skipped))
        self.log_dict({f"train/{name}": value for name, value in zip(names, values, strict=True)})
        self.log_dict({"gradient_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})

    def judge(self, parts: Mapping[str, float], gradient_norm: float) -> str:
        """What is wrong with a step, by the parts of its loss; "" for a good one, whose loss is remembered."""
        loss, factor = parts["loss"], self.settings.spike_factor
        if not all(map(math.isfinite, parts.values())):
            return f"the loss is not finite ({', '.join(f'{name} {part:g}' for name, part in parts.items())})"
        # float16 looks for the largest loss scale that does not overflow: its scaler skips such steps by itself.
        if self.trainer.precision != "16-mixed" and not math.isfinite(gradient_norm):
            return "the gradient is not finite"
        usual = statistics.median(self._recent) if factor and len(self._recent) >= _JUDGED_AFTER else math.inf
        if factor and loss > factor * usual:
            return f"the loss is {loss:g}, the median of the last steps {usual:g}"
        self._recent.append(loss)
        return ""

    def _skip_or_stop(self, optimizer: torch.optim.Optimizer, complaint: str) -> None:
        """Leave out a bad step, or end the run with it, on all ranks; the samples of the bad batches are logged."""
        bad = [keys for keys, parts in self._batches if not all(bool(part.isfinite()) for part in parts.values())]
        keys = [key for keys in itertools.chain(*gathered(bad)) for key in keys]
        if not keys:  # no batch is bad by itself
            keys = [key for keys in itertools.chain(*gathered([keys for keys, _ in self._batches])) for key in keys]
        samples = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        skip = self.settings.bad_steps == "skip"
        if skip and self._skipped_in_a_row < _MOST_SKIPPED:
            self._skipped, self._skipped_in_a_row = self._skipped + 1, self._skipped_in_a_row + 1
            # Without gradients AdamW changes neither weights nor moments.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            if self.global_rank == 0:
                log.warning("step %d is skipped: %s; samples: %s", self.trainer.global_step, complaint, samples)
            return
        before = f"{_MOST_SKIPPED} steps in a row were skipped, and now " if skip else ""
        hint = "" if skip else "; optimizer.bad_steps=skip leaves such steps out"
        raise UserError(
            f"step {self.trainer.global_step}: {before}{complaint}; samples: {samples}. "
            f"Lower optimizer.learning_rate or optimizer.gradient_clip, or look at these samples{hint}"
        )
