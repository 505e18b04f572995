"""Patches of other shapes and orders: what a step takes, and what equal time of pretraining is worth, on spoken digits.

    python benchmarks/patches.py RECORDINGS [--out runs/patches] [--rows NAME ...] [--seconds 90] [--seeds 1]

RECORDINGS is FSDD's folder of {digit}_{speaker}_{take}.wav. Of its official split the test is not used: takes 15 to
49 are pretrained on and labelled, takes 5 to 14 are judged. `ssamba` nano, one thread. Steps of all rows are timed in
turn, so that what else is at work on the machine is at work beside all; each row is then pretrained for as many steps
as its median step makes of the seconds. After that:

    tuned      digits by fine-tuning with 5 % of the labels (135 recordings), another draw, order and start a seed
    frozen     digits by a linear classifier on the last layer as it is, with as many labels

A row is fshape x tshape, in mel bins of 96 and frames of 10 ms, and "time" where columns come one after another
(model.patch_order). What is finished in OUT is not made again, so the work can be cut into several calls. Results:
OUT/results.md and results.json.
"""

import argparse
import contextlib
import json
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import fsdd
from ssamba.build.runs import build_pretrainer
from ssamba.config import FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.evaluation.intervals import Scored, mean_intervals, paired_differences
from ssamba.evaluation.scores import fill_scores, read_scores
from ssamba.evaluation.tables import markdown_table
from ssamba.files import whole_folder, write_json, write_text
from ssamba.protocols.probe import ProbeSettings, run_probe
from ssamba.train import finetune, pretrain
from ssamba.training.runs import command_record

ROOT = Path(__file__).resolve().parents[1]
TIME = " time"
SHAPES: dict[str, tuple[list[str], list[str]]] = {
    "16x16": (["mask.smallest=2", "mask.largest=3"], ["model.time_stride=8"]),
    "16x4": (["mask.smallest=3", "mask.largest=4"], []),
    "8x8": (["mask.smallest=3", "mask.largest=4"], []),
    "96x4": (["mask.smallest=2", "mask.largest=3"], []),
    "96x2": (["mask.smallest=5", "mask.largest=5"], []),
}
"""Changes to recipes/pretrain/fsdd.yaml and to recipes/finetune/fsdd_digits.yaml, beside the patch: half is hidden, in
clusters of 80 ms at least, and of 2 bands and more where there are bands; 16x16 patches overlap in fine-tuning, as they
do in benchmarks/fsdd.py."""
ROWS = tuple(f"{shape}{order}" for shape in SHAPES for order in ("", TIME) if not (order and shape.startswith("96x")))
TRAINED = 2100  # recordings of takes 15 to 49
SHARE = 135 / TRAINED
STEPS = 150  # of fine-tuning
TIMED = 12  # rounds by which the pace is measured
TASKS = ("tuned", "frozen")
PACE = "pace.json"


class Work(NamedTuple):
    """A row with a seed."""

    row: str
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.row.replace(' ', '-')}-{self.seed}"

    @property
    def patch(self) -> list[str]:
        fshape, tshape = self.row.removesuffix(TIME).split("x")
        order = "time" if self.row.endswith(TIME) else "frequency"
        return [f"model.fshape={fshape}", f"model.tshape={tshape}", f"model.patch_order={order}"]

    def recipe(self, path: str, folder: str, *changes: str) -> PretrainRecipe | FinetuneRecipe:
        shards = self.out / "tuning-shards" / "train"
        own = [f"run_dir={self.folder / folder}", f"data.train={shards}", f"seed={self.seed}"]
        return load_recipe(ROOT / "recipes" / path, [*own, "trainer.accelerator=cpu", *self.patch, *changes])

    def pretraining(self, steps: int, *changes: str) -> PretrainRecipe:
        masks, _ = SHAPES[self.row.removesuffix(TIME)]
        length = [f"trainer.max_steps={steps}", f"optimizer.warmup_steps={max(1, min(200, steps // 10))}"]
        recipe = self.recipe("pretrain/fsdd.yaml", "pretrain", *fsdd.WHOLE, *masks, *length, *changes)
        assert isinstance(recipe, PretrainRecipe)
        return recipe

    def finetuning(self) -> FinetuneRecipe:
        _, strides = SHAPES[self.row.removesuffix(TIME)]
        test = f"data.test={self.out / 'tuning-shards' / 'test'}"
        words = [test, f"model.pretrained={self.folder / 'pretrain'}", f"data.label_fraction={SHARE}"]
        length = f"trainer.max_steps={STEPS}"
        recipe = self.recipe(
            "finetune/fsdd_digits.yaml",
            "tuned",
            *strides,
            *words,
            length,
            "task.pooling=statistics",
            "task.head_norm=layer",
            "task.freeze_steps=0",
            *fsdd.OWN_LEVEL,
            "evaluation.baseline=none",
        )
        assert isinstance(recipe, FinetuneRecipe)
        return recipe


