"""Time to quality: what a minute of pretraining is worth, by objective, mask and encoder.

    python benchmarks/quality.py RECORDINGS [--out runs/quality] [--rows NAME ...] [--minutes 3] [--seeds 3]

RECORDINGS is FSDD's folder of {digit}_{speaker}_{take}.wav. Of its official split nothing but the training part is
used, so that defaults can be chosen by this benchmark: takes 15 to 49 are pretrained on and labelled, takes 5 to 14 are
judged. Each row, of `ROWS` (those of `TABLE` unless others are named), is pretrained by one thread for so many minutes
of its CPU, to its steps' own pace; with every seed the weights, the order, the masks and the labelled clips are others.
Then:

    5 %, 1 %   digits by fine-tuning with as many labels as 5 % and 1 % of the official training part are, 135 and 27
    speaker    digits of a speaker of whom nothing is labelled, all labels of the others: two a seed, so that three
               seeds have all six
    frozen     the same by a linear classifier on the features as they are, of the best layer: with 5 and 1 % of the
               labels, each the mean of ten drawings; with all of them; of the speakers of whom nothing is labelled

The recipe of today is `latent-visible-changed`, those before it `latent-visible`, `joint-visible-16-clips` and
`joint-runs`; with 16x16 patches they are `latent-squares-visible-changed`, `joint-squares-time-16-clips` and
`joint-squares`. A row is compared with all of its patches, after as many minutes and after the most; these seven have
every number of --minutes, the others --budget. Beside them stand networks without pretraining and the best of the
log-mel baselines.
Rows with distillation learn from `TEACHER`: the minutes that it was trained in are not theirs, what it says in their
steps is. The pace of all rows is measured before they begin, on a machine with nothing else to do, and is kept in
OUT/paces.json. What is finished in OUT is not made again, so the work can be cut into several calls.
Results: OUT/results.md, results.json, quality.png.
"""

import argparse
import contextlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

import fsdd
from ssamba.build.runs import build_pretrainer
from ssamba.config import FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.evaluation.intervals import Interval, Scored, mean_intervals, paired_differences
from ssamba.evaluation.scores import fill_scores, read_scores
from ssamba.evaluation.tables import markdown_table
from ssamba.files import whole_folder, write_json, write_text
from ssamba.jobs import processes, run_jobs
from ssamba.progress import print_above, progress_bar
from ssamba.protocols.probe import ProbeSettings, run_probe
from ssamba.train import finetune, pretrain
from ssamba.training.runs import command_record

