"""A comparison as files: one page with everything in it, and the tables in other formats."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ssamba.comparison.compare import Comparison, Group
from ssamba.comparison.disagreements import EACH, Disagreement, Sound, disagreements, find_sounds, shown_pairs
from ssamba.comparison.runs import Run
from ssamba.comparison.tables import (
    as_json,
    cost_rows,
    listed_pairs,
    pair_rows,
    run_rows,
    score_rows,
    write_csv,
    write_latex,
)
from ssamba.evaluation.intervals import LEVEL
from ssamba.evaluation.metrics import confusion_matrix
from ssamba.evaluation.pages import Block, Picture, Section, Table, Text, write_report
from ssamba.evaluation.pictures import SECONDS, draw_confusion, draw_losses, draw_spectrogram, draw_trade_off
from ssamba.files import whole_folder, write_json

RECORD_NAME = "comparison.json"
"""In the folder of a comparison: all of it."""
_PAGES = ("comparison.html", "comparison.md")
_CONFUSED = 15  # pairs of classes
_EXAMPLES = "Examples that one gets right and another wrong"
_LOSS_KEYS = ("task.label_smoothing", "task.class_weights", "augmentation.mixup")


def score_text(comparison: Comparison) -> str:
    """How the scores' intervals came about."""
    drawn = "examples"
    if any(run.recipe["evaluation.group_by"] for group in comparison.groups for run in group.runs):
        drawn = "groups of recordings"
    elif any(run.recipe["task.hop_ms"] for group in comparison.groups for run in group.runs):
        drawn = "recordings"
    ends = f"{LEVEL:.0%} bootstrap intervals over {drawn}, seeds and folds"
    return f"In brackets: {ends}, as the runs' own reports have them."


def pair_text(comparison: Comparison) -> str:
    """How the differences were tested."""
    count, pairs = sum(not math.isnan(pair.corrected) for pair in comparison.pairs), len(comparison.pairs)
    some = f" Here are those with {comparison.best.letter}, the best; comparison-pairs.csv has all {pairs}."
    return (
        f"The same resamples of both groups; with what seeds and folds add, by Student's t of how many there are. p of "
        f"all pairs is corrected for {count} of them (Holm); at most {1 - LEVEL:.2f} is called a difference."
        f"{some if len(listed_pairs(comparison)) < pairs else ''}"
    )


COST_TEXT = (
    "MACs: multiply-adds of a forward pass of one clip, the scan's 4 for each of directions x tokens x inner width x "
    "states; in all: of three passes a training clip, with pretraining. Training and pretraining: wall time. Memory: "
    "of the GPUs, without one of the process. Energy: where the machine tells it."
)


def write_comparison(folder: Path, comparison: Comparison, record: Mapping[str, Any]) -> None:
    """Write `RECORD_NAME`, the page with its twin in Markdown, CSV, LaTeX and pictures. Replaces the folder.

    Args:
        record: what is at work, as of a run.
    """
    scores, pairs, costs = score_rows(comparison), pair_rows(comparison), cost_rows(comparison)
    with whole_folder(folder) as beside:
        pictures = beside / "pictures"
        pictures.mkdir()
        sections = [
            Section("Scores", [Table(scores), Text(score_text(comparison)), *map(Text, comparison.notes)]),
            Section("Differences", [Table(pairs), Text(pair_text(comparison))]),
            Section("Costs", [Table(costs), Text(COST_TEXT)]),
            Section("Loss", _loss_blocks(pictures, comparison)),
            Section("Score by cost", _trade_off_blocks(pictures, comparison)),
            *_confusion_sections(pictures, comparison),
            *_disagreement_sections(pictures, comparison),
            Section("Runs", [Table(run_rows(comparison))]),
        ]
        write_report(beside, f"Comparison of {len(comparison.groups)} groups of runs", sections, _PAGES)
        write_csv(beside, comparison)
        tables = {"Scores": scores, "Differences": pairs, "Costs": costs}
        write_latex(beside / "comparison.tex", tables, [score_text(comparison), *comparison.notes])
        write_json(beside / RECORD_NAME, {**as_json(comparison), "made_by": dict(record)})


