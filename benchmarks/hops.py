"""Answers hop by hop, scored: speech to text of a synthesizer's sentences, and a class a second of soundscapes.

    python benchmarks/hops.py RECORDINGS [--out runs/hops] [--parts speech scenes hour]

    speech  sentences by four voices that are in no training recording, characters by CTC, from scratch
    scenes  FSDD's digits (RECORDINGS, its folder of {digit}_{speaker}_{take}.wav) at 0 to 15 dB in brown noise, with
            pauses, in soundscapes of 20 s: takes 0 to 4 are the test, 5 to 9 the validation; from scratch
    hour    what the model of scenes says of the test's soundscapes one after another, as a recording of an hour and as
            one of six minutes, and the most memory that each takes

Every step is a command of the package, printed before it runs, with one thread. One that is finished in OUT is not made
again. Results: OUT/results.md and OUT/results.json. The steps and rates stand in the recipe of speech and below; they
were chosen on the validation split, and the test is scored once.
"""

import argparse
import csv
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

import soundfile

from ssamba.config import DataConfig
from ssamba.data import pipeline
from ssamba.data.labels import read_labels
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.evaluation.report import score_text
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000  # of FSDD
SCENES = [
    f"audio.sampling_rate={RATE}",
    "audio.num_mel_bins=96",
    "audio.max_length=2000",
    "audio.mean=null",
    "audio.std=null",
    "model.size=nano",
    "model.fshape=96",
    "model.tshape=4",
    "model.time_stride=4",
    "model.pretrained=null",
    "data.fold_by=null",
    "data.batch_size=8",
    "data.num_workers=0",
    "task.pooling=statistics",
    "augmentation.frequency_mask=12",
    "augmentation.time_mask=0",
    "augmentation.frequency_shift=5",
    "optimizer.learning_rate=3e-3",
    "optimizer.weight_decay=0.05",
    "optimizer.warmup_steps=50",
    "trainer.precision=32",
    "trainer.max_steps=600",
    "trainer.validate_every_steps=200",
]


def call(words: Sequence[str]) -> tuple[float, int]:
    """Run a command with one thread: its seconds of CPU, and the most memory that it took, bytes."""
    print(f"$ {shlex.join(words)}", flush=True)
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(code)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def script(name: str, *words: str) -> None:
    call([sys.executable, str(ROOT / "data_prep" / name), *words])


def ssamba(*words: str) -> tuple[float, int]:
    return call([str(Path(sys.executable).parent / "ssamba"), *words])


def finetune(recipe: str, run: Path, *words: str) -> None:
    """A run, if it is not finished; its seconds of CPU beside it."""
    if not (run / "run.json").is_file():
        path = str(ROOT / f"recipes/finetune/{recipe}.yaml")
        seconds, _ = ssamba("finetune", path, f"run_dir={run}", *words, "--overwrite")
        write_json(run / "cpu_seconds.json", round(seconds))


def splits(shards: Path) -> list[str]:
    return [f"data.{split}={shards / split}" for split in ("train", "validation", "test")]


def speech(out: Path) -> None:
    shards = out / "speech-shards"
    if not shards.exists():
        script("synthesize.py", str(out / "speech"))
        listed = [str(out / "speech/sentences.csv"), str(shards)]
        script("folder.py", *listed, "--label-column", "text", "--label-key", "text")
    finetune("speech", out / "speech-run", *splits(shards))


