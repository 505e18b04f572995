"""Recordings that are to be written, by their keys and labels: what data_prep's scripts find. Imports no torch."""

import hashlib
import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.data.shards.descriptions import TEXT_LABEL, as_list
from ssamba.errors import UserError
from ssamba.folders import PassedOver, instead

log = logging.getLogger(__name__)

_NAMED = 10  # of recordings or labels that a message names
# webdataset takes a member's name up to its first dot as the key, and a folder in it as a part of the key.
_SAFE = re.compile(r"[\w+=@,-]+")


@dataclass(frozen=True)
class Recording:
    """A recording to write, or a cut of one."""

    key: str
    """Its name in the shards: letters, digits and _+=@,- alone, once in a data set."""
    path: Path
    labels: Mapping[str, str | list[str]] = field(default_factory=dict)
    """Label key -> its name, or its names where it may have several."""
    start: float | None = None
    """Where the cut begins within the file, in seconds; None: at its start."""
    stop: float | None = None
    """Where the cut ends, in seconds; None: at the end of the file."""
    mix: Callable[[int], npt.NDArray[np.float32]] | None = None
    """From a sampling rate in Hz to samples of full scale 1, written instead of a file's; `path` only tells what they
    are made of. The workers get it, so it can be pickled; its repr says all that decides what it makes."""


@dataclass(frozen=True)
class DataSet:
    """What a script of data_prep finds."""

    name: str
    splits: Mapping[str, Sequence[Recording]]
    labels: Mapping[str, Sequence[str]] | None = None
    """Label key -> names in their order; of a key that is missing here, the recordings' names are sorted."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """What was found and not taken, such as `.txt` or `hidden files` -> how many of it."""


def safe_key(name: str) -> str:
    """A name with `-` for each run of characters that a key must not have."""
    return re.sub(r"[^\w+=@,-]+", "-", name)


def drawn(seed: int, name: str) -> bytes:
    """A sort key that shuffles names, independent of the other names and of any library."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def check_present(splits: Mapping[str, Sequence[Recording]], max_bad_fraction: float) -> None:
    """For recordings that a list names: count those that are missing, before any is read.

    The writer skips them, and names each in its index.

    Raises:
        UserError: they are more than the fraction of all recordings that may be skipped.
    """
    total = sum(len(recordings) for recordings in splits.values())
    paths = (os.path.abspath(one.path) for recordings in splits.values() for one in recordings)
    missing = [path for path in paths if not os.path.isfile(path)]
    if len(missing) > int(max_bad_fraction * total):
        raise UserError(
            f"{len(missing)} of {total} listed recordings are missing; at most {int(max_bad_fraction * total)} may be "
            f"(max bad fraction {max_bad_fraction:g}): is the data set whole and in its place? Or raise "
            f"--max-bad-fraction. {instead(Path(missing[0]))}. Missing:",
            *named(missing),
        )
    if missing:
        log.warning("%d of %d listed recordings are missing: %s", len(missing), total, ", ".join(named(missing)))


def named(names: Sequence[str]) -> list[str]:
    """Ten of them at most, and how many there are besides."""
    rest = len(names) - _NAMED
    return [*names[:_NAMED], *([f"and {rest} more"] if rest > 0 else [])]


def check_recordings(splits: Mapping[str, Sequence[Recording]]) -> None:
    """UserError for splits, keys or cuts that cannot be."""
    if not splits:
        raise UserError("no split is given; expected one at least, such as train")
    taken: dict[str, Recording] = {}
    same: list[str] = []
    for split, recordings in splits.items():
        if not _SAFE.fullmatch(split):
            raise UserError(f"split {split!r}: expected a name of letters, digits and _+=@,- alone")
        if not recordings:
            raise UserError(
                f"split {split!r} has no recordings; expected one at least: look at the source and at the fractions"
            )
        for recording in recordings:
            if not _SAFE.fullmatch(recording.key):
                raise UserError(
                    f"{recording.path} has the key {recording.key!r}; expected letters, digits and _+=@,- alone, "
                    "because a shard's reader cuts names at dots and slashes: rename it"
                )
            if recording.key in taken:
                same.append(f"{taken[recording.key].path} and {recording.path} have the same key {recording.key!r}")
            if not 0 <= (recording.start or 0) < (math.inf if recording.stop is None else recording.stop):
                raise UserError(
                    f"{recording.key!r} is cut from {recording.start} to {recording.stop} s; expected a start of at "
                    "least 0 and a later stop"
                )
            taken[recording.key] = recording
    expected = "expected each once in a data set: rename one"
    if len(same) == 1:
        raise UserError(f"{same[0]}; {expected}")
    if same:
        raise UserError(f"{len(same)} recordings have a key that another one has; {expected} of each", *named(same))


