"""The LightningDataModule: a stream for each split, and the place in the order that a checkpoint keeps."""

import functools
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import lightning
import torch
import webdataset as wds

from ssamba.data.batches import FEATURES, Batch, Stage
from ssamba.data.features import StoredFeatures
from ssamba.data.labels import Labels
from ssamba.data.mixup import Mixup
from ssamba.data.order import ClipOrder, ClipRules, Indices, Weights
from ssamba.data.shards.finding import ShardList
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import BatchStream, ClipStream, ShardStream
from ssamba.data.streaming import Progress
from ssamba.errors import UserError
from ssamba.jobs import blocked

log = logging.getLogger(__name__)

WAITS_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")
"""macOS has none."""


@dataclass(frozen=True)
class ClipSettings:
    """How recordings become batches; batch_size and num_workers are each device's, cache_bytes each machine's."""

    rules: ClipRules
    sampling_rate: int
    batch_size: int
    max_bad_fraction: float
    cache_bytes: int
    num_workers: int = 0


@dataclass(frozen=True)
class TrainingShards:
    """What is trained on: `rows` of the shards' table, or all; with weights, `sources` counts each one's shards;
    `balance`: of every row of the table, how often it is to be drawn."""

    shards: ShardSet
    rows: Indices | None = None
    sources: Sequence[int] | None = None
    weights: Sequence[float] | None = None
    balance: Weights | None = None


@dataclass(frozen=True)
class ProbeShards:
    """Labelled clips that a pretraining run watches: `rows` of the shards' table."""

    shards: ShardSet
    rows: Indices
    labels: Labels


