"""Runs side by side: a table and a page with pictures, read from their folders."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe, load_recipe
from ssamba.errors import UserError
from ssamba.evaluation.pages import html_figure, html_page, html_table
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_text
from ssamba.models.record import RECORD_NAME, read_record
from ssamba.printable import html_text


@dataclass(frozen=True)
class Run:
    """A finished run: its resolved recipe and its run.json."""

    folder: Path
    recipe: Recipe
    record: Mapping[str, Any]

    @property
    def score(self) -> float:
        """Test accuracy (mAP for several labels a clip); of a pretraining run its held-out masked accuracy."""
        if isinstance(self.recipe, PretrainRecipe):
            part, name = "last_metrics", "val/accuracy"
        else:
            part, name = "test", "mAP" if self.recipe.task.loss == "bce" else "accuracy"
        score = self.record[part].get(name)
        if score is None:
            raise UserError(f"{self.folder / RECORD_NAME} has no {name} in {part}; expected a run that was scored")
        return float(score)

    @property
    def group(self) -> tuple[str, str, str, str]:
        """(task, encoder, start, labels): runs that differ in their seed alone have the same."""
        chosen = self.recipe.model
        doubling = chosen.encoder == "ssamba" and chosen.residual == "doubling"
        variant = f" {chosen.scan_layout}" if chosen.encoder == "aum" else " doubling" if doubling else ""
        model = f"{chosen.encoder}{variant} {chosen.size} {chosen.fshape}x{chosen.tshape}"
        if isinstance(self.recipe, FinetuneRecipe):
            start = "pretrained" if self.recipe.model.pretrained else "from scratch"
            return self.recipe.task.label, model, start, f"{self.recipe.data.label_fraction:.0%}"
        return "pretraining", model, "", "none"


def read_run(folder: Path) -> Run:
    """Read a run folder; UserError if it holds no finished run, or one whose record is damaged."""
    record = folder / RECORD_NAME
    if not record.is_file():
        raise UserError(f"{folder} has no run.json; expected the folder of a finished run")
    return Run(folder, load_recipe(folder), read_record(record))


HEADER = ("task", "encoder", "start", "labels", "score", "seeds", "parameters", "steps", "training time")


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row for each group of runs of as many steps, in the order of their first runs; score as mean and, over several
    seeds, standard deviation."""
    groups: dict[tuple[str, str, str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((*run.group, run.record["steps"]), []).append(run)
    rows: list[tuple[str, ...]] = []
    for (*group, steps), members in groups.items():
        scores = [run.score for run in members]
        spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        seconds = statistics.mean(run.record["training_seconds"] for run in members)
        first = members[0].record
        rows.append((*group, f"{statistics.mean(scores):.3f}{spread}", str(len(members)), f"{first['parameters']:,}",
                     f"{steps:,}", f"{seconds:.0f} s"))  # fmt: skip
    return rows


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """The rows under `HEADER` as a Markdown table."""
    return markdown_table((HEADER, *rows)) + "\n"


def write_page(path: Path, title: str, introduction: str, rows: Sequence[tuple[str, ...]],
               pictures: Mapping[str, Path]) -> None:  # fmt: skip
    """One HTML page: what was done, the table, and pictures (caption -> file) by relative links."""
    figures = "".join(html_figure(os.path.relpath(file, path.parent), caption) for caption, file in pictures.items())
    body = f"<p>{html_text(introduction)}</p>\n{html_table([HEADER, *rows])}{figures}"
    write_text(path, html_page(title, body))
