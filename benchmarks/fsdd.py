"""What pretraining is worth on spoken digits (FSDD), for every encoder, beside a baseline without a network.

    python benchmarks/fsdd.py RECORDINGS [--out runs/fsdd] [--parts tuning labels frozen speakers] [--encoders ...]

RECORDINGS is the data set's folder of {digit}_{speaker}_{take}.wav. Of its official split takes 0 to 4 are the test,
scored once by what was chosen on takes 5 to 14, held out of the rest. Each encoder, in frames and in patches of 16 mel
bins x 160 ms, is pretrained on the 2,700 training recordings without labels by one thread, as in
recipes/pretrain/fsdd.yaml. Then:

    tuning    learning rates of fine-tuning, and for pretrained weights whether the head learns first, for each row
    labels    digits by fine-tuning with 1 % and 5 % of the labels, pretrained and from scratch, five seeds each, of
              another subset, order and start
    frozen    digits by linear and nearest-neighbour probes of the pretrained features, 5 % and all labels, by pool
    speakers  digits of a speaker who is in no labelled recording, each of the six in turn, all labels of the others

Every step is a command of the package, printed before it runs, with one thread; --jobs of them run at a time. One that
is finished in OUT is not made again, so the work can be cut into several calls; --parts with none is pretraining and
the tables alone. Results: OUT/results.md, with the commands in OUT/results.json.
"""

import argparse
import functools
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ssamba.evaluation.intervals import Interval, Scored, paired_differences
from ssamba.evaluation.scores import read_scores
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json, write_text
from ssamba.protocols.many import MEMBERS_NAME
from ssamba.protocols.results import RECORD_NAME as PROBE_NAME

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ("ssamba", "ssast", "aum")
STARTS = ("pretrained", "scratch")
FRACTIONS = {"5 %": 0.05, "1 %": 0.01}
SEEDS = 5
# SSAMBA's and SSAST's own objective, of one mask of a clip as it is.
JOINT = (
    *(f"objective.changes.{name}=0" for name in ("frequency_shift", "gain", "tilt")),
    "objective.parts.contrastive=1",
    "objective.parts.reconstruction=10",
    "objective.parts.latent=0",
    "mask.per_clip=1",
)
# As both are trained, for benchmarks that say so: besides, the encoder gets all patches, half of them hidden.
WHOLE = (*JOINT, "model.encode=all", "mask.share=0.5", "data.batch_size=32")
# Of fine-tuning, clips as loud as they are, for benchmarks that say so.
OWN_LEVEL = ("augmentation.gain=0", "augmentation.tilt=0")
# A patch of each shape, in what clusters patches are hidden and by what objective, and the changes to the recipe of
# fine-tuning.
SHAPES = {
    "96x2": (
        ["model.fshape=96", "model.tshape=2"],
        ["mask.smallest=5", "mask.largest=5"],
        [],
    ),
    "16x16": (
        ["model.fshape=16", "model.tshape=16", "model.patch_order=time"],
        ["mask.smallest=2", "mask.largest=3"],
        ["model.time_stride=8"],
    ),
}
STEPS = 400  # of fine-tuning
RATES = (1e-3, 2e-3)  # of fine-tuning, among which `tuning` chooses,
HEAD_STEPS = (0, 130)  # and in so many of its steps pretrained weights stay as they are
TUNED_TAKES = range(5, 15)
OFFICIAL, TUNED_ON = 2700, 2100  # recordings of the official training part, and of it without those takes
TUNING_TITLE = (
    "Learning rates of fine-tuning, and whether the head learns first, digits with as many labels, takes that are held "
    "out of training"
)
ANOTHER = "all of five speakers"
SPEAKER_SHAPES = ("96x2",)
SPEAKERS_AS = "5 %"  # the labels whose learning rates they have; the head always learns first, as in the recipe
REPORT = "report.html"  # what folds and seeds are finished with


class Step(NamedTuple):
    """A command that makes a folder of OUT, which is finished once a file stands in it."""

    folder: str
    words: Sequence[str]
    mark: str


