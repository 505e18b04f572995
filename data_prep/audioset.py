"""Shards of AudioSet, of what could be downloaded of it.

SOURCE holds the official balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv and
class_labels_indices.csv, and anywhere below it the clips, each of them cut to its segment already. A clip is known by
its name: the video's 11 characters, perhaps a Y or id_ before them, perhaps _START or _START_END behind them, in
seconds or in milliseconds. A clip that starts elsewhere than the segment is none of it. What is missing is counted and
left out.

Splits: train (the unbalanced part), balanced, test (eval), and validation, drawn by the seed from train, which AudioSet
has none for. With --balanced-only there is no train, and validation is drawn from balanced. Labels: label, several a
clip, by the display names of all classes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.prepare.recordings import DataSet, Recording, drawn
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import VideoClips, number, read_table, warn_missing
from ssamba.errors import UserError
from ssamba.folders import instead
from ssamba.values import add_argument, share

CLASSES = "class_labels_indices.csv"
SEGMENTS = {
    "train": "unbalanced_train_segments.csv",
    "balanced": "balanced_train_segments.csv",
    "test": "eval_segments.csv",
}


def class_names(source: Path) -> dict[str, str]:
    """A class's identifier, such as /m/09x0r -> its display name, in the order of their numbers."""
    rows = list(read_table(source / CLASSES, ("index", "mid", "display_name")))
    rows.sort(key=lambda row: number(row["index"], f"the index of {row['mid']}"))
    return {row["mid"]: row["display_name"] for row in rows}


def segments(table: Path, clips: VideoClips, names: dict[str, str]) -> tuple[list[Recording], int]:
    """The recordings of one part that are there, and how many it has."""
    recordings: list[Recording] = []
    wanted = 0
    for row in read_table(table, ("video", "start", "end", "labels"), header=False):
        wanted += 1
        video, classes = row["video"], row["labels"].split(",")
        if unknown := [one for one in classes if one not in names]:
            raise UserError(f"{video} in {table} is labelled {unknown[0]!r}; expected identifiers that {CLASSES} lists")
        path = clips.find(video, number(row["start"], f"the start of {video} in {table}"))
        if path:
            recordings.append(Recording(video, path, {"label": [names[one] for one in classes]}))
    return recordings, wanted


def find(options: argparse.Namespace) -> DataSet:
    names = class_names(options.source)
    parts = {split: options.source / name for split, name in SEGMENTS.items()}
    if options.balanced_only:
        del parts["train"]
    for table in parts.values():
        if not table.is_file():
            raise UserError(
                f"{table} is missing; expected the official segments (--balanced-only does without the unbalanced "
                f"ones); {instead(table)}"
            )
    clips = VideoClips(options.source)
    splits: dict[str, list[Recording]] = {}
    for split, table in parts.items():
        splits[split], wanted = segments(table, clips, names)
        warn_missing(split, len(splits[split]), wanted, options.source, "-0RWZT-miFs.wav or -0RWZT-miFs_420.wav")
    if options.validation:
        whole = "balanced" if options.balanced_only else "train"
        mixed = sorted(splits[whole], key=lambda one: drawn(options.seed, one.key))
        count = round(options.validation * len(mixed))
        splits["validation"], splits[whole] = mixed[:count], mixed[count:]
    return DataSet("audioset", splits, {"label": list(names.values())})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balanced-only", action="store_true", help="without the 2 million clips of the split train")
    validation = "fraction for the split validation (default: %(default)s)"
    add_argument(parser, "--validation", share, 0, 1, default=0.01, metavar="X", help=validation)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
