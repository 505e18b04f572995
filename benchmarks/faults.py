"""What befalls runs and shards, tried: runs that are killed and go on, and shards that are damaged in every way.

    python benchmarks/faults.py [--parts kills ranks damage inputs] [--kills 20] [--mutations 200] [--inputs 5000]
        [--seed 0]

- kills: pretraining runs of `ssamba` nano, each ended once or twice at random instants, by SIGKILL or by SIGTERM (some
  by the death of a loader worker, some with the newest checkpoint damaged after it), and gone on with by
  `--resume auto`, with 0, 1 or 2 loader workers at each start. Survived: the weights are bitwise those of the run that
  nothing befell, and every step has learned from the same clips as there, each clip of an epoch once.
- ranks: a run of 20 steps by 2 processes, and one begun by 2, gone on with by 1 and ended by 4, beside one of a single
  process. Survived: every step has learned from the same clips in the same order, and no weight is further than 1e-5
  away. The contrastive head's biases are told by themselves: what is added to all predictions alike does not change the
  loss, so theirs is the gradient of rounding, which Adam makes as large as any.
- damage: copies of a small shard, each changed at random: cut off, bits flipped, a name twice, JSON that is none, noise
  for audio, names with ../. Each is verified, indexed anew, and read through to its end, in a process of its own.
  Survived: it ends in time, with success or with one message, and nothing is written outside of the shard's folder.

- inputs: everything else that a command reads, changed at random: the configs, weights and records of models and runs,
  indexes, recipes, checkpoints, lists, and recordings of every format (mutated_inputs.py).
  Survived: the command that reads it ends within 20 s and 2 GB with the status 0, 1 or 2, with one message and no
  traceback where it refuses; nothing is written elsewhere, nothing is lost without a word.

Prints one table and writes everything to --out. The status is 1 if anything is lost.
"""

import argparse
import functools
import hashlib
import io
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml  # type: ignore[import-untyped]  # omegaconf's own reader
from safetensors.torch import load_file

from mutated_inputs import try_inputs
from ssamba.cli import main as ssamba
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.evaluation.efficiency import versions
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.progress import progress_bar
from ssamba.training.runs import hardware

RESULTS = Path(__file__).parent / "results"
RATE, STEPS, BATCH, RECORDINGS = 16000, 120, 4, 50
LONGEST = 300.0  # seconds that a start may take before it counts as hanging
# What ends a run -> how many are tried, as a share of --kills.
FAULTS = {"SIGKILL": 1.0, "SIGTERM": 1.0, "SIGKILL, newest checkpoint damaged": 0.25, "a loader worker killed": 0.25}
ROUNDING = ("contrastive_head.0.bias", "contrastive_head.2.bias")
TRIAL = 60.0  # seconds that a damaged shard may take

# A run that notes which clips each step learns from, as it learns from them.
CHILD = """
import os, sys
from ssamba.training.pretraining import Pretraining
step = Pretraining.training_step
heard = open(sys.argv[1] + os.environ.get("RANK", "0"), "a", buffering=1)
def noted(self, batch, batch_idx):
    clips = [f"{place}:{key}" for place, key in zip(batch["positions"], batch["keys"])]
    heard.write(" ".join([str(self.trainer.global_step), *clips]) + "\\n")
    return step(self, batch, batch_idx)
Pretraining.training_step = noted
from ssamba.cli import run
run(sys.argv[2:])
"""


