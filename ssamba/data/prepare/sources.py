"""What data_prep's scripts read: tables, folders of recordings, what other packages hold. Imports no torch."""

import importlib
import logging
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ssamba.data.prepare.lists import read_rows
from ssamba.data.prepare.recordings import Recording
from ssamba.errors import UserError
from ssamba.files import written_beside
from ssamba.folders import PassedOver, instead, look_below, there

log = logging.getLogger(__name__)

_LONGEST_NAME = 200  # bytes: file systems take 255, and a file that is being written has a longer one

# A video's name has 11 characters. Some put a Y or id_ before it, as a name that begins with - is an option to many a
# command.
_CLIP = re.compile(r"(?:Y|id_)?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)


def read_table(path: Path, columns: Sequence[str], header: bool = True) -> Iterator[dict[str, str]]:
    """The rows of a data set's official table, column -> text. A line that begins with # is a comment.

    Args:
        columns: with a header those that must be in it, among others; without one all of them, in their order.

    Raises:
        UserError: no such file, other columns, a row of another length, no text.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; expected the data set's official list; {instead(path)}")
    names, rows = read_rows(path, None if header else columns, comments=True)
    if not set(columns) <= set(names):
        raise UserError(f"{path} has the columns {names}; expected {', '.join(columns)} among them")
    for row in rows:
        yield dict(row.fields)


def number(text: str, where: str) -> float:
    """A number of a table; `where` is what a complaint names."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} is {text!r}; expected a number")
    return value


def seen(paths: Iterable[Path], passed_over: PassedOver) -> list[Path]:
    """In their order of names, without those that are hidden, such as ._NAME of macOS, which are counted."""
    ordered = sorted(paths)
    for path in ordered:
        if path.name.startswith("."):
            passed_over.add("hidden", path.name)
    return [path for path in ordered if not path.name.startswith(".")]


def unpacked(source: Path, folder: str) -> Path:
    """The data set's folder: the one in `source` that its archive unpacks to, or `source` itself."""
    return source / folder if (source / folder).is_dir() else source


def warn_missing(split: str, count: int, wanted: int, source: Path, names: str) -> None:
    """Log how many of a split's clips are missing; `names` is how a file is expected to be called.

    Raises:
        UserError: none was found.
    """
    if not count:
        others = look_below(source).recordings
        detail = f"{len(others)} others below it, such as {others[0]}" if others else there(source, "*")
        raise UserError(
            f"none of the {wanted} clips of the split {split} is in {source}; expected files like {names}; {detail}"
        )
    if count < wanted:
        log.warning("%s: %d of %d clips are missing", split, wanted - count, wanted)


class Folds(NamedTuple):
    """The recordings of a data set in folds: splits train and test, and the classes in the order of their indices."""

    splits: dict[str, list[Recording]]
    classes: list[str]


def read_folds(source: Path, table: str, columns: tuple[str, str, str], folder: str, test_fold: str) -> Folds:
    """Read a table with a column fold, each recording labelled with its class and its fold.

    Args:
        source: the data set's folder, which holds `table`.
        columns: of the file's name, the class's index and the class, which is also the label's name.
        folder: in `source`, of a recording; {fold} stands for its fold.

    Raises:
        UserError: as `read_table`, or a recording that is missing.
    """
    file, index, label = columns
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    classes: dict[float, str] = {}
    for row in read_table(source / table, (*columns, "fold")):
        fold = row["fold"]
        path = source / folder.format(fold=fold) / row[file]
        if not path.is_file():
            raise UserError(f"{path} is missing, and is in {table}: unpack the archive again; {instead(path)}")
        classes[number(row[index], f"the {index} of {path.name}")] = row[label]
        recording = Recording(path.stem, path, {label: row[label], "fold": fold})
        splits["test" if fold == test_fold else "train"].append(recording)
    return Folds(splits, [classes[one] for one in sorted(classes)])


class VideoClips:
    """The clips of YouTube videos below a folder, by what downloaders call them.

    A name is the video's 11 characters, perhaps a Y or id_ before them, perhaps `_START` or `_START_END` after them,
    in seconds or in milliseconds: -0RWZT-miFs.wav, Y-0RWZT-miFs.wav, id_-0RWZT-miFs.wav, -0RWZT-miFs_000420.wav,
    -0RWZT-miFs_420.000_430.000.flac, -0RWZT-miFs_420000.wav.
    """

    def __init__(self, folder: Path) -> None:
        self.clips: dict[str, list[tuple[float | None, Path]]] = {}
        for path in look_below(folder).recordings:
            if parts := _CLIP.fullmatch(path.stem):
                video, start = parts.groups()
                self.clips.setdefault(video, []).append((None if start is None else float(start), folder / path))

    def find(self, video: str, start: float) -> Path | None:
        """The clip that begins there in the video, in seconds, or else one whose name has no beginning."""
        fits = (start, int(start), round(1000 * start), None)
        clips = self.clips.get(video, ())
        return next((path for fit in fits for begin, path in clips if begin == fit), None)


def import_extra(package: str) -> Any:
    """A package that one script needs, and that ssamba's extra of the same name brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        why = "which is not installed" if error.name == package else f"which cannot be imported ({error})"
        raise UserError(f"this script needs {package}, {why}: pip install 'ssamba[{package}]'") from error


class Unpacked:
    """Recordings whose sound lies in no file of its own (in a table, an archive, a stream), written to a folder.

    A file there has the name that its source gives it, which cannot lead out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def add(self, name: str | None, otherwise: str, content: bytes) -> Path:
        """Write one; the file that holds it.

        Args:
            name: by its source: perhaps none, or that of another one, too.
            otherwise: a name within the folder that is this one's alone.
        """
        text = (name or "").replace("\0", "").encode(errors="replace").decode()
        parts = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".", "..")]
        if any(len(part.encode()) > _LONGEST_NAME for part in parts):
            parts = []
        place = PurePosixPath(*parts)
        if not parts or place in self._folders or self._files & {place, *place.parents}:
            place = PurePosixPath(otherwise, *parts[-1:])
        self._files.add(place)
        self._folders.update(place.parents)
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside:
            beside.write_bytes(content)
        # The writer knows a file by its size and time: made again it is known, and with another content it is not.
        stamp = zlib.crc32(content) >> 1
        os.utime(path, (stamp, stamp))
        return path
