"""The report of a run: what was asked for, how it went, what it scored and where it is wrong."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssamba.evaluation.baseline import BASELINES
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import LEVEL
from ssamba.evaluation.metrics import ClassScores, class_scores
from ssamba.evaluation.pages import Block, Listing, Picture, Section, Table, Text, write_report
from ssamba.evaluation.scores import (
    CLASSES_NAME,
    MISTAKES,
    SCORES_NAME,
    TEXTS_NAME,
    mistakes,
    probabilities,
    read_scores,
)
from ssamba.models.record import split_text

_LONGEST_RECIPE = 1 << 20  # letters
_CLASSES = 60  # of a table; more are not read

Rows = list[Sequence[str]]


def write_run_report(folder: Path, record: Mapping[str, Any]) -> None:
    """report.html and report.md of a finished run, of what is in its folder and its record."""
    sections: list[Section] = []
    baseline = record.get("baseline")
    if (folder / "test" / SCORES_NAME).is_file():
        rows = score_rows({"this run": record["test"], **baseline_rows(baseline)})
        sections += class_sections(folder / "test", rows, baseline_text(baseline))
    elif (folder / "test" / TEXTS_NAME).is_file():
        sections += text_sections(folder / "test", record["test"])
    elif last := watched(record["last_metrics"]):
        rows = [("held-out clips", "value"), *((name, figure(value)) for name, value in last.items())]
        sections.append(Section("Scores", [Table(rows)]))
    curves = folder / "pictures" / "curves.png"
    if curves.is_file():
        sections.append(Section("Curves", [Picture(curves, "every metric of metrics.csv over the steps")]))
    if pictures := last_predictions(folder / "pictures"):
        caption = "a held-out clip at the last validation"
        sections.append(Section("Hidden patches", [Picture(path, caption) for path in pictures]))
    sections.append(Section("How it was made", [Table(fact_rows(record))]))
    sections += recipe_section(folder / "recipe.yaml")
    write_report(folder, f"Run {folder.resolve().name}", sections)


def last_predictions(folder: Path) -> list[Path]:
    """Of a pretraining run's folder of pictures the newest reconstruction and latent picture, which are named by their
    steps."""
    found = (sorted(folder.glob(f"{kind}-*.png"))[-1:] for kind in ("reconstruction", "latent"))
    return [path for last in found for path in last]


def write_evaluation_report(
    folder: Path, run: Path, scores: Mapping[str, Any], difference: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """report.html and report.md of what `ssamba evaluate` wrote into a folder, about a run.

    Args:
        difference: from the baseline of the run, as `flat_scores`, where it was scored on the same clips; else empty.
        record: what is at work, as of a run.
    """
    if (folder / SCORES_NAME).is_file():
        others = {"model minus log-mel": difference} if difference else {}
        sections = class_sections(folder, score_rows({"this model": scores, **others}), "")
    elif (folder / TEXTS_NAME).is_file():
        sections = text_sections(folder, scores)
    else:
        rows = [("masked clips", "value"), *((name, figure(value)) for name, value in scores.items())]
        sections = [Section("Scores", [Table(rows)])]
    sections.append(Section("How it was made", [Table(fact_rows(record))]))
    sections += recipe_section(run / "recipe.yaml")
    write_report(folder, f"Evaluation of {run.resolve().name}", sections)


def watched(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's metrics those of its validations."""
    return {name: value for name, value in metrics.items() if name.startswith(("val/", "probe/"))}


def exported_text(exported: Mapping[str, Any]) -> str:
    """The steps of the exported weights, from the record of a run."""
    steps = ", ".join(map(str, exported["steps"]))
    if len(exported["steps"]) > 1:
        text = f"the mean of steps {steps}"
    elif "best" in exported:
        text = f"step {steps}, the best {exported['best']} ({figure(exported['score'])})"
    else:
        text = f"step {steps}, the last"
    return text + (", of the average over the steps" if exported["averaged_over_steps"] else "")


def figure(value: object) -> str:
    """A number of a table; what is no number as it is."""
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def score_rows(kinds: Mapping[str, Mapping[str, Any]]) -> Rows:
    """A row for each kind of scores (as `flat_scores` has them), a column for each metric."""
    metrics = [name for name in next(iter(kinds.values())) if not name.endswith(("_low", "_high"))]
    rows: Rows = [("", *(name.replace("_", " ") for name in metrics))]
    for kind, scores in kinds.items():
        rows.append((kind, *(score_text(scores, name) if name in scores else "" for name in metrics)))
    return rows


def score_text(scores: Mapping[str, Any], name: str) -> str:
    """A score as `flat_scores` has it, with the ends of its interval, if it has any."""
    low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
    known = low is not None and high is not None and math.isfinite(low)
    return figure(scores[name]) + (f" [{figure(low)}, {figure(high)}]" if known else "")