def label_lists(
    splits: Mapping[str, Sequence[Recording]], explicit: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Label key -> names in the order of their indices: the `explicit` lists, else the names that occur, sorted.

    Raises:
        UserError: a name that is empty, twice in a list, or in none.
    """
    first: dict[str, dict[str, str]] = {}  # label key -> name -> a recording that has it
    for recording in itertools.chain(*splits.values()):
        for key in recording.labels:
            for name in as_list(recording.labels[key]):
                first.setdefault(key, {}).setdefault(name, recording.key)
    for key, used in first.items():
        if "" in used:
            raise UserError(f"{used['']!r} has an empty name for the label {key!r}; expected a name")
    for key, names in explicit.items():
        if len(set(names)) != len(names):
            raise UserError(f"the list of the label {key!r} has a name twice; expected each once: {', '.join(names)}")
        if unknown := sorted(first.get(key, {}).keys() - set(names)):
            raise UserError(
                f"{first[key][unknown[0]]!r} has the {key} {unknown[0]!r}; expected one of the {len(names)} of the "
                f"label list: {', '.join(names)}"
            )
    lists = {key: [] if key == TEXT_LABEL else sorted(used) for key, used in first.items()} | dict(explicit)
    return {key: tuple(lists[key]) for key in sorted(lists)}


def lacking_labels(lists: Mapping[str, Sequence[str]], used: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """Warnings about names that no recording of a split has: classes that are trained or scored on nothing.

    Of a key by which the splits were made, such as fold or speaker, they have no name in common; that is a warning only
    if it is true of all keys, as nothing else is a class then.

    Args:
        used: split -> label key -> the names that occur.
    """
    lists = {key: names for key, names in lists.items() if names}  # transcripts have no list
    by_split = {key: {split: names.get(key, set()) for split, names in used.items()} for key in lists}
    dividing = {
        key
        for key, splits in by_split.items()
        if any(one.isdisjoint(other) for one, other in itertools.combinations(splits.values(), 2))
    }
    messages = []
    for key, names in lists.items():
        present = set().union(*by_split[key].values())
        if nowhere := [name for name in names if name not in present]:
            messages.append(f"no split has the {key} {', '.join(named(nowhere))}")
        if key not in dividing or len(dividing) == len(lists):
            for split, mine in by_split[key].items():
                if missing := [name for name in names if name in present and name not in mine]:
                    messages.append(f"{split} has no {key} {', '.join(named(missing))}")
    return messages


def distinct_keys(splits: Mapping[str, Sequence[Recording]]) -> dict[str, list[Recording]]:
    """Recordings whose names give one key, distinguished by a digest of each one's path, relative to what they have in
    common: whatever else there is, a recording of that path has that key."""
    paths: dict[str, set[Path]] = {}
    for recordings in splits.values():
        for one in recordings:
            paths.setdefault(one.key, set()).add(one.path)
    shared = {key for key, places in paths.items() if len(places) > 1}
    if not shared:
        return {split: list(recordings) for split, recordings in splits.items()}
    root = os.path.commonpath([place.parent for places in paths.values() for place in places])

    def distinguished(one: Recording) -> Recording:
        name = os.fsencode(os.path.relpath(one.path, root))
        return replace(one, key=f"{one.key}-{hashlib.sha256(name).hexdigest()[:8]}") if one.key in shared else one

    count = sum(len(paths[key]) for key in shared)
    log.warning("%d names give a key that another gives, too, such as %s: digests tell them apart", count, min(shared))
    return {split: [distinguished(one) for one in recordings] for split, recordings in splits.items()}


def keyed(splits: Mapping[str, Sequence[Recording]], folder: Path | None) -> dict[str, list[Recording]]:
    """Recordings without keys get those of their paths: within the folder if all lie below it, else within what all
    paths have in common. Names that give one key are distinguished by a digest."""
    paths = [one.path for recordings in splits.values() for one in recordings]
    if paths and not (folder and all(path.is_relative_to(folder) for path in paths)):
        folder = Path(os.path.commonpath([path.parent for path in paths]))

    def with_key(one: Recording) -> Recording:
        name = os.path.splitext(os.path.relpath(one.path, folder))[0]
        return one if one.key else replace(one, key=safe_key(name).strip("-"))

    return distinct_keys({split: [with_key(one) for one in recordings] for split, recordings in splits.items()})