def write_recordings(folder: Path, count: int, seconds: tuple[float, float]) -> list[Recording]:
    """Tones with noise, of random lengths."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    found = []
    for number in range(count):
        place = np.arange(round(RATE * rng.uniform(*seconds))) / RATE
        sound = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * place) + rng.normal(0, 0.02, place.shape)
        path = folder / f"r{number:03d}.wav"
        soundfile.write(path, sound, RATE)
        found.append(Recording(path.stem, path, {"kind": ["even", "odd"][number % 2]}))
    return found


# Runs that are killed


class Trial:
    """A run folder, and what its starts have heard and said."""

    def __init__(self, folder: Path, recipe: Path, name: str) -> None:
        self.run, self.heard, self.said = folder / name, folder / f"{name}.heard", folder / f"{name}.said"
        self.recipe = recipe

    def start(
        self, *changes: str, ranks: int = 1, ended: Callable[["subprocess.Popen[bytes]"], None] | None = None
    ) -> int:
        """Train, from scratch or from where the last start was ended; the exit status."""
        words = [
            "pretrain",
            self.recipe,
            "--resume",
            "auto",
            f"run_dir={self.run}",
            f"trainer.devices={ranks}",
            *changes,
        ]
        command = [sys.executable, "-c", CHILD, self.heard, *words]
        if ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
            command = [sys.executable, *launcher, *command]
        with self.said.open("ab") as said:
            process = subprocess.Popen(
                [*map(str, command)],
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            try:
                if ended:
                    ended(process)
                return process.wait(LONGEST)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def weights(self) -> str:
        """Of the exported model, as a digest."""
        return hashlib.sha256((self.run / "model" / "model.safetensors").read_bytes()).hexdigest()

    def learned_from(self) -> tuple[dict[int, list[str]], int]:
        """Step -> places and names of all ranks' clips, as it counted in the end; how many steps were taken twice."""
        found: dict[int, list[str]] = {}
        again = 0
        for path in sorted(self.heard.parent.glob(f"{self.heard.name}?")):
            steps: dict[int, list[str]] = {}
            lines = [line.split() for line in path.read_text().splitlines()]
            # What a run rehearses before its first step is noise, and no step.
            lines = [line for line in lines if not all(clip.endswith(":noise") for clip in line[1:])]
            for step, *clips in lines:
                # What a step after a checkpoint had learned went with the run that was killed.
                steps = {number: held for number, held in steps.items() if number < int(step)} | {int(step): clips}
            again += len(lines) - len(steps)
            for number, clips in steps.items():
                found[number] = sorted(found.get(number, []) + clips, key=lambda clip: int(clip.split(":")[0]))
        return found, again


def end(process: "subprocess.Popen[bytes]", how: str, after: float) -> None:
    """Let what ends a run befall a process some seconds after its start."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        if how == "SIGTERM":
            process.terminate()
        elif how == "a loader worker killed":
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1:]:
                os.kill(int(child), signal.SIGKILL)
        else:  # and its workers, too, as a machine that goes down does
            os.killpg(process.pid, signal.SIGKILL)


def spoil(run: Path, rng: random.Random) -> None:
    """Cut the newest checkpoint off, or flip a bit of it."""
    for path in sorted((run / "checkpoints").glob("step-*.ckpt"))[-1:]:
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def write_recipe(folder: Path) -> Path:
    """A recipe for seconds, and the shards that it reads."""
    write_shards(
        {"train": write_recordings(folder / "wavs", RECORDINGS, (0.7, 2.0))},
        folder / "shards",
        "tones",
        samples_per_shard=8,
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "task_type": "pretrain",
                "run_dir": "unused",
                "audio": {"max_length": 64, "mean": -4.0, "std": 4.0},
                "model": {"encoder": "ssamba", "size": "nano"},
                "data": {"train": str(folder / "shards" / "train"), "batch_size": BATCH, "shuffle_buffer": 16},
                "objective": {"parts": {"contrastive": 1, "reconstruction": 10}},
                "mask": {"share": 0.375},
                "optimizer": {"learning_rate": 1e-4, "warmup_steps": 5, "schedule": "constant"},
                "trainer": {"max_steps": STEPS, "validate_every_steps": 7, "log_every_steps": 1, "accelerator": "cpu"},
            }
        )
    )
    return recipe


def undisturbed(folder: Path, recipe: Path, *changes: str) -> tuple[Trial, dict[int, list[str]]]:
    """A run that nothing befalls, and what its steps have learned from: every clip, one after the other."""
    whole = Trial(folder, recipe, "undisturbed")
    if whole.start(*changes):
        raise SystemExit(f"the undisturbed run failed:\n{whole.said.read_text()}")
    expected, _ = whole.learned_from()
    clips = [clip.split(":") for step in sorted(expected) for clip in expected[step]]
    epochs = [{name for _, name in clips[first : first + RECORDINGS]} for first in range(0, len(clips), RECORDINGS)]
    if [int(place) for place, _ in clips] != list(range(len(clips))) or any(
        len(epoch) != min(RECORDINGS, len(clips) - number * RECORDINGS) for number, epoch in enumerate(epochs)
    ):
        raise SystemExit("the undisturbed run does not hear each clip of an epoch once")
    return whole, expected


def try_ranks() -> list[dict[str, Any]]:
    """Runs by several processes, beside one by a single one."""
    trials = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = write_recipe(folder)
        whole, expected = undisturbed(folder, recipe, "trainer.max_steps=20")
        for plan in (((2, 20),), ((2, 7), (1, 14), (4, 20))):
            trial = Trial(folder, recipe, "-".join(str(ranks) for ranks, _ in plan))
            told: dict[str, Any] = {"plan": plan, "statuses": []}
            for ranks, steps in plan:
                words = (f"trainer.max_steps={steps}", f"trainer.strategy={'ddp' if ranks > 1 else 'auto'}")
                told["statuses"].append(trial.start(*words, ranks=ranks))
            found, again = trial.learned_from()
            told |= {"clips_equal": found == expected, "steps_taken_again": again, "differences": {}}
            if not any(told["statuses"]):
                ours, theirs = (load_file(one.run / "model" / "model.safetensors") for one in (trial, whole))
                told["differences"] = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
            largest = max(
                (away for name, away in told["differences"].items() if name not in ROUNDING), default=math.inf
            )
            rounding = max(told["differences"].get(name, math.inf) for name in ROUNDING)
            told |= {"largest_difference": largest, "largest_of_contrastive_biases": rounding}
            told["lost"] = any(told["statuses"]) or found != expected or again > 0 or not largest <= 1e-5
            if told["lost"]:
                told["said"] = trial.said.read_text()[-4000:]
            trials.append(told)
    return trials


def try_kills(count: int, seed: int) -> dict[str, Any]:
    """`count` runs for each signal, a quarter as many for the other faults."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = write_recipe(folder)
        Trial(folder, recipe, "first").start()  # compiles what the others find compiled
        began = time.perf_counter()
        whole, expected = undisturbed(folder, recipe)
        seconds = time.perf_counter() - began
        trials = []
        tried = [fault for fault, share in FAULTS.items() for _ in range(max(1, round(count * share)))]
        with progress_bar(len(tried), "run", "kills") as bar:
            for number, how in enumerate(tried):
                trial = Trial(folder, recipe, f"run-{number}-")
                trials.append(one_run(trial, how, seconds, rng, whole.weights(), expected))
                bar.update()
    return {"undisturbed_seconds": seconds, "steps": STEPS, "clips": STEPS * BATCH, "trials": trials}


