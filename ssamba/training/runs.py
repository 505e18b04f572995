"""A run's folder and lock, what is at work in it, and its training."""

import logging
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ssamba.errors import Stopped, UserError
from ssamba.launch import rank
from ssamba.printable import masked
from ssamba.training.callbacks import SkippedSamples
from ssamba.training.checkpoints import Checkpoints
from ssamba.training.distributed import part_at_exit
from ssamba.training.lightning_internals import end_workers

LOCK = ".lock"
"""The file in a run folder that whoever writes there holds a lock on."""

log = logging.getLogger(__name__)

_PACKAGES = ("ssamba", "torch", "torchaudio", "lightning", "numpy", "numba", "soundfile", "soxr")


class RunLock:
    """The right to write into a run folder, which one process has at a time (of the ranks of a run the first, for all).

    As a context: of a folder that holds a run from the start, of a new one from `take` on. The lock is the system's own
    (flock): it ends with its process, however that ends, and a file that is left hinders nobody.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken = False
        """Whether the right is this process's: no other has it, or the file system cannot tell."""
        self._lock: filelock.BaseFileLock | None = None

    def __enter__(self) -> Self:
        if (self.folder / "recipe.yaml").is_file():
            self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            # While it is held: who waits with the file open sees that it is gone, and asks for another.
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()

    def take(self) -> None:
        """Take it, if this is not done.

        Raises:
            UserError: another process has it.
        """
        if rank() or self.taken:
            return
        # Where the system has no such locks, the file alone would outlive its process.
        lock = filelock.FileLock(self.folder / LOCK, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
            self._lock = lock
        except filelock.Timeout as error:
            raise UserError(
                f"another process is at work on the run in {self.folder}; wait for its end, or give another run_dir"
            ) from error
        except (OSError, NotImplementedError) as error:
            log.warning("%s cannot be locked (%s); start no second process on this run", self.folder, error)
        self.taken = True


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != LOCK]


def check_run(folder: Path, overwrite: bool) -> None:
    """Check that a run may be made in `folder`; changes nothing.

    Raises:
        UserError: it exists and is not empty; with `overwrite`, only if it is no run's folder, which is left alone.
    """
    if rank() or not folder.exists() or (folder.is_dir() and not _content(folder)):
        return
    if not overwrite:
        raise UserError(f"run folder {folder} exists; give another run_dir, or --overwrite to replace the run in it")
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} holds no recipe.yaml, so it is no run; --overwrite does not remove it")


@rank_zero_only
def open_run(folder: Path, overwrite: bool, lock: RunLock) -> None:
    """Make a new run folder and lock it, in place of the run in it with `overwrite`.

    Raises:
        UserError: as `check_run`, or another process is at work there.
    """
    check_run(folder, overwrite)
    known = lock.taken
    folder.mkdir(parents=True, exist_ok=True)
    lock.take()
    if not known and _content(folder):
        raise UserError(f"another process has made a run in {folder} meanwhile; give another run_dir")
    for path in _content(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def command_record() -> dict[str, Any]:
    """What is at work here: command, time, commit, versions, hardware."""
    return {
        "command": [Path(sys.argv[0]).name, *map(masked, sys.argv[1:])],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "hardware": hardware(),
    }


def _git_commit() -> str | None:
    """Of the checkout that this is; None for an installed package, and where there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # of a repository around an installed package it would be another's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        return None


def peak_memory_bytes() -> dict[str, int]:
    """The most that this process has had in memory until now, and of each GPU the most that torch took there."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for index in range(torch.cuda.device_count()):
        peaks[f"GPU {index}"] = torch.cuda.max_memory_allocated(index)
    return peaks


def hardware() -> dict[str, Any]:
    """The processor, the threads that torch uses and the GPUs, by name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": _processor(), "threads": torch.get_num_threads(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@dataclass(frozen=True)
class RunTrainer:
    """A trainer, and those of its callbacks that know what goes into the run's record."""

    trainer: lightning.Trainer
    checkpoints: Checkpoints
    skipped: SkippedSamples


# What Lightning and torch raise of a checkpoint with plain data in it that are not theirs.
_NOT_RESTORED = (LookupError, TypeError, ValueError, AttributeError)


def fit(
    training: RunTrainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    start: Path | None,
) -> None:
    """Train, from a checkpoint if there is one.

    Raises:
        UserError: a checkpoint that is not this run's, or a loader's worker was killed.
        Stopped: a signal asked for it.
    """
    trainer = training.trainer
    try:
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
    except Stopped:
        part_at_exit()
        raise
    except BaseException as error:
        # torch raises of a worker's end from the signal, wherever this process is then: amid what is said of it, too.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Processes that Lightning started beside this one would wait for it.
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if start is not None and not training.checkpoints.started and isinstance(error, _NOT_RESTORED):
            raise UserError(f"checkpoint {start} cannot be gone on from: {type(error).__name__}: {error}") from error
        if (lost := _lost_worker(error)) is None:
            raise
        raise UserError(
            f"a worker that reads data was killed, most likely for want of memory ({lost}): give fewer "
            "data.num_workers or a smaller data.batch_size, and go on with --resume"
        ) from error
    finally:
        end_workers(trainer)


def _lost_worker(error: BaseException | None) -> BaseException | None:
    """The error that shows that a loader's worker died, among an error and its contexts.

    torch has no type for it, and raises it from the signal, wherever this process is then. Or, if that is quicker, the
    connection to the worker is what breaks.
    """
    while error is not None:
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            return error
        frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, OSError | EOFError) and "_try_get_data" in frames:
            return error
        error = error.__context__
    return None
