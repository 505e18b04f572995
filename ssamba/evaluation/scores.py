"""Scores written into a folder, with the predictions for each clip: JSON, arrays, CSV, a picture.

Shapes: N clips, C classes.
"""

import csv
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssamba.audio import HOP_MS, LogMel
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions, predict
from ssamba.evaluation.hops import event_scores, predict_hops, recording_of
from ssamba.evaluation.intervals import Interval, score_intervals
from ssamba.evaluation.masked import MaskedEvaluation, score_masked
from ssamba.evaluation.metrics import ClassScores, class_scores, confusion_matrix, summary_metrics
from ssamba.evaluation.pictures import draw_confusion
from ssamba.evaluation.task import Task
from ssamba.evaluation.transcripts import count_errors, transcribe
from ssamba.files import parse_json, whole_folder, write_json
from ssamba.models.heads import AudioClassifier, TokenClassifier
from ssamba.printable import csv_cell

SCORES_NAME = "scores.npz"
"""The file with what each clip got: `keys` and `names` (of the classes), each a JSON list in UTF-8 as uint8;
`probabilities` float32 (N, C); `labels` int64 (N,), or bool (N, C) where a clip has several; `groups`, as `keys`, of
each clip, where the intervals are those of groups."""
CLASSES_NAME = "classes.csv"
"""The file with the scores of each class."""
TEXTS_NAME = "texts.csv"
"""The file with what is said in each clip, and what a model writes down."""
MISTAKES = 20
_EXPECTED = "the scores of a run, as finetune, evaluate and probe write them"
_MOST_BYTES = 1 << 32  # of the arrays in a file that is read
_LEAST = 1e-12  # a probability, of which there is a logit


class Mistake(NamedTuple):
    """A clip's key, its true labels, the mistake ("said X", "missed X") and how sure the model was, above 0.5 for
    several labels a clip."""

    key: str
    true: str
    wrong: str
    probability: float


def scoring_device() -> torch.device:
    """Where classifiers are scored: on a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def probabilities(predictions: Predictions) -> Tensor:
    """Of each class, (N, C): softmax of the logits for one label a clip, sigmoid for several."""
    multi_label = predictions.labels.ndim == 2
    return predictions.logits.sigmoid() if multi_label else predictions.logits.softmax(1)


def flat_scores(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """For JSON: NAME, NAME_low and NAME_high."""
    return {
        f"{name}{ending}": value
        for name, interval in intervals.items()
        for ending, value in zip(("", "_low", "_high"), interval, strict=True)
    }


def mistakes(predictions: Predictions, names: Sequence[str], most: int = MISTAKES) -> list[Mistake]:
    """The most confident ones, the surest first. Of several labels a clip the worst of each clip's classes counts."""
    chances, labels = probabilities(predictions), predictions.labels
    if labels.ndim == 2:
        sure = (chances - labels).abs()
        worst = sure.argmax(1)
        level = sure.gather(1, worst.unsqueeze(1)).squeeze(1)
        wrong = level > 0.5
    else:
        level, worst = chances.max(1)
        wrong = worst != labels
    order = torch.nonzero(wrong).flatten()
    order = order[level[order].argsort(descending=True, stable=True)][:most]
    result = []
    for place in order.tolist():
        predicted = labels.ndim == 1 or not labels[place, worst[place]]
        what = f"{'said' if predicted else 'missed'} {names[int(worst[place])]}"
        result.append(Mistake(predictions.keys[place], _true(labels[place], names), what, float(level[place])))
    return result


def _true(label: Tensor, names: Sequence[str]) -> str:
    places = torch.nonzero(label).flatten().tolist() if label.ndim else [int(label)]
    return "|".join(names[place] for place in places)