def one_run(
    trial: Trial, how: str, seconds: float, rng: random.Random, weights: str, expected: Mapping[int, list[str]]
) -> dict[str, Any]:
    """End a run once or twice, let it go on to its end, and compare."""
    told: dict[str, Any] = {"fault": how, "starts": []}
    try:
        for _ in range(rng.choice((1, 1, 2))):
            workers = rng.randrange(int(how == "a loader worker killed"), 3)
            after = rng.uniform(0.4, 1) * seconds
            status = trial.start(f"data.num_workers={workers}", ended=functools.partial(end, how=how, after=after))
            told["starts"].append({"workers": workers, "after_seconds": round(after, 2), "status": status})
            if how == "SIGKILL, newest checkpoint damaged":
                spoil(trial.run, rng)
        workers = rng.randrange(3)
        status = trial.start(f"data.num_workers={workers}")
        told["starts"].append({"workers": workers, "status": status})
        steps, again = trial.learned_from()
        told |= {
            "steps_taken_again": again,
            "clips_equal": steps == expected,
            "weights_equal": trial.weights() == weights,
        }
        told["lost"] = status != 0 or not told["weights_equal"] or not told["clips_equal"]
        if how == "SIGTERM":  # whoever is asked to end loses no step
            told["lost"] |= again > 0
    except (OSError, subprocess.TimeoutExpired) as error:
        told |= {"lost": True, "error": repr(error)}
    if told["lost"]:
        told["said"] = trial.said.read_text()[-4000:]
    return told


# Shards that are damaged

Members = list[tuple[str, bytes]]


