"""A classifier's predictions over the time of a recording, as CSV and as a picture: in memory that does not grow with
its length.

Shapes: T frames, M mel bins, C classes, N bins of time, K values.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import made_folder, written_beside
from ssamba.inference.spelling import Spelling, Word
from ssamba.inference.windows import Ended, Window
from ssamba.printable import csv_cell

MOST_BINS = 2048  # of a picture; more would fall on one pixel
_FRAME_SECONDS = 0.01


class _Failed(Exception):
    """A recording failed, so its unfinished files are removed."""


class TimelineFiles:
    """Recordings' timelines in `folder`: NAME.csv and NAME.png, the recordings named from their common folder on.

    The CSV has a line a window, or a hop: start and end in seconds, the most probable label, its probability, and those
    of all classes. For a CTC model it has a line a word: start, end and the word.

    Raises:
        UserError: `folder` is a file, or one of these files exists and is not to be overwritten.

    Args:
        spoken: the labels are the blank and the characters of a CTC model.
    """

    def __init__(
        self, folder: Path, paths: Sequence[str], labels: Sequence[str], overwrite: bool, spoken: bool = False
    ) -> None:
        self.spoken = spoken
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; expected a folder for timelines, or a name for a new one")
        whole = [os.path.abspath(path) for path in paths]
        common = os.path.commonpath([os.path.dirname(path) for path in whole])
        self.places = {path: folder / os.path.relpath(place, common) for path, place in zip(paths, whole, strict=True)}
        self.labels = labels
        for place in self.places.values():
            for file in (_beside(place, ".csv"), _beside(place, ".png")):
                if file.exists() and not overwrite:
                    raise UserError(f"{file} exists; --overwrite replaces the timelines in {folder}")

    def follow(self, results: Iterable[Window | Ended]) -> Iterator[Window | Ended]:
        """Pass on the results. A recording's files are there when its end is passed on; none if it failed."""
        results = iter(results)
        for one in results:
            if isinstance(one, Window):
                yield from self._write(one, results)
            else:  # without a window
                yield one

    def _write(self, first: Window, results: Iterator[Window | Ended]) -> Iterator[Window | Ended]:
        """The files of one recording, from its first window to its end."""
        place = self.places[first.path]
        with (
            suppress(_Failed),
            made_folder(place.parent),
            written_beside(_beside(place, ".png")) as picture,
            written_beside(_beside(place, ".csv")) as table,
        ):
            with table.open("w", newline="", encoding="utf-8") as file:
                timeline = _Timeline(file, self.labels, first.spectrogram.shape[1], self.spoken)
                for one in itertools.chain([first], results):
                    if isinstance(one, Ended):
                        ended = one
                        break
                    timeline.add(one)
                    yield one
                timeline.end()
            if ended.error is not None:
                raise _Failed
            timeline.draw(picture, f"{place.name}, {ended.seconds:.1f} s")
        yield ended


class _Timeline:
    def __init__(self, file: TextIO, labels: Sequence[str], mel_bins: int, spoken: bool) -> None:
        self.spelling = Spelling(labels) if spoken else None
        self.labels, self.cells, self.mel_bins = labels, [csv_cell(label) for label in labels], mel_bins
        self.bins = TimeBins(_FRAME_SECONDS, mel_bins + len(labels))
        self.writer = csv.writer(file)
        head = ["start", "end"]
        self.writer.writerow([*head, "word"] if spoken else [*head, "label", "probability", *self.cells])

    def add(self, window: Window) -> None:
        assert window.probabilities is not None
        if self.spelling is not None:
            self._write_words(self.spelling.add(window))
        else:
            best = int(window.probabilities.argmax())
            chances = [f"{chance:.6f}" for chance in window.probabilities.tolist()]
            fields = self.cells[best], chances[best], *chances
            self.writer.writerow([f"{window.start:.3f}", f"{window.end:.3f}", *fields])
        frames = len(window.spectrogram)
        times = window.start + torch.arange(frames, dtype=torch.float64) * ((window.end - window.start) / frames)
        self.bins.add(times, torch.cat([window.spectrogram, window.probabilities.expand(frames, -1)], 1))

    def end(self) -> None:
        """Write what is left to be written of a recording that has ended."""
        if self.spelling is not None:
            self._write_words(self.spelling.end())

    def _write_words(self, words: Iterable[Word]) -> None:
        for word in words:
            self.writer.writerow([f"{word.start:.3f}", f"{word.end:.3f}", csv_cell(word.text)])

    def draw(self, path: Path, title: str) -> None:
        from ssamba.evaluation.pictures import draw_timeline  # matplotlib takes long to import

        spectrogram, chances = self.bins.means().split([self.mel_bins, len(self.labels)], 1)
        shown = [label if label.strip() else repr(label) for label in self.labels]  # a space is a character, too
        draw_timeline(path, spectrogram, chances, self.bins.seconds, shown, title)


class TimeBins:
    """Means over equal bins of time. When the bins run out, neighbours are joined: twice as long, half as many.

    Args:
        seconds: of a bin, to begin with.
        values: K, how many means a bin has.
    """

    def __init__(self, seconds: float, values: int) -> None:
        self.seconds = seconds
        self.sums = torch.zeros(MOST_BINS, values)
        self.counts = torch.zeros(MOST_BINS, 1)

    def add(self, times: Tensor, values: Tensor) -> None:
        """Add values float32 (n, K) at ascending seconds, float64 (n,)."""
        while times[-1] >= MOST_BINS * self.seconds:
            for tensor in (self.sums, self.counts):
                half = tensor.unflatten(0, (-1, 2)).sum(1)
                tensor.zero_()[: len(half)] = half
            self.seconds *= 2
        places = (times / self.seconds).long()
        self.sums.index_add_(0, places, values)
        self.counts.index_add_(0, places, torch.ones(len(places), 1))

    def means(self) -> Tensor:
        """float32 (N, K), up to the last bin with a value; one without has those of the bin before."""
        filled = self.counts[:, 0] > 0
        last = int(torch.nonzero(filled)[-1])
        nearest = torch.where(filled, torch.arange(len(filled)), 0).cummax(0).values[: last + 1]
        return (self.sums / self.counts)[nearest]


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f"{place.name}{ending}")
