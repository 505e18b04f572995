"""The whole road on a small corpus: shards, pretraining, keyword spotting and speaker identification, one table.

    python benchmarks/demo.py [--data FOLDER] [--out demo]

Without --data a speech synthesizer speaks the corpus. With it, FOLDER holds label/name.wav, or the FSDD's
{digit}_{speaker}_{take}.wav. Every step is a command that is printed before it runs; the page is OUT/report.html.
"""

import argparse
import csv
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssamba.cli import main as ssamba
from ssamba.errors import UserError
from ssamba.evaluation.comparison import Run, markdown, read_run, table, write_page
from ssamba.evaluation.pictures import draw_bars

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT_VOICES = ("en-US-f5", "en-f4", "en-GB-scotland-f1", "en-029-m5")
HELD_OUT_TAKES = ("4", "5")
# Of pretraining, which SSAST needs more than: after 1,800, at a third of the rate, it matches 0.09 of these clips'
# hidden frames; what the position tells is 0.04, and ssamba has 0.39 after 600.
SSAST_STEPS = 2000


@dataclass(frozen=True)
class Corpus:
    """Shard folders: unlabelled clips, and for each task its label, its shards and what is held out for the test."""

    unlabelled: Path
    tasks: dict[str, tuple[str, Path, str]]


def call(*arguments: object) -> None:
    """Run one of data_prep's scripts, or the ssamba command in this process, which spares its imports."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ {shlex.join(words)}", flush=True)
    status = ssamba(words[1:]) if words[0] == "ssamba" else subprocess.run([sys.executable, *words[1:]]).returncode
    if status:
        raise SystemExit(status)


def prepare(script: str, *arguments: object) -> None:
    call("python", ROOT / "data_prep" / script, *arguments)


def synthetic_corpus(out: Path) -> Corpus:
    """Words by voices: some voices are kept from the keyword spotter, some takes from the speaker identifier."""
    speech = out / "speech"
    prepare("synthesize.py", speech)
    files = {name: out / f"{name}.csv" for name in ("keywords", "speakers")}
    writers = {}
    opened = [path.open("w", newline="") for path in files.values()]
    for name, file in zip(files, opened, strict=True):
        writers[name] = csv.writer(file)
        writers[name].writerow(["path", "label", "split"])
    for path in sorted((speech / "words").glob("*.wav")):
        word, voice, take = path.stem.split("_")
        relative = path.relative_to(out)
        writers["keywords"].writerow([relative, word, "test" if voice in HELD_OUT_VOICES else "train"])
        writers["speakers"].writerow([relative, voice, "test" if take in HELD_OUT_TAKES else "train"])
    for file in opened:
        file.close()
    tasks = {}
    for name, label, held_out in (("keywords", "word", "voices"), ("speakers", "speaker", "takes")):
        tasks[name] = (label, out / "shards" / name, held_out)
        prepare("folder.py", files[name], tasks[name][1], "--label-key", label)
    prepare("folder.py", speech / "sentences", out / "shards" / "sentences", "--unlabelled", "--validation", "0.1")
    return Corpus(out / "shards" / "sentences", tasks)


def given_corpus(data: Path, out: Path) -> Corpus:
    """The user's recordings: pretraining on the training ones without their labels."""
    shards = out / "shards" / "recordings"
    stems = [path.stem.split("_") for path in data.glob("*.wav")]
    if stems and all(len(parts) == 3 and parts[2].isdigit() for parts in stems):
        prepare("fsdd.py", data, shards)
        return Corpus(shards, {"keywords": ("digit", shards, "takes"), "speakers": ("speaker", shards, "takes")})
    prepare("folder.py", data, shards, "--test", "0.2")
    return Corpus(shards, {"labels": ("label", shards, "a fifth")})