ROOT = Path(__file__).resolve().parents[1]
RUNS = ["mask.kind=cluster", "mask.smallest=5", "mask.largest=5"]
NO_JOINT = ["objective.parts.contrastive=0", "objective.parts.reconstruction=0"]
LATENT = [*NO_JOINT, "objective.parts.latent=1"]
FRAMES = ["model.fshape=96", "model.tshape=2"]
DISTILLED = "objective.parts.distillation=1"
VISIBLE = ["model.encode=visible", "mask.share=0.75"]
SQUARES = ["model.fshape=16", "model.tshape=16", "mask.smallest=2", "mask.largest=3"]
TWO_MASKS = ["mask.per_clip=2", "data.batch_size=16"]
CHANGED = ["objective.changes.frequency_shift=5", "objective.changes.gain=10", "objective.changes.tilt=7"]
ROWS: dict[str, list[str]] = {
    "joint-runs": [*FRAMES, *RUNS],
    "joint-scattered": [*FRAMES, "mask.kind=random"],
    "joint-runs-65": [*FRAMES, *RUNS, "mask.share=0.65"],
    "joint-runs-two-masks": [*FRAMES, *RUNS, *TWO_MASKS],
    "joint-runs-16-clips": [*FRAMES, *RUNS, "data.batch_size=16"],
    "contrastive": [*FRAMES, *RUNS, "objective.parts.reconstruction=0"],
    "reconstruction": [*FRAMES, *RUNS, "objective.parts.contrastive=0", "objective.parts.reconstruction=1"],
    "latent": [*FRAMES, *RUNS, *LATENT, *TWO_MASKS],
    "latent-clip": [*FRAMES, *RUNS, *LATENT, "objective.parts.clip=1", *TWO_MASKS],
    "joint-latent": [*FRAMES, *RUNS, "objective.parts.latent=1", *TWO_MASKS],
    "joint-visible": [*FRAMES, *RUNS, *VISIBLE],
    "joint-visible-16-clips": [*FRAMES, *RUNS, *VISIBLE, "data.batch_size=16"],
    "latent-visible": [*FRAMES, *RUNS, *LATENT, *VISIBLE, *TWO_MASKS],
    "latent-visible-changed": [*FRAMES, *RUNS, *LATENT, *VISIBLE, *TWO_MASKS, *CHANGED],
    "distilled": [*FRAMES, *RUNS, *NO_JOINT, DISTILLED],
    "distilled-visible": [*FRAMES, *RUNS, *VISIBLE, *NO_JOINT, DISTILLED, "data.batch_size=16"],
    "joint-distilled": [*FRAMES, *RUNS, DISTILLED],
    "joint-mixed": [*FRAMES, *RUNS, "objective.mix=0.5"],
    "ssast": [*FRAMES, *RUNS, "model.encoder=ssast", "optimizer.learning_rate=1e-3"],
    "aum": [*FRAMES, *RUNS, "model.encoder=aum"],
    "conformer": [*FRAMES, *RUNS, "model.encoder=conformer"],
    "bilstm": [*FRAMES, *RUNS, "model.encoder=bilstm"],
    "ssd": [*FRAMES, *RUNS, "model.encoder=ssd"],
    "joint-squares": SQUARES,
    "joint-squares-16-clips": [*SQUARES, "data.batch_size=16"],
    "joint-squares-scattered": [*SQUARES, "mask.kind=random"],
    "joint-squares-visible": [*SQUARES, *VISIBLE],
    "joint-squares-visible-16-clips": [*SQUARES, *VISIBLE, "data.batch_size=16"],
    "joint-squares-time-16-clips": [*SQUARES, *VISIBLE, "data.batch_size=16", "model.patch_order=time"],
    "latent-squares": [*SQUARES, *LATENT, *TWO_MASKS],
    "latent-squares-visible": [*SQUARES, *LATENT, *VISIBLE, *TWO_MASKS, "model.patch_order=time"],
    "latent-squares-visible-changed": [
        *SQUARES,
        *LATENT,
        *VISIBLE,
        *TWO_MASKS,
        *CHANGED,
        "model.patch_order=time",
    ],
    "joint-latent-squares": [*SQUARES, "objective.parts.latent=1", *TWO_MASKS],
}
"""Changes to recipes/pretrain/fsdd.yaml with `fsdd.WHOLE`, whose loss is contrastive + 10 * reconstruction."""
SCRATCH = {
    "scratch": FRAMES,
    "scratch-squares": SQUARES,
    "scratch-squares-time": [*SQUARES, "model.patch_order=time"],
}
TABLE = (
    "latent-visible-changed",
    "latent-visible",
    "joint-visible-16-clips",
    "joint-runs",
    "latent-clip",
    "joint-mixed",
    "distilled-visible",
    "ssd",
)
"""An objective each, today's recipe and those before it, and the second state space encoder."""
REFERENCES = {
    "frames": ("latent-visible-changed", "latent-visible", "joint-visible-16-clips", "joint-runs"),
    "squares": ("latent-squares-visible-changed", "joint-squares-time-16-clips", "joint-squares"),
}
TEACHER = ("joint-visible-16-clips", 10.0)  # row and minutes of what rows with distillation learn from, of their seed
BASELINE = "log-mel"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TRAINED = 2100  # recordings of takes 15 to 49
SHARES = {"5 %": 135 / TRAINED, "1 %": 27 / TRAINED}
STEPS, CLIPS = 250, 16  # of fine-tuning, and of each of its batches
# Of fine-tuning, by which all of its results were made.
FINETUNED = ("task.pooling=statistics", *fsdd.OWN_LEVEL)
HEAD_STEPS = STEPS // 3  # in which pretrained weights stay as they are
TIMED = 32  # steps by which a pace is measured, but for the first ones,
ROUNDS = 2  # so often, all rows in turn
TUNED = (*SHARES, "speaker")
FROZEN = tuple(f"frozen {task}" for task in (*SHARES, "all", "speaker"))
TASKS = (*TUNED, *FROZEN)
DRAWS = 10  # of the labels of frozen features


