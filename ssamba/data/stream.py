"""Shards to batches: an order that the seed and the epoch decide, decoded late, whole or packed into full clips.

Shapes: B batch, S samples.
"""

import io
import json
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from torch import Tensor

from ssamba.audio import Waveform, read_audio, samples_for
from ssamba.errors import BadAudio, UserError

log = logging.getLogger(__name__)

_JUDGED_AFTER = 200  # recordings read before the share of bad ones can end a run in the middle of an epoch


class Batch(TypedDict):
    """waveform: float32 (B, S), zeros after the end; lengths: int64 (B,), valid samples; labels: int64 (B,) for one
    label a clip, float32 (B, C) for several, empty without labels; keys: the clips' names; skipped: names and reasons
    of bad recordings met since the batch before."""

    waveform: Tensor
    lengths: Tensor
    labels: Tensor
    keys: list[str]
    skipped: list[str]


@dataclass(frozen=True)
class Labels:
    """Which label of a sample is read, the list that numbers it, and whether a clip may have several."""

    key: str
    names: Sequence[str]
    several: bool = False
    numbers: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", {name: number for number, name in enumerate(self.names)})

    def encode(self, sample: Mapping[str, Any], shard: str) -> int | np.ndarray[Any, Any]:
        """The class number (or the multi-hot vector) of a sample's JSON; UserError for a label that is not known."""
        value = sample["labels"].get(self.key)
        values = value if isinstance(value, list) else [value]
        unknown = [one for one in values if one not in self.numbers]
        if unknown or (not self.several and len(values) != 1):
            raise UserError(
                f"{sample['key']} in {shard} has {self.key} {value!r}; expected "
                f"{'some' if self.several else 'one'} of the {len(self.names)} of the label list"
            )
        if not self.several:
            return self.numbers[values[0]]
        hot = np.zeros(len(self.names), np.float32)
        hot[[self.numbers[one] for one in values]] = 1
        return hot


def read_labels(shards: Sequence[str], key: str) -> dict[str, str]:
    """The label `key` of each sample that has one, by the sample's name; the audio is passed over."""
    found: dict[str, str] = {}
    for shard in shards:
        with _named(shard), tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    sample = json.load(content)
                    if key in sample["labels"]:
                        found[sample["key"]] = json.dumps(sample["labels"][key])
    return found


def stratified_subset(labels: Mapping[str, str], fraction: float, seed: int) -> frozenset[str]:
    """round(fraction * n) of n names, each label in its proportion (largest remainders), at random by the seed."""
    rng = random.Random(seed)
    groups: dict[str, list[str]] = {}
    for name in sorted(labels):
        groups.setdefault(labels[name], []).append(name)
    share = {label: len(names) * fraction for label, names in groups.items()}
    counts = {label: int(value) for label, value in share.items()}
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=lambda label: counts[label] - share[label])
    for label in order[: round(fraction * len(labels)) - sum(counts.values())]:
        counts[label] += 1
    return frozenset(name for label, names in groups.items() for name in rng.sample(names, counts[label]))


class _named:
    """Say which shard it was that could not be read."""

    def __init__(self, *shards: str) -> None:
        self.shards = shards

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, tarfile.TarError | EOFError | json.JSONDecodeError):
            # webdataset puts the path among the arguments of the error.
            shard = next((shard for shard in self.shards if shard in error.args), self.shards[0])
            what = error.args[0] if error.args else "it ends too early"
            raise UserError(
                f"shard {shard} is damaged ({what}); `ssamba shards verify` finds all such shards of a folder"
            ) from error