def _name(group: Group) -> str:
    return f"{group.letter}: {group.label}"


def _loss_blocks(folder: Path, comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    histories = {_name(group): [run.history for run in group.runs] for group in comparison.groups}
    rows = [row for some in histories.values() for history in some for row in history]
    if not any(name in row for row in rows for name in ("train/loss", "val/loss")):
        return [Text("Nothing is known of it: the runs have no metrics.csv.")]
    steps = folder / "loss-steps.png"
    draw_losses(steps, _losses(histories, lambda row: row["step"]), "step", "Loss by steps")
    blocks.append(Picture(steps, "Loss in training (thin lines) and in validation (dots), by optimizer steps."))
    if all(SECONDS in row for row in rows):
        longest = max(row[SECONDS] for row in rows)
        unit, size = ("h", 3600) if longest >= 3600 else ("min", 60) if longest >= 120 else ("s", 1)
        hours = folder / "loss-time.png"
        draw_losses(hours, _losses(histories, lambda row: row[SECONDS] / size), f"time ({unit})", "Loss by time")
        blocks.append(Picture(hours, f"The same by wall time of training, in {_UNITS[unit]}."))
    else:
        blocks.append(Text("By time it is not drawn: some of the runs are of a version that did not log it."))
    different = [key for key in comparison.variants.treatments if key in _LOSS_KEYS or key.startswith("augmentation.")]
    if different:
        blocks.append(Text(f"Losses in training are of different things: the groups differ in {', '.join(different)}."))
    return blocks


_UNITS = {"h": "hours", "min": "minutes", "s": "seconds"}
Row = Mapping[str, float]


def _losses(
    histories: Mapping[str, Sequence[Sequence[Row]]], place: Callable[[Row], float]
) -> dict[str, list[tuple[list[tuple[float, float]], list[tuple[float, float]]]]]:
    def points(history: Sequence[Row], name: str) -> list[tuple[float, float]]:
        return [(place(row), row[name]) for row in history if name in row and math.isfinite(row[name])]

    return {
        group: [(points(one, "train/loss"), points(one, "val/loss")) for one in some]
        for group, some in histories.items()
    }


def _trade_off_blocks(folder: Path, comparison: Comparison) -> list[Block]:
    groups, metric = comparison.groups, comparison.metric
    blocks: list[Block] = []
    times = {group.letter: _hours(group) for group in groups}
    known = [hours for hours in times.values() if hours is not None]
    longest = max(known, default=0.0)
    unit, size = ("h", 1.0) if longest >= 1 else ("min", 60.0) if longest >= 1 / 30 else ("s", 3600.0)
    for name, costs, xlabel, what in (
        (
            "time",
            {key: None if value is None else size * value for key, value in times.items()},
            f"training and pretraining ({unit})",
            "wall time of training and pretraining",
        ),
        (
            "macs",
            {group.letter: group.costs.training_macs for group in groups},
            "multiply-adds of training and pretraining",
            "multiply-adds of all training, pretraining included",
        ),
    ):
        points = {
            _name(group): (cost, *group.scores[metric]) for group in groups if (cost := costs[group.letter]) is not None
        }
        if not points:
            blocks.append(Text(f"By {what} it is not drawn: they are not known of any group."))
            continue
        path = folder / f"score-{name}.png"
        draw_trade_off(path, points, xlabel, metric, f"{metric} by {'time' if name == 'time' else 'compute'}")
        left = [group.letter for group in groups if _name(group) not in points]
        missing = f" Not known of {', '.join(left)}." if left else ""
        blocks.append(Picture(path, f"{metric} with its {LEVEL:.0%} interval, by {what}.{missing}"))
    return blocks


def _hours(group: Group) -> float | None:
    own, before = group.costs.hours, group.costs.pretraining_hours
    return None if own is None or before is None else own + before


def _confusion_sections(folder: Path, comparison: Comparison) -> list[Section]:
    if comparison.metric != "accuracy":
        return []
    blocks: list[Block] = [Text("Examples of each true class (rows) by what was said of them (columns).")]
    shares: dict[str, torch.Tensor] = {}
    names: list[str] = []
    for group in comparison.groups:
        if group.draws is not None:
            counts, names = _confusion(group.runs)
            path = folder / f"confusion-{group.letter}.png"
            draw_confusion(path, counts, names, _name(group), small=True)
            runs = f", {len(group.runs)} runs together" if len(group.runs) > 1 else ""
            blocks.append(Picture(path, f"{_name(group)}{runs}"))
            shares[group.letter] = counts / counts.sum(1, keepdim=True).clamp(min=1)
    if not shares:
        return []
    return [Section("Confusion", [*blocks, *_confused_blocks(shares, names)])]


def _confused_blocks(shares: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[Block]:
    """The classes that some group confuses most, by their shares of the true class in each group."""
    worst = torch.stack([*shares.values()]).amax(0).fill_diagonal_(0)
    rows: list[Sequence[str]] = [("true", "said", *shares)]
    for place in worst.flatten().argsort(descending=True, stable=True)[:_CONFUSED].tolist():
        true, predicted = divmod(place, len(names))
        if worst[true, predicted] > 0:
            rows.append((names[true], names[predicted], *(f"{one[true, predicted]:.2f}" for one in shares.values())))
    if len(rows) == 1:
        return []
    return [Text(f"Most confused, by the share of the true class (at most {_CONFUSED}):"), Table(rows)]


def _confusion(runs: Sequence[Run]) -> tuple[torch.Tensor, list[str]]:
    counts, names = torch.zeros(0), list[str]()
    for run in runs:
        predictions, names = run.predictions()
        own = confusion_matrix(predictions.logits, predictions.labels)
        counts = own if not counts.numel() else counts + own
    return counts, names


def _disagreement_sections(folder: Path, comparison: Comparison) -> list[Section]:
    pairs: list[tuple[Group, Group, list[Disagreement]]] = []
    for best, other in shown_pairs(comparison):
        for first, second in ((best, other), (other, best)):
            pairs.append((first, second, disagreements(first, second)))
    keys = list(dict.fromkeys(one.key for _, _, some in pairs for one in some))
    if not keys:
        return [Section(_EXAMPLES, [Text("There are none.")])] if pairs else []
    sounds, missing = find_sounds(pairs[0][0], keys)
    paths: dict[str, Path] = {}
    for index, (key, sound) in enumerate(sounds.items()):
        paths[key] = folder / f"example-{index:02d}.png"
        draw_spectrogram(paths[key], sound.spectrogram, sound.seconds)
    explanation = (
        f"At most {EACH} of a pair in either direction, by the mean over the seeds, the surest first: by the product "
        "of the one group's probability of what is true and the other's of what is not. What is heard is as loud as "
        "it can be."
    )
    sections = [Section(_EXAMPLES, [Text(explanation), *([Text(missing)] if missing else [])])]
    for first, second, some in pairs:
        heading = f"{first.letter} right, {second.letter} wrong"
        sections.append(Section(heading, _example_blocks(some, sounds, paths) or [Text("None.")]))
    return sections


def _example_blocks(
    some: Sequence[Disagreement], sounds: Mapping[str, Sound], paths: Mapping[str, Path]
) -> list[Block]:
    blocks: list[Block] = []
    rows: list[Sequence[str]] = [("example", "true", "mistake", "sure")]
    for one in some:
        caption = f"{one.key}: {one.true}, {one.wrong} ({one.certainty:.2f})"
        if one.key in paths:
            blocks.append(Picture(paths[one.key], caption, sounds[one.key].flac))
        else:
            rows.append((one.key, one.true, one.wrong, f"{one.certainty:.2f}"))
    return [*blocks, Table(rows)] if len(rows) > 1 else blocks
