"""Spoken digits (FSDD) from recordings to scores: what pretraining is worth, for both encoders, in one table.

    python benchmarks/fsdd.py RECORDINGS [--out runs/fsdd] [--encoders ssamba ssast] [--patches frame patch]

RECORDINGS is the data set's folder of {digit}_{speaker}_{take}.wav (takes 0 to 4 are its test set). For each encoder
and patch shape (frame: 128 mel bins x 2 frames; patch: 16 x 16): pretraining on the 2,700 training recordings without
their labels; with frames, digits and speakers with all labels; with patches, digits with 5 % of the labels, pretrained
and from scratch, for each seed with a subset, an order and a start of its own. Every step is a command of the package,
printed before it runs; a run that is finished in OUT is not made again, so the work can be cut into several calls.
Results: OUT/results.md, OUT/results.json and the run folders.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

from demo import ROOT, call, prepare
from ssamba.evaluation.comparison import markdown, read_run, table
from ssamba.files import write_json, write_text

ENCODERS = ("ssamba", "ssast")
PATCHES = {"frame": ["model.fshape=128", "model.tshape=2"], "patch": ["model.fshape=16", "model.tshape=16"]}
# Steps, learning rate and warm-up. SSAST first learns what the position tells, and stays at that for 700 steps with
# frames and about 3,000 with patches; at SSAMBA's rate it stays for good.
PRETRAINING = {
    ("ssamba", "frame"): (2000, 2e-3, 200), ("ssamba", "patch"): (12000, 2e-3, 200),
    ("ssast", "frame"): (8000, 1e-3, 400), ("ssast", "patch"): (8000, 1e-3, 400),
}  # fmt: skip
LOW_STEPS = 400  # of fine-tuning with patches that overlap by half in time, much as the papers' fine-tuning has them
# Learning rate and mixup of each start with 5 % of the labels: the best in results/fsdd_tuning.json, whose trials were
# scored on takes 5 to 9, held out of the training recordings (seed 100).
TUNED = {
    ("ssamba", "pretrained"): (1e-3, 0.0), ("ssamba", "scratch"): (1e-3, 0.0),
    ("ssast", "pretrained"): (1e-3, 0.0), ("ssast", "scratch"): (2e-3, 0.0),
}  # fmt: skip
PARTS = ("pretrain", "digits", "speakers", "low-pretrained", "low-scratch")


class Benchmark:
    """Commands whose runs lie in `out`; each is timed, and made once."""

    def __init__(self, out: Path) -> None:
        self.out, self.shards = out, out / "shards"

    def run(self, name: str, command: str, recipe: str, *changes: str) -> Path:
        """A run folder, finished: made now, or in an earlier call. Its wall time lies beside it."""
        folder = self.out / name
        clock = self.out / f"{name}.seconds"
        if not clock.exists():
            started = time.perf_counter()
            train = f"data.train={self.shards / 'train'}"
            call("ssamba", command, ROOT / "recipes" / recipe, f"run_dir={folder}", train, *changes, "--overwrite")
            if command == "pretrain":
                call("ssamba", "evaluate", folder)
            write_text(clock, f"{time.perf_counter() - started:.1f}\n")
        return folder

    def compare(self, encoder: str, patch: str, seeds: Sequence[int]) -> None:
        """Make all runs of one encoder and patch shape."""
        held_out = self.shards / "test"
        common = [f"model.encoder={encoder}", *PATCHES[patch]]
        stem = f"{encoder}-{patch}"
        steps, rate, warmup = PRETRAINING[encoder, patch]
        pretrained = self.run(
            f"{stem}-pretrain", "pretrain", "pretrain/fsdd.yaml", f"data.validation={held_out}", *common,
            f"trainer.max_steps={steps}", f"optimizer.learning_rate={rate}", f"optimizer.warmup_steps={warmup}",
        )  # fmt: skip
        common.append(f"data.test={held_out}")
        if patch == "frame":
            for task in ("digits", "speakers"):
                self.run(f"{stem}-{task}", "finetune", f"finetune/fsdd_{task}.yaml", f"model.pretrained={pretrained}",
                         *common)  # fmt: skip
            return
        for (start, weights), seed in itertools.product({"pretrained": pretrained, "scratch": "null"}.items(), seeds):
            rate, mixup = TUNED[encoder, start]
            self.run(
                f"{stem}-low-{start}-{seed}", "finetune", "finetune/fsdd_digits.yaml", *common,
                f"model.pretrained={weights}", "data.label_fraction=0.05", f"trainer.max_steps={LOW_STEPS}",
                "model.time_stride=8", f"optimizer.learning_rate={rate}", f"optimizer.head_learning_rate={rate}",
                f"augmentation.mixup={mixup}", f"seed={seed}",
            )  # fmt: skip

    def report(self) -> None:
        """Of all finished runs: the table, the scores of masked prediction, the wall times with all labels."""
        order = [f"{encoder}-{patch}-{part}" for encoder in ENCODERS for patch in PATCHES for part in PARTS]
        clocks = sorted(self.out.glob("*.seconds"), key=lambda clock: (_place(clock.stem, order), clock.stem))
        runs = [read_run(clock.with_suffix("")) for clock in clocks]
        times = {clock.stem: float(clock.read_text()) for clock in clocks}
        masked = {
            run.folder.name: json.loads((run.folder / "evaluation" / "scores.json").read_text())
            for run in runs
            if run.group[0] == "pretraining"
        }
        lines = [markdown(table(runs)), "Held-out clips, half of the patches hidden:\n"]
        for name, scores in masked.items():
            lines.append(f"- {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        lines.append("\nWall time of pretraining with its evaluation, digits and speakers with all labels (frames):\n")
        for encoder in dict.fromkeys(run.recipe.model.encoder for run in runs):
            parts = [times.get(f"{encoder}-frame-{name}") for name in ("pretrain", "digits", "speakers")]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                added = " + ".join(f"{part:.0f} s" for part in known)
                lines.append(f"- {encoder}: {added} = {sum(known) / 60:.1f} min")
        write_text(self.out / "results.md", "\n".join(lines) + "\n")
        details = {run.folder.name: {**run.record, "score": run.score} for run in runs}
        write_json(self.out / "results.json", {"runs": details, "masked": masked, "wall_seconds": times})
        print((self.out / "results.md").read_text())


def _place(name: str, order: Sequence[str]) -> int:
    return next(place for place, start in enumerate(order) if name.startswith(start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdd"))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--patches", nargs="+", default=list(PATCHES), choices=list(PATCHES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    benchmark = Benchmark(given.out)
    if not benchmark.shards.exists():
        prepare("fsdd.py", given.recordings, benchmark.shards)
    for encoder in given.encoders:
        for patch in given.patches:
            benchmark.compare(encoder, patch, given.seeds)
    benchmark.report()


if __name__ == "__main__":
    main()