def scenes(out: Path, recordings: Path) -> None:
    """The digits in the layout of UrbanSound8K, whose folds here are takes."""
    shards, source = out / "scene-shards", out / "digits"
    if not shards.exists():
        rows = []
        for path in sorted(recordings.rglob("*.wav")):
            if parts := re.fullmatch(r"(\d)_[a-z]+_(\d+)", path.stem):
                take = int(parts[2])
                fold = 10 if take < 5 else 9 if take < 10 else 1 + (take - 10) // 5
                place = source / f"audio/fold{fold}" / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists():
                    place.symlink_to(path.absolute())
                rows.append((path.name, fold, parts[1], parts[1]))
        (source / "metadata").mkdir(exist_ok=True)
        with (source / "metadata/UrbanSound8K.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("slice_file_name", "fold", "classID", "class"), *rows])
        levels = ["--seconds", "20", "--gap", "2", "--snr", "0", "15", "--sampling-rate", str(RATE)]
        script("soundscapes.py", str(source), str(shards), *levels)
    finetune("soundscapes", out / "scene-run", *splits(shards), *SCENES)


def hour(out: Path) -> None:
    """The test's soundscapes, one after another and again; each length in a process of its own."""
    shards = find_shards(str(out / "scene-shards/test"))
    cache = ShardCache(DataConfig().cache_bytes)
    listed = [json.loads(names) for _, names in read_labels(shards, "scene", cache).values()]
    sounds = [
        batch["waveform"][0].numpy()
        for batch in pipeline(str(out / "scene-shards/test"), seconds=20, batch_size=1, training=False)
    ]
    found = []
    for minutes in (6, 60):
        file, timeline, true = out / f"{minutes}-minutes.wav", out / f"timeline-{minutes}", []
        with soundfile.SoundFile(file, "w", RATE, 1) as written:
            for sound, names in itertools.islice(itertools.cycle(zip(sounds, listed, strict=True)), 3 * minutes):
                written.write(sound)
                true += names
        words = ["predict", str(out / "scene-run"), str(file), "--timeline", str(timeline), "--overwrite"]
        seconds, memory = ssamba(*words, "--out", str(out / f"said-{minutes}.txt"), "--overwrite")
        (table,) = timeline.rglob("*.csv")
        with table.open(newline="") as lines:
            said = [row["label"] for row in csv.DictReader(lines)]
        right = sum(one == other for one, other in zip(said, true, strict=True)) / len(true)
        found.append(
            {
                "minutes": minutes,
                "rows": len(said),
                "accuracy": round(right, 4),
                "cpu_seconds": round(seconds),
                "peak_bytes": memory,
            }
        )
    write_json(out / "hour.json", found)


def run_record(run: Path) -> dict[str, Any] | None:
    path = run / "run.json"
    return json.loads(path.read_text()) if path.is_file() else None


def report(out: Path) -> None:
    tables: dict[str, list[tuple[str, ...]]] = {}
    records: dict[str, Any] = {}
    kept = (
        "command",
        "started",
        "git_commit",
        "hardware",
        "parameters",
        "steps",
        "training_seconds",
        "test",
        "baseline",
    )
    for name in ("speech", "scene"):
        record = run_record(out / f"{name}-run")
        if record is None:
            continue
        records[name] = {key: record[key] for key in kept if key in record}
        words = record["command"]
        records[name]["command"] = [word.replace(str(out), "OUT").replace(f"{ROOT}/", "") for word in words]
        records[name]["cpu_seconds"] = json.loads((out / f"{name}-run" / "cpu_seconds.json").read_text())
    rows: list[tuple[str, ...]]
    if speech := records.get("speech"):
        rows = [("decoding", "WER", "CER")]
        for kind, prefix in (("the likeliest of each hop", ""), ("beam search", "beam_")):
            if f"{prefix}WER" in speech["test"]:
                rows.append((kind, *(score_text(speech["test"], f"{prefix}{name}") for name in ("WER", "CER"))))
        tables[
            f"Speech to text, {speech['test']['clips']} sentences by voices that training never heard; "
            f"{speech['cpu_seconds']} CPU s in all"
        ] = rows
    if scene := records.get("scene"):
        names = ("accuracy", "balanced_accuracy", "segment_F1", "event_F1")
        rows = [("", *names)]
        for kind, scores in (("ssamba nano", scene["test"]), ("log-mel statistics", scene["baseline"]["scores"])):
            rows.append((kind, *(score_text(scores, name) for name in names)))
        tables[f"A class a second, {scene['test']['clips']} s of digits in noise; {scene['cpu_seconds']} CPU s"] = rows
    if (out / "hour.json").is_file():
        records["hour"] = json.loads((out / "hour.json").read_text())
        rows = [("minutes", "rows of the timeline", "accuracy", "CPU s", "peak memory, GB")]
        for one in records["hour"]:
            told = (str(one[name]) for name in ("minutes", "rows", "accuracy", "cpu_seconds"))
            rows.append((*told, f"{one['peak_bytes'] / 1e9:.2f}"))
        tables["One recording, told second by second"] = rows
    text = "".join(f"{title}:\n\n{markdown_table(rows)}\n\n" for title, rows in tables.items())
    write_text(out / "results.md", text)
    write_json(out / "results.json", {"tables": tables, "records": records})
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="RECORDINGS", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/hops"))
    parser.add_argument(
        "--parts", nargs="+", default=["speech", "scenes", "hour"], choices=("speech", "scenes", "hour")
    )
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        if part == "scenes":
            scenes(out, given.recordings)
        else:
            {"speech": speech, "hour": hour}[part](out)
    report(out)


if __name__ == "__main__":
    main()
