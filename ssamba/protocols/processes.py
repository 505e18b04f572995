"""Runs made by processes of their own: one after another, side by side, or by the workers of a cluster."""

import fcntl
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ssamba.errors import Stopped

log = logging.getLogger(__name__)

LOCK = ".runs.lock"
"""In a folder below which runs are made: whoever makes them holds a lock on it, and so does each of their processes."""

PROGRAM = "import sys; sys.argv[0] = 'ssamba'; from ssamba.cli import run; run()"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_children: set["subprocess.Popen[bytes]"] = set()
_inherited: list[int] = []  # files that are open in each child, too


@dataclass(frozen=True)
class Work:
    """A run to be made, or gone on with, by `ssamba pretrain` or `ssamba finetune`."""

    task_type: str
    recipe: str
    """The file of its resolved recipe."""
    log: str | None = None
    """A file at whose end stands what it says; None: it says it where this process does."""
    environment: Mapping[str, str] | None = field(default=None, compare=False, repr=False)
    """All of it; None: this process's."""


def make_run(work: Work) -> int:
    """Make a run by a process of its own, or go on with it; the exit status, below 0 the signal that killed it."""
    command = [sys.executable, "-c", PROGRAM, work.task_type, work.recipe, "--resume", "auto"]
    with Path(work.log).open("ab") if work.log else nullcontext() as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env=work.environment and {**work.environment}, pass_fds=_inherited
        )
        _children.add(child)
        try:
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:  # the run has it too, and ends in order
                    continue
        finally:
            _children.discard(child)


def was_stopped(status: int) -> bool:
    """Whether a run was ended by a signal, which is no failure of its own."""
    return status >= 128 or status < 0


def stopped(status: int, message: str) -> Stopped:
    """For a process that ends as one of its runs did."""
    return Stopped(status if status > 0 else 128 - status, message)


@contextmanager
def signals_handed_on() -> Iterator[None]:
    """Within it, signals that ask this process to end are passed on to its runs."""
    if threading.current_thread() is not threading.main_thread():  # where no signal comes
        yield
        return

    def hand_on(asked: int, _: object) -> None:
        for child in list(_children):
            child.send_signal(asked)

    before = {signum: signal.signal(signum, hand_on) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def only_runs_below(folder: Path) -> Iterator[None]:
    """Runs of an earlier call, which outlive one that is killed, are waited for: each holds the lock, too."""
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("runs below %s are still being made by another call; this one waits for their end", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s); start no second call on it", folder, error)
        _inherited.append(file.fileno())
        try:
            yield
        finally:
            _inherited.remove(file.fileno())