class Choice(NamedTuple):
    rate: float
    head_steps: int  # in which the head learns alone

    @property
    def words(self) -> list[str]:
        rates = [f"optimizer.learning_rate={self.rate:g}", f"optimizer.head_learning_rate={self.rate:g}"]
        return [*rates, f"task.freeze_steps={self.head_steps}"]


class Benchmark:
    """Commands whose results lie in `out`; each is timed, and made once."""

    def __init__(self, out: Path, jobs: int, encoders: Sequence[str]) -> None:
        self.out, self.jobs, self.encoders = out, jobs, encoders
        self.shards, self.tuning = out / "shards", out / "tuning-shards"

    def prepare(self, recordings: Path) -> None:
        """Shards of the official split, and of its training part once more, some takes of which are held out."""
        rate = ["--sampling-rate", "8000"]  # the recordings'
        if not self.shards.exists():
            self._call([sys.executable, str(ROOT / "data_prep/fsdd.py"), str(recordings), str(self.shards), *rate])
        if not self.tuning.exists():
            lists = {split: ["path,digit,speaker"] for split in ("train", "test")}
            for path in sorted(recordings.rglob("*.wav")):
                if (parts := re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem)) and int(parts[3]) >= TUNED_TAKES.start:
                    split = "test" if int(parts[3]) in TUNED_TAKES else "train"
                    lists[split].append(f"{path.absolute()},{parts[1]},{parts[2]}")
            for split, lines in lists.items():
                write_text(self.out / f"{split}.csv", "\n".join(lines) + "\n")
            names = ["--train", "train.csv", "--test", "test.csv", *rate]
            self._call([sys.executable, str(ROOT / "data_prep/listed.py"), str(self.out), str(self.tuning), *names])

    def _call(self, words: Sequence[str]) -> float:
        """Run a command; the seconds of CPU that it took, with the processes that it started."""
        print(f"$ {shlex.join(words)}", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            process = subprocess.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            if code := os.waitstatus_to_exitcode(status):
                said.seek(0)
                print(said.read(), file=sys.stderr)
                raise SystemExit(code)
        return usage.ru_utime + usage.ru_stime

    def make(self, steps: Sequence[Step]) -> None:
        """All steps that are not finished, several at a time."""

        def run(step: Step) -> None:
            if not (self.out / step.folder / step.mark).is_file():
                started = time.perf_counter()
                seconds = self._call([str(Path(sys.executable).parent / "ssamba"), *step.words])
                print(f"{step.folder}: {time.perf_counter() - started:.0f} s, {seconds:.0f} of CPU", flush=True)

        with ThreadPoolExecutor(self.jobs) as pool:
            for _ in pool.map(run, steps):
                pass

    def pretraining(self) -> list[Step]:
        return [
            Step(
                f"{encoder}-{shape}",
                [
                    "pretrain",
                    str(ROOT / "recipes/pretrain/fsdd.yaml"),
                    f"run_dir={self.out / f'{encoder}-{shape}'}",
                    f"data.train={self.shards / 'train'}",
                    f"model.encoder={encoder}",
                    *patch,
                    *masks,
                    "--resume",
                    "auto",
                ],
                "run.json",
            )
            for encoder in self.encoders
            for shape, (patch, masks, _) in SHAPES.items()
        ]

    def finetuning(self, name: str, encoder: str, shape: str, start: str, *changes: str, mark: str) -> Step:
        patch, _, more = SHAPES[shape]
        weights = str(self.out / f"{encoder}-{shape}") if start == "pretrained" else "null"
        words = [
            "finetune",
            str(ROOT / "recipes/finetune/fsdd_digits.yaml"),
            f"run_dir={self.out / name}",
            f"model.encoder={encoder}",
            *patch,
            *more,
            f"model.pretrained={weights}",
            *changes,
            "--resume",
            "auto",
        ]
        return Step(name, words, mark)

    def tuned(self) -> dict[tuple[str, str, str, str], dict[Choice, float]]:
        """(labels, encoder, shape, start) -> what each choice was worth on the takes that are held out."""
        found: dict[tuple[str, str, str, str], dict[Choice, float]] = {}
        for row in itertools.product(FRACTIONS, ENCODERS, SHAPES, STARTS):
            for choice in _choices(row[-1]):
                path = self.out / _tuning(*row, choice) / "run.json"
                if path.is_file():
                    found.setdefault(row, {})[choice] = json.loads(path.read_text())["test"]["accuracy"]
        return found

    def chosen(self, labels: str, encoder: str, shape: str, start: str) -> Choice:
        scores = self.tuned().get((labels, encoder, shape, start), {})
        if scores.keys() != set(_choices(start)):
            raise SystemExit("the learning rates are not chosen yet: give --parts tuning first")
        return max(scores, key=lambda choice: scores[choice])


def _choices(start: str) -> list[Choice]:
    """From scratch there is nothing that could stay as it is."""
    choices = [Choice(*choice) for choice in itertools.product(RATES, HEAD_STEPS)]
    return [choice for choice in choices if start == "pretrained" or not choice.head_steps]


def _tuning(labels: str, encoder: str, shape: str, start: str, choice: Choice) -> str:
    last = f"{choice.rate:g}-head-{choice.head_steps}"
    return f"tuning/{encoder}-{shape}-{start}-{labels.replace(' %', '')}-{last}"


def frozen_steps(benchmark: Benchmark) -> list[Step]:
    """Probes of the pretrained models: protocol x labels x pool, the best layer chosen within the training clips."""
    steps = []
    for encoder, shape in ((encoder, shape) for encoder in benchmark.encoders for shape in SHAPES):
        for protocol, pool, (labels, fraction, seeds) in (
            (protocol, pool, share) for protocol in PROTOCOLS for pool in POOLS for share in PROBED
        ):
            name = _frozen(encoder, shape, protocol, pool, labels)
            words = [
                "probe",
                str(benchmark.out / f"{encoder}-{shape}"),
                str(benchmark.shards / "train"),
                "--test",
                str(benchmark.shards / "test"),
                "--label",
                "digit",
                "--protocol",
                protocol,
                "--layer",
                "all",
                "--pooling",
                pool,
                "--label-fraction",
                str(fraction),
                "--seeds",
                str(seeds),
                "--out",
                str(benchmark.out / name),
            ]
            steps.append(Step(name, words, PROBE_NAME))
    return steps


PROTOCOLS, POOLS = ("linear", "knn"), ("rows", "statistics", "segments")
PROBED = (("5 %", 0.05, 5), ("100 %", 1.0, 1))  # labels, and seeds, of which all labels have one


def _frozen(encoder: str, shape: str, protocol: str, pool: str, labels: str) -> str:
    return f"frozen/{encoder}-{shape}-{protocol}-{pool}-{labels.replace(' %', '')}"


def _low(encoder: str, shape: str, start: str, labels: str) -> str:
    return f"labels/{encoder}-{shape}-{start}-{labels.replace(' %', '')}"


def _speakers(encoder: str, shape: str, start: str) -> str:
    return f"speakers/{encoder}-{shape}-{start}"


def label_steps(benchmark: Benchmark) -> list[Step]:
    """Fine-tuning with few labels."""
    test = [f"data.train={benchmark.shards / 'train'}", f"data.test={benchmark.shards / 'test'}"]
    return [
        benchmark.finetuning(
            _low(encoder, shape, start, labels),
            encoder,
            shape,
            start,
            *test,
            *benchmark.chosen(labels, encoder, shape, start).words,
            f"data.label_fraction={fraction}",
            f"trainer.max_steps={STEPS}",
            "--seeds",
            str(SEEDS),
            mark=REPORT,
        )
        for labels, fraction in FRACTIONS.items()
        for shape in SHAPES
        for encoder in benchmark.encoders
        for start in STARTS
    ]


def speaker_steps(benchmark: Benchmark) -> list[Step]:
    """Fine-tuning with all labels of five speakers, scored on the sixth."""
    return [
        benchmark.finetuning(
            _speakers(encoder, shape, start),
            encoder,
            shape,
            start,
            f"data.train={benchmark.shards / 'train'}",
            "data.test=[]",
            "data.fold_by=speaker",
            *benchmark.chosen(SPEAKERS_AS, encoder, shape, start)._replace(head_steps=max(HEAD_STEPS)).words,
            f"trainer.max_steps={STEPS}",
            "--folds",
            "all",
            mark=REPORT,
        )
        for shape in SPEAKER_SHAPES
        for encoder in benchmark.encoders
        for start in STARTS
    ]


def tuning_steps(benchmark: Benchmark) -> list[Step]:
    """Each choice, on the takes that are held out: as `label_steps` with as many labels, one seed."""
    shards = [f"data.train={benchmark.tuning / 'train'}", f"data.test={benchmark.tuning / 'test'}"]
    return [
        benchmark.finetuning(
            _tuning(labels, encoder, shape, start, choice),
            encoder,
            shape,
            start,
            *shards,
            *choice.words,
            f"data.label_fraction={fraction * OFFICIAL / TUNED_ON}",
            f"trainer.max_steps={STEPS}",
            "evaluation.baseline=none",
            mark="run.json",
        )
        for labels, fraction in FRACTIONS.items()
        for shape in SHAPES
        for encoder in benchmark.encoders
        for start in STARTS
        for choice in _choices(start)
    ]


def _scored(folder: Path, part: str = "test") -> list[Scored]:
    """What the runs in a folder of folds or seeds said of their test clips."""
    runs = json.loads((folder / MEMBERS_NAME).read_text())["runs"]
    return [Scored(read_scores(Path(run["folder"]) / part)[0], run["fold"]) for run in runs]


def _interval(scores: dict[str, float]) -> str:
    return str(Interval(*(scores[f"accuracy{end}"] for end in ("", "_low", "_high"))))


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


Rows = list[tuple[str, ...]]


def _compared(out: Path, label: str, named: Callable[[str, str, str], str]) -> Rows:
    """Of one protocol a row for each encoder and shape whose runs are there."""
    rows: Rows = []
    for shape in SHAPES:
        for encoder in ENCODERS:
            folders = {start: out / named(encoder, shape, start) for start in STARTS}
            paths = {start: folder / MEMBERS_NAME for start, folder in folders.items()}
            told = {start: json.loads(path.read_text()) for start, path in paths.items() if path.is_file()}
            if any("scores" not in one for one in told.values()) or len(told) < len(STARTS):
                continue
            ours, scratch = (_scored(folders[start]) for start in STARTS)
            baseline = _scored(folders["pretrained"], "test/baseline")
            rows.append(
                (
                    label,
                    encoder,
                    shape,
                    *(_interval(told[start]["scores"]["model"]) for start in STARTS),
                    _interval(told["pretrained"]["scores"]["log-mel"]),
                    _signed(paired_differences(ours, scratch)["accuracy"]),
                    _signed(paired_differences(ours, baseline)["accuracy"]),
                )
            )
    return rows


def label_rows(out: Path) -> Rows:
    rows: Rows = [("labels", "encoder", "patch", *STARTS, "log-mel", "pretrained - scratch", "pretrained - log-mel")]
    for labels in FRACTIONS:
        rows += _compared(out, labels, functools.partial(_low, labels=labels))
    return rows


def encoder_rows(out: Path) -> Rows:
    """SSAMBA less each other encoder, paired by recording and by seed, which have the same labels."""
    ours, others = ENCODERS[0], ENCODERS[1:]
    rows: Rows = [("labels", "encoder", "patch", *STARTS)]
    named: dict[str, Callable[[str, str, str], str]] = {
        **{labels: functools.partial(_low, labels=labels) for labels in FRACTIONS},
        ANOTHER: _speakers,
    }
    for (labels, name_of), shape, other in itertools.product(named.items(), SHAPES, others):
        folders = {(name, start): out / name_of(name, shape, start) for name in (ours, other) for start in STARTS}
        if all((folder / REPORT).is_file() for folder in folders.values()):
            runs = {key: _scored(folder) for key, folder in folders.items()}
            against = (paired_differences(runs[ours, start], runs[other, start])["accuracy"] for start in STARTS)
            rows.append((labels, other, shape, *map(_signed, against)))
    return rows


def speaker_rows(out: Path) -> Rows:
    head = ("labels", "encoder", "patch", *STARTS, "log-mel", "pretrained - scratch", "pretrained - log-mel")
    return [head, *_compared(out, ANOTHER, _speakers)]


def frozen_rows(out: Path) -> Rows:
    rows: Rows = [("protocol", "labels", "encoder", "patch", "pool", "layer", "frozen", "log-mel", "difference")]
    for protocol in PROTOCOLS:
        for labels, _, _ in PROBED:
            for encoder in ENCODERS:
                for shape in SHAPES:
                    for pool in POOLS:
                        path = out / _frozen(encoder, shape, protocol, pool, labels) / PROBE_NAME
                        if not path.is_file():
                            continue
                        told = json.loads(path.read_text())
                        layers = sorted({part["chosen"].removeprefix("layer ") for part in told["parts"]})
                        kinds = (_interval(told["scores"][kind]) for kind in ("model", "log-mel", "difference"))
                        rows.append((protocol, labels, encoder, shape, pool, ", ".join(layers), *kinds))
    return rows


def tuning_rows(benchmark: Benchmark) -> Rows:
    every = _choices("pretrained")
    names = [f"{choice.rate:g}{', head first' if choice.head_steps else ''}" for choice in every]
    rows: Rows = [("labels", "encoder", "patch", "start", *names)]
    for row, scores in benchmark.tuned().items():
        rows.append((*row, *(f"{scores[choice]:.3f}" if choice in scores else "" for choice in every)))
    return rows


def pretraining_rows(out: Path) -> Rows:
    rows: Rows = [("encoder", "patch", "parameters", "steps", "seconds of one thread", "loss")]
    for encoder in ENCODERS:
        for shape in SHAPES:
            path = out / f"{encoder}-{shape}" / "run.json"
            if path.is_file():
                told = json.loads(path.read_text())
                rows.append(
                    (
                        encoder,
                        shape,
                        f"{told['parameters']:,}",
                        f"{told['steps']:,}",
                        f"{told['training_seconds']:.0f}",
                        f"{told['last_metrics']['train/loss']:.2f}",
                    )
                )
    return rows


def report(benchmark: Benchmark) -> None:
    """results.md and results.json of what is finished."""
    out = benchmark.out
    tables = {
        "Pretraining": pretraining_rows(out),
        TUNING_TITLE: tuning_rows(benchmark),
        "Digits with few labels, official test, mean of five seeds": label_rows(out),
        f"{ENCODERS[0]} less another encoder": encoder_rows(out),
        "Digits by frozen features, official test": frozen_rows(out),
        "Digits of a speaker without labels, mean of six": speaker_rows(out),
    }
    tables = {title: rows for title, rows in tables.items() if len(rows) > 1}
    text = "".join(f"{title}:\n\n{markdown_table(rows)}\n\n" for title, rows in tables.items())
    write_text(out / "results.md", text)
    records: dict[str, Any] = {}
    for mark in ("run.json", MEMBERS_NAME, PROBE_NAME):
        for path in sorted(out.rglob(mark)):
            told = json.loads(path.read_text())
            name = str(path.parent.relative_to(out))
            kept = ("command", "started", "git_commit", "hardware", "steps", "training_seconds", "test", "scores")
            records[name] = {key: told[key] for key in kept if key in told}
            words = told["command"]
            records[name]["command"] = [word.replace(str(out), "OUT").replace(f"{ROOT}/", "") for word in words]
    write_json(out / "results.json", {"tables": tables, "records": records})
    print(text)


PARTS: dict[str, Callable[[Benchmark], list[Step]]] = {
    "tuning": tuning_steps,
    "labels": label_steps,
    "frozen": frozen_steps,
    "speakers": speaker_steps,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdd"))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time (default: 2)")
    given = parser.parse_args()
    benchmark = Benchmark(given.out.absolute(), given.jobs, given.encoders)
    benchmark.prepare(given.recordings)
    benchmark.make(benchmark.pretraining())
    for part in given.parts:
        benchmark.make(PARTS[part](benchmark))
    report(benchmark)


if __name__ == "__main__":
    main()