def baseline_rows(baseline: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The rows of a run's baseline, and of the run's difference from it."""
    if baseline is None:
        return {}
    return {"log-mel statistics": baseline["scores"], "run minus log-mel": baseline["difference"]}


def baseline_text(baseline: Mapping[str, Any] | None) -> str:
    """What the baseline is, in a sentence."""
    if baseline is None:
        return ""
    return (
        f"Log-mel: logistic regression on the {BASELINES[baseline['name']]}, learned from {baseline['training_clips']} "
        f"training clips, without a network; its L2 penalty, {baseline['setting']:g}, and the kind of statistics were "
        "chosen by cross-validation within them."
    )


def class_sections(folder: Path, scores: Sequence[Sequence[str]], note: str) -> list[Section]:
    """Scores, confusion and mistakes of the classifier whose clips are in a folder."""
    predictions, names = read_scores(folder)
    ends = f"In brackets: {LEVEL:.0%} bootstrap intervals."
    sections = [Section("Scores", [Table(scores), Text(f"{ends} {note}".strip())])]
    if (folder / "confusion.png").is_file():
        picture = Picture(folder / "confusion.png", "clips of each true class (rows) by what was said of them")
        sections.append(Section("Confusion", [picture]))
    sections.append(Section("Classes", _class_blocks(predictions, names)))
    examples = mistakes(predictions, names)
    rows = [("clip", "true", "mistake", "probability"), *((*one[:3], f"{one.probability:.3f}") for one in examples)]
    blocks: list[Block] = [Table(rows)] if examples else [Text("None.")]
    sections.append(Section(f"The most confident mistakes (at most {MISTAKES})", blocks))
    return sections


def text_sections(folder: Path, scores: Mapping[str, Any]) -> list[Section]:
    """Error rates of a CTC model, and the clips with the most errors, of the `TEXTS_NAME` in a folder."""
    own = {name: value for name, value in scores.items() if name.startswith(("WER", "CER"))}
    kinds = {"the likeliest of each hop": own}
    if "beam_WER" in scores:
        kinds["beam search"] = {name: scores[f"beam_{name}"] for name in own}
    with (folder / TEXTS_NAME).open(newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    texts.sort(key=lambda one: -int(one["greedy edits"]) / int(one["characters"]))
    shown = [name for name in ("key", "true", "greedy", "beam") if name in texts[0]]
    worst: Rows = [shown, *([one[name] for name in shown] for one in texts[:MISTAKES])]
    note = f"In brackets: {LEVEL:.0%} bootstrap intervals over the clips. A beam search here has no language model."
    return [
        Section("Scores", [Table(score_rows(kinds)), Text(note)]),
        Section(f"The clips with the most errors for their length (at most {MISTAKES})", [Table(worst)]),
    ]


def _class_blocks(predictions: Predictions, names: Sequence[str]) -> list[Block]:
    classes = list(zip(names, class_scores(probabilities(predictions), predictions.labels), strict=True))
    blocks: list[Block] = []
    if len(classes) > _CLASSES:
        text = f"The {_CLASSES} of {len(classes)} classes with the lowest average precision; {CLASSES_NAME} has all."
        blocks.append(Text(text))
        classes.sort(key=lambda one: (math.isnan(one[1].average_precision), one[1].average_precision))
    rows: Rows = [("class", *(name.replace("_", " ") for name in ClassScores._fields))]
    for name, (clips, *scores) in classes[:_CLASSES]:
        rows.append((name, str(clips), *("-" if math.isnan(one) else f"{one:.3f}" for one in scores)))
    return [*blocks, Table(rows)]


def fact_rows(record: Mapping[str, Any]) -> Rows:
    """The facts of a record: how something was made."""
    machine = record["hardware"]
    rows: Rows = [("what", "value")]
    rows += [("command", " ".join(record["command"])), ("started", record["started"])]
    for name, key in (("seed", "seed"), ("parameters", "parameters"), ("optimizer steps", "steps")):
        if key in record:
            rows.append((name, f"{record[key]:,}"))
    if "exported" in record:
        rows.append(("exported weights", exported_text(record["exported"])))
    if "training_seconds" in record:
        rows.append(("training time", f"{record['training_seconds']:,.1f} s"))
    for name, value in record.get("peak_memory_bytes", {}).items():
        rows.append((f"peak memory, {name}", f"{value / 1e9:.2f} GB"))
    rows.append(("hardware", ", ".join([machine["processor"], f"{machine['threads']} threads", *machine["gpus"]])))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())))
    for name, split in record.get("data", {}).items():
        rows.append((f"data, {name}", f"{split_text(split)}, fingerprint {split['fingerprint'][:16]}"))
    if skipped := record.get("skipped_samples"):
        rows.append(("skipped samples", str(len(skipped))))
    return rows


def recipe_section(path: Path) -> list[Section]:
    """The recipe in a file, if it can be read."""
    try:
        text = path.read_text(encoding="utf-8")[:_LONGEST_RECIPE]
    except (OSError, UnicodeDecodeError):
        return []
    return [Section("Recipe", [Listing(text)])]
