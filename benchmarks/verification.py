"""Whether two recordings are of one speaker, of speakers that no training has heard, beside log-mel statistics (FSDD).

    python benchmarks/verification.py RECORDINGS [--out runs/verification]

RECORDINGS is the data set's folder of {digit}_{speaker}_{take}.wav. Its six speakers are two halves of three. For each
half an encoder is pretrained on the other three speakers, by SSAMBA's own objective as in `fsdd.WHOLE`, then trained to
tell these apart; trials are all pairs of different digits of takes 0 to 4 of the half's own speakers. `ssamba verify`
scores the pretrained model, the trained one, and one trained from scratch. The verified recordings choose nothing.
Every step is a command of the package, printed before it runs, with one thread; what is finished in OUT is not made
again. Results: OUT/results.md and OUT/results.json.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsdd
from ssamba.evaluation.report import score_text
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
STEPS = 2500  # of pretraining
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")
KINDS = {"pretrained": "pretrained", "trained": "trained to tell the others", "scratch": "the same from scratch"}


def call(words: Sequence[str]) -> None:
    print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.returncode)


def ssamba(mark: Path, *words: str) -> None:
    """A command, if it has not left its mark."""
    if not mark.is_file():
        call([str(Path(sys.executable).parent / "ssamba"), *words])


def half(out: Path, paths: Sequence[Path], held: Sequence[str]) -> None:
    """Everything of one half: `held` are its speakers."""
    named = [
        (path.absolute(), match[1], match[2], int(match[3])) for path in paths if (match := NAME.fullmatch(path.stem))
    ]
    out.mkdir(parents=True, exist_ok=True)
    lines = ["path,speaker", *(f"{path},{speaker}" for path, _, speaker, _ in named if speaker not in held)]
    write_text(out / "train.csv", "\n".join(lines) + "\n")
    tested = [one for one in named if one[2] in held and one[3] < 5]
    trials = [
        f"{int(one[2] == other[2])} {one[0].name} {other[0].name}"
        for one, other in itertools.combinations(tested, 2)
        if one[1] != other[1]
    ]
    write_text(out / "trials.txt", "\n".join(trials) + "\n")
    shards = out / "shards"
    if not shards.exists():
        listed = [str(out), str(shards), "--train", "train.csv", "--sampling-rate", "8000"]
        call([sys.executable, str(ROOT / "data_prep/listed.py"), *listed])
    source = f"data.train={shards / 'train'}"
    recipes = ROOT / "recipes"
    pretrained = out / "pretrained"
    ssamba(
        pretrained / "run.json",
        "pretrain",
        str(recipes / "pretrain/fsdd.yaml"),
        f"run_dir={pretrained}",
        *fsdd.WHOLE,
        f"trainer.max_steps={STEPS}",
        source,
        "--resume",
        "auto",
    )
    for name, weights in (("trained", str(pretrained)), ("scratch", "null")):
        ssamba(
            out / name / "run.json",
            "finetune",
            str(recipes / "finetune/fsdd_speakers.yaml"),
            f"run_dir={out / name}",
            source,
            "data.test=[]",
            f"model.pretrained={weights}",
            "--resume",
            "auto",
        )
    for name in KINDS:
        told = out / f"verify-{name}"
        ssamba(
            told / "verify.json",
            "verify",
            str(out / name),
            str(out / "trials.txt"),
            "--recordings",
            str(paths[0].parent),
            "--out",
            str(told),
        )


def report(out: Path, halves: Sequence[Sequence[str]]) -> None:
    rows: list[tuple[str, ...]] = [("speakers", "vectors", "trials", "EER", "minDCF 0.01", "minDCF 0.05")]
    records: dict[str, Any] = {}
    for number, held in enumerate(halves, 1):
        for name, told in KINDS.items():
            record = json.loads((out / f"half-{number}" / f"verify-{name}" / "verify.json").read_text())
            records[f"half-{number}/{name}"] = record
            for kind, shown in (("model", told), ("log-mel", "log-mel statistics")):
                if kind == "model" or name == "pretrained":
                    scores = record["scores"][kind]
                    metrics = (score_text(scores, metric) for metric in ("EER", "minDCF_0.01", "minDCF_0.05"))
                    rows.append((", ".join(held), shown, str(record["trials"]), *metrics))
    write_text(out / "results.md", f"{markdown_table(rows)}\n")
    write_json(out / "results.json", {"table": rows, "records": records})
    print(markdown_table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/verification"))
    given = parser.parse_args()
    paths = sorted(given.recordings.rglob("*.wav"))
    speakers = sorted({match[2] for path in paths if (match := NAME.fullmatch(path.stem))})
    halves = [speakers[: len(speakers) // 2], speakers[len(speakers) // 2 :]]
    for number, held in enumerate(halves, 1):
        half(given.out.absolute() / f"half-{number}", paths, held)
    report(given.out, halves)


if __name__ == "__main__":
    main()
