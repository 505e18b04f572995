"""`ssamba demo`: shards, pretraining, keyword spotting and speaker identification on a small corpus, one table.

The corpus is made by a speech synthesizer, or it is a folder of label/name.wav, or of FSDD's
{digit}_{speaker}_{take}.wav. Every step is a command that is printed before it runs; the page is OUT/report.html.
"""

import csv
import io
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.cli import main as ssamba
from ssamba.comparison.compare import Comparison, compare_runs, start_text
from ssamba.comparison.page import pair_text, score_text
from ssamba.comparison.runs import Run, read_run
from ssamba.comparison.tables import pair_rows, score_rows
from ssamba.errors import UserError
from ssamba.evaluation.pages import Block, Picture, Section, Table, Text, write_report
from ssamba.evaluation.pictures import draw_bars
from ssamba.evaluation.report import baseline_text, last_predictions
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_text
from ssamba.packaged import packaged

RECIPES = packaged("recipes")
HELD_OUT_VOICES = ("en-US-f5", "en-f4", "en-GB-scotland-f1", "en-029-m5")
HELD_OUT_TAKES = ("4", "5")
# Of pretraining, which SSAST needs more than: after 1,800, at a third of the rate, it matches 0.09 of these clips'
# hidden frames; the position alone gives 0.04, and ssamba has 0.39 after 600.
SSAST_STEPS = 2000


@dataclass(frozen=True)
class Corpus:
    """Shard folders: unlabelled clips, and for each task its label, its shards and what is held out for the test."""

    unlabelled: Path
    tasks: dict[str, tuple[str, Path, str]]


def call(*arguments: object) -> None:
    """Run the ssamba command in this process, which spares its imports."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ {shlex.join(['ssamba', *words])}", flush=True)
    if status := ssamba(words):
        raise SystemExit(status)


def synthetic_corpus(out: Path) -> Corpus:
    """Words by voices: some voices are kept from the keyword spotter, some takes from the speaker identifier."""
    speech = out / "speech"
    call("prepare", "synthesize", speech)
    files = {name: out / f"{name}.csv" for name in ("keywords", "speakers")}
    rows = {name: [("path", "label", "split")] for name in files}
    for path in sorted((speech / "words").glob("*.wav")):
        word, voice, take = path.stem.split("_")
        relative = path.relative_to(out)
        rows["keywords"].append((str(relative), word, "test" if voice in HELD_OUT_VOICES else "train"))
        rows["speakers"].append((str(relative), voice, "test" if take in HELD_OUT_TAKES else "train"))
    for name, file in files.items():
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows[name])
        write_text(file, text.getvalue())
    tasks = {}
    for name, label, held_out in (("keywords", "word", "voices"), ("speakers", "speaker", "takes")):
        tasks[name] = (label, out / "shards" / name, held_out)
        call("prepare", "folder", files[name], tasks[name][1], "--label-key", label)
    call("prepare", "folder", speech / "sentences", out / "shards" / "sentences", "--unlabelled", "--validation", "0.1")
    return Corpus(out / "shards" / "sentences", tasks)


def folder_corpus(data: Path, out: Path) -> Corpus:
    """The user's recordings: pretraining on the training ones without their labels."""
    shards = out / "shards" / "recordings"
    stems = [path.stem.split("_") for path in data.glob("*.wav")]
    if stems and all(len(parts) == 3 and parts[2].isdigit() for parts in stems):
        call("prepare", "fsdd", data, shards)
        return Corpus(shards, {"keywords": ("digit", shards, "takes"), "speakers": ("speaker", shards, "takes")})
    call("prepare", "folder", data, shards, "--test", "0.2")
    return Corpus(shards, {"labels": ("label", shards, "a fifth")})


def run_all(corpus: Corpus, out: Path, scale: float) -> list[Path]:
    """Pretraining and fine-tuning for both encoders; the run folders."""
    held_out = next(name for name in ("validation", "test") if (corpus.unlabelled / name).is_dir())
    runs = []
    for encoder in ("ssamba", "ssast"):
        pretrained = out / "runs" / f"{encoder}-pretrain"
        common = [f"model.encoder={encoder}"]
        call(
            "pretrain",
            RECIPES / "pretrain/demo.yaml",
            f"run_dir={pretrained}",
            *common,
            f"data.train={corpus.unlabelled / 'train'}",
            f"data.validation={corpus.unlabelled / held_out}",
            *steps(scale, 600, validations=3),
        )
        runs.append(pretrained)
        for task, (label, shards, _) in corpus.tasks.items():
            # What shifts the formants makes another voice.
            more = ["augmentation.frequency_shift=0"] if task == "speakers" else []
            for start, weights in (("pretrained", str(pretrained)), ("scratch", "null")):
                folder = out / "runs" / f"{encoder}-{task}-{start}"
                # The baseline without a network is the same beside each: it is measured once.
                baseline = "log-mel" if (encoder, start) == ("ssamba", "pretrained") else "none"
                call(
                    "finetune",
                    RECIPES / "finetune/demo.yaml",
                    f"run_dir={folder}",
                    *common,
                    f"model.pretrained={weights}",
                    f"task.label={label}",
                    f"data.train={shards / 'train'}",
                    f"data.test={shards / 'test'}",
                    f"evaluation.baseline={baseline}",
                    *more,
                    *steps(scale, 160),
                )
                runs.append(folder)
    return runs


def steps(scale: float, count: int, validations: int = 1) -> list[str]:
    count = max(validations, round(scale * count))
    return [f"trainer.max_steps={count}", f"trainer.validate_every_steps={count // validations}"]


