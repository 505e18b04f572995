"""The LightningDataModule: a stream for each split."""

from collections.abc import Sequence
from dataclasses import dataclass

import lightning
import torch.utils.data

from ssamba.data.stream import Batch, ClipStream, Labels


@dataclass(frozen=True)
class ClipSettings:
    """How recordings become batches; the fields are `ClipStream`'s."""

    batch_size: int
    sampling_rate: int
    clip_samples: int
    seed: int
    shuffle_buffer: int
    short: str
    max_seconds: float
    max_bad_fraction: float


class ClipDataModule(lightning.LightningDataModule):
    """Training clips without end, validation and test clips once, in their order.

    Args:
        train, validation, test: paths of shards; empty: no such loader.
        labels: None in pretraining.
        train_keys: only these training samples, or None for all.
        num_workers: decoding processes for each rank.
    """

    def __init__(self, settings: ClipSettings, *, train: Sequence[str], validation: Sequence[str] = (),
                 test: Sequence[str] = (), labels: Labels | None = None, train_keys: frozenset[str] | None = None,
                 num_workers: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.settings, self.labels, self.train_keys, self.num_workers = settings, labels, train_keys, num_workers
        self.shards = {"train": list(train), "validation": list(validation), "test": list(test)}

    def stream(self, split: str) -> ClipStream:
        """The stream of a split: this rank's share of it, but all of the test clips, which one rank scores alone."""
        s = self.settings
        trainer = None if split == "test" else self.trainer
        return ClipStream(
            self.shards[split], batch_size=s.batch_size, sampling_rate=s.sampling_rate, clip_samples=s.clip_samples,
            seed=s.seed, shuffle_buffer=s.shuffle_buffer, repeat=split == "train",
            labels=self.labels, keys=self.train_keys if split == "train" else None, short=s.short,
            max_seconds=s.max_seconds, max_bad_fraction=s.max_bad_fraction,
            rank=trainer.global_rank if trainer else 0, world_size=trainer.world_size if trainer else 1,
        )  # fmt: skip

    def _loader(self, split: str) -> torch.utils.data.DataLoader[Batch]:
        return torch.utils.data.DataLoader(
            self.stream(split), batch_size=None, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and split == "train", pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def train_dataloader(self) -> torch.utils.data.DataLoader[Batch]:
        return self._loader("train")

    def val_dataloader(self) -> torch.utils.data.DataLoader[Batch] | list[Batch]:
        return self._loader("validation") if self.shards["validation"] else []
