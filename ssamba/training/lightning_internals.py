"""All that is used of Lightning beyond its public interface, in one place.

Lightning restores the counts of its loops in the middle of an epoch as well, but leaves out a validation that is due
and counts a step twice, depending on the hook in which it was saved; its signal handlers act amid a step. What stands
here instead reads and sets attributes that a release may rename: it is tried with the versions of `TRIED`, which is
what the package asks for, and tests/training/test_lightning_internals.py fails where an attribute is gone.
"""

from typing import Any

import lightning

TRIED = ">=2.6,<2.7"


def leave_signals_alone(trainer: lightning.Trainer) -> None:
    """Keep Lightning's own signal handlers out: they act in the middle of a step, with a collective."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def leave_loops_out(checkpoint: dict[str, Any]) -> None:
    """Take what Lightning keeps of its loops from a checkpoint that is about to be written; `set_progress` stands in
    for it."""
    del checkpoint["loops"]


def set_progress(trainer: lightning.Trainer, step: int, validation_due: bool) -> None:
    """Let a trainer that is about to start stand where it stands after `step` optimizer steps and all that belongs to
    them; if the validation after that step is still due, `validate_now` has to follow once training has started."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.increment_by(step)  # trainer.global_step
    loop.batch_progress.total.increment_by(step * trainer.accumulate_grad_batches)  # when a validation is due
    loop._batches_that_stepped = step  # when metrics are logged, and as which step
    if validation_due and step == loop.max_steps:
        loop.max_steps += 1  # or the loop does not even start


def validate_now(trainer: lightning.Trainer, max_steps: int) -> None:
    """Validate as the training loop does after a step, and take back what `set_progress` did to `max_steps`."""
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped -= 1  # the row of metrics is that step's
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped += 1
    loop.max_steps = max_steps


def end_workers(trainer: lightning.Trainer) -> None:
    """End the workers of training: Lightning ends those of the loop that was at work, which may be a validation."""
    trainer.fit_loop.teardown()
