"""`ssamba verify`: whether two recordings are of one speaker, by the cosine of a model's vectors, beside log-mel
statistics.

Shapes: N trials, R recordings, V vectors' size, T frames, M mel bins.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.data.trials import find_trial_recordings, read_trials
from ssamba.errors import UserError
from ssamba.evaluation.intervals import Interval
from ssamba.evaluation.linear import Scaling
from ssamba.evaluation.pages import Picture, Section, Table, Text, write_report
from ssamba.evaluation.pictures import draw_error_rates
from ssamba.evaluation.report import fact_rows
from ssamba.evaluation.scores import flat_scores
from ssamba.evaluation.verification import (
    Trials,
    compare,
    cosines,
    error_rates,
    verification_intervals,
)
from ssamba.files import whole_folder, write_json
from ssamba.inference.windows import Job, TimeMean, Window, load, watched
from ssamba.protocols.summary import Rows

RECORD_NAME = "verify.json"
"""In the folder of a verification: what was asked for, its scores, and what made it."""


@dataclass(frozen=True)
class VerifySettings:
    """The settings of `ssamba verify`; see its help."""

    model: str
    trials: str
    recordings: str
    layer: int = -1
    pooling: str | None = None
    segments: int | None = None
    standardise: bool = True
    baseline: bool = True
    window_seconds: float | None = None
    hop_seconds: float | None = None
    batch_size: int = 16
    device: str = "auto"


@dataclass(frozen=True)
class Verification:
    """Scores of the trials, float64 (N,): of the model and, where it is asked for, of log-mel statistics; the intervals
    of both and of their difference; the pool; and the recordings that could not be used, whose trials are left out."""

    settings: VerifySettings
    trials: Trials
    scores: Tensor
    baseline: Tensor | None
    intervals: Mapping[str, dict[str, Interval]]
    pooling: str
    failed: Sequence[str]


def run_verification(settings: VerifySettings) -> Verification:
    """Run a verification.

    A recording's vector is the mean of its windows', as `ssamba embed` has it. Vectors are compared after each number
    is brought to mean 0 and deviation 1 over the recordings of the list, unless `standardise` is off.

    Raises:
        UserError: whatever is wrong with it, before any recording is decoded; or no trial is left to score.
    """
    source = Path(settings.trials)
    listed = read_trials(source)
    paths = find_trial_recordings(listed, Path(settings.recordings), source)
    model = load(settings.model, settings.device)
    job = Job.of(
        model,
        settings.window_seconds,
        settings.hop_seconds,
        settings.layer,
        settings.batch_size,
        settings.pooling,
        settings.segments,
    )
    vectors, statistics = _vectors(list(dict.fromkeys(paths.values())), job)
    names = [name for name, path in paths.items() if path in vectors]
    place = {name: index for index, name in enumerate(names)}
    kept = [trial for trial in listed if trial.first in place and trial.second in place]
    target = torch.tensor([trial.target for trial in kept], dtype=torch.bool)
    if not target.any() or target.all():
        raise UserError(f"of {len(listed)} trials {len(kept)} can be scored, of one kind; expected both kinds")
    first = torch.tensor([place[trial.first] for trial in kept])
    second = torch.tensor([place[trial.second] for trial in kept])
    trials = Trials(names, first, second, target)

    def scored(features: Mapping[str, Tensor]) -> Tensor:
        x = torch.stack([features[paths[name]] for name in names])
        return cosines(Scaling.of(x)(x) if settings.standardise else x, trials)

    ours, theirs = scored(vectors), scored(statistics) if settings.baseline else None
    if theirs is None:
        intervals = {"model": verification_intervals(ours, trials)}
    else:
        both = compare(ours, theirs, trials)
        intervals = {"model": both.ours, "log-mel": both.theirs, "difference": both.difference}
    failed = [name for name in paths if name not in place]
    return Verification(settings, trials, ours, theirs, intervals, job.pool.name, failed)


def _vectors(paths: Sequence[str], job: Job) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each recording by its path the model's vector (V,), and the mean and standard deviation over time of each mel
    bin (2 * M,), float64; those that cannot be used are named on stderr and left out."""
    vectors: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    vector, moments = TimeMean(), TimeMean()
    with closing(watched(paths, job, "verify")) as results:
        for one in results:
            if isinstance(one, Window):
                assert one.pooled is not None
                x = one.spectrogram.double()
                vector.add(one, one.pooled)
                moments.add(one, torch.stack([x.mean(0), x.square().mean(0)]))
                continue
            if one.error is None:
                vectors[one.path] = vector.value()
                mean, square = moments.value()
                statistics[one.path] = torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()])
            vector, moments = TimeMean(), TimeMean()
    return vectors, statistics


def score_table(result: Verification) -> Rows:
    """A row for each kind of scores, and a column for each metric."""
    names = {"model": f"model, layer {result.settings.layer}, {result.pooling}", "log-mel": "log-mel statistics"}
    metrics = list(result.intervals["model"])
    head = (f"{len(result.trials.target)} trials", *(name.replace("_", ", prior ") for name in metrics))
    return [head] + [
        (names.get(kind, kind), *(str(intervals[name]) for name in metrics))
        for kind, intervals in result.intervals.items()
    ]


def write_verification(folder: Path, result: Verification, record: Mapping[str, Any]) -> None:
    """Write `RECORD_NAME`, trials.csv with the score of each trial, the picture of the error rates and the report.
    Replaces the folder."""
    trials = result.trials
    kinds = {"model": result.scores} | ({} if result.baseline is None else {"log-mel": result.baseline})
    content = {
        **record,
        "settings": asdict(result.settings),
        "pooling": result.pooling,
        "trials": len(trials.target),
        "recordings": len(trials.names),
        "failed": list(result.failed),
        "scores": {kind: flat_scores(intervals) for kind, intervals in result.intervals.items()},
    }
    with whole_folder(folder) as beside:
        with (beside / "trials.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["first", "second", "target", *kinds])
            pairs = zip(trials.first.tolist(), trials.second.tolist(), trials.target.tolist(), strict=True)
            for (one, other, target), *scores in zip(pairs, *(each.tolist() for each in kinds.values()), strict=True):
                texts = [f"{score:.6f}" for score in scores]
                writer.writerow([trials.names[one], trials.names[other], int(target), *texts])
        drawn = {kind: error_rates(each, trials.target) for kind, each in kinds.items()}
        draw_error_rates(beside / "error_rates.png", drawn, folder.resolve().name)
        write_json(beside / RECORD_NAME, content)
        explanation = (
            "In brackets: 95 % bootstrap intervals over the recordings; a trial counts as often as both of its own are "
            "drawn. EER: where as many trials of one speaker are refused as others are accepted. minDCF: what the best "
            "threshold costs, relative to accepting all or nothing."
        )
        missing = [Text(f"{len(result.failed)} recordings could not be used: {', '.join(result.failed[:20])}")]
        sections = [
            Section("Scores", [Table(score_table(result)), Text(explanation), *(missing if result.failed else [])]),
            Section("Error rates", [Picture(beside / "error_rates.png", "misses by false alarms, on normal deviates")]),
            Section("How it was made", [Table(fact_rows(content))]),
        ]
        write_report(beside, f"Verification {folder.resolve().name}", sections)


def report_failures(result: Verification) -> int:
    """1 and a line on stderr where trials are left out, else 0."""
    if not result.failed:
        return 0
    print(f"ssamba: {len(result.failed)} recordings failed; their trials are left out", file=sys.stderr)
    return 1
