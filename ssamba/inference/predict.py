"""`ssamba predict`: a classifier's answer for each recording, as a table or as JSON lines.

Shapes: C classes.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import check_out, written_beside
from ssamba.folders import find_recordings
from ssamba.inference.spelling import Spelling
from ssamba.inference.timeline_files import TimelineFiles
from ssamba.inference.windows import Ended, Job, TimeMean, Window, load, watched
from ssamba.printable import printable
from ssamba.progress import print_above

FORMATS = ("table", "jsonl")


class Prediction(NamedTuple):
    """The prediction for a recording, or why there is none.

    probabilities: float64 (C,), the mean of its windows'. They count equally, and the one that was added to end with
    the recording counts as much less as it adds: where windows do not overlap otherwise, each second counts once.
    text: of a CTC model, its greedy transcript.
    """

    path: str
    seconds: float
    windows: int
    probabilities: Tensor | None
    error: str | None
    text: str | None = None


def predict_recordings(
    model: str,
    places: Sequence[str],
    *,
    form: str,
    top: int,
    out: Path | None,
    batch_size: int,
    device: str,
    window_seconds: float | None,
    hop_seconds: float | None,
    timeline: Path | None,
    overwrite: bool,
) -> int:
    """Predict, and write the answers to `out` or to stdout.

    Returns:
        How many recordings failed; each is named on stderr.

    Raises:
        UserError: whatever is wrong with what was asked for, before any recording is read.
    """
    if top < 1:
        raise UserError(f"top is {top}; expected at least 1")
    if out is not None:
        check_out(out, overwrite)
    paths = find_recordings(places)
    loaded = load(model, device)
    if loaded.classifier is None:
        raise UserError(
            f"{model} is a pretrained model without a classifier, so it has no labels to predict: `ssamba embed` "
            "gives its vectors, `ssamba finetune` makes a classifier of it"
        )
    labels, spoken = loaded.classifier.labels, loaded.classifier.loss == "ctc"
    job = Job.of(loaded, window_seconds, hop_seconds, None, batch_size)
    timelines = TimelineFiles(timeline, paths, labels, overwrite, spoken) if timeline else None
    failed = 0
    # Closed here, so that its bar stands above the message of whatever ends this.
    with contextlib.closing(watched(paths, job, "predict")) as results, _output(out) as file:
        widths = tuple(max(len(printable(text)) for text in texts) for texts in (paths, labels))
        spelling = Spelling(labels) if spoken else None
        for one in predictions(timelines.follow(results) if timelines else results, spelling):
            failed += one.error is not None
            if form == "jsonl":
                print_above(json_line(one, labels, top), file)
            elif one.error is None:
                print_above(table_line(one, labels, top, widths), file)
    return failed


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
    else:
        with written_beside(out) as beside, beside.open("w", encoding="utf-8") as file:
            yield file


def predictions(results: Iterable[Window | Ended], spelling: Spelling | None = None) -> Iterator[Prediction]:
    """Windows, recording by recording -> one prediction a recording; spelling: of a CTC model."""
    mean, windows = TimeMean(), 0
    words: list[str] = []
    for one in results:
        if isinstance(one, Window):
            assert one.probabilities is not None
            mean.add(one, one.probabilities)
            words += [word.text for word in spelling.add(one)] if spelling else []
            windows += 1
        else:
            chances = mean.value() if one.error is None else None
            words += [word.text for word in spelling.end()] if spelling else []
            text = " ".join(words) if spelling and one.error is None else None
            yield Prediction(one.path, one.seconds, windows, chances, one.error, text)
            mean, windows = TimeMean(), 0
            words.clear()


def best(one: Prediction, labels: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` most probable labels, the first of equals first."""
    assert one.probabilities is not None
    chances, places = one.probabilities.sort(descending=True, stable=True)
    return [(labels[place], chance) for chance, place in zip(chances.tolist(), places.tolist(), strict=True)][:top]


def json_line(one: Prediction, labels: Sequence[str], top: int) -> str:
    """{"path", "seconds", "windows", "labels": [{"label", "probability"}, ...]}, or {"path", "seconds", "text"}, or
    {"path", "error"}."""
    if one.error is not None:
        return json.dumps({"path": one.path, "error": one.error})
    if one.text is not None:
        return json.dumps({"path": one.path, "seconds": round(one.seconds, 3), "text": one.text}, ensure_ascii=False)
    answers = [{"label": label, "probability": round(chance, 6)} for label, chance in best(one, labels, top)]
    return json.dumps({"path": one.path, "seconds": round(one.seconds, 3), "windows": one.windows, "labels": answers})


def table_line(one: Prediction, labels: Sequence[str], top: int, widths: Sequence[int]) -> str:
    """Path, seconds, and label and probability of the `top`, or the transcript; `widths` of paths and labels, for lines
    that align."""
    if one.text is not None:
        return "  ".join([f"{printable(one.path):<{widths[0]}}", f"{one.seconds:8.2f} s", printable(one.text)])
    answers = [f"{printable(label):<{widths[1]}} {chance:.4f}" for label, chance in best(one, labels, top)]
    return "  ".join([f"{printable(one.path):<{widths[0]}}", f"{one.seconds:8.2f} s", *answers])
