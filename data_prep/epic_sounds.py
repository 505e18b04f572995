"""Shards of EPIC-SOUNDS: each of its annotations, cut from the recording of a whole video.

SOURCE holds EPIC_Sounds_train.csv and EPIC_Sounds_validation.csv and anywhere below it the sound of the EPIC-KITCHENS
videos, called as they are: P01_01.wav. The annotations of a video that is missing are counted and left out. The test
set's labels are not public. Labels: label, in the order of the official numbers, and participant.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from ssamba.data.prepare.recordings import DataSet, Recording
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import number, read_table, warn_missing
from ssamba.errors import UserError
from ssamba.folders import look_below

TABLES = {"train": "EPIC_Sounds_train.csv", "validation": "EPIC_Sounds_validation.csv"}
COLUMNS = ("annotation_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "class", "class_id")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)


def seconds(timestamp: str, where: str) -> float:
    """Of hours:minutes:seconds."""
    parts = _TIME.fullmatch(timestamp)
    if not parts:
        raise UserError(f"{where} has the time {timestamp!r}; expected one like 00:01:02.345")
    hours, minutes, rest = parts.groups()
    return round(3600 * int(hours) + 60 * int(minutes) + float(rest), 6)


def find(options: argparse.Namespace) -> DataSet:
    tables = {split: list(read_table(options.source / name, COLUMNS)) for split, name in TABLES.items()}
    videos = {path.stem: options.source / path for path in look_below(options.source).recordings}
    splits: dict[str, list[Recording]] = {}
    classes: dict[float, str] = {}
    for split, rows in tables.items():
        recordings = splits[split] = []
        for row in rows:
            key = row["annotation_id"]
            classes[number(row["class_id"], f"the class_id of {key}")] = row["class"]
            if path := videos.get(row["video_id"]):
                start, stop = (seconds(row[f"{edge}_timestamp"], key) for edge in ("start", "stop"))
                labels: dict[str, str | list[str]] = {"label": row["class"], "participant": row["participant_id"]}
                recordings.append(Recording(key, path, labels, start, stop))
        warn_missing(split, len(recordings), len(rows), options.source, "P01_01.wav")
    return DataSet("epic-sounds", splits, {"label": [classes[one] for one in sorted(classes)]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
