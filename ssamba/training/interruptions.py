"""Signals that ask a run to end: SIGTERM and SIGUSR1 of a cluster that wants its machine back, Ctrl-C of a user."""

import logging
import os
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from ssamba.data.batches import Batch
from ssamba.errors import Stopped
from ssamba.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_ONE_REQUEST = 1.0  # seconds: `timeout` and some launchers signal a process and its group, one right after the other


class Interruptions(Callback):
    """Ends a run in order when a signal asks for it: after the current step, or in the middle of a
    validation, on all ranks at once, with a checkpoint, by raising `Stopped`. The same signal again kills at once.

    Under Slurm SIGUSR1 puts the job back into the queue.

    Args:
        command: how to resume the run, for the message.
    """

    def __init__(self, checkpoints: Checkpoints, command: str) -> None:
        self.checkpoints, self.command = checkpoints, command
        self._asked, self._since = 0, 0.0
        self._before: dict[int, Any] = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == self._asked:
            if time.monotonic() - self._since > _ONE_REQUEST:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self._asked, self._since = signum, time.monotonic()
        if signum == signal.SIGINT:
            os.write(2, b"\nssamba: stopping after this step; Ctrl-C again stops at once\n")

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {signum: signal.signal(signum, self._ask) for signum in _SIGNALS}

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer, validation_due=False)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._stop_if_asked(trainer, validation_due=True)

    def _stop_if_asked(self, trainer: lightning.Trainer, validation_due: bool) -> None:
        asked = self._asked
        if trainer.world_size > 1:  # a signal to one rank ends all
            device = trainer.strategy.root_device
            asked = int(trainer.strategy.reduce(torch.tensor(asked, device=device), reduce_op="max"))
        if not asked:
            return
        self.checkpoints.save(trainer, validation_due)
        step, saved = trainer.global_step, self.checkpoints.saved_step
        message = f"stopped by {signal.Signals(asked).name} after step {step} of {trainer.max_steps}"
        if step:
            message += ", which is saved" if saved == step else f"; the newest checkpoint is that of step {saved}"
        message += f". To go on: {self.command}"
        if trainer.global_rank:
            # One rank prints the message and has the status: a launcher takes another's for a failure, and kills the
            # rest.
            raise Stopped(0)
        requeued = [_requeue()] if asked == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ else []
        raise Stopped(128 + asked, message, *requeued)


def _requeue() -> str:
    """Put this Slurm job back into the queue; what came of it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    log.info("%s", " ".join(command))  # which ends this job at once if it succeeds
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        return f"`{' '.join(command)}` failed, so the job is not in the queue again: {detail}".strip()
    return f"job {job} is in the queue again"
