"""Shards of the recordings that lists name, one list a split.

SOURCE is the folder of the lists; --train, --validation and --test name them in it (or anywhere, by a whole path). The
recordings' paths are relative to their list, or whole. A list is one of:
  a .csv with the column path; each further one is a label, under the column's name;
  a .json {"data": [{"wav": path, "labels": "/m/09x0r,/m/05zppz"}, ...]}, as the repositories of AST, SSAST and SSAMBA
  have it, with a comma between the labels of a recording.
--class-labels names, likewise, the class_labels_indices.csv (index,mid,display_name) that goes with the latter: labels
are then called by their display_name, in the order of that file.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssamba.data.writer import DataSet, Recording, check_present, run_script, safe_key
from ssamba.errors import UserError

SPLITS = ("train", "validation", "test")
JSON_SHAPE = '{"data": [{"wav": path, "labels": "label,label"}, ...]}'

Labels = dict[str, str | list[str]]


def json_rows(path: Path, label: str) -> Iterator[tuple[str, str, Labels]]:
    """Where in the list, the recording's path, its labels."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({error}); expected {JSON_SHAPE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        found = f"an object with the keys {list(content)[:5]}" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is {found}; expected {JSON_SHAPE}")
    for number, entry in enumerate(content["data"]):
        where = f"data[{number}]"
        texts: list[Any] = [entry.get(name) for name in ("wav", "labels")] if isinstance(entry, dict) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(
                f'{path} {where} is {json.dumps(entry)[:200]}; expected {{"wav": path, "labels": "label,label"}}, '
                "neither of them empty"
            )
        wav, labels = texts
        yield where, wav, {label: [name.strip() for name in labels.split(",")]}


def csv_rows(path: Path, label: str, separator: str | None) -> Iterator[tuple[str, str, Labels]]:
    """The same of a CSV; separator: between the labels in the column `label`."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        columns = next(rows, [])
        if "path" not in columns or len(set(columns)) < len(columns) or (separator and label not in columns):
            needed = f"path and {label}" if separator else "path"
            raise UserError(f"{path} has the columns {columns}; expected {needed} among them, and each once")
        for fields in rows:
            row = dict(zip(columns, fields, strict=False))
            if len(fields) != len(columns) or not row["path"]:
                raise UserError(f"{path} line {rows.line_num} is {fields}; expected {columns}, with a path")
            wav = row.pop("path")
            labels: Labels = {key: name for key, name in row.items() if name}
            if separator and label in labels:
                labels[label] = row[label].split(separator)
            yield f"line {rows.line_num}", wav, labels


def class_names(path: Path) -> dict[str, str]:
    """mid -> display_name, in order."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--class-labels {path} cannot be read ({error}); expected a CSV in UTF-8") from error
    if not rows or not {"index", "mid", "display_name"} <= rows[0].keys():
        raise UserError(f"--class-labels {path} has the columns {list(rows[0]) if rows else []} and {len(rows)} lines "
                        "below; expected index,mid,display_name and a line a class")  # fmt: skip
    names = {row["mid"]: row["display_name"] for row in rows}
    if [row["index"] for row in rows] != [str(number) for number in range(len(names))]:
        raise UserError(f"--class-labels {path} does not number its classes 0, 1, 2, ..., each mid once")
    return names


def named(labels: Labels, label: str, names: Mapping[str, str], where: str) -> Labels:
    """The labels with display names for mids."""
    mids = labels.get(label, [])
    mids = [mids] if isinstance(mids, str) else mids
    for mid in mids:
        if mid not in names:
            raise UserError(
                f"{where} has the {label} {mid!r}; expected one of --class-labels, like {next(iter(names))}"
            )
    return {**labels, label: [names[mid] for mid in mids]} if mids else labels


def find(given: argparse.Namespace) -> DataSet:
    lists = {split: given.source / getattr(given, split) for split in SPLITS if getattr(given, split)}
    if not lists:
        raise UserError("no list is given; expected --train LIST, --validation LIST or --test LIST")
    names = class_names(given.source / given.class_labels) if given.class_labels else None
    found: list[tuple[str, Path, Labels]] = []
    first: dict[Path, str] = {}  # recording -> where it is named
    for split, path in lists.items():
        if path.suffix.lower() not in (".csv", ".json"):
            raise UserError(f"--{split} is {path}; expected a .csv or a .json")
        try:
            rows = json_rows(path, given.label_key) if path.suffix.lower() == ".json" else \
                csv_rows(path, given.label_key, given.separator)  # fmt: skip
            for where, wav, labels in rows:
                where, file = f"{path} {where}", Path(os.path.abspath(path.parent / wav))
                if file in first:
                    raise UserError(
                        f"{where} has {wav}, as has {first[file]}; expected each recording once in all lists"
                    )
                first[file] = where
                found.append((split, file, labels if names is None else named(labels, given.label_key, names, where)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"--{split} {path} cannot be read ({error}); expected a list in UTF-8") from error
    splits: dict[str, list[Recording]] = {split: [] for split in lists}
    # Keys are of what the paths differ in, so that lists of whole paths and of relative ones give the same.
    root = os.path.commonpath([path.parent for _, path, _ in found]) if found else ""
    for split, path, labels in found:
        key = safe_key(str(path.relative_to(root).with_suffix(""))).strip("-")
        splits[split].append(Recording(key, path, labels))
    check_present(splits, given.max_bad_fraction)
    name = given.name or given.source.resolve().stem
    return DataSet(name, splits, {given.label_key: tuple(names.values())} if names else None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        parser.add_argument(f"--{split}", metavar="LIST", help=f"of the split {split}")
    parser.add_argument("--name", help="of the data set (default: SOURCE's)")
    parser.add_argument("--label-key", default="label",
                        help="what a JSON list's labels are called; the column that --separator and --class-labels "
                        "are about (default: %(default)s)")  # fmt: skip
    parser.add_argument("--separator", help="between the labels of a recording, in a CSV")
    parser.add_argument("--class-labels", metavar="CSV", help="index,mid,display_name of the classes")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
