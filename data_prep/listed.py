"""Shards of the recordings that lists name, one list a split.

SOURCE is the folder of the lists; --train, --validation and --test name them in it (or anywhere, by a whole path). The
recordings' paths are relative to their list, or whole. A list is one of:
  a table (.csv, .tsv, .txt) with a column for the path (path, file, filename, file_name, audio, or --path-column); each
  further one is a label, under the column's name, and one called label, class or category under --label-key;
  a .json {"data": [{"wav": path, "labels": "/m/09x0r,/m/05zppz"}, ...]}, as the repositories of AST, SSAST and SSAMBA
  have it, with a comma between the labels of a recording; or a list of such objects, or a .jsonl of one a line.
--class-labels names, likewise, the class_labels_indices.csv (index,mid,display_name) that goes with the latter: labels
are then called by their display_name, in the order of that file.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssamba.data.prepare.lists import Columns, Entry, Labels, read_list, read_rows
from ssamba.data.prepare.recordings import DataSet, Recording, check_present, distinct_keys, safe_key
from ssamba.data.prepare.script import run_script
from ssamba.errors import UserError
from ssamba.values import add_argument, path, plain_text

SPLITS = ("train", "validation", "test")


def class_names(path: Path) -> dict[str, str]:
    """mid -> display_name, in order."""
    columns, rows = read_rows(path)
    if not rows or not {"index", "mid", "display_name"} <= set(columns):
        raise UserError(
            f"--class-labels {path} has the columns {columns} and {len(rows)} lines below; expected "
            "index,mid,display_name and a line a class"
        )
    names = {row.fields["mid"]: row.fields["display_name"] for row in rows}
    if [row.fields["index"] for row in rows] != [str(number) for number in range(len(names))]:
        raise UserError(f"--class-labels {path} does not number its classes 0, 1, 2, ..., each mid once")
    return names


def named(entry: Entry, label: str, names: Mapping[str, str]) -> Labels:
    """The labels of an entry with display names for mids."""
    mids = entry.labels.get(label, [])
    mids = [mids] if isinstance(mids, str) else mids
    for mid in mids:
        if mid not in names:
            raise UserError(
                f"{entry.where} has the {label} {mid!r}; expected one of --class-labels, like {next(iter(names))}"
            )
    return {**entry.labels, label: [names[mid] for mid in mids]} if mids else entry.labels


def find(options: argparse.Namespace) -> DataSet:
    lists = {split: options.source / getattr(options, split) for split in SPLITS if getattr(options, split)}
    if not lists:
        raise UserError("no list is given; expected --train LIST, --validation LIST or --test LIST")
    names = class_names(options.source / options.class_labels) if options.class_labels else None
    columns = Columns(options.path_column, options.label_column, options.delimiter)
    entries: list[tuple[str, Entry]] = []
    first: dict[Path, str] = {}  # recording -> where it is named
    for split, place in lists.items():
        for entry in read_list(place, options.label_key, columns, options.separator):
            if entry.path in first:
                raise UserError(
                    f"{entry.where} has {entry.path}, as has {first[entry.path]}; expected each recording once in all "
                    "lists"
                )
            first[entry.path] = entry.where
            entries.append((split, entry))
    splits: dict[str, list[Recording]] = {split: [] for split in lists}
    # Keys are of what the paths differ in, so that lists of whole paths and of relative ones give the same.
    root = os.path.commonpath([entry.path.parent for _, entry in entries]) if entries else ""
    for split, entry in entries:
        key = safe_key(os.path.splitext(entry.path.relative_to(root))[0]).strip("-")
        labels = entry.labels if names is None else named(entry, options.label_key, names)
        splits[split].append(Recording(key, entry.path, labels))
    check_present(splits, options.max_bad_fraction)
    name = options.name or options.source.resolve().stem
    label_lists = {options.label_key: tuple(names.values())} if names else None
    return DataSet(name, distinct_keys(splits), label_lists)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        add_argument(parser, f"--{split}", path, metavar="LIST", help=f"of the split {split}")
    key = "what the labels are called; the column that --separator and --class-labels are about (default: %(default)s)"
    for option, shape, default, what in (
        ("--name", "NAME", None, "of the data set (default: SOURCE's)"),
        ("--label-key", "KEY", "label", key),
        ("--separator", "X", None, "between the labels of a recording"),
        ("--path-column", "NAME", None, "the recordings' column"),
        ("--label-column", "NAME", None, "the labels' column"),
        ("--delimiter", "X", None, "between columns (default: what a table has most of)"),
    ):
        add_argument(parser, option, plain_text, default=default, metavar=shape, help=what)
    add_argument(parser, "--class-labels", path, metavar="CSV", help="index,mid,display_name of the classes")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
