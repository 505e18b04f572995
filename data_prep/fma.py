"""Shards of the Free Music Archive's small set: 8,000 clips of 30 s, eight genres, by its official split.

SOURCE holds fma_small, with 000/000002.mp3 and so on, and fma_metadata, with tracks.csv; --fetch gets them there (7.7
and 0.4 GB). Six of the clips are known to be shorter than 30 s, three of them without any audio (099134, 108925 and
133297): those are skipped and counted as unusable ones are. Label: genre.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet, Recording, check_present
from ssamba.data.prepare.script import run_script
from ssamba.errors import UserError
from ssamba.folders import instead

SUBSET = "small"
SPLITS = {"training": "train", "validation": "validation", "test": "test"}
TABLE = "fma_metadata/tracks.csv"
COLUMNS = (("set", "subset"), ("set", "split"), ("track", "genre_top"))
ARCHIVES = [
    Archive(
        "https://os.unil.cloud.switch.ch/fma/fma_metadata.zip",
        "fma_metadata",
        "sha1:f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
    ),
    Archive(
        "https://os.unil.cloud.switch.ch/fma/fma_small.zip",
        "fma_small",
        "sha1:ade154f733639d52e35e32f5593efe5be76c6d70",
    ),
]


def read_tracks(table: Path) -> Iterator[tuple[str, str, str, str]]:
    """Number, subset, split and genre of every track. A line at a time: with all that artists say of themselves the
    table has 260 MB.

    Raises:
        UserError: no such table, or none with its three lines of header.
    """
    if not table.is_file():
        raise UserError(f"{table} is missing; expected what fma_metadata.zip unpacks to; {instead(table)}")
    csv.field_size_limit(1 << 24)
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        try:
            upper, lower, index = next(rows, []), next(rows, []), next(rows, [])
            header = list(zip(upper, lower, strict=False))
            if index[:1] != ["track_id"] or not set(COLUMNS) <= set(header):
                raise UserError(
                    f"{table} begins with {str([upper[:4], lower[:4], index[:4]])[:200]}; expected three lines of "
                    f"header, the columns {', '.join(map('/'.join, COLUMNS))} and track_id"
                )
            subset, split, genre = map(header.index, COLUMNS)
            for row in rows:
                if len(row) != len(header):
                    raise UserError(f"{table} line {rows.line_num} has {len(row)} fields; expected {len(header)}")
                yield row[0], row[subset], row[split], row[genre]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{table} line {rows.line_num} cannot be read ({error}); expected a CSV") from error


def find(options: argparse.Namespace) -> DataSet:
    table = options.source / TABLE
    splits: dict[str, list[Recording]] = {split: [] for split in SPLITS.values()}
    for track, subset, split, genre in read_tracks(table):
        if subset != SUBSET:
            continue
        if split not in SPLITS or not track.isdecimal() or not genre:
            raise UserError(
                f"{table} has the track {track!r} of the split {split!r} and the genre {genre!r}; expected a number, "
                f"one of {', '.join(SPLITS)} and a genre"
            )
        name = f"{int(track):06d}"
        path = options.source / f"fma_{SUBSET}" / name[:3] / f"{name}.mp3"
        splits[SPLITS[split]].append(Recording(name, path, {"genre": genre}))
    check_present(splits, options.max_bad_fraction)
    return DataSet(f"fma-{SUBSET}", splits)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments, lambda options: ARCHIVES)


if __name__ == "__main__":
    sys.exit(main())