class Work(NamedTuple):
    """A row with a number of minutes and a seed; of those of `SCRATCH` 0 minutes."""

    row: str
    minutes: float
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.row}-{self.minutes:g}-{self.seed}"

    @property
    def words(self) -> list[str]:
        return (ROWS | SCRATCH)[self.row]

    @property
    def model(self) -> list[str]:
        """What a fine-tuning recipe has of the row's model section."""
        words = [word for word in self.words if word.startswith("model.")]
        return [word for word in words if not word.startswith("model.encode=")]

    @property
    def speakers(self) -> tuple[str, str]:
        """Of whom nothing is labelled, one at a time."""
        half = len(SPEAKERS) // 2
        return SPEAKERS[self.seed % half], SPEAKERS[self.seed % half + half]

    def tunings(self) -> Iterator[tuple[str, str, Path]]:
        """Each fine-tuning: its task, the speaker of whom nothing is labelled or "", and its run folder."""
        for task in TUNED:
            for speaker in self.speakers if task == "speaker" else ("",):
                yield task, speaker, self.folder / named(task) / speaker

    @property
    def references(self) -> tuple[str, ...]:
        """The rows that this one is compared with: today's recipe and those before it."""
        patches = "squares" if "model.tshape=16" in self.model else "frames"
        return REFERENCES[patches]

    @property
    def teacher(self) -> "Work | None":
        """The run that this one learns from, which comes before it."""
        return Work(*TEACHER, self.seed, self.out) if DISTILLED in self.words else None

    def pretraining(self, steps: int) -> PretrainRecipe:
        taught = [f"objective.distillation.teacher={self.teacher.folder / 'pretrain'}"] if self.teacher else []
        recipe = load_recipe(
            ROOT / "recipes/pretrain/fsdd.yaml",
            [
                f"run_dir={self.folder / 'pretrain'}",
                f"data.train={self.out / 'tuning-shards/train'}",
                f"seed={self.seed}",
                f"trainer.max_steps={steps}",
                "trainer.accelerator=cpu",
                f"trainer.validate_every_steps={steps}",
                f"optimizer.warmup_steps={max(1, min(200, steps // 10))}",
                *fsdd.WHOLE,
                *self.words,
                *taught,
            ],
        )
        assert isinstance(recipe, PretrainRecipe)
        return recipe

    def finetuning(self, task: str, speaker: str, folder: Path) -> FinetuneRecipe:
        shards = self.out / "tuning-shards"
        words = [f"data.test={shards / 'test'}", f"data.label_fraction={SHARES.get(task, 1)}"]
        if speaker:
            words = ["data.test=[]", "data.fold_by=speaker", f"data.fold={speaker}"]
        weights = "null" if self.row in SCRATCH else self.folder / "pretrain"
        strides = ["model.time_stride=8"] if "model.tshape=16" in self.model else []
        recipe = load_recipe(
            ROOT / "recipes/finetune/fsdd_digits.yaml",
            [
                f"run_dir={folder}",
                f"data.train={shards / 'train'}",
                f"model.pretrained={weights}",
                f"seed={self.seed}",
                f"trainer.max_steps={STEPS}",
                f"task.freeze_steps={HEAD_STEPS}",
                f"data.batch_size={CLIPS}",
                "trainer.accelerator=cpu",
                *FINETUNED,
                *self.model,
                *strides,
                *words,
            ],
        )
        assert isinstance(recipe, FinetuneRecipe)
        return recipe


