"""Memory and speed of `ssamba predict` and `ssamba embed` on a short and on a long recording, each in its own process.

    OMP_NUM_THREADS=1 python benchmarks/inference.py [--seconds 60 3600] [--size tiny] [--rounds 1]

The recordings are chirps and noise, 44.1 kHz stereo FLAC; the model a classifier with weights at random, patches of
16x16, clips of 10.24 s. Memory is the highest resident of the whole process (Linux alone tells it). Speed is seconds of
audio a second from the start of the command to its end, which includes importing torch, loading the model and compiling
kernels; their part is gone from the last column, (long - short) / (time of long - time of short).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ssamba.evaluation.efficiency import Goal, goals_table, versions
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.models.checkpoint import save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier
from ssamba.models.settings import AudioSettings, ClassifierSettings
from ssamba.progress import progress_bar
from ssamba.training.runs import hardware

RESULTS = Path(__file__).parent / "results"
RATE = 44100
MOST_MEGABYTES = 300.0  # that the long recording may take more than the short one

# What is called, after the recording; each writes into its folder.
COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "--format", "jsonl", "--out", "predictions.jsonl"],
    "predict --timeline": ["predict", "--format", "jsonl", "--out", "predictions.jsonl", "--timeline", "timeline"],
    "embed": ["embed", "--out", "vectors.npz"],
    "embed --tokens": ["embed", "--tokens", "--out", "tokens.npz"],
}

CHILD = """
import json, sys, time
began = time.perf_counter()
from ssamba.cli import main
status = main(sys.argv[1:])
seconds = time.perf_counter() - began
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
print(json.dumps({"status": status, "seconds": seconds, "peak_megabytes": peak / 1024}), file=open("measured", "w"))
"""


def sound(seconds: int) -> Iterator[np.ndarray[Any, Any]]:
    """A second at a time, float32 (RATE, 2): a chirp, another one on the other side, noise."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for _ in range(seconds):
        low, high = rng.uniform(100, 6000, 2)
        chirps = [
            0.3 * np.sin(2 * np.pi * (start + (stop - start) / 2 * time) * time)
            for start, stop in ((low, high), (high, low))
        ]
        yield (np.stack(chirps, 1) + rng.normal(0, 0.02, (RATE, 2))).astype(np.float32)


def write_recording(path: Path, seconds: int) -> None:
    """A FLAC, written block by block."""
    with soundfile.SoundFile(path, "w", RATE, 2) as file, progress_bar(seconds, "s", path.name) as bar:
        for block in sound(seconds):
            file.write(block)
            bar.update()


def write_model(folder: Path, size: str) -> None:
    """A classifier of ten classes with weights at random."""
    torch.manual_seed(0)
    encoder = AudioEncoder("ssamba", SIZES["ssamba"][size], 128, 1024, 16, 16, 16, 16)
    settings = ClassifierSettings(tuple(f"class {i}" for i in range(10)), "sound", "cross_entropy", "mean")
    save_model(folder, AudioClassifier(encoder, 10, "mean"), AudioSettings(16000, -4.0, 4.0, "pad"), settings)


def measure(command: str, model: Path, recording: Path) -> dict[str, float]:
    """Call a command of `COMMANDS` in a process and a folder of its own: seconds and peak_megabytes."""
    with tempfile.TemporaryDirectory(dir=recording.parent) as folder:
        name, *words = COMMANDS[command]
        line = [sys.executable, "-c", CHILD, name, str(model), str(recording), *words]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stderr}")
        measured: dict[str, float] = json.loads((Path(folder) / "measured").read_text())
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if measured.pop("status"):
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return {**measured, "written_megabytes": written / 2**20}


def measure_all(lengths: Sequence[int], size: str, rounds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Command -> seconds of audio -> a measurement a round."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {str(s): [] for s in lengths} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder / "model", size)
        for seconds in lengths:
            write_recording(folder / f"{seconds}.flac", seconds)
        measure(
            next(iter(COMMANDS)), folder / "model", folder / f"{lengths[0]}.flac"
        )  # compiles what is then read from a cache
        with progress_bar(rounds * len(COMMANDS) * len(lengths), "call", "measuring") as bar:
            for _ in range(rounds):
                for name, of in found.items():
                    for seconds in lengths:
                        of[str(seconds)].append(measure(name, folder / "model", folder / f"{seconds}.flac"))
                        bar.update()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs=2, default=(60, 3600), metavar=("SHORT", "LONG"))
    parser.add_argument("--size", default="tiny", choices=list(SIZES["ssamba"]))
    parser.add_argument("--rounds", type=int, default=1, help="medians are taken over them")
    parser.add_argument("--out", type=Path, default=RESULTS / "inference.json")
    given = parser.parse_args()
    short, long = given.seconds
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    if not 0 < short < long or given.rounds < 1:
        parser.error(
            f"{short} s, {long} s and {given.rounds} rounds; expected a short and a long one, at least 1 round"
        )
    if sys.platform != "linux":
        parser.error("the memory of a process is measured on Linux alone")
    found = measure_all((short, long), given.size, given.rounds)

    def median(name: str, seconds: int, of: str) -> float:
        return statistics.median(one[of] for one in found[name][str(seconds)])

    header = [f"{what}, {seconds} s" for what in ("peak MB", "audio s a s") for seconds in (short, long)]
    rows = [("", *header, "audio s a s, the difference")]
    goals = []
    for name in found:
        low, high = (median(name, seconds, "peak_megabytes") for seconds in (short, long))
        quick, slow = (median(name, seconds, "seconds") for seconds in (short, long))
        speeds = [short / quick, long / slow, (long - short) / max(slow - quick, 1e-9)]
        rows.append((name, f"{low:.0f}", f"{high:.0f}", *(f"{speed:.1f}" for speed in speeds)))
        goals.append(Goal(f"{name}: peak MB, {long} s - {short} s", "<=", MOST_MEGABYTES, high - low))
    print(
        f"ssamba {given.size}, 44.1 kHz stereo FLAC, medians of {given.rounds}\n\n{markdown_table(rows)}\n\n"
        f"{goals_table(goals)}"
    )
    write_json(
        given.out,
        {
            "size": given.size,
            "seconds": [short, long],
            "rounds": given.rounds,
            "goals": [goal._asdict() for goal in goals],
            "measured": found,
            "hardware": hardware(),
            "versions": versions("soundfile", "soxr"),
        },
    )


if __name__ == "__main__":
    main()