def unpack(shard: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def pack(members: Members) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def cut_off(shard: bytes, rng: random.Random) -> bytes:
    return shard[: rng.randrange(len(shard))]


def flip_bits(shard: bytes, rng: random.Random) -> bytes:
    changed = bytearray(shard)
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header(shard: bytes, rng: random.Random) -> bytes:
    """A bit of a member's header, where the shard's structure is."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        start = rng.choice(archive.getmembers()).offset
    changed = bytearray(shard)
    changed[start + rng.randrange(512)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def repeat_name(shard: bytes, rng: random.Random) -> bytes:
    members = unpack(shard)
    first, second = rng.sample(range(len(members)), 2)
    members[first] = (members[second][0], members[first][1])
    return pack(members)


def wrong_json(shard: bytes, rng: random.Random) -> bytes:
    members = unpack(shard)
    number = rng.choice([n for n, (name, _) in enumerate(members) if name.endswith(".json")])
    name, text = members[number]
    wrong = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"key": 3}',
        b"\xff\xfe",
        text[: len(text) // 2],
        b"[" * 100000,
        b'{"key": "' + b"x" * 100000 + b'"}',
        text.replace(b"labels", b"lables"),
    ]
    members[number] = (name, rng.choice(wrong))
    return pack(members)


def noise_for_audio(shard: bytes, rng: random.Random) -> bytes:
    members = unpack(shard)
    number = rng.choice([n for n, (name, _) in enumerate(members) if name.endswith(".flac")])
    name, audio = members[number]
    wrong = [
        b"",
        rng.randbytes(len(audio)),
        b"fLaC" + rng.randbytes(200),
        audio[: len(audio) // 3],
        bytes(len(audio)),
        b"RIFF\xff\xff\xff\xffWAVEfmt " + rng.randbytes(300),
    ]
    members[number] = (name, rng.choice(wrong))
    return pack(members)


def name_that_leaves(shard: bytes, rng: random.Random) -> bytes:
    members = unpack(shard)
    number = rng.randrange(len(members))
    name, data = members[number]
    names = [f"../{name}", f"../../../{name}", f"/tmp/{name}", f"a/../../{name}", f"..\\{name}", f"./{name}", ""]
    members[number] = (rng.choice(names), data)
    return pack(members)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": cut_off,
    "bits flipped": flip_bits,
    "a bit of a header flipped": flip_header,
    "a name twice": repeat_name,
    "JSON that is none": wrong_json,
    "noise for audio": noise_for_audio,
    "a name that leaves": name_that_leaves,
}


def below(folder: Path) -> dict[str, str]:
    """All that lies in a folder, with its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in folder.rglob("*")
    }