def named(task: str) -> str:
    return task.replace(" %", "-percent").replace(" ", "-")


def pace(work: Work) -> float:
    """Seconds of one thread's CPU that a step of a row takes, its clips read and all."""
    torch.set_num_threads(1)
    built = build_pretrainer(work.pretraining(10))
    module, batches = built.module, iter(built.data.train_dataloader())
    optimizer = torch.optim.AdamW(module.model.parameters(), fused=True)
    seconds = []
    for step in range(TIMED):
        began = time.process_time()
        batch = next(batches)
        module.training_step(batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        module.after_step(step)
        seconds.append(time.process_time() - began)
    return statistics.mean(seconds[TIMED // 4 :])


def measured_paces(out: Path, works: Sequence[Work], pool: Executor | None) -> dict[str, float]:
    """`pace` of each row, the least of some rounds; what was measured before is kept."""
    path = out / "paces.json"
    paces = json.loads(path.read_text()) if path.is_file() else {}
    new = {work.row: work for work in works if work.row not in SCRATCH and work.row not in paces}
    for _ in range(ROUNDS):
        for work, seconds in run_jobs(pace, new.values(), pool):
            paces[work.row] = min(seconds, paces.get(work.row, seconds))
    write_json(path, paces)
    return paces


class Job(NamedTuple):
    work: Work
    steps: int


def make(job: Job) -> str:
    """Pretrain a row for so many steps and score it; what is finished is left as it is."""
    torch.set_num_threads(1)
    logging.getLogger("ssamba").setLevel(logging.WARNING)
    work, steps = job
    folder, told = work.folder, []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if steps and not (folder / "pretrain" / "run.json").is_file():
            began = time.process_time()
            pretrain(work.pretraining(steps), overwrite=True)
            write_json(folder / "pretrain.json", {"steps": steps, "cpu_seconds": round(time.process_time() - began)})
            told.append(f"{steps} steps")
        for task, speaker, run in work.tunings():
            if not (run / "run.json").is_file():
                finetune(work.finetuning(task, speaker, run), overwrite=True)
        for task in FROZEN if steps else ():
            _probe(work, task)
    return f"{work.row}, {work.minutes:g} min, seed {work.seed}: {', '.join(told) or 'was there'}"


def _probe(work: Work, task: str) -> None:
    """Scores of a linear classifier and of its baseline, laid out as those of a run, a folder for each drawing."""
    folder, shards = work.folder / named(task), work.out / "tuning-shards"
    if folder.exists():
        return
    share = SHARES.get(task.removeprefix("frozen "), 1.0)
    others = task == "frozen speaker"
    settings = ProbeSettings(
        str(work.folder / "pretrain"),
        [str(shards / "train")],
        "digit",
        "linear",
        test=[] if others else [str(shards / "test")],
        fraction=share,
        seeds=DRAWS if share < 1 else 1,
        fold_by="speaker" if others else None,
        folds=work.speakers,
        layer=None,
        device="cpu",
    )
    result = run_probe(settings)
    with whole_folder(folder) as made:
        for outcome in result.outcomes:
            assert outcome.baseline_predictions is not None
            draw = made / (outcome.part.fold or str(outcome.part.seed))
            for place, predictions in (("test", outcome.predictions), ("test/baseline", outcome.baseline_predictions)):
                (draw / place).mkdir(parents=True)
                fill_scores(draw / place, predictions, result.names, task)


# Results


def scored(out: Path, row: str, minutes: float, seeds: int, task: str, part: str = "test") -> list[Scored] | None:
    """The predictions of a row's seeds, and of their drawings of labels, for the judged clips; None while one is
    missing."""
    scores = []
    for work in (Work(row, minutes, seed, out) for seed in range(seeds)):
        folder, by_speaker = work.folder / named(task), task.endswith("speaker")
        runs = sorted(folder.glob("*")) if task in FROZEN or by_speaker else [folder]
        if not runs or not all((run / part).is_dir() for run in runs):
            return None
        # Each speaker is a fold, whose clips are others.
        scores += [Scored(read_scores(run / part)[0], run.name if by_speaker else "") for run in runs]
    return scores


def all_scored(out: Path, row: str, minutes: float, seeds: int, tasks: Sequence[str]) -> dict[str, list[Scored]] | None:
    """`scored` of several tasks; None while one is missing."""
    scores = {task: scored(out, row, minutes, seeds, task) for task in tasks}
    complete = {task: one for task, one in scores.items() if one is not None}
    return complete if len(complete) == len(scores) else None


def difference(first: Sequence[Scored], second: Sequence[Scored]) -> str:
    interval = paired_differences(first, second)["accuracy"]
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


class Line(NamedTuple):
    """Of a row: its minutes, steps and CPU seconds as they were, the mean accuracy of each task, and how much that is
    above what it is compared with: {(row, minutes): {task: difference}}, as text."""

    row: str
    minutes: float
    steps: int
    cpu_seconds: float
    scores: dict[str, Interval]
    differences: dict[str, dict[str, str]]


def lines(out: Path, plan: Sequence[tuple[str, float]], seeds: int) -> list[Line]:
    """Of all rows whose seeds are all finished."""
    table = []
    for row, minutes in plan:
        tasks = TUNED if row in SCRATCH else TASKS
        ours = all_scored(out, row, minutes, seeds, tasks)
        if ours is None:
            continue
        records = []
        if row not in SCRATCH:
            folders = [Work(row, minutes, seed, out).folder for seed in range(seeds)]
            records = [json.loads((folder / "pretrain.json").read_text()) for folder in folders]
        compared = []
        for reference in Work(row, minutes, 0, out).references:
            most = max((m for name, m in plan if name == reference), default=0.0)
            compared += [(reference, minutes), (reference, most)]
        differences = {}
        for theirs in dict.fromkeys(compared):
            pairs = all_scored(out, *theirs, seeds, tasks) if theirs != (row, minutes) and theirs in plan else None
            if pairs is not None:
                differences[f"{theirs[0]}, {theirs[1]:g} min"] = {
                    task: difference(ours[task], pairs[task]) for task in tasks
                }
        table.append(
            Line(
                row,
                minutes,
                records[0]["steps"] if records else 0,
                statistics.mean(one["cpu_seconds"] for one in records) if records else 0.0,
                {task: mean_intervals(one)["accuracy"] for task, one in ours.items()},
                differences,
            )
        )
    return table


def baselines(out: Path, plan: Sequence[tuple[str, float]], seeds: int) -> dict[str, Interval]:
    """The log-mel baseline of each task, which is the same beside every row."""
    found = {}
    for task in TASKS:
        for row, minutes in plan:
            runs = scored(out, row, minutes, seeds, task, "test/baseline")
            if runs is not None:
                found[task] = mean_intervals(runs)["accuracy"]
                break
    return found


def report(out: Path, plan: Sequence[tuple[str, float]], seeds: int) -> None:
    """results.md, results.json and quality.png of what is finished."""
    rows, simple = lines(out, plan, seeds), baselines(out, plan, seeds)
    table: list[tuple[str, ...]] = [("pretraining", "minutes", "steps", "CPU s", *TASKS)]
    table += [
        (
            line.row,
            f"{line.minutes:g}",
            f"{line.steps:,}",
            f"{line.cpu_seconds:.0f}",
            *(str(line.scores[task]) if task in line.scores else "" for task in TASKS),
        )
        for line in rows
    ]
    table.append((BASELINE, "", "", "", *(str(simple[task]) if task in simple else "" for task in TASKS)))
    against: list[tuple[str, ...]] = [("pretraining", "minutes", "less", *TASKS)]
    against += [
        (line.row, f"{line.minutes:g}", theirs, *(values.get(task, "") for task in TASKS))
        for line in rows
        for theirs, values in line.differences.items()
    ]
    text = (
        "Accuracy on digits, FSDD's training takes: 15 to 49 learned from, 5 to 14 judged; means of "
        f"{seeds} seeds of pretraining and fine-tuning, with 95 % intervals (bootstrap over clips and seeds).\n\n"
        f"{markdown_table(table)}\n\n"
    )
    if len(against) > 1:
        text += f"Differences, paired by clip and seed:\n\n{markdown_table(against)}\n"
    write_text(out / "results.md", text)
    write_json(
        out / "results.json",
        {
            **{key: command_record()[key] for key in ("command", "git_commit", "hardware")},
            "rows": [line._asdict() for line in rows],
            "baseline": simple,
        },
    )
    draw(out / "quality.png", rows, simple)
    print(text)


def draw(path: Path, rows: Sequence[Line], simple: dict[str, Interval]) -> None:
    """A panel a task, frozen features below: accuracy against minutes of CPU, a mark a row, the baseline a line."""
    figure = Figure(figsize=(4.2 * len(FROZEN), 8.4), layout="constrained")
    panels = figure.subplots(2, len(FROZEN))
    placed = dict(zip(TUNED, panels[0], strict=False)) | dict(zip(FROZEN, panels[1], strict=True))
    for empty in panels[0, len(TUNED) :]:
        empty.set_axis_off()
    names = list(dict.fromkeys(line.row for line in rows))
    for task, panel in placed.items():
        for index, name in enumerate(names):
            points = sorted(
                (line.cpu_seconds / 60, *line.scores[task]) for line in rows if line.row == name and task in line.scores
            )
            if points:
                minutes, values, lows, highs = (list(column) for column in zip(*points, strict=True))
                bars = [
                    [v - low for v, low in zip(values, lows, strict=True)],
                    [high - v for v, high in zip(values, highs, strict=True)],
                ]
                panel.errorbar(
                    minutes,
                    values,
                    bars,
                    marker="osv^D<>Pp*hX"[index % 12],
                    linewidth=1,
                    capsize=2,
                    color=f"C{index % 10}",
                    label=name,
                )
        if task in simple:
            panel.axhline(simple[task].value, color="black", linestyle=":", label=BASELINE)
        panel.set_title(f"digits, {task}")
        panel.set_xlabel("pretraining, minutes of one CPU core")
        panel.set_ylabel("accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(1, 0.97))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--rows", nargs="+", default=list(TABLE), choices=list(ROWS))
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0], help="of the rows compared with")
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[3.0], metavar="MINUTES", help="of the other rows (default: 3)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="at a time, one thread each (default: 2)")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    fsdd.Benchmark(out, arguments.jobs, ()).prepare(arguments.recordings)
    references = {reference for row in arguments.rows for reference in Work(row, 0.0, 0, out).references}
    plan = [(row, 0.0) for row in SCRATCH if references.issuperset(Work(row, 0.0, 0, out).references)]
    for row in arguments.rows:
        plan += [(row, minutes) for minutes in (arguments.minutes if row in references else arguments.budget)]
    if any(Work(row, minutes, 0, out).teacher for row, minutes in plan):
        plan = [*dict.fromkeys((*plan, TEACHER))]
    works = [Work(row, minutes, seed, out) for seed in range(arguments.seeds) for row, minutes in plan]
    works.sort(key=lambda work: -work.minutes)  # the longest first, so that none is left alone at the end
    taught = [work for work in works if work.teacher]
    alone = [work for work in works if not work.teacher]
    with processes(arguments.jobs) as pool, progress_bar(len(works), "run", "quality") as bar:
        for part in (alone, taught):
            paces = measured_paces(out, part, pool)
            jobs = [Job(work, round(60 * work.minutes / paces[work.row]) if work.minutes else 0) for work in part]
            for _, told in run_jobs(make, jobs, pool):
                print_above(told, sys.stderr)
                bar.update()
    report(out, plan, arguments.seeds)


if __name__ == "__main__":
    main()
