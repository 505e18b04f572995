"""Shards of the cuts of lhotse: manifests, or Shar (extra lhotse).

SOURCE is one of:
  a manifest of cuts (.jsonl or .jsonl.gz);
  a folder as `to_shar` writes it, with cuts.000000.jsonl.gz and recording.000000.tar;
  a folder of either, one a split: a manifest is called train.jsonl.gz or ANYTHING_cuts_train.jsonl.gz, as lhotse's
  recipes call them, a folder of Shar train. Such names are the splits (valid, val, dev: validation; eval: test), those
  that are none keep theirs (train-clean-100).
Without splits everything goes into train. A cut is a recording from its start to its end; one of a whole file has the
key of the file's path, any other its id. Paths are relative to the working folder, as lhotse takes them.
--labels takes labels from the cuts' supervisions: text, speaker, language, gender, or a custom field, which can also be
of the cuts. Of several supervisions in a cut the texts are joined, other names stand beside each other.
Recordings of Shar are unpacked into the system's temporary folder (TMPDIR) until the shards are there: it needs room
for them, and with --cluster a place that all workers see.
"""

import argparse
import os
import re
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssamba.data.prepare.lists import SPLITS, Labels, Offenders, split_names
from ssamba.data.prepare.recordings import DataSet, Recording, check_present, keyed, safe_key
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import Unpacked, import_extra
from ssamba.errors import UserError
from ssamba.folders import there
from ssamba.progress import progress_bar
from ssamba.values import add_argument, plain_text

# Python looks first in the folder of the script that it runs, where this file has the library's name.
sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder) != os.path.dirname(os.path.realpath(__file__))]

FIELDS = ("text", "speaker", "language", "gender")
MANIFEST = re.compile(r"(?:(?P<cuts>(?:.*_)?cuts_))?(?P<split>.+?)\.jsonl(?:\.gz)?")
SHAR = "cuts.*.jsonl*"
# What lhotse raises of a manifest or of Shar that is damaged, or is something else.
_DAMAGED = OSError, EOFError, tarfile.TarError, zlib.error
_OTHER = ValueError, TypeError, KeyError, AttributeError, AssertionError


def is_shar(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(SHAR))


def manifests(source: Path) -> dict[str, Path]:
    """Split, as the source calls it -> its manifest, or folder of Shar."""
    if not source.is_dir() or is_shar(source):
        return {"train": source}
    manifests: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        parts = MANIFEST.fullmatch(path.name)
        # Beside those of cuts, lhotse's recipes write manifests of recordings and of supervisions.
        if parts and (parts["cuts"] or parts["split"].lower() in SPLITS):
            split = parts["split"]
        elif is_shar(path):
            split = path.name
        else:
            continue
        if split in manifests:
            raise UserError(
                f"{manifests[split]} and {path} are both of the split {split}; expected one: give it as SOURCE"
            )
        manifests[split] = path
    if not manifests:
        raise UserError(
            f"{source} has no manifest of cuts and no Shar; expected files like cuts_train.jsonl.gz, "
            f"folders of Shar like train, or {SHAR} in it; {there(source, SHAR)}"
        )
    return manifests


def read_cuts(place: Path, lhotse: Any) -> Iterator[Any]:
    """The cuts of a manifest or of Shar, in their order.

    Raises:
        UserError: it is neither, or damaged.
    """
    if not place.is_dir() and not place.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{place} is no manifest of cuts; expected a .jsonl or .jsonl.gz, as to_file writes it")
    try:
        yield from lhotse.CutSet.from_shar(in_dir=place) if place.is_dir() else lhotse.CutSet.from_file(place)
    except (*_DAMAGED, *_OTHER) as error:
        raise UserError(
            f"{place} cannot be read by lhotse ({type(error).__name__}: {error}); expected a manifest of "
            "cuts, or Shar, whole and undamaged"
        ) from error


def problem(cut: Any, lhotse: Any) -> str | None:
    """Why a cut cannot be taken; None if it can."""
    if not isinstance(cut, lhotse.MonoCut | lhotse.MultiCut):
        return f"is a {type(cut).__name__}"
    recording = cut.recording
    if recording is None:
        return "has no recording"
    if len(recording.sources) != 1 or recording.sources[0].type not in ("file", "memory"):
        return f"has a recording in {', '.join(f'a {one.type}' for one in recording.sources)}"
    channels = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if set(channels) != set(recording.channel_ids):
        return f"is the channel {cut.channel} of {recording.channel_ids}"
    changed = [one["name"] if isinstance(one, dict) else type(one).__name__ for one in recording.transforms or ()]
    if changed := [name for name in changed if name != "Resample"]:  # which the writer does itself
        return f"has a recording that is changed by {', '.join(changed)}"
    if cut.start < 0 or cut.duration <= 0 or cut.end > recording.duration + 1 / recording.sampling_rate:
        return f"is from {cut.start:g} to {cut.end:g} s of a recording of {recording.duration:g} s"
    return None