def run_all(corpus: Corpus, out: Path, scale: float) -> list[Path]:
    """Pretraining and fine-tuning for both encoders; the run folders."""
    held_out = next(name for name in ("validation", "test") if (corpus.unlabelled / name).is_dir())
    runs = []
    for encoder in ("ssamba", "ssast"):
        pretrained = out / "runs" / f"{encoder}-pretrain"
        common = [f"model.encoder={encoder}"]
        call("ssamba", "pretrain", ROOT / "recipes/pretrain/demo.yaml", f"run_dir={pretrained}", *common,
             f"data.train={corpus.unlabelled / 'train'}", f"data.validation={corpus.unlabelled / held_out}",
             *steps(scale, 600, validations=3))  # fmt: skip
        runs.append(pretrained)
        for task, (label, shards, _) in corpus.tasks.items():
            # What shifts the formants makes another voice.
            more = ["augmentation.frequency_shift=0"] if task == "speakers" else []
            for start, weights in (("pretrained", str(pretrained)), ("scratch", "null")):
                folder = out / "runs" / f"{encoder}-{task}-{start}"
                # The baseline without a network is the same beside each: it is measured once.
                baseline = "log-mel" if (encoder, start) == ("ssamba", "pretrained") else "none"
                call("ssamba", "finetune", ROOT / "recipes/finetune/demo.yaml", f"run_dir={folder}", *common,
                     f"model.pretrained={weights}", f"task.label={label}", f"data.train={shards / 'train'}",
                     f"data.test={shards / 'test'}", f"evaluation.baseline={baseline}", *more,
                     *steps(scale, 160))  # fmt: skip
                runs.append(folder)
    return runs


def steps(scale: float, count: int, validations: int = 1) -> list[str]:
    count = max(validations, round(scale * count))
    return [f"trainer.max_steps={count}", f"trainer.validate_every_steps={count // validations}"]


def with_notes(rows: Sequence[tuple[str, ...]], runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A comparison's table, with a row for each task's baseline, and what SSAST needs beside what it had."""
    result = []
    for row in rows:
        task, encoder, *_, steps, seconds = row
        if task == "pretraining" and encoder.startswith("ssast"):
            row = (*row[:-2], f"{steps} of over {SSAST_STEPS:,} needed", seconds)
        result.append(row)
    for run in runs:
        if baseline := run.record.get("baseline"):
            score = f"{baseline['scores']['accuracy']:.3f}"
            result.append((run.group[0], "log-mel statistics, linear", "no network", "100%", score, "1", "", "", ""))
    return result


def report(corpus: Corpus, folders: Sequence[Path], out: Path, seconds: float) -> None:
    runs = [read_run(folder) for folder in folders]
    rows = with_notes(table(runs), runs)
    groups: dict[str, dict[str, float]] = {}
    for run in runs:
        task, _, start, _ = run.group
        if start:
            groups.setdefault(f"{task}, {run.recipe.model.encoder}", {})[start] = run.score
        if baseline := run.record.get("baseline"):
            groups[f"{task}, no network"] = {"log-mel statistics": baseline["scores"]["accuracy"]}
    draw_bars(out / "accuracy.png", groups, "test accuracy", "After equal steps of fine-tuning")
    pictures = {"Test accuracy": out / "accuracy.png"}
    for run in runs:
        drawn = sorted((run.folder / "pictures").glob("reconstruction-*.png"))
        name = run.folder.name
        if drawn:
            pictures[f"{name}: a held-out clip, what the encoder saw of it, and what it made of that"] = drawn[-1]
            pictures[f"{name}: curves"] = run.folder / "pictures" / "curves.png"
        elif name.endswith("pretrained"):
            pictures[f"{name}: confusion matrix"] = run.folder / "test" / "confusion.png"
    held = "; ".join(f"{label}: {what} held out for the test" for label, _, what in corpus.tasks.values())
    introduction = (
        f"Encoders of half a million parameters, pretrained on unlabelled clips by predicting hidden patches, then "
        f"fine-tuned. {held}. All of it took {seconds:.0f} s here."
    )
    write_page(out / "report.html", "From audio files to a fine-tuned classifier", introduction, rows, pictures)
    print(f"\n{markdown(rows)}\n{seconds:.0f} s in all; pictures in {out / 'report.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of recordings (default: synthetic speech)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="replaced if it is an earlier demo")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps (default: 1)")
    given = parser.parse_args()
    started = time.perf_counter()
    try:
        if given.data is not None and not given.data.is_dir():
            raise UserError(f"--data is {given.data}, which is no folder; expected one of recordings")
        mark = given.out / "demo"
        if given.out.exists() and any(given.out.iterdir()):
            if not mark.is_file():
                raise UserError(f"{given.out} holds something that is no demo; give another --out")
            shutil.rmtree(given.out)
        given.out.mkdir(parents=True, exist_ok=True)
        mark.write_text("This folder is replaced by the next demo.\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    corpus = synthetic_corpus(given.out) if given.data is None else given_corpus(given.data, given.out)
    folders = run_all(corpus, given.out, given.scale)
    report(corpus, folders, given.out, time.perf_counter() - started)


if __name__ == "__main__":
    main()