def fill_scores(
    folder: Path,
    predictions: Predictions,
    names: Sequence[str],
    title: str,
    groups: Sequence[str] | None = None,
    hop_seconds: float | None = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """Write into a folder that is being made: scores.json, `SCORES_NAME`, classes.csv, predictions.csv, mistakes.csv;
    for one label a clip, confusion.png.

    Args:
        groups: of each clip, such as its speaker, if intervals are to be those of groups.
        hop_seconds: of predictions of hops, whose `event_scores` are written, too.
        task: whose scores are written, too.

    Returns:
        What scores.json has: each score of `clip_metrics` with the ends of its interval (`flat_scores`), those of
        `summary_metrics`, and the number of clips.
    """
    chances = probabilities(predictions)
    classes = class_scores(chances, predictions.labels)
    scores: dict[str, Any] = {
        **flat_scores(score_intervals(predictions, groups)),
        **summary_metrics(classes, chances, predictions.labels),
        **({} if hop_seconds is None else event_scores(predictions, names, hop_seconds)),
        **({} if task is None else task.scores(predictions.logits, predictions.labels)),
        "clips": len(predictions.keys),
    }
    write_json(folder / "scores.json", scores)
    _write_arrays(folder / SCORES_NAME, predictions, names, groups)
    _write_classes(folder / CLASSES_NAME, classes, names)
    _write_predictions(folder / "predictions.csv", predictions, names)
    _write_mistakes(folder / "mistakes.csv", mistakes(predictions, names))
    if predictions.labels.ndim == 1:
        title = f"{title}: {scores['accuracy']:.1%} of {len(predictions.keys)} clips"
        confusion = confusion_matrix(predictions.logits, predictions.labels)
        draw_confusion(folder / "confusion.png", confusion, names, title)
    return scores


def write_class_scores(
    folder: Path,
    model: AudioClassifier,
    log_mel: LogMel,
    stream: ClipStream,
    total: int,
    names: Sequence[str],
    groups: Mapping[str, str] | None = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """Score a classifier, of clips or of their hops, and `fill_scores`. Replaces the folder.

    Args:
        groups: of each clip by its key; hops are those of their recordings at least.
        task: that it was trained by.
    """
    hop = hop_seconds_of(model)
    if isinstance(model, TokenClassifier):
        predictions = predict_hops(model, log_mel, stream, total, scoring_device())
    else:
        predictions = predict(model, log_mel, stream, total, scoring_device())
    with whole_folder(folder) as beside:
        of_clips = groups_of(predictions.keys, groups, hop)
        return fill_scores(beside, predictions, names, folder.resolve().parent.name, of_clips, hop, task)


def hop_seconds_of(model: AudioClassifier) -> float | None:
    """Of an answer; None for a classifier of whole clips."""
    if not isinstance(model, TokenClassifier):
        return None
    return model.hop_frames * HOP_MS / 1000


def groups_of(keys: Sequence[str], groups: Mapping[str, str] | None, hop_seconds: float | None) -> list[str] | None:
    """The group of each clip, or of each hop, by those of recordings; hops without any are those of their recording."""
    if hop_seconds is None:
        return None if groups is None else [groups[key] for key in keys]
    recordings = [recording_of(key) for key in keys]
    return recordings if groups is None else [groups[one] for one in recordings]


def groups_by_key(
    keys: Sequence[str], groups: Mapping[str, str] | None, hop_seconds: float | None
) -> dict[str, str] | None:
    """As `groups_of`, by the keys."""
    of_clips = groups_of(keys, groups, hop_seconds)
    return None if of_clips is None else dict(zip(keys, of_clips, strict=True))


def write_text_scores(
    folder: Path, model: TokenClassifier, log_mel: LogMel, stream: ClipStream, total: int, names: Sequence[str]
) -> dict[str, Any]:
    """Score a CTC model of characters, the likeliest character of each hop ("WER", "CER") and a beam search's text
    ("beam_WER", "beam_CER") where `HAS_BEAM_SEARCH`: scores.json with intervals, and `TEXTS_NAME`. Replaces the
    folder."""
    transcripts = transcribe(model, log_mel, stream, total, names, scoring_device())
    written = {"greedy": transcripts.greedy} | ({"beam": transcripts.beam} if transcripts.beam else {})
    errors = {kind: count_errors(texts, transcripts.true) for kind, texts in written.items()}
    scores: dict[str, Any] = {}
    for kind, counted in errors.items():
        prefix = "" if kind == "greedy" else f"{kind}_"
        scores |= flat_scores({f"{prefix}{name}": value for name, value in counted.intervals().items()})
    scores["clips"] = len(transcripts.keys)
    columns: dict[str, Sequence[Any]] = {"key": transcripts.keys, "true": transcripts.true, **written}
    columns["characters"] = errors["greedy"].characters.long().tolist()
    columns |= {f"{kind} edits": one.character_edits.long().tolist() for kind, one in errors.items()}
    with whole_folder(folder) as beside:
        write_json(beside / "scores.json", scores)
        with (beside / TEXTS_NAME).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([csv_cell(str(one)) for one in row] for row in zip(*columns.values(), strict=True))
    return scores


def write_masked_scores(folder: Path, evaluation: MaskedEvaluation) -> dict[str, Any]:
    """Score a pretrained model on masked clips: scores.json. Replaces the folder."""
    scores = {name: score for name, score in score_masked(evaluation)._asdict().items() if score is not None}
    with whole_folder(folder) as beside:
        write_json(beside / "scores.json", scores)
    return scores


def read_scores(folder: Path) -> tuple[Predictions, list[str]]:
    """The predictions for each clip, and the names of the classes, from the `SCORES_NAME` in a folder; logits are made
    of the probabilities.

    Raises:
        UserError: there is none, or one that is damaged.
    """
    path = folder / SCORES_NAME
    keys, names, _, chances, labels = _read_arrays(path)
    multi_label = labels.ndim == 2
    fits = (
        chances.dtype == np.float32
        and chances.shape == (len(keys), len(names))
        and len(keys) > 0
        and labels.dtype == (np.bool_ if multi_label else np.int64)
        and labels.shape == (chances.shape if multi_label else (len(keys),))
        and bool(((chances >= 0) & (chances <= 1)).all())
        and (multi_label or bool(((labels >= 0) & (labels < len(names))).all()))
    )
    if not fits:
        raise UserError(f"{path} cannot be used: its arrays do not fit one another; expected {_EXPECTED}")
    likely = torch.from_numpy(chances).double().clamp(_LEAST, 1 - _LEAST)
    truth = torch.from_numpy(labels)
    return Predictions(
        keys, likely.logit() if multi_label else likely.log(), truth.float() if multi_label else truth
    ), names


def read_groups(folder: Path) -> dict[str, str] | None:
    """The group of each clip by its key, where the intervals of the scores in a folder are those of groups.

    Raises:
        UserError: as `read_scores`.
    """
    keys, _, groups, _, _ = _read_arrays(folder / SCORES_NAME)
    if groups is not None and len(groups) != len(keys):
        raise UserError(
            f"{folder / SCORES_NAME} has groups of {len(groups)} of its {len(keys)} clips; expected {_EXPECTED}"
        )
    return None if groups is None else dict(zip(keys, groups, strict=True))


_Arrays = tuple[list[str], list[str], list[str] | None, np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _read_arrays(path: Path) -> _Arrays:
    """Keys, names, groups if there are any, probabilities and labels."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise UserError(f"{path} holds more than {_MOST_BYTES} bytes; expected {_EXPECTED}")
        with np.load(path, allow_pickle=False) as arrays:
            texts = {
                name: parse_json(arrays[name].tobytes(), list[str], path, _EXPECTED)
                for name in ("keys", "names", "groups")
                if name != "groups" or name in arrays
            }
            return texts["keys"], texts["names"], texts.get("groups"), arrays["probabilities"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be used ({type(error).__name__}: {error}); expected {_EXPECTED}") from error


def _write_arrays(path: Path, predictions: Predictions, names: Sequence[str], groups: Sequence[str] | None) -> None:
    # Texts as JSON: an array of them would give each the length of the longest.
    texts = {"keys": predictions.keys, "names": names} | ({} if groups is None else {"groups": groups})
    arrays: dict[str, Any] = {
        name: np.frombuffer(json.dumps(list(some)).encode(), np.uint8) for name, some in texts.items()
    }
    arrays["probabilities"] = probabilities(predictions).float().numpy()
    arrays["labels"] = (predictions.labels.bool() if predictions.labels.ndim == 2 else predictions.labels).numpy()
    np.savez_compressed(path, **arrays)


def _write_classes(path: Path, classes: Sequence[ClassScores], names: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *ClassScores._fields])
        for name, (clips, *scores) in zip(names, classes, strict=True):
            writer.writerow([csv_cell(name), clips, *("" if math.isnan(one) else f"{one:.4f}" for one in scores)])


def _write_predictions(path: Path, predictions: Predictions, names: Sequence[str]) -> None:
    chances = probabilities(predictions)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "true", "predicted", "probability"])
        for key, label, row in zip(predictions.keys, predictions.labels, chances, strict=True):
            best = int(row.argmax())
            cells = (key, _true(label, names), names[best])
            writer.writerow([*map(csv_cell, cells), f"{float(row[best]):.4f}"])


def _write_mistakes(path: Path, rows: Sequence[Mistake]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Mistake._fields)
        for one in rows:
            writer.writerow([*map(csv_cell, one[:3]), f"{one.probability:.4f}"])