def command(*words: object) -> tuple[int, str]:
    """Status and message of an `ssamba` command."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = ssamba([str(word) for word in words])
    return status, said.getvalue()


def read_through(folder: Path) -> str:
    """What becomes of the clips of a split."""
    try:
        shards = find_shards(str(folder))
        order = ClipOrder(shards, ClipRules(RATE, "pad", shuffle_buffer=0, seed=0))
        stream = ClipStream(
            shards, order, batch_size=4, sampling_rate=RATE, training=False, max_bad_fraction=1.0, cache=ShardCache(1)
        )
        read = sum(len(batch["keys"]) for batch in stream)
    except UserError:
        return "refused"
    return "whole" if read == shards.samples else "in part"


def handle(folder: Path, answers: Any) -> None:
    """In a process of its own: verify a shard, read it by the index it had, index it anew, read it by that."""
    verified, message = command("shards", "verify", folder)
    outcome: dict[str, str | bool] = {"verify": "found" if verified == 2 else "passed", "read": read_through(folder)}
    indexed, other = command("shards", "index", folder, "--overwrite", "--max-bad-fraction", "1")
    outcome |= {"index": "refused" if indexed else "made", "read_anew": read_through(folder) if not indexed else "-"}
    outcome["traceback"] = "Traceback" in message + other
    answers.put(outcome)


def try_damage(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` mutations, each kind in turn."""
    rng = random.Random(seed)
    context = multiprocessing.get_context("fork")
    trials = []
    with tempfile.TemporaryDirectory() as place, progress_bar(count, "shard", "damage") as bar:
        top = Path(place)
        write_shards({"train": write_recordings(top / "wavs", 8, (0.2, 0.6))}, top / "whole", "tones")
        shutil.rmtree(top / "wavs")
        whole = (top / "whole" / "train" / "000000.tar").read_bytes()
        for number in range(count):
            kind = list(MUTATIONS)[number % len(MUTATIONS)]
            home = top / "a" / "b" / "home"
            shutil.rmtree(top / "a", ignore_errors=True)
            shutil.copytree(top / "whole" / "train", home)
            changed = MUTATIONS[kind](whole, rng)
            (home / "000000.tar").write_bytes(changed)
            outside = {name: content for name, content in below(top).items() if not name.startswith("a/b/home/")}
            answers = context.SimpleQueue()
            process = context.Process(target=handle, args=(home, answers))
            process.start()
            process.join(TRIAL)
            told: dict[str, Any] = {"kind": kind, "changed": changed != whole}
            if process.is_alive():
                process.kill()
                told["lost"] = "it hangs"
            elif process.exitcode:
                told["lost"] = f"it crashes with {process.exitcode}"
            else:
                told |= answers.get()
                now = {name: content for name, content in below(top).items() if not name.startswith("a/b/home/")}
                names = {path.name for path in home.iterdir()} - {"000000.tar", "index.json", "samples.npy"}
                found = told["verify"] == "found" or not told["changed"]
                wrong = {
                    "it writes elsewhere": now != outside or names,
                    "a traceback": told["traceback"],
                    "verify does not find it": not found,
                }
                told["lost"] = next((what for what, so in wrong.items() if so), None)
            trials.append(told)
            bar.update()
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("kills", "ranks", "damage", "inputs")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--kills", type=int, default=20, help="runs for each signal (a quarter for the rest)")
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=5000, help="changed inputs, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    counts: list[tuple[str, int, int]] = []
    if "kills" in given.parts:
        result["kills"] = try_kills(given.kills, given.seed)
        for name in FAULTS:
            mine = [trial for trial in result["kills"]["trials"] if trial["fault"] == name]
            counts.append((f"runs: {name}", len(mine), sum(trial["lost"] for trial in mine)))
    if "ranks" in given.parts:
        result["ranks"] = try_ranks()
        rows: list[tuple[str, ...]]
        rows = [("processes, up to step", "largest difference of a weight", "of the contrastive head's biases")]
        for trial in result["ranks"]:
            plan = ", ".join(f"{ranks} to {step}" for ranks, step in trial["plan"])
            rows.append(
                (plan, *(f"{trial[f'largest_{name}']:.1e}" for name in ("difference", "of_contrastive_biases")))
            )
            counts.append((f"runs by several processes: {plan}", 1, int(trial["lost"])))
        print(f"{markdown_table(rows)}\n")
    if "damage" in given.parts:
        result["damage"] = try_damage(given.mutations, given.seed)
        for kind in MUTATIONS:
            mine = [trial for trial in result["damage"] if trial["kind"] == kind]
            counts.append((f"shards: {kind}", len(mine), sum(trial["lost"] is not None for trial in mine)))
        said = Counter((t.get("read", "-"), t.get("index", "-"), t.get("read_anew", "-")) for t in result["damage"])
        rows = [("read by the old index", "indexed anew", "read by the new index", "shards")]
        rows += [(*what, str(number)) for what, number in said.most_common()]
        print(markdown_table(rows) + "\n")
    if "inputs" in given.parts:
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            trials = try_inputs(given.inputs, given.seed, Path(place).resolve())
            seconds = time.perf_counter() - began
        rows = [("input", "tried", "read", "some refused", "refused", "lost")]
        for kind in dict.fromkeys(trial["kind"] for trial in trials):
            mine = [trial for trial in trials if trial["kind"] == kind]
            gone = sum(trial["lost"] is not None for trial in mine)
            ends = Counter(trial["status"] for trial in mine if trial["lost"] is None)
            rows.append((kind, str(len(mine)), *(str(ends[status]) for status in (0, 1, 2)), str(gone)))
            counts.append((f"inputs: {kind}", len(mine), gone))
        print(f"{markdown_table(rows)}\n\n{len(trials)} inputs in {seconds:.0f} s\n")
        lost_ones = [trial for trial in trials if trial["lost"] is not None]
        result["inputs"] = {"seconds": seconds, "table": rows, "lost": lost_ones}
    lost = sum(count[2] for count in counts)
    counts.append(("all", sum(count[1] for count in counts), lost))
    rows = [("fault", "tried", "survived", "lost")]
    rows += [(fault, str(tried), str(tried - gone), str(gone)) for fault, tried, gone in counts]
    print(markdown_table(rows))
    write_json(given.out, {**result, "counts": counts, "hardware": hardware(), "versions": versions()})
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
