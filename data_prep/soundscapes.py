"""Shards of soundscapes of UrbanSound8K's recordings, for SSAMBA's dynamic audio scene labeling: a class a second.

SOURCE is what urbansound8k.py takes, whose --fetch gets it. As SSAMBA's own script makes them, the recordings of a fold
come one after the other in an order of chance, each filled up with silence to a whole second, and are cut into minutes.
Where theirs fills the last minute with silence under the last label, recordings drawn again fill it here.

Label scene: a list with the class of each second, in their order; a task with several labels a clip takes it for the
classes that occur. Label fold: no soundscape mixes two, and each fold is in one split.

The options make what theirs does not: levels over a background (--snr), pauses of the class `background` (--gap), and
several such sequences at once (--voices), of which the second one's classes are the label scene-2, and so on.
"""

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ssamba.data.prepare.mixing import Event, Mix
from ssamba.data.prepare.recordings import DataSet, Recording, drawn
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import read_folds, unpacked
from ssamba.errors import BadAudio, UserError
from ssamba.progress import progress_bar
from ssamba.recordings import recording_seconds
from ssamba.values import add_argument, number, whole_number

FOLDS = tuple(str(fold) for fold in range(1, 11))
BACKGROUND = "background"
_TABLE = "metadata/UrbanSound8K.csv"


class Placed(NamedTuple):
    """A recording in a fold's soundscapes, which are thought of as one after the other."""

    recording: Recording
    onset: int
    """In seconds."""
    snr: float | None


def whole_seconds(recordings: Sequence[Recording]) -> dict[Path, int]:
    """How many seconds each of them fills, at least one; less than half a millisecond is no further one."""
    lengths = {}
    with progress_bar(len(recordings), "recording", "lengths") as bar:
        for one in recordings:
            try:
                duration = recording_seconds(one.path)
            except BadAudio as error:
                raise UserError(f"{one.path} cannot be read ({error}): unpack the archive again") from error
            lengths[one.path] = max(1, math.ceil(round(duration, 3)))
            bar.update()
    return lengths


def track(
    recordings: Sequence[Recording], seconds: Mapping[Path, int], passes: int, options: argparse.Namespace
) -> tuple[list[Placed | None], int]:
    """What is heard in each second, until every recording was so many times and the last soundscape is full; and how
    many soundscapes they are."""
    places: list[Placed | None] = []
    turn, count, whole = 0, 0, options.seconds * options.voices
    while turn < passes or len(places) < count * whole:
        for one in sorted(recordings, key=lambda one: drawn(options.seed, f"{turn}/{one.key}")):
            chance = random.Random(f"{options.seed}/{turn}/{one.key}")
            places += [None] * int(chance.random() * (options.gap + 1))
            snr = options.snr[0] + chance.random() * (options.snr[1] - options.snr[0]) if options.snr else None
            places += [Placed(one, len(places), snr)] * seconds[one.path]
        turn += 1
        if turn == passes:
            count = math.ceil(len(places) / whole)
    return places, count


def soundscapes(
    fold: str,
    recordings: Sequence[Recording],
    seconds: Mapping[Path, int],
    folder: Path,
    passes: int,
    options: argparse.Namespace,
) -> Iterator[Recording]:
    """All of a fold."""
    places, count = track(recordings, seconds, passes, options)
    for index in range(count):
        key = f"soundscape-{fold}-{index:04d}"
        events: list[Event] = []
        labels: dict[str, str | list[str]] = {"fold": fold}
        for voice in range(options.voices):
            begin = (index + voice * count) * options.seconds
            scene = places[begin : begin + options.seconds]
            labels[scene_key(voice)] = [str(one.recording.labels["class"]) if one else BACKGROUND for one in scene]
            for one, heard in itertools.groupby(range(options.seconds), key=scene.__getitem__):
                if one:
                    onset, *rest = heard
                    start = begin + onset - one.onset
                    events.append(Event(one.recording.path, onset, 1 + len(rest), start, one.snr))
        noise = int.from_bytes(drawn(options.seed, key)[:8]) if options.snr else None
        yield Recording(key, folder, labels, mix=Mix(tuple(events), options.seconds, noise))


def scene_key(voice: int) -> str:
    return f"scene-{voice + 1}" if voice else "scene"


def find(options: argparse.Namespace) -> DataSet:
    if options.seconds > options.max_seconds:
        raise UserError(f"--seconds is {options.seconds}; expected at most the --max-seconds, {options.max_seconds:g}")
    if options.snr and options.snr[0] > options.snr[1]:
        raise UserError(
            f"--snr is {options.snr[0]:g} {options.snr[1]:g}; expected two levels in dB, the lower one first"
        )
    if options.validation_fold == options.test_fold:
        raise UserError(f"--validation-fold and --test-fold are both {options.test_fold}; expected two folds")
    source = unpacked(options.source, "UrbanSound8K")
    table = read_folds(source, _TABLE, ("slice_file_name", "classID", "class"), "audio/fold{fold}", options.test_fold)
    recordings = [one for split in table.splits.values() for one in split]
    seconds = whole_seconds(recordings)
    splits: dict[str, list[Recording]] = {"train": [], "validation": [], "test": []}
    for fold in FOLDS:
        split = {options.validation_fold: "validation", options.test_fold: "test"}.get(fold, "train")
        mine = [one for one in recordings if one.labels["fold"] == fold]
        if mine:
            passes = options.passes if split == "train" else 1
            splits[split] += soundscapes(fold, mine, seconds, source / f"audio/fold{fold}", passes, options)
    names = [*table.classes, BACKGROUND] if options.gap else table.classes
    return DataSet(
        "soundscapes", splits, {scene_key(voice): names for voice in range(options.voices)} | {"fold": FOLDS}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation-fold", choices=FOLDS, default="9", help="the split validation (default: 9)")
    parser.add_argument("--test-fold", choices=FOLDS, default="10", help="the split test (default: 10)")
    for option, low, high, default, what in (
        ("--seconds", 1, 3600, 60, "of a soundscape"),
        ("--passes", 1, 1000, 1, "times that each training recording is heard"),
        ("--gap", 0, 3600, 0, "seconds between recordings, at most"),
        ("--voices", 1, 100, 1, "recordings at once"),
    ):
        what += " (default: %(default)s)"
        add_argument(parser, option, whole_number, low, high, default=default, metavar="N", help=what)
    levels = "levels in dB over brown noise (default: as recorded, without noise)"
    add_argument(parser, "--snr", number, -200, 200, nargs=2, metavar=("LOW", "HIGH"), help=levels)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
