"""Labels in the order of time: one for each hop of a recording, or the characters of its transcript.

Shapes: B batch, N hops or characters, C classes.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssamba.data.labels import NO_LABEL, Labels, read_labels
from ssamba.data.shards.descriptions import as_list
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError

BLANK = "<blank>"
"""The name of class 0 of a transcript's characters, which stands between them (CTC)."""

_EXAMPLES = 4


@dataclass(frozen=True)
class SequenceLabels(Labels):
    """Several labels a clip, one after another, int64 (N,)."""

    def stack(self, labels: Sequence[int | np.ndarray[Any, Any]]) -> Tensor:
        rows = [np.asarray(one) for one in labels]
        filled = np.full((len(rows), max(map(len, rows))), NO_LABEL, np.int64)
        for row, into in zip(rows, filled, strict=True):
            into[: len(row)] = row
        return torch.from_numpy(filled)


@dataclass(frozen=True)
class HopLabels(SequenceLabels):
    """A sample's label is a list with the name of each hop, from its start on; what is left of the audio after the last
    whole hop may have one, too.

    An answer has the name of what lies in its middle, for a clip may begin within a hop.

    hop_samples: of an answer. listed_samples: of a name in the list, the same up to the rounding of frames.
    """

    hop_samples: int = 1
    listed_samples: float = 1.0

    def encode(self, sample: Mapping[str, Any], shard: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        names = as_list(sample["labels"].get(self.key))
        middles = np.arange(start + self.hop_samples / 2, stop + self.hop_samples / 2, self.hop_samples)
        places = (np.minimum(middles, stop - 1) / self.listed_samples).astype(np.int64)
        # What is left after the last whole hop goes with it, where it has no name.
        if len(names) < places[-1] or not all(name in self.indices for name in names):
            raise UserError(
                f"{sample['key']} in {shard} has {len(names)} names as its {self.key}; expected one of the "
                f"{len(self.names)} of the label list for each hop of task.hop_ms"
            )
        return np.array([self.indices[names[min(place, len(names) - 1)]] for place in places.tolist()], np.int64)

    def check(self, shards: ShardSet, option: str, cache: ShardCache) -> None:
        """Read the labels of shards, before any audio.

        Raises:
            UserError: recordings that have another number of names than hops; `option`, which names the shards, is in
                the message.
        """
        odd = []
        for row, (name, value) in read_labels(shards, self.key, cache).items():
            count, hops = len(as_list(json.loads(value))), shards.table["length"][row] / self.listed_samples
            if count not in (math.floor(hops), math.ceil(hops)) or not count:
                odd.append(f"{name} ({count} names, {hops:.2f} hops)")
        if odd:
            raise UserError(
                f"{len(odd)} of {shards.samples} recordings of {option} have another number of {self.key} than hops of "
                f"task.hop_ms: {', '.join(odd[:_EXAMPLES])}; expected a list with a name for each hop"
            )

    def noise(self, size: int, samples: int) -> Tensor:
        return torch.zeros(size, -(-samples // self.hop_samples)).long()


@dataclass(frozen=True)
class Transcripts(SequenceLabels):
    """A sample's label is its transcript; names: `BLANK` and the characters."""

    def encode(self, sample: Mapping[str, Any], shard: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        text = sample["labels"].get(self.key)
        if not isinstance(text, str) or any(letter not in self.indices for letter in text):
            raise UserError(
                f"{sample['key']} in {shard} has {self.key} {text!r:.200}; expected a text of the "
                f"{len(self.names) - 1} characters of the training transcripts"
            )
        return np.array([self.indices[letter] for letter in text], np.int64)

    def noise(self, size: int, samples: int) -> Tensor:
        return torch.ones(size, 1).long()


def read_texts(shards: ShardSet, key: str, option: str, cache: ShardCache) -> dict[int, str]:
    """The text that each recording of shards has as its label, by its row.

    Raises:
        UserError: some have none, or a list; `option`, which names the shards, is in the message.
    """
    texts = {row: (name, json.loads(value)) for row, (name, value) in read_labels(shards, key, cache).items()}
    odd = [f"{name} ({text!r:.60})" for name, text in texts.values() if not isinstance(text, str) or not text.strip()]
    if odd or len(texts) < shards.samples:
        detail = f"{len(odd)} have something else: {', '.join(odd[:_EXAMPLES])}" if odd else "the others have none"
        raise UserError(
            f"{option} has {shards.samples} recordings, of which {len(texts) - len(odd)} have a text as their {key}; "
            f"{detail}. Expected what is said in each"
        )
    return {row: text for row, (_, text) in texts.items()}


def vocabulary(texts: Mapping[str, Mapping[int, str]]) -> tuple[str, ...]:
    """`BLANK` and the characters of the texts of "train", in their order.

    Args:
        texts: of each split, as `read_texts` gives them.

    Raises:
        UserError: another split has characters that no training text has.
    """
    known = set().union(*texts["train"].values())
    for split, split_texts in texts.items():
        if unknown := set().union(*split_texts.values()) - known:
            count = sum(not unknown.isdisjoint(text) for text in split_texts.values())
            raise UserError(
                f"data.{split} has {count} texts with characters that no text of data.train has: "
                f"{' '.join(map(repr, sorted(unknown)[:20]))}; expected texts that are written alike in both"
            )
    return (BLANK, *sorted(known))


def least_hops(text: str) -> int:
    """How many answers a text takes: one for each character, and a blank between two that are alike."""
    return len(text) + sum(one == other for one, other in itertools.pairwise(text))
