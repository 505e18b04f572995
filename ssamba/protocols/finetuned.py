"""Full fine-tuning, scored: the test clips beside the log-mel baseline, and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssamba.build.evaluation import ClassEvaluation, build_baseline_streams, build_class_evaluation
from ssamba.build.labels import read_training_groups
from ssamba.build.models import backend_here
from ssamba.build.runs import Finetuner
from ssamba.config import FinetuneRecipe
from ssamba.errors import UserError
from ssamba.evaluation.baseline import choose_baseline, read_statistics
from ssamba.evaluation.intervals import Scored, paired_differences
from ssamba.evaluation.report import write_evaluation_report
from ssamba.evaluation.scores import (
    fill_scores,
    flat_scores,
    groups_by_key,
    groups_of,
    hop_seconds_of,
    read_scores,
    scoring_device,
    write_class_scores,
    write_text_scores,
)
from ssamba.evaluation.task import find_task
from ssamba.files import whole_folder
from ssamba.models.checkpoint import load_model
from ssamba.models.heads import AudioClassifier, TokenClassifier
from ssamba.training.runs import command_record

BASELINE = Path("test") / "baseline"
"""In a run folder: what the log-mel baseline says of the test clips."""


def score_finetuned(built: Finetuner, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the saved model of a run on its test clips, into test/, and the baseline, into `BASELINE`.

    Returns:
        The scores, and further fields for run.json: "baseline" with what it is, its scores, and the run's difference
        from it; none where the recipe has no baseline.
    """
    recipe = built.recipe
    # As it was saved, since the trained one may be spread over the ranks.
    model = load_model(folder, backend_here(recipe, scoring_device())).model
    assert isinstance(model, AudioClassifier)
    names, stream = built.classifier.labels, built.data.test_stream()
    if isinstance(model, TokenClassifier) and built.classifier.loss == "ctc":
        return write_text_scores(folder / "test", model, built.module.log_mel, stream, len(stream.order), names), {}
    task = built.module.task
    scores = write_class_scores(
        folder / "test", model, built.module.log_mel, stream, len(stream.order), names, built.groups, task
    )
    if recipe.evaluation.baseline == "none":
        return scores, {}
    hop, hop_frames = hop_seconds_of(model), recipe.hop_frames
    learned, scored = (read_statistics(one, built.module.log_mel, hop_frames) for one in build_baseline_streams(built))
    groups = groups_by_key(learned.keys, read_training_groups(recipe, built.shards.indexed), hop)
    baseline = choose_baseline(learned, scored, len(names), recipe.seed, groups)
    predictions = baseline.predictions
    with whole_folder(folder / BASELINE) as beside:
        of_clips = groups_of(predictions.keys, built.groups, hop)
        theirs = fill_scores(beside, predictions, names, "log-mel baseline", of_clips, hop, task)
    facts = {
        "name": baseline.name,
        "setting": baseline.probe.setting,
        "held_back": baseline.probe.score,
        "training_clips": baseline.training_clips,
        "scores": theirs,
        "difference": _difference(folder / "test", folder / BASELINE, built.groups, hop),
    }
    return scores, {"baseline": facts}


def evaluate_finetuned(recipe: FinetuneRecipe, out: Path) -> dict[str, Any]:
    """Score the classifier in run_dir on the recipe's test clips, into a folder, with a report."""
    evaluation: ClassEvaluation = build_class_evaluation(recipe)
    if isinstance(evaluation.model, TokenClassifier) and recipe.task.loss == "ctc":
        scores = write_text_scores(
            out, evaluation.model, evaluation.log_mel, evaluation.stream, evaluation.clips, evaluation.names
        )
        write_evaluation_report(out, Path(recipe.run_dir), scores, {}, command_record())
        return scores
    task = find_task(recipe.task.loss)
    scores = write_class_scores(
        out,
        evaluation.model,
        evaluation.log_mel,
        evaluation.stream,
        evaluation.clips,
        evaluation.names,
        evaluation.groups,
        task,
    )
    run = Path(recipe.run_dir)
    difference: Mapping[str, Any] = {}
    if (run / BASELINE).is_dir():
        try:
            difference = _difference(out, run / BASELINE, evaluation.groups, hop_seconds_of(evaluation.model))
        except UserError:  # of other clips than these
            difference = {}
    write_evaluation_report(out, run, scores, difference, command_record())
    return scores


def _difference(
    ours: Path, theirs: Path, groups: Mapping[str, str] | None, hop_seconds: float | None
) -> dict[str, float]:
    first, second = (Scored(read_scores(folder)[0]) for folder in (ours, theirs))
    of_clips = groups_by_key(first.predictions.keys, groups, hop_seconds)
    return flat_scores(paired_differences([first], [second], of_clips))
