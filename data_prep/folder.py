"""Shards of any folder of recordings, or of a list of them.

SOURCE is one of:
  a folder with a folder for each label (SOURCE/dog/barking 1.wav, also deeper);
  with --unlabelled, a folder with recordings anywhere in it;
  a .csv with the columns path (relative to it), label, perhaps split, and a further column for each further label.
Everything goes into the split "train" unless the CSV has a column split or one of the options below makes others.
"""

import argparse
import csv
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.writer import DataSet, Recording, drawn, run_script, safe_key
from ssamba.errors import UserError

EXTENSIONS = frozenset(".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .w64 .wav".split())


def _recording(name: str, folder: Path, labels: dict[str, str | list[str]], taken: set[str]) -> Recording:
    base = safe_key(str(Path(name).with_suffix(""))).strip("-")
    key, number = base, 2
    while key in taken:  # names that differ in their extension or in replaced characters alone
        key, number = f"{base}-{number}", number + 1
    taken.add(key)
    return Recording(key, folder / name, labels)


def from_folder(source: Path, label_key: str, unlabelled: bool) -> dict[str, list[Recording]]:
    names = sorted(name for name in glob.glob("**/*", root_dir=source, recursive=True)
                   if Path(name).suffix.lower() in EXTENSIONS)  # fmt: skip
    if not names:
        raise UserError(f"{source} has no recordings; expected files with {', '.join(sorted(EXTENSIONS))}")
    outside = [name for name in names if len(Path(name).parts) == 1]
    if outside and not unlabelled:
        raise UserError(f"{source / outside[0]} is in no label's folder; expected SOURCE/label/name, or --unlabelled")
    taken: set[str] = set()
    labels: list[dict[str, str | list[str]]] = [{} if unlabelled else {label_key: Path(name).parts[0]} for name in names]
    return {"train": [_recording(name, source, label, taken) for name, label in zip(names, labels, strict=True)]}


def from_csv(source: Path, label_key: str, unlabelled: bool, separator: str | None) -> dict[str, list[Recording]]:
    splits: dict[str, list[Recording]] = {}
    taken: set[str] = set()
    paths: set[str] = set()
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = list(rows.fieldnames or [])
        missing = {"path"} if unlabelled else {"path", "label"}
        if missing - set(columns):
            raise UserError(f"{source} has the columns {columns}; expected {' and '.join(sorted(missing))} among them")
        for row in rows:
            where = f"{source} line {rows.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where} does not have {len(columns)} fields; expected one for each column")
            if row["path"] in paths:
                raise UserError(f"{where} lists {row['path']} again; expected each path once")
            paths.add(row["path"])
            labels: dict[str, str | list[str]] = {}
            for column in () if unlabelled else set(columns) - {"path", "split"}:
                if row[column]:
                    labels[label_key if column == "label" else column] = row[column]
            if not unlabelled and not row["label"]:
                raise UserError(f"{where} has no label; expected one, or --unlabelled")
            if separator and label_key in labels:
                labels[label_key] = row["label"].split(separator)
            split = row["split"] if "split" in columns else "train"
            splits.setdefault(split, []).append(_recording(row["path"], source.parent, labels, taken))
    return splits or {"train": []}
