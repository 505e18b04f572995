"""Spoken digits (FSDD) from recordings to scores: what pretraining is worth, for both encoders, in one table.

    python benchmarks/fsdd.py RECORDINGS [--out runs/fsdd] [--encoders ssamba ssast] [--patches frame patch]

RECORDINGS is the data set's folder of {digit}_{speaker}_{take}.wav (takes 0 to 4 are its test set). For each encoder
and patch shape (frame: 128 mel bins x 2 frames; patch: 16 x 16): pretraining on the 2,700 training recordings without
their labels; with frames, digits and speakers with all labels; digits with 5 % of the labels, pretrained and from
scratch, for each seed with a subset, an order and a start of its own. Every step is a command of the package, printed
before it runs; a run that is finished in OUT is not made again, so the work can be cut into several calls.
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
PRETRAINING_STEPS = {
    ("ssamba", "frame"): 2000, ("ssamba", "patch"): 4500, ("ssast", "frame"): 4000, ("ssast", "patch"): 4000,
}  # fmt: skip
# SSAST does not leave the plateau of knowing positions alone at SSAMBA's 0.002.
PRETRAINING_RATES = {"ssamba": 2e-3, "ssast": 5e-4}
# Two budgets of steps, since what pretraining is worth shrinks with the time that a start from scratch is given.
LOW_LABELS = {
    "low400": ["data.label_fraction=0.05", "trainer.max_steps=400"],
    "low600": ["data.label_fraction=0.05", "trainer.max_steps=600", "augmentation.mixup=1.0"],
}
PARTS = ("pretrain", "digits", "speakers", *(f"{b}-{start}" for b in LOW_LABELS for start in ("pretrained", "scratch")))


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

    def compare(self, encoder: str, patch: str, budgets: Sequence[str], seeds: Sequence[int]) -> None:
        """Make all runs of one encoder and patch shape."""
        held_out = self.shards / "test"
        common = [f"model.encoder={encoder}", *PATCHES[patch]]
        stem = f"{encoder}-{patch}"
        changes = [f"data.validation={held_out}", f"trainer.max_steps={PRETRAINING_STEPS[encoder, patch]}",
                   f"optimizer.learning_rate={PRETRAINING_RATES[encoder]}"]  # fmt: skip
        pretrained = self.run(f"{stem}-pretrain", "pretrain", "pretrain/fsdd.yaml", *changes, *common)
        common.append(f"data.test={held_out}")
        if patch == "frame":
            for task in ("digits", "speakers"):
                self.run(f"{stem}-{task}", "finetune", f"finetune/fsdd_{task}.yaml", f"model.pretrained={pretrained}",
                         *common)  # fmt: skip
        starts = {"pretrained": str(pretrained), "scratch": "null"}
        for budget, start, seed in itertools.product(budgets, starts, seeds):
            self.run(f"{stem}-{budget}-{start}-{seed}", "finetune", "finetune/fsdd_digits.yaml", *common,
                     f"model.pretrained={starts[start]}", *LOW_LABELS[budget], f"seed={seed}")  # fmt: skip

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
    parser.add_argument("--budgets", nargs="*", default=list(LOW_LABELS), choices=list(LOW_LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    benchmark = Benchmark(given.out)
    if not benchmark.shards.exists():
        prepare("fsdd.py", given.recordings, benchmark.shards)
    for encoder in given.encoders:
        for patch in given.patches:
            benchmark.compare(encoder, patch, given.budgets, given.seeds)
    benchmark.report()


if __name__ == "__main__":
    main()
