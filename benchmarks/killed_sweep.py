"""A sweep that is killed at random instants and gone on with, beside one that nothing befell.

    python benchmarks/killed_sweep.py [--kills 5] [--seed 0] [--out benchmarks/results/killed_sweep.json]

A small sweep (two encoders, two seeds, pretrained and fine-tuned on synthesized tones, by two processes at a time) is
made once without disturbance, and once with SIGKILL at instants drawn at random, of the sweep alone or of all of its
processes, each time gone on with by `--resume auto`. Survived: every model is bitwise that of the other sweep, and the
comparison holds the same numbers, but those of time, memory and place.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml  # type: ignore[import-untyped]  # omegaconf's own reader

from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.evaluation.efficiency import versions
from ssamba.files import write_json
from ssamba.training.runs import hardware

RESULTS = Path(__file__).parent / "results"
RATE = 16000
SOUNDS = ("low", "middle", "high")
LONGEST = 600.0  # seconds that a start may take before it counts as hanging
# What of a comparison differs between two makings of one sweep.
OF_THE_MAKING = ("seconds", "hours", "memory", "folder", "run", "started", "command", "clips_per_second", "energy")


def write_tones(folder: Path, count: int, seed: int) -> dict[str, list[Recording]]:
    """Tones of three heights, a second each, in train and test."""
    rng = np.random.default_rng(seed)
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    folder.mkdir()
    for index in range(count):
        sound = SOUNDS[index % len(SOUNDS)]
        pitch = 300 * 2 ** SOUNDS.index(sound) * rng.uniform(0.9, 1.1)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE) + rng.normal(0, 0.1, RATE)
        path = folder / f"{index:03d}.wav"
        soundfile.write(path, wave, RATE)
        split = "test" if index % 4 == 3 else "train"
        splits[split].append(Recording(path.stem, path, {"sound": sound}))
    return splits


def write_sweep(folder: Path, shards: Path) -> Path:
    """The sweep file; run_dir is `runs` of the working folder."""
    common = {
        "audio": {"max_length": 64},
        "model": {"encoder": "ssamba", "size": "nano"},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 2},
        "trainer": {"max_steps": 30, "log_every_steps": 1, "checkpoint_every_steps": 5, "accelerator": "cpu"},
    }
    recipes = {
        "pretrain": {
            **common,
            "data": {"train": str(shards / "train"), "batch_size": 4, "short": "pack"},
            "objective": {"parts": {"contrastive": 1, "reconstruction": 10}},
            "mask": {"share": 0.375},
        },
        "finetune": {
            **common,
            "data": {"train": str(shards / "train"), "test": str(shards / "test"), "batch_size": 4},
            "task": {"label": "sound"},
        },
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task_type": name, **recipe}))
    path = folder / "sweep.yaml"
    content = {
        "run_dir": "runs",
        "pretrain": {"recipe": str(folder / "pretrain.yaml"), "budget": {"clips": 120}},
        "finetune": {"recipe": str(folder / "finetune.yaml"), "budget": {"steps": 30}},
        "grid": {"model.encoder": ["ssamba", "ssast"], "seed": [0, 1]},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def start(sweep: Path, folder: Path, kill_after: float | None = None, whole_group: bool = False) -> int:
    """Begin the sweep or go on with it, in a folder; the status, -9 if it was killed before its end."""
    command = [
        sys.executable,
        "-c",
        "from ssamba.cli import run; run()",
        "sweep",
        str(sweep),
        "--jobs",
        "2",
        "--resume",
        "auto",
    ]
    with (folder / "said.txt").open("ab") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, start_new_session=True)
        try:
            return process.wait(LONGEST if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            if whole_group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            return process.wait()


def models(folder: Path) -> dict[str, str]:
    """Run -> sha256 of its weights."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("model/model.safetensors"))
    }


def same_for_both(content: Any) -> Any:
    """A comparison without what belongs to its making."""
    if isinstance(content, dict):
        return {
            key: same_for_both(value)
            for key, value in content.items()
            if not any(word in key for word in OF_THE_MAKING)
        }
    return [same_for_both(one) for one in content] if isinstance(content, list) else content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "killed_sweep.json")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        write_shards(write_tones(top / "wavs", 48, given.seed), top / "shards", "tones")
        sweep = write_sweep(top, top / "shards")
        folders = {name: top / name for name in ("undisturbed", "killed")}
        for folder in folders.values():
            folder.mkdir()
        began = time.perf_counter()
        if start(sweep, folders["undisturbed"]):
            raise SystemExit((folders["undisturbed"] / "said.txt").read_text())
        seconds = time.perf_counter() - began
        starts: list[dict[str, Any]] = []
        while len(starts) < given.kills:
            # A start takes some seconds before anything is trained; each comes a little further than the one before.
            after, whole_group = rng.uniform(0.25, 0.6) * seconds, rng.random() < 0.5
            status = start(sweep, folders["killed"], after, whole_group)
            starts.append({"after_seconds": round(after, 1), "all_processes": whole_group, "status": status})
            print(starts[-1], flush=True)
            if status != -signal.SIGKILL:
                break
        status = start(sweep, folders["killed"])
        ours, theirs = (models(folders[name] / "runs") for name in ("killed", "undisturbed"))
        found, expected = (
            same_for_both(json.loads((folders[name] / "runs/comparison/comparison.json").read_text()))
            for name in ("killed", "undisturbed")
        )
        result = {
            "undisturbed_seconds": round(seconds, 1),
            "starts": starts,
            "last_status": status,
            "models": len(ours),
            "models_equal": ours == theirs and len(ours) == 8,
            "comparison_equal": found == expected,
        }
        print(json.dumps(result, indent=1))
        survived = result["models_equal"] and result["comparison_equal"] and status == 0
        if not survived:
            print((folders["killed"] / "said.txt").read_text()[-4000:], file=sys.stderr)
        write_json(given.out, {**result, "survived": survived, "hardware": hardware(), "versions": versions()})
        return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
