"""A comparison as tables: in a terminal and in Markdown, as CSV, LaTeX and JSON."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssamba.comparison.compare import Comparison, Group, Pair, start_text
from ssamba.comparison.conditions import value_text
from ssamba.comparison.costs import Costs
from ssamba.evaluation.intervals import LEVEL
from ssamba.files import write_text, written_beside
from ssamba.printable import csv_cell, latex_text
from ssamba.progress import spoken

Rows = list[Sequence[str]]
UNKNOWN = "-"
_MOST_PAIRS = 45  # of ten groups


def score_rows(comparison: Comparison) -> Rows:
    """A row a group: what distinguishes it from the others, its runs, and its scores with the ends of their
    intervals."""
    keys = comparison.variants.keys
    metrics = [name for name in comparison.groups[0].scores if all(name in one.scores for one in comparison.groups)]
    rows: Rows = [("group", *keys, "runs", "examples", *(name.replace("_", " ") for name in metrics))]
    for group in comparison.groups:
        values = [_value(group, key) for key in keys]
        examples = UNKNOWN if group.examples is None else f"{group.examples:,}"
        rows.append((group.letter, *values, _runs(group), examples, *(str(group.scores[name]) for name in metrics)))
    return rows


def _value(group: Group, key: str) -> str:
    value = group.values.get(key)
    if key == "model.pretrained":
        return start_text(value)
    return UNKNOWN if value is None else value_text(value)


def _runs(group: Group) -> str:
    seeds = "1 seed" if group.seeds == 1 else f"{group.seeds} seeds"
    return f"{seeds} x {group.folds} folds" if group.folds > 1 else seeds


def listed_pairs(comparison: Comparison) -> list[Pair]:
    """Those of a table: all, or of very many those with the best group."""
    if len(comparison.pairs) <= _MOST_PAIRS:
        return list(comparison.pairs)
    return [pair for pair in comparison.pairs if comparison.best in (pair.first, pair.second)]


def pair_rows(comparison: Comparison) -> Rows:
    """A row for each of `listed_pairs`: the difference of the main metric, its interval, its p value and the one for
    all pairs together, and which of the two is better, if the difference is significant."""
    ends = f"{LEVEL:.0%} interval"
    rows: Rows = [("groups", comparison.metric, ends, "p", "p of all pairs", "better")]
    for pair in listed_pairs(comparison):
        value, low, high, p = pair.difference
        names = f"{pair.first.letter} - {pair.second.letter}"
        if math.isnan(p):
            difference = UNKNOWN if math.isnan(value) else f"{value:+.3f}"
            rows.append((names, difference, UNKNOWN, UNKNOWN, UNKNOWN, "not tested"))
        else:
            interval = f"[{low:+.3f}, {high:+.3f}]"
            rows.append((names, f"{value:+.3f}", interval, _p(p), _p(pair.corrected), better(comparison, pair)))
    return rows


def better(comparison: Comparison, pair: Pair) -> str:
    """The group that is better by a significant difference; else that they are not told apart."""
    if math.isnan(pair.corrected):
        return "not tested"
    if not pair.significant:
        return "not told apart"
    first = (pair.difference.value > 0) != comparison.lower_is_better
    letter = pair.first.letter if first else pair.second.letter
    return f"{letter}, of these runs" if pair.single else letter


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "macs": ("MACs a clip", lambda value: _scaled(value, "")),
    "clips_per_second": ("clips a second", lambda value: f"{value:,.1f}"),
    "peak_memory_bytes": ("peak memory", lambda value: _scaled(value, "B")),
    "hours": ("training", lambda value: spoken(3600 * value)),
    "pretraining_hours": ("pretraining", lambda value: spoken(3600 * value) if value else "none"),
    "energy_joules": ("energy", lambda value: _scaled(value / 3600, "Wh")),
    "training_macs": ("MACs in all", lambda value: _scaled(value, "")),
}


def _scaled(value: float, unit: str) -> str:
    for power, name in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {name}{unit}"
    return f"{value:.3g} {unit}".strip()


def cost_rows(comparison: Comparison) -> Rows:
    """A row a group: `Costs`, the means of its runs."""
    rows: Rows = [("group", *(name for name, _ in _COSTS.values()))]
    for group in comparison.groups:
        cells = [(getattr(group.costs, field), text) for field, (_, text) in _COSTS.items()]
        rows.append((group.letter, *(UNKNOWN if value is None else text(value) for value, text in cells)))
    return rows


def run_rows(comparison: Comparison) -> Rows:
    """A row a run: its group, seed and fold, its scores and its folder."""
    rows: Rows = [("group", "seed", "fold", "steps", comparison.metric, "run")]
    for group in comparison.groups:
        for run in group.runs:
            score = run.record["test"].get(comparison.metric)
            fold = str(run.recipe["data.fold"] or UNKNOWN)
            shown = UNKNOWN if score is None else f"{score:.3f}"
            rows.append((group.letter, str(run.recipe["seed"]), fold, f"{run.record['steps']:,}", shown, run.place))
    return rows


def write_csv(folder: Path, comparison: Comparison) -> None:
    """comparison.csv: a row a group, numbers as they are; comparison-pairs.csv: a row a pair."""
    names = [name for name in comparison.groups[0].scores if all(name in one.scores for one in comparison.groups)]
    ends = [f"{name}{ending}" for name in names for ending in ("", "_low", "_high")]
    header = ["group", *comparison.variants.keys, "seeds", "folds", "examples", *ends, *Costs._fields]
    rows: list[Sequence[Any]] = [header]
    for group in comparison.groups:
        values = [csv_cell(_value(group, key)) for key in comparison.variants.keys]
        numbers = [score for name in names for score in group.scores[name]]
        rows.append((group.letter, *values, group.seeds, group.folds, group.examples, *numbers, *group.costs))
    _write_rows(folder / "comparison.csv", rows)
    rows = [("first", "second", "metric", "difference", "low", "high", "p", "p_of_all_pairs", "significant")]
    for pair in comparison.pairs:
        names = [pair.first.letter, pair.second.letter, comparison.metric]
        rows.append((*names, *pair.difference, pair.corrected, pair.significant))
    _write_rows(folder / "comparison-pairs.csv", rows)


def _write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    known = [["" if _is_nothing(value) else value for value in row] for row in rows]
    with written_beside(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(known)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def write_latex(path: Path, tables: Mapping[str, Rows], notes: Sequence[str]) -> None:
    """Each table as a tabular of its own, which needs no package, with its caption and the notes as comments."""
    parts = [f"% {latex_text(note)}" for note in notes]
    for caption, rows in tables.items():
        lines = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
        head = [
            f"% {latex_text(caption)}",
            rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}",
            r"\hline",
            lines[0],
            r"\hline",
        ]
        parts += ["", *head, *lines[1:], r"\hline", r"\end{tabular}"]
    write_text(path, "\n".join(parts).lstrip() + "\n")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, for comparison.json."""
    groups = [
        {
            "group": group.letter,
            "label": group.label,
            "values": dict(group.values),
            "seeds": group.seeds,
            "folds": group.folds,
            "examples": group.examples,
            "scores": {name: interval._asdict() for name, interval in group.scores.items()},
            "costs": group.costs._asdict(),
            "runs": [
                {
                    "run": run.place,
                    "seed": run.recipe["seed"],
                    "fold": run.recipe["data.fold"],
                    "steps": run.record["steps"],
                    "test": run.record["test"],
                }
                for run in group.runs
            ],
        }
        for group in comparison.groups
    ]
    pairs = [
        {
            "first": pair.first.letter,
            "second": pair.second.letter,
            **pair.difference._asdict(),
            "p_of_all_pairs": pair.corrected,
            "significant": pair.significant,
            "better": better(comparison, pair),
        }
        for pair in comparison.pairs
    ]
    variants = comparison.variants
    return {
        "metric": comparison.metric,
        "level": LEVEL,
        "treatments": list(variants.treatments),
        "admitted": list(variants.admitted),
        "notes": list(comparison.notes),
        "groups": groups,
        "pairs": pairs,
    }