def labels_of(cut: Any, fields: Sequence[str]) -> Labels:
    """Field -> what a cut has in it; ValueError for what is no name."""
    labels: Labels = {}
    for field in fields:
        names: list[str] = []
        listed = False
        for one in (*sorted(cut.supervisions, key=lambda one: one.start), cut):
            value = getattr(one, field, None) if field in FIELDS and one is not cut else (one.custom or {}).get(field)
            listed = listed or isinstance(value, list)
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str | int | None):
                    raise ValueError(f"has the {field} {str(value)[:100]}")
                names += [] if name is None or name == "" else [str(name)]
        if field == "text" and names:
            labels[field] = " ".join(names)
        elif names:
            names = list(dict.fromkeys(names))
            labels[field] = names if listed or len(names) > 1 else names[0]
    return labels


def recording_of(cut: Any, labels: Labels, otherwise: str, unpacked: Unpacked) -> Recording:
    """Without a key where the whole of a file is taken; `otherwise` is a name for a file that no other cut gets."""
    recording, (source,) = cut.recording, cut.recording.sources
    start = cut.start or None
    stop = None if cut.end >= recording.duration - 1 / recording.sampling_rate else cut.end
    key = safe_key(cut.id).strip("-")
    if source.type == "memory":
        return Recording(key, unpacked.add(cut.id, otherwise, source.source), labels, start, stop)
    return Recording("" if start is None and stop is None else key, Path(source.source).absolute(), labels, start, stop)


def read_split(split: str, place: Path, fields: Sequence[str], unpacked: Unpacked, lhotse: Any) -> list[Recording]:
    """All cuts of a split; UserError for those that cannot be taken, which are told together."""
    offenders = Offenders(
        place,
        "cuts within one recording, all of its channels, as it is in its file; others become "
        "such by save_audios of lhotse; and names, or lists of them, in --labels",
    )
    recordings = []
    with progress_bar(None, "cut", f"reading {split}") as bar:
        for index, cut in enumerate(read_cuts(place, lhotse)):
            labels: Labels = {}
            if (why := problem(cut, lhotse)) is None:
                try:
                    labels = labels_of(cut, fields)
                except ValueError as error:
                    why = str(error)
            if why is None:
                recordings.append(recording_of(cut, labels, f"{safe_key(split)}-{index:06d}", unpacked))
            else:
                offenders.add(f"cut {getattr(cut, 'id', None)!r}", why)
            bar.update()
    offenders.check()
    return recordings


def find(options: argparse.Namespace) -> DataSet:
    lhotse = import_extra("lhotse")
    places = manifests(options.source)
    wanted = options.splits.split(",") if options.splits else list(places)
    if unknown := [split for split in wanted if split not in places]:
        raise UserError(f"--splits has {unknown[0]!r}; {options.source} has the splits {', '.join(places)}")
    fields = list(dict.fromkeys(options.labels.split(","))) if options.labels else []
    names = split_names([safe_key(split) for split in wanted])
    splits = {
        names[safe_key(split)]: read_split(split, places[split], fields, options.unpacked, lhotse) for split in wanted
    }
    for field in fields:
        if not any(field in one.labels for recordings in splits.values() for one in recordings):
            raise UserError(
                f"--labels has {field!r}, which no cut of {options.source} has; expected a field that is "
                f"filled: {', '.join(FIELDS)}, or a custom one"
            )
    check_present(splits, options.max_bad_fraction)
    name = options.name or options.source.resolve().name.partition(".")[0]
    return DataSet(name, keyed(splits, options.source))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, shape, what in (
        ("--name", "NAME", "of the data set (default: SOURCE's)"),
        ("--splits", "NAME,...", "those to write, as SOURCE calls them (default: all)"),
        ("--labels", "FIELD,...", "fields of supervisions or cuts that are labels (default: none)"),
    ):
        add_argument(parser, option, plain_text, metavar=shape, help=what)
    with tempfile.TemporaryDirectory() as folder:
        parser.set_defaults(unpacked=Unpacked(Path(folder)))
        return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