class ClipStream(torch.utils.data.IterableDataset[Batch]):
    """Batches from webdataset shards, for one rank and whichever of its workers iterates.

    The order is a function of (seed, epoch) and of the number of consumers (ranks x workers): the shards are permuted
    by (seed, epoch), dealt out to the consumers, and each consumer mixes its recordings through a buffer. With fewer
    shards than consumers each reads all shards and keeps every n-th recording. `repeat` goes on with the next epoch
    for ever, without padding or dropping a batch; otherwise there is one epoch in the order of the shards.

    Args:
        shards: paths of tars with `<key>.flac` and `<key>.json`.
        clip_samples: S; longer recordings are cropped (at random when shuffling, else at their start).
        keys: only these samples, or None for all.
        short: what fills a clip: "pad" (zeros), "repeat" (the recording again), or "pack": recordings are joined end to
            end and the joined signal is cut into clips of S samples.
        rank, world_size: of the process that made this object (workers are told apart by torch).
    """

    def __init__(self, shards: Sequence[str], *, batch_size: int, sampling_rate: int, clip_samples: int,
                 seed: int, shuffle_buffer: int, repeat: bool, labels: Labels | None = None,
                 keys: frozenset[str] | None = None, short: str = "pad", max_seconds: float, max_bad_fraction: float,
                 rank: int = 0, world_size: int = 1) -> None:  # fmt: skip
        self.shards = list(shards)
        self.batch_size, self.sampling_rate = batch_size, sampling_rate
        self.clip_samples, self.least_samples = clip_samples, samples_for(1, sampling_rate)
        self.seed, self.shuffle_buffer, self.repeat = seed, shuffle_buffer, repeat
        self.labels, self.keys, self.short = labels, keys, short
        self.max_seconds, self.max_bad_fraction = max_seconds, max_bad_fraction
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        consumer, consumers = self.rank * workers + number, self.world_size * workers
        skipped: list[str] = []
        clips = self._clips(consumer, consumers, skipped)
        for group in wds.filters.batched(self.batch_size, collation_fn=None, partial=True)(clips):
            yield self._collate(group, skipped)
            skipped.clear()

    def _clips(self, consumer: int, consumers: int, skipped: list[str]) -> Iterator[dict[str, Any]]:
        epoch = 0
        carried: list[dict[str, Any]] = []
        while True:
            recordings = self._recordings(epoch, consumer, consumers, skipped)
            yield from self._packed(recordings, carried) if self.short == "pack" else recordings
            if not self.repeat:
                return
            epoch += 1

    def _recordings(self, epoch: int, consumer: int, consumers: int, skipped: list[str]) -> Iterator[dict[str, Any]]:
        """One epoch of decoded recordings. What is bad is counted an epoch at a time."""
        order = list(self.shards)
        rng = random.Random(f"{self.seed}/{epoch}")
        if self.repeat:
            rng.shuffle(order)
            # From here on each consumer has chance of its own.
            rng = random.Random(f"{self.seed}/{epoch}/{consumer}")
        whole = len(order) >= consumers and self.repeat
        pipeline = wds.DataPipeline(
            wds.SimpleShardList(order[consumer::consumers] if whole else order),
            wds.tarfile_to_samples(),
            lambda samples: self._wanted(samples, 0 if whole else consumer, 1 if whole else consumers),
            *([wds.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=rng)] if self.repeat else []),
        )
        read, bad = 0, 0
        samples = iter(pipeline)
        while True:
            with _named(*order):
                raw = next(samples, None)
            if raw is not None:
                read += 1
                try:
                    recording = self._decode(raw, rng)
                except BadAudio as error:
                    bad += 1
                    recording = None
                    skipped.append(f"{raw['__key__']} in {raw['__url__']}: {error}")
                    log.warning("skipped %s", skipped[-1])
            if bad and (raw is None or read >= _JUDGED_AFTER) and bad > self.max_bad_fraction * read:
                raise UserError(
                    f"{bad} of {read} recordings are bad, more than data.max_bad_fraction {self.max_bad_fraction:g} "
                    f"allows; the last: {skipped[-1] if skipped else 'see the log'}"
                )
            if raw is None:
                break
            if recording is not None:
                yield recording
        # Nothing to read is no mistake where it is another consumer's turn: the next epoch deals the shards out anew.
        if read == bad and (bad or (self.repeat and not whole)):
            raise UserError(f"no recording of {len(order)} shards ({order[0]}, ...) can be used in epoch {epoch}")

    def _wanted(self, samples: Iterable[dict[str, Any]], first: int, step: int) -> Iterator[dict[str, Any]]:
        position = 0
        for sample in samples:
            if self.keys is None or sample["__key__"] in self.keys:
                if position % step == first:
                    yield sample
                position += 1

    def _decode(self, raw: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
        if "flac" not in raw or "json" not in raw:
            raise BadAudio("it lacks its .flac or its .json")
        waveform = read_audio(io.BytesIO(raw["flac"]), self.sampling_rate, self.max_seconds)
        if waveform.size < self.least_samples:
            raise BadAudio(f"it has {waveform.size} samples; one frame takes {self.least_samples}")
        if self.short == "repeat":
            waveform = np.resize(waveform, max(waveform.size, self.clip_samples))
        if waveform.size > self.clip_samples and self.short != "pack":
            start = rng.randint(0, waveform.size - self.clip_samples) if self.repeat else 0
            waveform = waveform[start : start + self.clip_samples]
        label = None
        if self.labels is not None:
            label = self.labels.encode(json.loads(raw["json"]), raw["__url__"])
        return {"key": raw["__key__"], "waveform": waveform, "label": label}

    def _packed(self, recordings: Iterable[dict[str, Any]], carried: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Clips of exactly `clip_samples`; the rest of a recording opens the next clip, across epochs too."""
        for recording in recordings:
            carried.append(recording)
            while sum(part["waveform"].size for part in carried) >= self.clip_samples:
                joined: Waveform = np.concatenate([part["waveform"] for part in carried])
                names = "+".join(part["key"] for part in carried)
                yield {"key": names, "waveform": joined[: self.clip_samples], "label": None}
                rest = joined[self.clip_samples :]
                carried[:] = [{**carried[-1], "waveform": rest}] if rest.size else []

    def _collate(self, clips: Sequence[Mapping[str, Any]], skipped: Sequence[str]) -> Batch:
        waveform = torch.zeros(len(clips), self.clip_samples)
        for row, clip in zip(waveform, clips, strict=True):
            row[: clip["waveform"].size] = torch.from_numpy(clip["waveform"])
        lengths = torch.tensor([clip["waveform"].size for clip in clips])
        labels = (
            torch.empty(0) if self.labels is None else torch.from_numpy(np.stack([clip["label"] for clip in clips]))
        )
        return Batch(waveform=waveform, lengths=lengths, labels=labels, keys=[clip["key"] for clip in clips],
                     skipped=list(skipped))  # fmt: skip
