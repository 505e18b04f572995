"""The index of a folder of shards: what they hold, known without reading them. Imports no torch.

On disk, `OUT/<split>/index.json` lies beside the shards `000000.tar, 000001.tar, ...` that it lists, and samples.npy
has the position of each sample in them. All may be remote, too: at urls, or read by a command. What is read is
untrusted: it is typed and bounded, and checked before anything is made of it.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from ssamba.data.shards.arrays import MOST_HEADER, parse_array
from ssamba.data.shards.descriptions import TEXT_LABEL
from ssamba.data.shards.features import FeatureInfo
from ssamba.data.shards.urls import renamed
from ssamba.errors import UserError
from ssamba.files import Count, Sha256, parse_json, read_bounded, write_text, written_beside
from ssamba.printable import masked, printable

INDEX_NAME = "index.json"
SAMPLES_NAME = "samples.npy"
DESCRIPTIONS_NAME = "labels.jsonl"
FORMAT = "ssamba-shards-2"
SAMPLE = np.dtype([("audio", "<i8"), ("audio_bytes", "<i4"), ("json", "<i8"), ("json_bytes", "<i4"), ("length", "<i4")])
"""A row of samples.npy, one a sample, shard after shard: where its audio and its JSON begin within the shard, in bytes,
how many bytes they have, and how many samples the audio has."""

Samples = npt.NDArray[np.void]

SAMPLING_RATES = (100, 1_000_000)
"""The lowest and the highest in Hz that shards may have."""

MAKE_AGAIN = "make the shards again with their data_prep script"
_EXPECTED = f"the {INDEX_NAME} of a writer: {MAKE_AGAIN}, or `ssamba shards index --overwrite` for those of others"
MOST_BYTES = 1 << 26  # of an index.json: some 300,000 shards, or recordings that were skipped
_MOST_NAME = 255  # bytes of a file's name
_ROUNDING = 0.01  # s, by which the seconds of shards may differ from those of their samples

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
SamplingRate = Annotated[int, msgspec.Meta(ge=SAMPLING_RATES[0], le=SAMPLING_RATES[1])]


@dataclass(frozen=True)
class ShardInfo:
    """What the index says about one shard."""

    name: Text
    """File name within the index's folder."""
    samples: Count
    seconds: Seconds
    bytes: Count
    sha256: Sha256
    """Of the file, in hex."""


@dataclass(frozen=True)
class Skipped:
    """A recording that was left out when the shards were made."""

    source: str
    why: str


@dataclass(frozen=True)
class Descriptions:
    """What the index says about labels.jsonl, which holds the samples' JSON in place of the shards."""

    bytes: Count
    sha256: Sha256
    """Of the file, in hex."""
    fields: Mapping[Text, Text]
    """Label key -> where in the shards it was found: the extension of a member, or a field of the JSON."""

    @property
    def info(self) -> ShardInfo:
        """As of a shard, since it is checked, fetched and read as one."""
        return ShardInfo(DESCRIPTIONS_NAME, 0, 0.0, self.bytes, self.sha256)


