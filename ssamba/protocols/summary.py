"""Several runs of one protocol, of its folds and seeds: their table, and their mean with its interval."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from ssamba.evaluation.intervals import Interval, Scored, mean_intervals, paired_differences
from ssamba.evaluation.probes import main_metric

Rows = list[tuple[str, ...]]
Summary = dict[str, dict[str, Interval]]


class Member(NamedTuple):
    """One run: its fold ("" without folds) and seed, what it was scored on beside its baseline (None without one), and
    a note for its row."""

    fold: str
    seed: int
    scored: Scored
    baseline: Scored | None
    note: str


def summarise(members: Sequence[Member], groups: Mapping[str, str] | None) -> Summary:
    """Mean scores over the members: "model" and, where there are baselines, "log-mel" and their "difference"."""
    of_clips = None if groups is None else dict(groups)
    ours = [member.scored for member in members]
    theirs = [member.baseline for member in members if member.baseline is not None]
    summary = {"model": mean_intervals(ours, of_clips)}
    if len(theirs) == len(ours):
        summary["log-mel"] = mean_intervals(theirs, of_clips)
        summary["difference"] = paired_differences(ours, theirs, of_clips)
    return summary


def summary_rows(summary: Summary, names: Mapping[str, str]) -> Rows:
    """A row for each kind of scores, by the name that it is shown by, and a column for each metric."""
    metrics = list(summary["model"])
    return [("scored once", *(metric.replace("_", " ") for metric in metrics))] + [
        (names.get(kind, kind), *(str(intervals[metric]) for metric in metrics)) for kind, intervals in summary.items()
    ]


def member_rows(members: Sequence[Member], heading: str) -> Rows:
    """A row a member, then their mean and standard deviation; `heading` is that of their notes."""
    metric = main_metric(members[0].scored.predictions.labels)
    compared = all(member.baseline is not None for member in members)
    rows: Rows = [("fold", "seed", "clips", heading, metric, *(["log-mel"] if compared else []))]
    scores: list[list[float]] = []
    for member in members:
        own = [member.scored, *([member.baseline] if compared and member.baseline else [])]
        scores.append([mean_intervals([one])[metric].value for one in own])
        clips = str(len(member.scored.predictions.keys))
        rows.append((member.fold or "-", str(member.seed), clips, member.note, *map("{:.3f}".format, scores[-1])))
    means = [spread(column) for column in zip(*scores, strict=True)]
    rows.append(("mean", "", "", "", *means))
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def member_folder(fold: str, seed: int, folds: int, seeds: int) -> str:
    """The place of a member within the folder of all: of its fold and seed, where there are several; "" of one."""
    # Characters that a folder's name cannot have, or that would lead out of the folder, are escaped as in a url.
    names = [f"fold-{quote(fold, safe='')}"] if folds > 1 else []
    return "/".join([*names, f"seed-{seed}"] if seeds > 1 else names)
