"""Shards of any folder of recordings, or of a list of them.

SOURCE is one of:
  a folder with a folder for each label: SOURCE/dog/barking 1.wav, also deeper. Folders that are called as splits are
  (train, validation, valid, val, dev, test, eval), if there are no others, are splits, and the labels lie in them;
  with --unlabelled, a folder with recordings anywhere in it;
  a list: .csv, .tsv, .json or .jsonl, with a column for the path (relative to the list), one for the label, perhaps one
  called split, and one for each further label. They are known by their names (path, file, filename, file_name, audio;
  label, class, category), or by --path-column and --label-column.
Everything goes into the split "train", unless the folders or the list say otherwise or an option below takes some out
of it. What has no ending of a recording, is hidden, or a folder called _background_noise_, is passed over and counted.
Recordings whose keys would be the same get different ones.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.prepare.lists import SPLITS, Columns, read_list, split_names
from ssamba.data.prepare.recordings import DataSet, Recording, check_present, distinct_keys, drawn, safe_key
from ssamba.data.prepare.script import run_script
from ssamba.errors import UserError
from ssamba.folders import PassedOver, look_below
from ssamba.recordings import ENDINGS
from ssamba.values import add_argument, plain_text, share

log = logging.getLogger("ssamba.folder")

NOISE = "_background_noise_"  # of Speech Commands: long noises, no word

Splits = dict[str, list[Recording]]


def recording(path: Path, folder: Path, labels: dict[str, str | list[str]]) -> Recording:
    return Recording(safe_key(str(path.with_suffix(""))).strip("-"), folder / path, labels)


def from_folder(source: Path, label: str | None, split_folders: bool) -> tuple[Splits, PassedOver]:
    """What lies below a folder by its splits, and what was passed over.

    label: the key that the label's folder goes under, or None for none.
    """
    below = look_below(source)
    paths = [path for path in below.recordings if NOISE not in path.parts[:-1]]
    passed_over = below.passed_over
    for path in below.recordings:
        if NOISE in path.parts[:-1]:
            passed_over.add(NOISE, str(path))
    if not paths:
        what = f": {passed_over}" if passed_over else ""
        raise UserError(f"{source} has no recordings{what}; expected files that end with {', '.join(sorted(ENDINGS))}")
    if empty := [str(path) for path in below.empty]:
        log.warning("folders without a recording, which give no label: %s", few(empty))
    if not split_folders:
        return {"train": [labelled(source, path, label, 0) for path in paths]}, passed_over
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in paths}
    if all(top.lower() in SPLITS for top in tops):
        names = split_names(sorted(tops))
        log.warning("the folders %s are splits; --no-split-folders makes labels of them", few(sorted(tops)))
        splits: Splits = {split: [] for split in names.values()}
        for path in paths:
            splits[names[path.parts[0]]].append(labelled(source, path, label, 1))
        return splits, passed_over
    deep = [path for path in paths if len(path.parts) > 2]
    if label and deep:
        ask_about_splits(source, tops, deep)
    return {"train": [labelled(source, path, label, 0) for path in paths]}, passed_over


def ask_about_splits(source: Path, tops: set[str], deep: Sequence[Path]) -> None:
    """UserError for folders that may be meant as splits and are not laid out as such; deep: what lies in folders of
    folders."""
    above = sorted({path.parts[0] for path in deep if path.parts[0].lower() in SPLITS})
    below = sorted({path.parts[1] for path in deep if path.parts[1].lower() in SPLITS})
    if len(above) > 1:
        other = few(sorted(tops - set(above)))
        what = f"the folders {few(above)} are called as splits are, and beside them lie {other}"
    elif len(below) > 1:
        what = f"there are folders {few(below)}, called as splits are, below those of the labels"
    else:
        return
    raise UserError(
        f"{source}: {what}; expected SOURCE/split/label/name, or --no-split-folders, which makes labels of "
        "the uppermost folders"
    )


def labelled(source: Path, path: Path, label: str | None, depth: int) -> Recording:
    """A recording whose label is the folder at some depth."""
    if label and len(path.parts) < depth + 2:
        where = "SOURCE/split/label/name" if depth else "SOURCE/label/name"
        or_labels = ", or --no-split-folders" if depth else ""
        raise UserError(f"{source / path} is in no label's folder; expected {where}, or --unlabelled{or_labels}")
    return recording(path, source, {label: path.parts[depth]} if label else {})


def from_list(source: Path, label: str | None, columns: Columns, separator: str | None) -> Splits:
    """The rows, by split; label: the key that the column label goes under, or None for no labels."""
    entries = read_list(source, label, columns, separator)
    if not entries:
        raise UserError(f"{source} names no recordings; expected a line for each of them")
    if label and not all(label in entry.labels for entry in entries):
        raise UserError(f"{source} has no labels; expected a column for them (--label-column), or --unlabelled")
    names = split_names(sorted({entry.split for entry in entries if entry.split}))
    splits: Splits = {}
    for entry in entries:
        one = Recording(safe_key(key_of(entry.path, source.parent)).strip("-"), entry.path, entry.labels)
        splits.setdefault(names[entry.split] if entry.split else "train", []).append(one)
    return splits


def key_of(path: Path, folder: Path) -> str:
    """Of a recording's place within a folder, or of the whole of it where it lies elsewhere."""
    return os.path.splitext(path.relative_to(folder) if path.is_relative_to(folder) else path)[0]


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def take(recordings: Sequence[Recording], fraction: float, label: str, seed: int) -> list[Recording]:
    """A fraction of them, each label in its proportion."""
    mixed = sorted(recordings, key=lambda one: (str(one.labels.get(label)), drawn(seed, one.key)))
    return [one for n, one in enumerate(mixed) if round((n + 1) * fraction) > round(n * fraction)]


