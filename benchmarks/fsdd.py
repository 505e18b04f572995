"""Spoken digits (FSDD) from recordings to scores: what pretraining is worth, for both encoders, in one table.

    python benchmarks/fsdd.py RECORDINGS [--out runs/fsdd] [--encoders ssamba ssast] [--seeds 0 1 2]

RECORDINGS is the data set's folder of {digit}_{speaker}_{take}.wav (takes 0 to 4 are its test set). For each encoder:
pretraining on the 2,700 training recordings without their labels; digits and speakers with all labels; digits with 5 %
of the labels, pretrained and from scratch, with a subset, order and start of its own for each seed. Every step is a
command of the package, printed before it runs. Results: OUT/results.md, OUT/results.json and the run folders.
"""

import argparse
import json
import time
from pathlib import Path

from demo import ROOT, call, prepare

from ssamba.evaluation.comparison import Run, markdown, read_run, table
from ssamba.files import write_json, write_text

# SSAST takes more steps in less time; both objectives are flat at the end.
PRETRAINING_STEPS = {"ssamba": 4000, "ssast": 10000}
# The best of 0.0005, 0.001 and 0.002 for each, by `--tune`, on seeds that are not reported.
LOW_LABEL_RATES = {
    ("ssamba", "pretrained"): 1e-3, ("ssamba", "scratch"): 1e-3,
    ("ssast", "pretrained"): 1e-3, ("ssast", "scratch"): 1e-3,
}  # fmt: skip
TUNED_RATES = (5e-4, 1e-3, 2e-3)
TUNING_SEED = 100
LOW_LABELS = 0.05
LOW_LABEL_STEPS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdd"))
    parser.add_argument("--encoders", nargs="+", default=["ssamba", "ssast"], choices=["ssamba", "ssast"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="try the learning rates of the low-label runs instead")
    given = parser.parse_args()
    shards = given.out / "shards"
    if not shards.exists():
        prepare("fsdd.py", given.recordings, shards)
    data = [f"data.train={shards / 'train'}"]
    runs: list[Path] = []
    seconds: dict[str, float] = {}
    for encoder in given.encoders:
        started = time.perf_counter()
        pretrained = given.out / f"{encoder}-pretrain"
        if not (pretrained / "run.json").exists():
            steps = PRETRAINING_STEPS[encoder]
            call("ssamba", "pretrain", ROOT / "recipes/pretrain/fsdd.yaml", f"run_dir={pretrained}", *data,
                 f"data.validation={shards / 'test'}", f"model.encoder={encoder}", f"trainer.max_steps={steps}",
                 "--overwrite")  # fmt: skip
            call("ssamba", "evaluate", pretrained, "--overwrite")
        common = [*data, f"data.test={shards / 'test'}", f"model.encoder={encoder}"]

        def finetune(name: str, recipe: str, weights: str, *changes: str, common: list[str] = common,
                     encoder: str = encoder) -> Path:  # fmt: skip
            folder = given.out / f"{encoder}-{name}"
            if not (folder / "run.json").exists():
                call("ssamba", "finetune", ROOT / f"recipes/finetune/{recipe}.yaml", f"run_dir={folder}", *common,
                     f"model.pretrained={weights}", *changes, "--overwrite")  # fmt: skip
            return folder

        low = [f"data.label_fraction={LOW_LABELS}", f"trainer.max_steps={LOW_LABEL_STEPS}"]
        starts = {"pretrained": str(pretrained), "scratch": "null"}
        if given.tune:
            for start, weights in starts.items():
                for rate in TUNED_RATES:
                    name = f"tune-{start}-{rate:g}"
                    runs.append(finetune(name, "fsdd_digits", weights, *low, f"seed={TUNING_SEED}", *rates(rate)))
            continue
        full = [
            finetune("digits", "fsdd_digits", str(pretrained)),
            finetune("speakers", "fsdd_speakers", str(pretrained)),
        ]
        seconds[encoder] = time.perf_counter() - started
        runs.extend([pretrained, *full])
        for start, weights in starts.items():
            for seed in given.seeds:
                rate = rates(LOW_LABEL_RATES[encoder, start])
                runs.append(finetune(f"digits5-{start}-{seed}", "fsdd_digits", weights, *low, f"seed={seed}", *rate))
    report(given.out, [read_run(folder) for folder in runs], seconds, given.tune)


def rates(rate: float) -> list[str]:
    return [f"optimizer.learning_rate={rate}", f"optimizer.head_learning_rate={rate}"]


def report(out: Path, runs: list[Run], seconds: dict[str, float], tuning: bool) -> None:
    if tuning:
        for run in runs:
            print(f"{run.folder.name}: {run.score:.3f}")
        return
    rows = table(runs)
    masked = {
        run.recipe.model.encoder: json.loads((run.folder / "evaluation" / "scores.json").read_text())
        for run in runs
        if run.group[0] == "pretraining"
    }
    lines = [markdown(rows), "Held-out clips, half of the patches hidden:\n"]
    lines += [f"- {encoder}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) for encoder, scores
              in masked.items()]  # fmt: skip
    lines += ["", "Pretraining and fine-tuning with all labels, wall time in this call:\n"]
    lines += [f"- {encoder}: {value / 60:.1f} min" for encoder, value in seconds.items()]
    write_text(out / "results.md", "\n".join(lines) + "\n")
    details = {run.folder.name: {**run.record, "score": run.score} for run in runs}
    write_json(out / "results.json", {"runs": details, "masked": masked, "seconds": seconds})
    print((out / "results.md").read_text())


if __name__ == "__main__":
    main()
