"""Shards of any folder of recordings, or of a list of them.

SOURCE is one of:
  a folder with a folder for each label: SOURCE/dog/barking 1.wav, also deeper;
  with --unlabelled, a folder with recordings anywhere in it;
  a .csv with the columns path (relative to the file), label, perhaps split, and one for each further label.
Everything goes into the split "train", unless the CSV has a column split or an option below takes some out of it.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.sources import recordings_below
from ssamba.data.writer import DataSet, Recording, drawn, run_script, safe_key
from ssamba.errors import UserError
from ssamba.recordings import ENDINGS


def recording(path: Path, folder: Path, labels: dict[str, str | list[str]]) -> Recording:
    return Recording(safe_key(str(path.with_suffix(""))).strip("-"), folder / path, labels)


def from_folder(source: Path, label: str | None) -> list[Recording]:
    """What lies below a folder; label: the key that the first folder's name goes under, or None for none."""
    found = recordings_below(source)
    if not found:
        raise UserError(f"{source} has no recordings; expected files that end with {', '.join(sorted(ENDINGS))}")
    outside = [path for path in found if len(path.parts) == 1]
    if label and outside:
        raise UserError(f"{source / outside[0]} is in no label's folder; expected SOURCE/label/name, or --unlabelled")
    return [recording(path, source, {label: path.parts[0]} if label else {}) for path in found]


def from_csv(source: Path, label: str | None, separator: str | None) -> dict[str, list[Recording]]:
    """The rows, by split; label: the key that the column label goes under, or None for no labels."""
    splits: dict[str, list[Recording]] = {}
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        columns = next(rows, [])
        if not {"path", "label" if label else "path"} <= set(columns):
            raise UserError(f"{source} has the columns {columns}; expected path and label (or --unlabelled) among them")
        for fields in rows:
            row = dict(zip(columns, fields, strict=False))
            if len(fields) != len(columns) or not row["path"] or (label and not row["label"]):
                raise UserError(f"{source} line {rows.line_num} is {fields}; expected {columns}, with path and label")
            path, split = Path(row.pop("path")), row.pop("split", "train")
            labels: dict[str, str | list[str]] = {}
            if label:
                names = row.pop("label")
                labels = {key: name for key, name in row.items() if name}
                labels[label] = names.split(separator) if separator else names
            splits.setdefault(split, []).append(recording(path, source.parent, labels))
    return splits


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


def find(given: argparse.Namespace) -> DataSet:
    label = None if given.unlabelled else given.label_key
    try:
        splits = (
            {"train": from_folder(given.source, label)}
            if given.source.is_dir()
            else from_csv(given.source, label, given.separator)
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{given.source} cannot be read ({error}); expected a folder, or a CSV in UTF-8") from error
    whole = len(splits.get("train", []))
    for split, choice, fraction in (("test", given.hold_out, given.test), ("validation", None, given.validation)):
        if choice or fraction:
            if split in splits:
                raise UserError(f"{given.source} has a split {split}; expected no option that makes another")
            rest = splits.setdefault("train", [])
            share = fraction * whole / max(1, len(rest))
            splits[split] = held_out(rest, choice) if choice else take(rest, share, given.label_key, given.seed)
            gone = set(map(id, splits[split]))  # not by key: two of one key are to be complained of
            splits["train"] = [one for one in rest if id(one) not in gone]
    return DataSet(given.name or given.source.resolve().stem, splits)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="of the data set (default: SOURCE's)")
    parser.add_argument("--label-key", default="label", help="what the labels are called (default: %(default)s)")
    parser.add_argument("--separator", help="between the labels of a recording, in the CSV's column label")
    parser.add_argument("--unlabelled", action="store_true", help="without labels")
    parser.add_argument("--validation", type=float, default=0.0, help="fraction for the split validation")
    test = parser.add_mutually_exclusive_group()
    test.add_argument("--test", type=float, default=0.0, help="fraction for the split test; each label in proportion")
    test.add_argument("--hold-out", metavar="KEY=VALUE,...", help="the split test: all recordings with these labels")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