def held_out(recordings: Sequence[Recording], choice: str) -> list[Recording]:
    """Those whose label KEY is one of the values of KEY=VALUE,VALUE."""
    key, _, names = choice.partition("=")
    for name in names.split(","):
        if not any(one.labels.get(key) == name for one in recordings):
            raise UserError(f"--hold-out is {choice}; expected KEY=VALUE,...: no recording has the {key!r} {name!r}")
    return [one for one in recordings if one.labels.get(key) in names.split(",")]


def find(options: argparse.Namespace) -> DataSet:
    label = None if options.unlabelled else options.label_key
    passed_over = PassedOver()
    if options.source.is_dir():
        splits, passed_over = from_folder(options.source, label, not options.no_split_folders)
    else:
        columns = Columns(options.path_column, options.label_column, options.delimiter)
        splits = from_list(options.source, label, columns, options.separator)
        check_present(splits, options.max_bad_fraction)
    splits = distinct_keys(splits)
    whole = len(splits.get("train", []))
    for split, choice, fraction in (("test", options.hold_out, options.test), ("validation", None, options.validation)):
        if choice or fraction:
            if split in splits:
                raise UserError(f"{options.source} has a split {split}; expected no option that makes another")
            rest = splits.setdefault("train", [])
            of_rest = fraction * whole / max(1, len(rest))
            splits[split] = held_out(rest, choice) if choice else take(rest, of_rest, options.label_key, options.seed)
            gone = set(map(id, splits[split]))
            splits["train"] = [one for one in rest if id(one) not in gone]
    return DataSet(options.name or options.source.resolve().stem, splits, passed_over=passed_over)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, shape, default, what in (
        ("--name", "NAME", None, "of the data set (default: SOURCE's)"),
        ("--label-key", "KEY", "label", "what the labels are called (default: %(default)s)"),
        ("--separator", "X", None, "between the labels of a recording, in the list's column of labels"),
        ("--path-column", "NAME", None, "of a list: the recordings' column"),
        ("--label-column", "NAME", None, "of a list: the labels' column"),
        ("--delimiter", "X", None, "of a list: between its columns (default: what it has most of)"),
    ):
        add_argument(parser, option, plain_text, default=default, metavar=shape, help=what)
    parser.add_argument("--unlabelled", action="store_true", help="without labels")
    parser.add_argument("--no-split-folders", action="store_true", help="folders called train, test, ... are labels")
    validation, part = "fraction for the split validation", "fraction for the split test; each label in proportion"
    add_argument(parser, "--validation", share, 0, 1, default=0.0, metavar="X", help=validation)
    test = parser.add_mutually_exclusive_group()
    add_argument(test, "--test", share, 0, 1, default=0.0, metavar="X", help=part)
    labels = "the split test: all recordings with these labels"
    add_argument(test, "--hold-out", plain_text, metavar="KEY=VALUE,...", help=labels)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