def measure(out: Path, rows: Sequence[str]) -> dict[str, float]:
    """Row -> CPU seconds of a step of pretraining, the median; all rows are measured anew if one is not there yet."""
    path = out / PACE
    told: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    if told.keys() >= set(rows):
        return told
    # Of noise, whose statistics no time depends on.
    noise = ["audio.mean=0", "audio.std=1"]
    built = {row: build_pretrainer(Work(row, 0, out).pretraining(10, *noise)) for row in dict.fromkeys([*told, *rows])}
    optimizers = {row: torch.optim.AdamW(one.module.model.parameters()) for row, one in built.items()}
    seconds: dict[str, list[float]] = {row: [] for row in built}
    for _ in range(TIMED):
        for row, one in built.items():
            module, batch = one.module, one.data.noise()
            began = time.process_time()
            log_mel = module.log_mel(batch["waveform"], batch["lengths"])
            module.objectives(log_mel, module.draw_mask("train", batch["positions"]))["loss"].backward()
            optimizers[row].step()
            optimizers[row].zero_grad()
            seconds[row].append(time.process_time() - began)
    told = {row: round(statistics.median(values), 4) for row, values in seconds.items()}
    write_json(path, told)
    return told


def make(work: Work, steps: int) -> str:
    """Pretrain a row and score it; what is finished is left as it is."""
    folder, made = work.folder, []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if not (folder / "pretrain.json").is_file():
            began = time.process_time()
            pretrain(work.pretraining(steps), overwrite=True)
            write_json(folder / "pretrain.json", {"steps": steps, "cpu_seconds": round(time.process_time() - began)})
            made.append(f"{steps} steps")
        if not (folder / "tuned" / "run.json").is_file():
            finetune(work.finetuning(), overwrite=True)
            made.append("tuned")
        if not (folder / "frozen").is_dir():
            probe(work)
            made.append("frozen")
    return f"{work.row}, seed {work.seed}: {', '.join(made) or 'was there'}"


def probe(work: Work) -> None:
    """Scores of a linear classifier on frozen features, laid out as those of a run."""
    shards = work.out / "tuning-shards"
    settings = ProbeSettings(
        str(work.folder / "pretrain"),
        [str(shards / "train")],
        "digit",
        "linear",
        test=[str(shards / "test")],
        fraction=SHARE,
        baseline=False,
        device="cpu",
    )
    result = run_probe(settings)
    (outcome,) = result.outcomes
    with whole_folder(work.folder / "frozen") as made:
        (made / "test").mkdir()
        fill_scores(made / "test", outcome.predictions, result.names, "frozen")


# Results


def scored(out: Path, row: str, seeds: int, task: str) -> list[Scored]:
    """What the seeds of a row said of the judged clips; of those that are finished."""
    folders = [Work(row, seed, out).folder / task / "test" for seed in range(seeds)]
    return [Scored(read_scores(folder)[0]) for folder in folders if folder.is_dir()]


def report(out: Path, pace: dict[str, float], seeds: int) -> None:
    """results.md and results.json of all rows whose seeds are all finished."""
    head = ("patch", "grid", "ms a step", "steps", "CPU s", *TASKS, *(f"{task}, time - frequency" for task in TASKS))
    table, told = [head], []
    for row in ROWS:
        ours = {task: scored(out, row, seeds, task) for task in TASKS}
        if row not in pace or any(len(one) < seeds for one in ours.values()):
            continue
        recipe = Work(row, 0, out).pretraining(1)
        rows, columns = recipe.audio.num_mel_bins // recipe.model.fshape, recipe.audio.max_length // recipe.model.tshape
        runs = [json.loads((Work(row, seed, out).folder / "pretrain.json").read_text()) for seed in range(seeds)]
        scores = {task: mean_intervals(one)["accuracy"] for task, one in ours.items()}
        differences = {}
        for task in TASKS if row.endswith(TIME) else ():
            theirs = scored(out, row.removesuffix(TIME), seeds, task)
            if len(theirs) == seeds:
                differences[task] = paired_differences(ours[task], theirs)["accuracy"]
        signed = [f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in differences.values()]
        table.append(
            (
                row,
                f"{rows} x {columns}",
                f"{1000 * pace[row]:.0f}",
                f"{runs[0]['steps']:,}",
                f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
                *(str(scores[task]) for task in TASKS),
                *(signed or [""] * len(TASKS)),
            )
        )
        told.append({"row": row, "pace": pace[row], "runs": runs, "scores": scores, "differences": differences})
    text = (
        f"Accuracy on digits, FSDD's training takes: 15 to 49 learned from, 5 to 14 judged, 135 labels, {seeds} seeds "
        f"of pretraining and fine-tuning, 95 % intervals:\n\n{markdown_table(table)}\n"
    )
    write_text(out / "results.md", text)
    record = {key: command_record()[key] for key in ("command", "git_commit", "hardware")}
    write_json(out / "results.json", {**record, "rows": told})
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/patches"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=90.0, help="of CPU, of pretraining (default: 90)")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    torch.set_num_threads(1)
    logging.getLogger("ssamba").setLevel(logging.WARNING)
    fsdd.Benchmark(out, 1, ()).prepare(arguments.recordings)
    pace = measure(out, ROWS)
    for seed in range(arguments.seeds):
        for row in arguments.rows:
            steps = max(1, int(arguments.seconds / pace[row]))
            print(make(Work(row, seed, out), steps), flush=True)
    report(out, pace, arguments.seeds)


if __name__ == "__main__":
    main()
