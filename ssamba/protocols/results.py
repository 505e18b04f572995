"""The results of a probe: tables, and a folder with the predictions for each clip and a report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssamba.evaluation.pages import Section, Table, Text, write_report
from ssamba.evaluation.probes import main_metric
from ssamba.evaluation.report import class_sections, fact_rows
from ssamba.evaluation.scores import fill_scores, flat_scores
from ssamba.files import whole_folder, write_json
from ssamba.protocols.probe import Outcome, ProbeResult, Row
from ssamba.protocols.summary import Member, Rows, member_folder, member_rows, spread, summarise, summary_rows

RECORD_NAME = "probe.json"
"""In the folder of a probe: what was asked for and found, and what made it."""


def members(result: ProbeResult) -> list[Member]:
    """The folds and seeds of a probe."""
    return [
        Member(
            outcome.part.fold,
            outcome.part.seed,
            outcome.scored,
            None if outcome.baseline_predictions is None else outcome.scored_baseline,
            f"{outcome.chosen.name}, {outcome.chosen.probe.setting:g}",
        )
        for outcome in result.outcomes
    ]


def held_back_rows(result: ProbeResult) -> Rows:
    """A row a layer, and a kind of log-mel statistics: the score on held-back training clips, the settings, and of how
    many folds and seeds it was the best."""
    outcomes = result.outcomes
    metric = main_metric(outcomes[0].predictions.labels)
    setting = "k" if result.settings.protocol == "knn" else "L2"
    rows: Rows = [("features", f"held-back {metric}", setting, "chosen")]

    def add(name: str, same: Sequence[Row], chosen: int) -> None:
        settings = ", ".join(f"{value:g}" for value in sorted({row.probe.setting for row in same}))
        rows.append((name, spread([row.probe.score for row in same]), settings, f"{chosen} of {len(outcomes)}"))

    for index, row in enumerate(outcomes[0].rows):
        same = [outcome.rows[index] for outcome in outcomes]
        add(row.name, same, sum(outcome.chosen.name == row.name for outcome in outcomes))
    baselines = [outcome.baseline for outcome in outcomes if outcome.baseline is not None]
    for name in dict.fromkeys(row.name for row in baselines):
        same = [row for row in baselines if row.name == name]
        add(f"log-mel {name}", same, len(same))
    return rows


def tables(result: ProbeResult) -> list[Rows]:
    """Of held-back clips; of several folds or seeds; and of the scores, with the baseline and the difference."""
    chosen = " / ".join(dict.fromkeys(outcome.chosen.name for outcome in result.outcomes))
    shown = {"model": f"{result.settings.protocol}, {chosen}, {result.pooling}"}
    all_rows = [held_back_rows(result)]
    if len(result.outcomes) > 1:
        all_rows.append(member_rows(members(result), "chosen"))
    return [*all_rows, summary_rows(summarise(members(result), result.groups), shown)]


def write_result(folder: Path, result: ProbeResult, record: dict[str, Any]) -> None:
    """Write `RECORD_NAME`, the report and, for each fold and seed, what `fill_scores` writes; that of the baseline
    within baseline/. Replaces the folder."""
    summary = summarise(members(result), result.groups)
    outcomes = [
        {
            "seed": outcome.part.seed,
            "fold": outcome.part.fold,
            "training_clips": len(outcome.part.train),
            "rows": [
                {"name": row.name, "setting": row.probe.setting, "held_back": row.probe.score}
                for row in (*outcome.rows, *([outcome.baseline] if outcome.baseline else []))
            ],
            "chosen": outcome.chosen.name,
            "layer_weights": list(outcome.chosen.probe.layer_weights),
        }
        for outcome in result.outcomes
    ]
    content = {
        **record,
        "settings": asdict(result.settings),
        "pooling": result.pooling,
        "data": dict(result.data),
        "scores": {kind: flat_scores(intervals) for kind, intervals in summary.items()},
        "parts": outcomes,
    }
    with whole_folder(folder) as beside:
        for outcome in result.outcomes:
            _fill(beside / outcome_folder(outcome, result), outcome, result, folder.resolve().name)
        write_json(beside / RECORD_NAME, content)
        _write_report(beside, folder.resolve().name, result, content)


def outcome_folder(outcome: Outcome, result: ProbeResult) -> str:
    """See `member_folder`."""
    folds, seeds = ({getattr(one.part, name) for one in result.outcomes} for name in ("fold", "seed"))
    return member_folder(outcome.part.fold, outcome.part.seed, len(folds), len(seeds))


def _fill(place: Path, outcome: Outcome, result: ProbeResult, title: str) -> None:
    def groups(keys: Sequence[str]) -> list[str] | None:
        return None if result.groups is None else [result.groups[key] for key in keys]

    place.mkdir(parents=True, exist_ok=True)
    fill_scores(place, outcome.predictions, result.names, title, groups(outcome.predictions.keys))
    if (theirs := outcome.baseline_predictions) is not None:
        (place / "baseline").mkdir()
        fill_scores(place / "baseline", theirs, result.names, "log-mel baseline", groups(theirs.keys))


def _write_report(folder: Path, name: str, result: ProbeResult, content: dict[str, Any]) -> None:
    held_back, *parts, scores = tables(result)
    explanation = "Chosen on held-back training clips, scored once on the test clips. "
    which = f"Confusion and mistakes are those of the first of {len(result.outcomes)} folds and seeds." if parts else ""
    first = folder / outcome_folder(result.outcomes[0], result)
    settings = [
        (key.replace("_", " "), ", ".join(value) if isinstance(value, list | tuple) else str(value))
        for key, value in content["settings"].items()
        if value not in (None, (), [])
    ]
    sections = [
        *class_sections(first, scores, f"{explanation}{which}"),
        *(Section("Folds and seeds", [Table(rows)]) for rows in parts),
        Section("Held-back training clips", [Table(held_back), Text("By cross-validation within the training part.")]),
    ]
    if weights := result.outcomes[0].chosen.probe.layer_weights:
        rows = [("layer", "weight"), *((str(layer), f"{weight:.3f}") for layer, weight in enumerate(weights))]
        sections.append(Section("Weights of the layers", [Table(rows)]))
    sections += [
        Section("How it was made", [Table(fact_rows(content))]),
        Section("Settings", [Table([("option", "value"), *settings])]),
    ]
    write_report(folder, f"Probe {name}", sections)
