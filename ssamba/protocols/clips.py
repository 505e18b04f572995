"""Which clips a probe fits and scores, and a model's features of them, in memory.

Shapes: N clips, D features, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssamba.data.batches import Batch
from ssamba.data.labels import Labels, one_name_each, read_asked_labels, stratified_rows
from ssamba.data.order import ClipOrder, ClipRules, Indices
from ssamba.data.shards.descriptions import as_list
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.evaluation.baseline import log_mel_features
from ssamba.hub import SsambaModel
from ssamba.models.pools import Pool
from ssamba.progress import progress_bar

MOST_BYTES = 1 << 32
"""Of the features that are in memory."""
_AHEAD = 128  # clips that are read before the model runs, so that those of one length run together
_MAX_BAD_FRACTION = 0.01
_NAMED = 8  # in a message


class LabelledShards(NamedTuple):
    """Shards, and of each sample by its row its name and its labels (a text or a list of them, as JSON)."""

    shards: ShardSet
    labels: Mapping[int, tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """One fitting and its scoring: rows of the training shards, and those that are scored.

    Attributes:
        fold: the label whose recordings are scored; "" without folds.
        groups: the folds of the training recordings, by their rows; None without folds.
    """

    seed: int
    fold: str
    train: Sequence[int]
    test: Sequence[int]
    groups: Mapping[int, str] | None = None


def read_labelled(shards: ShardSet, key: str, multi_label: bool, option: str, cache: ShardCache) -> LabelledShards:
    """The labels of all samples.

    Raises:
        UserError: the shards have no such label, samples that lack it, or several where one is expected.
    """
    labels = read_asked_labels(shards, key, option, cache)
    if not multi_label:
        otherwise = ", or --loss bce, which is for several" if option == "--label" else ""
        one_name_each(labels, shards.samples, key, option, otherwise)
    elif len(labels) < shards.samples:
        raise UserError(f"{shards.samples - len(labels)} of {shards.samples} recordings have no {key}; expected some")
    return LabelledShards(shards, labels)


def choose_rows(labelled: LabelledShards, rows: Sequence[int], fraction: float, seed: int) -> list[int]:
    """So large a share of some rows, each label in its proportion, by the seed."""
    if fraction == 1:
        return list(rows)
    return stratified_rows({row: labelled.labels[row] for row in rows}, fraction, seed)


def names_of(labelled: LabelledShards, rows: Sequence[int]) -> set[str]:
    """All labels of some rows."""
    return {name for value in {labelled.labels[row][1] for row in rows} for name in as_list(json.loads(value))}


def check_classes(parts: Sequence[Part], train: LabelledShards, test: LabelledShards, fraction: float) -> None:
    """UserError where a part has nothing to learn or to score, or scores a class that it never sees in training."""
    for part in parts:
        where = f" without {part.fold}" if part.fold else ""
        if not part.test:
            raise UserError(f"no recording is in the fold {part.fold}; expected some to score")
        seen = names_of(train, part.train)
        if len(seen) < 2:
            raise UserError(
                f"the {len(part.train)} training recordings{where} have {len(seen)} labels; expected two or more to "
                "tell apart"
            )
        if unseen := sorted(names_of(test, part.test) - seen):
            few = f" (seed {part.seed}, --label-fraction {fraction:g})" if fraction < 1 else ""
            raise UserError(
                f"no training recording{where} is of {', '.join(unseen[:_NAMED])}, which "
                f"{'is' if len(unseen) == 1 else 'are'} to be scored{few}; expected every class in training"
            )


class Features(NamedTuple):
    """Of the clips that could be used, in the order of their rows.

    rows: of the shards' table. keys: names. labels: int64 (N,) or float32 (N, C). layers: by index, float32 (N, D).
    baseline: by the names of `log_mel_features`.
    """

    rows: list[int]
    keys: list[str]
    labels: Tensor
    layers: dict[int, Tensor]
    baseline: dict[str, Tensor]

    def places(self, rows: Sequence[int]) -> Tensor:
        """The positions of some rows, without those that could not be used."""
        place = {row: index for index, row in enumerate(self.rows)}
        return torch.tensor([place[row] for row in rows if row in place])


def check_memory(clips: int, layers: int, size: int) -> None:
    """UserError if the features of so many clips are more than `MOST_BYTES`."""
    if (needed := 4 * clips * layers * size) > MOST_BYTES:
        raise UserError(
            f"{clips} clips x {layers} layers x {size} features take {needed / 1e9:.1f} GB; expected at most "
            f"{MOST_BYTES / 1e9:.1f} GB: give --limit, one --layer or a smaller --pooling"
        )


@torch.inference_mode()
def extract(
    model: SsambaModel,
    shards: ShardSet,
    rows: Sequence[int],
    labels: Labels,
    cache: ShardCache,
    *,
    layers: Sequence[int],
    pool: Pool,
    batch_size: int,
    desc: str,
) -> Features:
    """What layers of a model, and log-mel statistics, have for the first clip of each recording.

    A recording shorter than the clip is filled up as in the model's training; padding enters no pool. One that cannot
    be read is left out, which is logged.
    """
    extractor = model.feature_extractor
    rules = ClipRules(extractor.clip_samples, "pad", shuffle_buffer=0, seed=0)
    chosen: Indices = np.sort(np.array(rows, np.int64))
    stream = ClipStream(
        shards,
        ClipOrder(shards, rules, chosen),
        batch_size=min(_AHEAD, len(chosen)),
        sampling_rate=extractor.sampling_rate,
        training=False,
        max_bad_fraction=_MAX_BAD_FRACTION,
        cache=cache,
        labels=labels,
    )
    used_rows: list[int] = []
    keys: list[str] = []
    truth: list[Tensor] = []
    vectors: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    baseline: dict[str, list[Tensor]] = {}
    with progress_bar(len(chosen), "clip", desc) as bar:
        for batch in stream:
            order = sorted(range(len(batch["keys"])), key=lambda place: int(batch["lengths"][place]))
            done: list[tuple[int, list[Tensor], dict[str, Tensor]]] = []
            for begin in range(0, len(order), batch_size):
                some = order[begin : begin + batch_size]
                done += zip(some, *_vectors(model, batch, some, layers, pool), strict=True)
            for place, of_layers, statistics in sorted(done, key=lambda one: one[0]):
                used_rows.append(int(chosen[batch["positions"][place]]))
                keys.append(batch["keys"][place])
                truth.append(batch["labels"][place])
                for layer, vector in zip(layers, of_layers, strict=True):
                    vectors[layer].append(vector)
                for name, vector in statistics.items():
                    baseline.setdefault(name, []).append(vector)
            bar.update(len(batch["keys"]))
    if not used_rows:
        raise UserError(f"none of {len(chosen)} recordings can be used; see the log")
    return Features(
        used_rows,
        keys,
        torch.stack(truth),
        {layer: torch.stack(some) for layer, some in vectors.items()},
        {name: torch.stack(some) for name, some in baseline.items()},
    )


def _vectors(
    model: SsambaModel, batch: Batch, places: Sequence[int], layers: Sequence[int], pool: Pool
) -> tuple[list[list[Tensor]], list[dict[str, Tensor]]]:
    """For each of some clips of a batch the vectors of the layers, and the log-mel statistics; float32, on the CPU."""
    lengths = batch["lengths"][list(places)]
    extractor, patch = model.feature_extractor, model.network.encoder.patch_shape
    # Shorter than a patch, a recording is filled up to one, as it would be in a clip: none is missing in a table.
    least = 0 if extractor.audio.short == "repeat" else extractor.min_samples
    waveforms = [
        batch["waveform"][place, : max(int(length), least)].numpy()
        for place, length in zip(places, lengths, strict=True)
    ]
    features = extractor.extract(waveforms)
    # Frames that fill no whole patch are not seen: without them, more clips are of one length and run together.
    spare = (features.lengths - patch.tshape) % patch.time_stride
    pooled = model(features.input_values, features.lengths - spare, features.own, layers, pool).pooled
    frames = extractor.log_mel.frames(lengths).to(features.own.device)
    statistics = {name: value.cpu() for name, value in log_mel_features(features.input_values, frames).items()}
    by_clip = [vector.cpu() for vector in pooled]
    return (
        [[vectors[row] for vectors in by_clip] for row in range(len(places))],
        [{name: value[row] for name, value in statistics.items()} for row in range(len(places))],
    )