@dataclass(frozen=True)
class ShardIndex:
    """One split's shards."""

    dataset: str
    split: str
    sampling_rate: SamplingRate
    """Hz of every sample."""
    labels: Mapping[Text, tuple[Text, ...]]
    """Label key -> names, in the order of their indices; those of the whole data set, the same in each split. None of
    `TEXT_LABEL`, unless a list was given."""
    skipped: tuple[Skipped, ...]
    shards: tuple[ShardInfo, ...]
    samples_sha256: Sha256
    """Of samples.npy, in hex."""
    passed_over: Mapping[str, Count] = field(default_factory=dict)
    """What was found beside the recordings and not read, such as `.txt` or `hidden files` -> how many of it."""
    above_full_scale: Count = 0
    """How many recordings had samples above full scale when the shards were made; they are read at their level."""
    descriptions: Descriptions | None = None
    """None: each sample's JSON is in its shard."""
    features: FeatureInfo | None = None
    """What a teacher said of each sample, if that is in the shards."""

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def seconds(self) -> float:
        return math.fsum(shard.seconds for shard in self.shards)

    @classmethod
    def read(cls, folder: Path) -> "ShardIndex":
        """The index in a folder.

        Raises:
            UserError: no folder, no index in it, one of another format, or a damaged one.
        """
        path = folder / INDEX_NAME
        if not folder.is_dir():
            raise UserError(
                f"{printable(str(folder))} is no folder; expected one of shards, such as OUT/train of data_prep"
            )
        if not path.is_file():
            raise UserError(_no_index(folder))
        return cls.parse(read_bounded(path, _EXPECTED, MOST_BYTES), path)

    @classmethod
    def parse(cls, content: bytes, place: object) -> "ShardIndex":
        """The index in the bytes of an index.json; `place` is its name in messages.

        Raises:
            UserError: it has another format, is damaged, or contradicts itself.
        """
        place = printable(str(place))
        if content[:1000].lstrip().startswith(b"<"):
            raise UserError(f"{place} is a page of HTML or XML, perhaps a server's message; expected {_EXPECTED}")
        written = parse_json(content, _Head, place, _EXPECTED)
        if written.format != FORMAT:
            raise UserError(
                f"{place} has the format {written.format[:80]!r}; expected {FORMAT!r}, which `ssamba shards index "
                "--overwrite` makes of it"
            )
        index = parse_json(content, cls, place, _EXPECTED)
        if problem := _contradiction(index, written):
            raise UserError(f"{place} cannot be used: {problem}; expected {_EXPECTED}")
        return index

    @property
    def most_table_bytes(self) -> int:
        """That samples.npy may have."""
        return self.samples * SAMPLE.itemsize + MOST_HEADER

    def read_samples(self, path: Path) -> Samples:
        """The table of the samples in a file: (samples,) of SAMPLE.

        Raises:
            UserError: there is none, or it is not the one that the index was written with.
        """
        content = read_bounded(path, f"the table of the samples: {MAKE_AGAIN}", self.most_table_bytes)
        if hashlib.sha256(content).hexdigest() != self.samples_sha256:
            raise UserError(f"{path} is not what {INDEX_NAME} expects: copy both again, or {MAKE_AGAIN}")
        return _parse_samples(content, self.samples, path)

    def write(self, folder: Path) -> None:
        """Write the index into a folder, whole or not at all."""
        fields = asdict(self)
        for name in ("descriptions", "features"):
            if fields[name] is None:
                del fields[name]
        head = {name: fields.pop(name) for name in ("dataset", "split", "sampling_rate")}
        content = {"format": FORMAT, **head, "samples": self.samples, "seconds": self.seconds, **fields}
        write_text(folder / INDEX_NAME, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


@dataclass(frozen=True)
class _Head:
    """The fields of an index.json as a whole."""

    format: str
    samples: Count = 0
    seconds: Seconds = 0.0


def _contradiction(index: ShardIndex, written: _Head) -> str | None:
    """What of an index cannot be, if anything."""
    for shard in index.shards:
        # Joined to a folder's path: it must be a name alone.
        plain = os.path.basename(shard.name) == shard.name and "\0" not in shard.name and shard.name.endswith(".tar")
        if not plain or len(os.fsencode(shard.name)) > _MOST_NAME:
            return f"the shard {shard.name[:80]!r} is not the name of a .tar beside it"
    if len({shard.name for shard in index.shards}) < len(index.shards):
        return "it lists a shard twice"
    if index.samples != written.samples or not same_seconds(index.seconds, written.seconds):
        return (
            f"its shards have {index.samples} samples and {index.seconds:.3f} s, and it says {written.samples} and "
            f"{written.seconds:.3f} s"
        )
    for key, names in index.labels.items():
        if (not names and key != TEXT_LABEL) or len(set(names)) < len(names):
            return f"the label {key[:80]!r} has {f'a name twice among its {len(names)}' if names else 'no names'}"
    return None


def same_seconds(seconds: float, others: float) -> bool:
    """Whether they differ by rounding alone."""
    return math.isclose(seconds, others, rel_tol=1e-6, abs_tol=_ROUNDING)


def _parse_samples(content: bytes, samples: int, place: Path) -> Samples:
    """The rows in the bytes of a samples.npy, whose header is compared before anything is made of it."""
    try:
        return parse_array(content, SAMPLE, (samples,))
    except ValueError as error:
        raise UserError(
            f"{place} does not fit its {INDEX_NAME}, which has {samples} samples: {error}; {MAKE_AGAIN}"
        ) from error


def write_samples(folder: Path, samples: Samples) -> str:
    """Write the table of a split's samples into its folder, whole or not; its sha256, in hex, for the index."""
    content = io.BytesIO()
    np.save(content, samples, allow_pickle=False)
    with written_beside(folder / SAMPLES_NAME) as beside:
        beside.write_bytes(content.getbuffer())
    return hashlib.sha256(content.getbuffer()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """A shard to read: where it is and what it holds."""

    path: Path
    """Absolute; of one that lies elsewhere: in the cache, where `ShardCache.local` puts it."""
    info: ShardInfo
    url: str | None = None
    """Where it lies, or `pipe:` and the command that reads it; None: at its path."""
    descriptions: "Shard | None" = None
    """The labels.jsonl of its folder, which is kept as a shard is; None: its samples' JSON is in itself."""

    @property
    def place(self) -> str:
        """For messages."""
        return masked(self.url or str(self.path))


@dataclass(frozen=True)
class ShardSet:
    """The shards that a recipe names, in its order, from one or several folders."""

    shards: tuple[Shard, ...]
    indexes: Mapping[str, ShardIndex]
    """Folder, or url of its index -> the index, which may list more shards than are used here."""
    table: Samples
    """(samples,) of SAMPLE: those of the first shard, of the second, ..."""

    @property
    def paths(self) -> list[str]:
        """Of the shards, absolute; remote ones need not be there."""
        return [str(shard.path) for shard in self.shards]

    @property
    def sampling_rate(self) -> int:
        """Hz, the same in every shard."""
        return next(iter(self.indexes.values())).sampling_rate

    @property
    def samples(self) -> int:
        return sum(shard.info.samples for shard in self.shards)

    @property
    def seconds(self) -> float:
        return math.fsum(shard.info.seconds for shard in self.shards)

    def names_in(self, shard: Shard) -> dict[str, frozenset[str]]:
        """Label key -> names that are listed in the index of a shard."""
        place = renamed(shard.url, INDEX_NAME) if shard.url else str(shard.path.parent)
        return {key: frozenset(names) for key, names in self.indexes[place].labels.items()}

    @property
    def fingerprint(self) -> str:
        """Of the content of the shards in their order, wherever they are: sha256 over their sha256, in hex."""
        parts = (part for shard in self.shards for part in (shard, shard.descriptions) if part)
        return hashlib.sha256("".join(part.info.sha256 for part in parts).encode()).hexdigest()

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Label key -> names, of all folders; the first list where they have different ones (see `label_list`)."""
        merged: dict[str, tuple[str, ...]] = {}
        for index in self.indexes.values():
            merged = {**index.labels, **merged}
        return merged

    def label_list(self, key: str) -> tuple[str, ...]:
        """The names of a label that there is, in the order of their indices.

        Raises:
            UserError: two folders have different lists: a model of both would have a label list of its own.
        """
        lists = [(folder, index.labels[key]) for folder, index in self.indexes.items() if key in index.labels]
        first, names = lists[0]
        for folder, others in lists:
            if others != names:
                raise UserError(
                    f"the shards in {first} and {folder} have different lists for the label {key!r} "
                    f"({_few(names)} and {_few(others)}); expected the same names in the same order: "
                    "give shards of one data set, or make them again with one label list"
                )
        return names


def _no_index(folder: Path) -> str:
    message = (
        f"{folder} has no {INDEX_NAME}; expected the one that data_prep's scripts (ssamba.data.prepare.writer) write"
    )
    splits = sorted(str(index.parent) for index in folder.glob(f"*/{INDEX_NAME}"))
    if splits:
        return f"{message}. Its folders have one: give {' or '.join(splits)}"
    return f"{message}: {MAKE_AGAIN}, or make one with `ssamba shards index` if another program wrote them"


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} names: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
