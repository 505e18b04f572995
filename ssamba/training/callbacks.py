"""What a run shows and keeps while it trains."""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

from ssamba.data.batches import Batch
from ssamba.data.datamodule import ClipDataModule
from ssamba.evaluation.pictures import draw_latent, draw_reconstruction
from ssamba.evaluation.ridge import ridge_score
from ssamba.models.pools import DEFAULT_POOLING, build_pool
from ssamba.progress import progress_bar, spoken
from ssamba.training.common import TrainingModule
from ssamba.training.distributed import gathered, parts_callable
from ssamba.training.loggers import log_picture
from ssamba.training.pretraining import Pretraining

log = logging.getLogger(__name__)

FEW_STEPS = 20  # which are done as soon as they are rehearsed
_REHEARSED = 3  # as many on every rank, which wait for each other


class StepProgress(ProgressBar):
    """One bar over all steps of the run: rate, time left and the newest loss. Rank 0 alone shows it."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled, self._steps = True, 0

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self._enabled = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._steps = trainer.max_steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        name = type(pl_module).__name__.lower()
        done = trainer.global_step
        self._bar = progress_bar(self._steps, "step", name, initial=done, disable=not self._enabled)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._bar is not None
        if trainer.global_step % trainer.log_every_n_steps == 0 and "train/loss" in trainer.callback_metrics:  # type: ignore[attr-defined]
            self._bar.set_postfix(loss=f"{float(trainer.callback_metrics['train/loss']):.3f}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert self._bar is not None
        self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._bar is not None:  # so that the error's message gets a line of its own
            self._bar.close()


class TimeEstimate(Callback):
    """Before the first step: how long all of them will take, by a few rehearsed ones."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        steps = trainer.max_steps - trainer.global_step
        if steps < FEW_STEPS:
            return
        assert isinstance(pl_module, TrainingModule) and isinstance(trainer.datamodule, ClipDataModule)  # type: ignore[attr-defined]
        batch = trainer.strategy.batch_to_device(trainer.datamodule.noise())  # type: ignore[attr-defined]
        seconds: list[float] = []
        for _ in range(_REHEARSED):
            began = time.perf_counter()
            pl_module.rehearse(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        step = min(seconds) * trainer.accumulate_grad_batches  # the first one compiles kernels and finds memory
        if trainer.global_rank == 0:
            log.info(
                "%d steps will take about %s, %s each as rehearsed; reading and validation not counted",
                steps,
                spoken(step * steps),
                spoken(step),
            )


class Throughput(Callback):
    """Logs samples_per_second over the steps since the last log, all ranks together, validation left out."""

    def __init__(self) -> None:
        self._samples, self._since = 0, 0.0

    def _restart(self) -> None:
        self._samples, self._since = 0, time.perf_counter()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self._samples += len(batch["keys"]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("samples_per_second", self._samples / (time.perf_counter() - self._since))
            self._restart()


class SkippedSamples(Callback):
    """Keeps the names of bad recordings that the stream passed over in training; in the end, those of all ranks."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.names.update(dict.fromkeys(batch["skipped"]))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.names = dict.fromkeys(itertools.chain(*gathered(list(self.names))))

    def state_dict(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.names = dict.fromkeys(state_dict["names"])


class OnlineProbe(Callback):
    """At the validation after each `every_steps` steps: the score of a ridge classifier on the encoder's features of
    labelled clips (`ridge_score`), logged as probe/accuracy or probe/mAP."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def is_due(self, step: int) -> bool:
        """Whether the validation after so many steps has a probe."""
        return step % self.every_steps == 0

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.is_due(trainer.global_step):
            return
        assert isinstance(pl_module, Pretraining) and isinstance(trainer.datamodule, ClipDataModule)  # type: ignore[attr-defined]
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert data.probe is not None
        encoder, outputs = pl_module.model.encoder, []
        pool = build_pool(DEFAULT_POOLING, encoder.grid[0], encoder.hidden_size)
        with parts_callable(pl_module.model), trainer.precision_plugin.forward_context():
            for batch in data.probe_stream():
                lengths = batch["lengths"].to(pl_module.device)
                log_mel = pl_module.log_mel(batch["waveform"].to(pl_module.device), lengths)
                own = encoder.patch_shape.own_columns(pl_module.log_mel.frames(lengths), encoder.grid[1])
                outputs.append((pool(encoder(log_mel), own).float().cpu(), batch["labels"]))
        parts = [part for rank in gathered(outputs) for part in rank]
        vectors, labels = (torch.cat(some) for some in zip(*parts, strict=True))
        name, score = ridge_score(vectors, labels, len(data.probe.labels.names))
        pl_module.log(f"probe/{name}", score)


class PredictionPictures(Callback):
    """At every validation, of the first held-out clip: its reconstruction, and what is predicted of its latent targets,
    of the objective's parts those that are minimized; as PNG."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @torch.inference_mode()
    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if batch_idx or trainer.sanity_checking or not pl_module.parts.keys() & {"reconstruction", "latent"}:
            return
        log_mel = pl_module.log_mel(batch["waveform"][:1], batch["lengths"][:1])
        mask = pl_module.draw_mask("validation", batch["positions"][:1], batch["lengths"][:1])
        # All ranks run the model, whose tensors they may hold in parts; one draws.
        own = pl_module.own_patches(batch["lengths"][:1])
        prediction = pl_module.model(log_mel, mask, pl_module.masking.masked, own)
        teacher = pl_module.teacher if "latent" in pl_module.parts else None
        targets = None if teacher is None else teacher(log_mel, own)
        if trainer.global_rank:
            return
        hidden = slice(None) if prediction.hidden is None else prediction.hidden[0]
        shape, title = pl_module.model.encoder.patch_shape, f"step {trainer.global_step}: {batch['keys'][0]}"
        clip = log_mel[0], mask[0]
        drawings: dict[str, Callable[[Path], None]] = {}
        if "reconstruction" in pl_module.parts:
            pixels = prediction.reconstruction[0, hidden]
            drawings["reconstruction"] = lambda path: draw_reconstruction(path, *clip, pixels, shape, title)
        if targets is not None:
            told, said = targets.patches[0], prediction.more["latent"][0, hidden]
            drawings["latent"] = lambda path: draw_latent(path, *clip, told, said, shape, title)
        for name, draw in drawings.items():
            path = self.folder / f"{name}-{trainer.global_step:07d}.png"
            try:
                draw(path)
            except OSError as error:  # a full disk ends no run
                log.warning("%s could not be written: %s", path, error)
                return
            log_picture(trainer.loggers, name, path, trainer.global_step)