class ClipDataModule(lightning.LightningDataModule):
    """Training clips for the steps that a run has left, from where a checkpoint has stopped; held-out clips in order.

    Args:
        mixup: the chance that a training clip is mixed with one of all training recordings.
        stages, members: of the training clips, as `ssamba.data.pipeline` has them.
        features: what is read of the features of training and validation clips; None: nothing.
        rows: of the tables of "validation" and "test", those that are used; all of a split that is not named.

    Attributes:
        stages: may be set until training begins.
        members: may be set until then, too.
        consumed: training clips that were trained on, over all ranks. The trainer counts them by `count`; checkpoints
            keep the number.
        progress: of shards without an index, which of their clips were consumed on this rank.
    """

    def __init__(
        self,
        settings: ClipSettings,
        *,
        train: TrainingShards | ShardList | None = None,
        validation: ShardSet | None = None,
        test: ShardSet | None = None,
        labels: Labels | None = None,
        mixup: float = 0.0,
        rows: Mapping[str, Indices] | None = None,
        probe: ProbeShards | None = None,
        stages: Sequence[Stage] = (),
        members: Sequence[str] = (),
        features: StoredFeatures | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.labels, self.mixup, self.rows = settings, labels, mixup, rows or {}
        self.stages, self.members, self.features = stages, members, features
        self.train, self.validation, self.test, self.probe = train, validation, test, probe
        self.consumed = 0
        self.progress = Progress() if isinstance(train, ShardList) else None

    @functools.cached_property
    def order(self) -> ClipOrder:
        """The order of training."""
        train = self._indexed()
        return ClipOrder(train.shards, self.settings.rules, train.rows, train.sources, train.weights, train.balance)

    def training_stream(self) -> BatchStream:
        """This rank's share of the clips that are not consumed: for a trainer's remaining steps, or without end."""
        trainer = self.trainer
        batches = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches if trainer else None
        options: dict[str, Any] = {
            "first": self.consumed,
            "batches": batches,
            "stages": self.stages,
            "members": self.members,
        }
        if isinstance(self.train, ShardList):
            s = self.settings
            return ShardStream(
                self.train,
                s.rules,
                batch_size=s.batch_size,
                sampling_rate=s.sampling_rate,
                max_bad_fraction=s.max_bad_fraction,
                progress=self.progress,
                **_place(trainer),
                **options,
            )
        train, mixup = self._indexed(), None
        if self.mixup:
            mixup = Mixup.of(self.mixup, train.shards, self.settings.rules, train.rows)
        return self._stream(train.shards, self.order, True, trainer, mixup=mixup, features=self.features, **options)

    def validation_stream(self) -> ClipStream:
        """This rank's share of the validation clips."""
        assert self.validation is not None
        order = self._in_shard_order(self.validation, "validation")
        return self._stream(self.validation, order, False, self.trainer, features=self.features)

    def test_stream(self) -> ClipStream:
        """All test clips, for the one rank that scores them."""
        assert self.test is not None
        return self._stream(self.test, self._in_shard_order(self.test, "test"), False, None)

    def probe_stream(self) -> ClipStream:
        """This rank's share of the probe's clips, each recording by itself."""
        assert self.probe is not None
        short = "pad" if self.settings.rules.short == "pad" else "repeat"
        order = ClipOrder(
            self.probe.shards, replace(self.settings.rules, shuffle_buffer=0, short=short), self.probe.rows
        )
        return self._stream(self.probe.shards, order, False, self.trainer, labels=self.probe.labels)

    def noise(self) -> Batch:
        """A batch as large as one device's, for which no recording is read: whole clips of noise, all of one class."""
        size, samples = self.settings.batch_size, self.settings.rules.clip_samples
        labels = torch.empty(0) if self.labels is None else self.labels.noise(size, samples)
        batch = Batch(
            waveform=0.1 * torch.randn(size, samples, generator=torch.Generator().manual_seed(0)),
            lengths=torch.full((size,), samples),
            labels=labels,
            keys=["noise"] * size,
            positions=list(range(size)),
            consumed=0,
            skipped=[],
        )
        if self.features is not None:
            batch[FEATURES] = self.features.noise(size)
        return batch

    def train_dataloader(self) -> wds.WebLoader:
        return self._loader(self.training_stream())

    def val_dataloader(self) -> wds.WebLoader | list[Batch]:
        return self._loader(self.validation_stream()) if self.validation else []

    def count(self, batch: Batch) -> None:
        """Count a training batch as consumed."""
        self.consumed = batch["consumed"]
        if self.progress is not None:
            self.progress.add(batch["taken"], batch["ended"])

    def state_dict(self) -> dict[str, Any]:
        """How many clips are consumed, the same on every rank, and what their order depends on."""
        rules = asdict(self.settings.rules)
        if isinstance(self.train, ShardList) and self.progress is not None:
            order = {**rules, "data": self.train.fingerprint}
            epoch = self.progress.first // len(self.train.urls)
            return {"epoch": epoch, "clips": self.consumed, "order": order, "shards": self.progress.state()}
        train = self._indexed()
        rows = "all" if train.rows is None else hashlib.sha256(train.rows.tobytes()).hexdigest()
        balance = None if train.balance is None else hashlib.sha256(train.balance.tobytes()).hexdigest()
        data = {
            "data": train.shards.fingerprint,
            "recordings": rows,
            "weights": train.weights and list(train.weights),
            "balance": balance,
        }
        return {"epoch": self.consumed // len(self.order), "clips": self.consumed, "order": {**rules, **data}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the clips that are consumed; UserError if they were of another order."""
        ours, theirs = self.state_dict()["order"], dict(state_dict["order"])
        if "mixed" in theirs:  # as older versions call it
            theirs["shuffle_buffer"] = theirs.pop("mixed")
        if differ := [name for name in ours if theirs.get(name) != ours[name]]:
            changes = "; ".join(f"{name} was {theirs.get(name)!r} and is {ours[name]!r}" for name in differ)
            raise UserError(f"the checkpoint stands in another order of the training clips: {changes}")
        self.consumed = int(state_dict["clips"])
        if self.progress is not None:
            self.progress = Progress.of(state_dict["shards"])
            if self.trainer is None or self.trainer.is_global_zero:
                log.warning(
                    "data.order=streaming: %d shards that were begun are read again, but for the recordings that are "
                    "behind; what is left of this epoch comes in another order, and a recording that the end of a clip "
                    "cut (data.short=pack) is heard from its beginning",
                    len(self.progress.taken),
                )

    def _indexed(self) -> TrainingShards:
        assert isinstance(self.train, TrainingShards)
        return self.train

    def _in_shard_order(self, shards: ShardSet, split: str) -> ClipOrder:
        return ClipOrder(shards, replace(self.settings.rules, shuffle_buffer=0), self.rows.get(split))

    def _stream(
        self,
        shards: ShardSet,
        order: ClipOrder,
        training: bool,
        trainer: lightning.Trainer | None,
        labels: Labels | None = None,
        **options: Any,
    ) -> ClipStream:
        s = self.settings
        return ClipStream(
            shards,
            order,
            batch_size=s.batch_size,
            sampling_rate=s.sampling_rate,
            training=training,
            max_bad_fraction=s.max_bad_fraction,
            cache=ShardCache(s.cache_bytes),
            labels=labels or self.labels,
            **_place(trainer),
            **options,
        )

    def _loader(self, stream: BatchStream) -> wds.WebLoader:
        loader = wds.WebLoader(
            stream,
            batch_size=None,
            num_workers=self.settings.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_obey_the_parent_alone,
            multiprocessing_context=_WorkerContext() if self.settings.num_workers and WAITS_FOR_SIGNALS else None,
        )
        # Lightning reads a batch ahead of what has no length, and loses it in a checkpoint.
        return loader.with_length(len(stream), silent=True) if stream.source.batches is not None else loader


def _place(trainer: lightning.Trainer | None) -> dict[str, Any]:
    """Of this process among those that train together."""
    return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {"rank": 0, "world_size": 1}


class _Worker(ForkProcess):
    """Begun with SIGTERM blocked, so that no thread takes it which a library starts in every forked process (wandb's
    telemetry does)."""

    def start(self) -> None:
        with blocked(signal.SIGTERM):
            super().start()


class _WorkerContext(ForkContext):
    Process = _Worker


def _obey_the_parent_alone(worker: int) -> None:
    """What asks a run to end is often sent to all its processes; a worker leaves it to the one that has its batches."""
    sys.excepthook = lambda *_: None  # a connection that breaks with another worker's end prints a traceback by it
    for kind in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)
    if WAITS_FOR_SIGNALS:
        threading.Thread(target=_await_the_parent, daemon=True).start()


def _await_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
