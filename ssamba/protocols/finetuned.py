"""Full fine-tuning, scored: the test clips beside the log-mel baseline, and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssamba.build import (
    ClassEvaluation,
    Finetuner,
    backend_here,
    build_baseline_streams,
    build_class_evaluation,
    read_training_groups,
)
from ssamba.config import FinetuneRecipe
from ssamba.errors import UserError
from ssamba.evaluation.baseline import choose_baseline, read_statistics
from ssamba.evaluation.intervals import Scored, paired_differences
from ssamba.evaluation.report import write_evaluation_report
from ssamba.evaluation.scores import fill_scores, flat_scores, read_scores, scoring_device, write_class_scores
from ssamba.files import whole_folder
from ssamba.models.checkpoint import load_model
from ssamba.models.heads import AudioClassifier
from ssamba.training.runs import command_record

BASELINE = Path("test") / "baseline"
"""In a run folder: what the log-mel baseline says of the test clips."""


def score_finetuned(recipe: FinetuneRecipe, built: Finetuner, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the saved model of a run on its test clips, into test/, and the baseline, into `BASELINE`.

    Returns:
        The scores, and what run.json says besides: under "baseline" what it is, its scores, and the run's difference
        from it; nothing where the recipe wants none.
    """
    # As it was saved, since the trained one may be spread over the ranks.
    model = load_model(folder, backend_here(recipe, scoring_device())).model
    assert isinstance(model, AudioClassifier)
    names, stream = built.classifier.labels, built.data.test_stream()
    scores = write_class_scores(
        folder / "test", model, built.module.log_mel, stream, len(stream.order), names, built.groups
    )  # fmt: skip
    if recipe.evaluation.baseline == "none":
        return scores, {}
    learned, scored = (read_statistics(one, built.module.log_mel) for one in build_baseline_streams(recipe, built))
    groups = read_training_groups(recipe, built.shards.train)
    baseline = choose_baseline(learned, scored, len(names), recipe.seed, groups)
    of_clips = None if built.groups is None else [built.groups[key] for key in baseline.predictions.keys]
    with whole_folder(folder / BASELINE) as beside:
        theirs = fill_scores(beside, baseline.predictions, names, "log-mel baseline", of_clips)
    told = {
        "name": baseline.name, "setting": baseline.probe.setting, "held_back": baseline.probe.score,
        "training_clips": baseline.training_clips, "scores": theirs,
        "difference": _difference(folder / "test", folder / BASELINE, built.groups),
    }  # fmt: skip
    return scores, {"baseline": told}


def evaluate_finetuned(recipe: FinetuneRecipe, out: Path) -> dict[str, Any]:
    """Score the classifier in run_dir on the recipe's test clips, into a folder, with a report."""
    found: ClassEvaluation = build_class_evaluation(recipe)
    scores = write_class_scores(out, found.model, found.log_mel, found.stream, found.clips, found.names, found.groups)
    run = Path(recipe.run_dir)
    difference: Mapping[str, Any] = {}
    if (run / BASELINE).is_dir():
        try:
            difference = _difference(out, run / BASELINE, found.groups)
        except UserError:  # of other clips than these
            difference = {}
    write_evaluation_report(out, run, scores, difference, command_record())
    return scores


def _difference(ours: Path, theirs: Path, groups: dict[str, str] | None) -> dict[str, float]:
    first, second = (Scored(read_scores(folder)[0]) for folder in (ours, theirs))
    return flat_scores(paired_differences([first], [second], groups))
