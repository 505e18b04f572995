"""What data_prep's scripts read: tables, and folders of recordings. Imports no torch."""

import csv
import glob
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ssamba.data.writer import Recording
from ssamba.errors import UserError
from ssamba.recordings import ENDINGS

log = logging.getLogger(__name__)

# A video's name has 11 characters. Some put a Y before it, as a name that begins with - is an option to many a command.
_CLIP = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)


def read_table(path: Path, columns: Sequence[str], header: bool = True) -> Iterator[dict[str, str]]:
    """The rows of a CSV in UTF-8, column -> text. A line that begins with # is a comment.

    Args:
        columns: with a header those that must be in it, among others; without one all of them, in their order.

    Raises:
        UserError: no such file, other columns, a row of another length, not in UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; expected the data set's official list")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, skipinitialspace=True)
            names = next(rows, []) if header else list(columns)
            if not set(columns) <= set(names):
                raise UserError(f"{path} has the columns {names}; expected {', '.join(columns)} among them")
            for fields in rows:
                if not fields or fields[0].startswith("#"):
                    continue
                if len(fields) != len(names):
                    raise UserError(f"{path} line {rows.line_num} is {fields}; expected {', '.join(names)}")
                yield dict(zip(names, fields, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a CSV in UTF-8") from error


def number(text: str, where: str) -> float:
    """A number of a table; `where` is what a complaint names."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} is {text!r}; expected a number")
    return value


def recordings_below(folder: Path) -> list[Path]:
    """All recordings in a folder and in those within it, relative to it, sorted."""
    found = (Path(name) for name in sorted(glob.glob("**/*", root_dir=folder, recursive=True)))
    return [path for path in found if path.suffix.lower() in ENDINGS]


def unpacked(source: Path, folder: str) -> Path:
    """The data set's folder: the one in `source` that its archive unpacks to, or `source` itself."""
    return source / folder if (source / folder).is_dir() else source


def tell_missing(split: str, found: int, wanted: int, source: Path, names: str) -> None:
    """Say how many of a split's clips were not found; `names` is how a file is expected to be called.

    Raises:
        UserError: none was found.
    """
    if not found:
        raise UserError(f"none of the {wanted} clips of the split {split} is in {source}; expected files like {names}")
    if found < wanted:
        log.warning("%s: %d of %d clips are missing", split, wanted - found, wanted)


class Folds(NamedTuple):
    """The recordings of a data set in folds: splits train and test, and the classes in the order of their numbers."""

    splits: dict[str, list[Recording]]
    classes: list[str]


def read_folds(source: Path, table: str, columns: tuple[str, str, str], folder: str, test_fold: str) -> Folds:
    """Read a table with a column fold, each recording labelled with its class and its fold.

    Args:
        source: the data set's folder, which holds `table`.
        columns: of the file's name, the class's number and the class, which is also the label's name.
        folder: in `source`, of a recording; {fold} stands for its fold.

    Raises:
        UserError: as `read_table`, or a recording that is missing.
    """
    file, numbers, label = columns
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    classes: dict[float, str] = {}
    for row in read_table(source / table, (*columns, "fold")):
        fold = row["fold"]
        path = source / folder.format(fold=fold) / row[file]
        if not path.is_file():
            raise UserError(f"{path} is missing, and is in {table}: unpack the archive again")
        classes[number(row[numbers], f"the {numbers} of {path.name}")] = row[label]
        recording = Recording(path.stem, path, {label: row[label], "fold": fold})
        splits["test" if fold == test_fold else "train"].append(recording)
    return Folds(splits, [classes[one] for one in sorted(classes)])


class VideoClips:
    """The clips of YouTube videos below a folder, by what downloaders call them.

    A name is the video's 11 characters, perhaps a Y before them, perhaps `_START` or `_START_END` behind them, in
    seconds or in milliseconds: -0RWZT-miFs.wav, Y-0RWZT-miFs.wav, -0RWZT-miFs_420.000_430.000.flac,
    -0RWZT-miFs_000420.wav, -0RWZT-miFs_420000.wav.
    """

    def __init__(self, folder: Path) -> None:
        self.clips: dict[str, list[tuple[float | None, Path]]] = {}
        for path in recordings_below(folder):
            if parts := _CLIP.fullmatch(path.stem):
                video, start = parts.groups()
                self.clips.setdefault(video, []).append((None if start is None else float(start), folder / path))

    def find(self, video: str, start: float) -> Path | None:
        """The clip that begins there in the video, in seconds, or else one whose name tells no beginning."""
        fits = (start, int(start), round(1000 * start), None)
        clips = self.clips.get(video, ())
        return next((path for fit in fits for begin, path in clips if begin == fit), None)