def pretraining_rows(runs: Sequence[Run]) -> Iterator[Sequence[str]]:
    """A row for each pretraining run, with what SSAST needs beside what it had."""
    yield "encoder", "accuracy of hidden patches, held out", "parameters", "steps", "training time"
    for run in runs:
        encoder, record = run.recipe["model.encoder"], run.record
        needed = f" of over {SSAST_STEPS:,} needed" if encoder == "ssast" else ""
        accuracy = record["last_metrics"]["val/accuracy"]
        yield (
            encoder,
            f"{accuracy:.3f}",
            f"{record['parameters']:,}",
            f"{record['steps']:,}{needed}",
            f"{record['training_seconds']:.0f} s",
        )


def compare_tasks(corpus: Corpus, runs: Sequence[Run]) -> dict[str, Comparison]:
    """The fine-tuned runs of each task side by side. Spectrograms are normalised by the statistics of what each was
    trained on first, so those of pretrained encoders differ from the others'."""
    return {
        name: compare_runs([run for run in runs if run.recipe.get("task.label") == label], ["statistics"])
        for name, (label, _, _) in corpus.tasks.items()
    }


def baseline_of(comparison: Comparison) -> dict[str, Any]:
    """What the log-mel baseline of a task scored, and what it is."""
    runs = [run for group in comparison.groups for run in group.runs]
    baseline: dict[str, Any] = next(run.record["baseline"] for run in runs if run.record.get("baseline"))
    return baseline


def task_section(name: str, comparison: Comparison) -> Section:
    baseline = baseline_of(comparison)
    sentence = f"Without a network: accuracy {baseline['scores']['accuracy']:.3f}. {baseline_text(baseline)}"
    blocks: list[Block] = [Table(score_rows(comparison)), Text(score_text(comparison)), Text(sentence)]
    blocks += [*map(Text, comparison.notes), Table(pair_rows(comparison)), Text(pair_text(comparison))]
    return Section(name.capitalize(), blocks)


def draw_accuracies(path: Path, comparisons: dict[str, Comparison]) -> None:
    """A bar for each group of runs, and for the baseline."""
    bars: dict[str, dict[str, float]] = {}
    for name, comparison in comparisons.items():
        for group in comparison.groups:
            recipe, start = group.runs[0].recipe, start_text(group.values["model.pretrained"])
            bars.setdefault(f"{name}, {recipe['model.encoder']}", {})[start] = group.scores["accuracy"].value
        bars[f"{name}, no network"] = {"log-mel statistics": baseline_of(comparison)["scores"]["accuracy"]}
    draw_bars(path, bars, "test accuracy", "After equal steps of fine-tuning")


def pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    for run in runs:
        assert run.folder is not None
        name, drawn = run.folder.name, last_predictions(run.folder / "pictures")
        if drawn:
            for path in drawn:
                yield Picture(path, f"{name}: a held-out clip, and what the encoder made of its hidden patches")
            yield Picture(run.folder / "pictures" / "curves.png", f"{name}: curves")
        elif name.endswith("pretrained"):
            yield Picture(run.folder / "test" / "confusion.png", f"{name}: confusion matrix")


def report(corpus: Corpus, folders: Sequence[Path], out: Path, seconds: float) -> None:
    runs = [read_run(folder) for folder in folders]
    comparisons = compare_tasks(corpus, runs)
    draw_accuracies(out / "accuracy.png", comparisons)
    held_out = "; ".join(f"{label}: {what} held out for the test" for label, _, what in corpus.tasks.values())
    introduction = (
        f"Encoders of half a million parameters, pretrained on unlabelled clips by predicting hidden patches, then "
        f"fine-tuned. {held_out}. All of it took {seconds:.0f} s here."
    )
    pretraining = list(pretraining_rows([run for run in runs if run.recipe["task_type"] == "pretrain"]))
    sections = [
        Section("What was done", [Text(introduction), Picture(out / "accuracy.png", "Test accuracy")]),
        *(task_section(name, comparison) for name, comparison in comparisons.items()),
        Section("Pretraining", [Table(pretraining)]),
        Section("Pictures", list(pictures(runs))),
    ]
    write_report(out, "From audio files to a fine-tuned classifier", sections)
    for name, comparison in comparisons.items():
        print(f"\n{name}\n{markdown_table(score_rows(comparison))}")
        print(f"without a network: {baseline_of(comparison)['scores']['accuracy']:.3f}")
        print(markdown_table(pair_rows(comparison)))
    print(f"\n{markdown_table(pretraining)}\n{seconds:.0f} s in all; pictures in {out / 'report.html'}")


def run_demo(data: Path | None, out: Path, scale: float) -> None:
    """All of it.

    Args:
        data: a folder of recordings; None: synthetic speech.
        out: replaced if it is an earlier demo.
        scale: of the numbers of steps.

    Raises:
        UserError: data is no folder, or out holds something else.
    """
    started = time.perf_counter()
    if data is not None and not data.is_dir():
        raise UserError(f"--data is {data}, which is no folder; expected one of recordings")
    mark = out / "demo"
    if out.exists() and any(out.iterdir()):
        if not mark.is_file():
            raise UserError(f"{out} holds something that is no demo; give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, "This folder is replaced by the next demo.\n")
    corpus = synthetic_corpus(out) if data is None else folder_corpus(data, out)
    folders = run_all(corpus, out, scale)
    report(corpus, folders, out, time.perf_counter() - started)
