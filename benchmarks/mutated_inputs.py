"""Inputs of every kind, each changed at random, and what the command that reads it makes of them; see faults.py.

A trial copies what a command reads into a new folder, changes one file of it, and calls the command in a process of its
own. Survived: it ends within TRIAL seconds and 2 GB with the status 0, 1 or 2, a refusal with one message and no
traceback, nothing is written outside of the trial's folder, and nothing is lost without a word: where it ends well and
has nothing to say, it has read as much as of the input as it was.
"""

import csv
import functools
import hashlib
import importlib
import io
import json
import logging
import os
import random
import re
import resource
import runpy
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
import yaml  # type: ignore[import-untyped]  # omegaconf's own reader

from ssamba.cli import main as ssamba
from ssamba.progress import progress_bar

# What the commands import when they are called.
COMMANDS = (
    "ssamba.train",
    "ssamba.evaluation.scores",
    "ssamba.evaluation.pictures",
    "ssamba.inference.predict",
    "ssamba.models.convert.transfer",
    "ssamba.data.prepare.indexing",
    "ssamba.training.callbacks",
    "numba",
    "torchmetrics",
)
SCRIPTS = Path(__file__).resolve().parents[1] / "data_prep"

RATE = 16000
SECONDS = 1.5  # of each recording
TRIAL = 20.0  # seconds that a command may take
MOST_MEMORY = 2e9  # bytes
MOST_ADDRESSES = 8e9  # bytes more than a trial begins with, so that none takes the machine with it
# Seconds that may be missing without a word, as ssamba.recordings says: a frame, of compressed sound 3,072 samples.
UNTOLD, UNTOLD_OF_COMPRESSED = 0.026, 0.2

Change = Callable[[bytes, random.Random], bytes]


# How bytes are changed, of whatever they are


def cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_at_the_front(content: bytes, rng: random.Random) -> bytes:
    """Where a format has its header."""
    front = min(len(content), 128)
    return flip_bits(content[:front], rng) + content[front:]


def put_in(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice((1, 7, 500))) + content[at:]


def take_out(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 16, 700)) :]


def zero(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    stretch = min(rng.choice((4, 64, 2000)), len(content) - at)
    return content[:at] + bytes(stretch) + content[at + stretch :]


def replace(content: bytes, rng: random.Random) -> bytes:
    """By what else is found under such a name."""
    page, pointer = b"<html><body>403 Forbidden</body></html>", b"version https://git-lfs.github.com/spec/v1\noid "
    return rng.choice([b"", b"\0", page, pointer, rng.randbytes(300), bytes(len(content)), b"\x89PNG\r\n\x1a\n"])


BYTES: dict[str, Change] = {
    "cut off": cut_off,
    "bits flipped": flip_bits,
    "bits flipped at the front": flip_at_the_front,
    "bytes put in": put_in,
    "bytes taken out": take_out,
    "zeros": zero,
    "something else": replace,
}


# How documents are changed


ODD: list[Any] = [
    None,
    "",
    "x",
    "x" * 300,
    "96",
    "no",
    "010",
    "~",
    "a\0b",
    "\x1b[2J",
    "../../up",
    "${oc.env:HOME}",
    "\u202e",
    "1e3",
    True,
    False,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    2**70,
    10**12,
    96.5,
    -0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    [],
    [1],
    ["x"],
    [[]],
    {},
    {"x": 1},
    {"": None},
]


def places(document: Any) -> list[tuple[Any, Any]]:
    """All containers in a document with each of their keys."""
    found: list[tuple[Any, Any]] = []
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        found.append((document, key))
        if isinstance(value, dict | list) and value:
            found += places(value)
    return found


def odd_value(document: Any, rng: random.Random) -> None:
    container, key = rng.choice(places(document))
    container[key] = rng.choice(ODD)


def leave_out(document: Any, rng: random.Random) -> None:
    container, key = rng.choice(places(document))
    del container[key]


def add(document: Any, rng: random.Random) -> None:
    container, _ = rng.choice(places(document))
    if isinstance(container, dict):
        container[rng.choice(["new", "", "a.b", "\n", "task_type", "format"])] = rng.choice(ODD)
    else:
        container.append(rng.choice(ODD))


def exchange(document: Any, rng: random.Random) -> None:
    (one, first), (other, second) = rng.sample(places(document), 2)
    one[first], other[second] = json.loads(json.dumps([other[second], one[first]]))


CONTENTS: dict[str, Callable[[Any, random.Random], None]] = {
    "an odd value": odd_value,
    "a field left out": leave_out,
    "a field added": add,
    "two fields exchanged": exchange,
}


def whole_document(content: bytes, rng: random.Random) -> bytes:
    """As a whole of another shape, depth or encoding."""
    text = content.decode()
    return rng.choice(
        [
            b"[]",
            b"null",
            b"3",
            b'"x"',
            b"{}",
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xff" + content,
            content + content,
            b"[" + content + b"]",
            content.replace(b"\n", b"\r"),
            content.replace(b":", b"="),
            b"- " * 5000,
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (k, k, b",".join([b"*%c" % (k - 1)] * 9)) for k in range(98, 107)),
            b"!!python/object/apply:os.system ['touch ../evil']\n",
        ]
    )


def of_json(change: Callable[[Any, random.Random], None]) -> Change:
    def changed(content: bytes, rng: random.Random) -> bytes:
        document = json.loads(content)
        change(document, rng)
        return json.dumps(document).encode()

    return changed


def of_yaml(change: Callable[[Any, random.Random], None]) -> Change:
    def changed(content: bytes, rng: random.Random) -> bytes:
        document = yaml.safe_load(content)
        change(document, rng)
        return yaml.safe_dump(document, allow_unicode=True).encode()

    return changed


TEXT_BYTES = {name: BYTES[name] for name in ("cut off", "bits flipped", "bytes put in", "bytes taken out")}
JSON: dict[str, Change] = {
    **{name: of_json(change) for name, change in CONTENTS.items()},
    **TEXT_BYTES,
    "another document": whole_document,
}
YAML: dict[str, Change] = {
    **{name: of_yaml(change) for name, change in CONTENTS.items()},
    **TEXT_BYTES,
    "another document": whole_document,
}


# How lists are changed


def lines_of(content: bytes) -> list[str]:
    return content.decode().splitlines()


def odd_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines that are blank, there twice, of other lengths, or that name what is not there."""
    lines = lines_of(content)
    at = rng.randrange(1, len(lines) + 1)
    one = rng.choice(lines[1:])
    odd = [
        "",
        "   ",
        one,
        one.rpartition(",")[0],
        one + ",",
        f"{one},x,y",
        "gone.wav,cat",
        "/gone/a.wav,cat",
        ",cat",
        one.partition(",")[0] + ",",
        "~/x.wav,dog",
        "..,dog",
        "wav,dog",
        "#" + one,
        '"' + one,
        "wav/0.wav\0,dog",
        "x" * 5000 + ",dog",
    ]
    return ("\n".join([*lines[:at], rng.choice(odd), *lines[at:]]) + "\n").encode()


def odd_cells(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(
        ["", " ", " cat ", "cat;dog", "=1+1", "\n", '"', "\u202e", "x" * 300, "7"]
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def other_writing(content: bytes, rng: random.Random) -> bytes:
    """As other programs save the same."""
    text = content.decode()
    return rng.choice(
        [
            text.replace(",", ";"),
            text.replace(",", "\t"),
            text.replace(",", ", "),
            text.replace(",", " , "),
            text.replace("\n", "\r\n"),
            text.replace("\n", "\r"),
            text + "\n\n",
            "\ufeff" + text,
            text.replace(",", "|"),
            text.replace("path,label", "file_name,category"),
            text.replace("path,label", "Filename,Class"),
            text.replace("path,label", "a,b"),
            text.partition("\n")[2],
            text.partition("\n")[0],
            text.replace("/", "\\"),
            "\n".join(f'"{line}"' for line in text.splitlines()),
        ]
    ).encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]))


LISTS: dict[str, Change] = {
    **TEXT_BYTES,
    "an odd line": odd_lines,
    "an odd cell": odd_cells,
    "another way of writing": other_writing,
}


# How arrays and checkpoints are changed


def odd_array(content: bytes, rng: random.Random) -> bytes:
    table = np.load(io.BytesIO(content))
    other = io.BytesIO()
    choice = rng.randrange(7)
    if choice < 2:
        table = table.copy()
        table[rng.randrange(len(table))][rng.choice(table.dtype.names)] = rng.choice([-1, 0, 1, 2**31 - 1])
        np.save(other, table)
    elif choice == 2:
        np.save(other, table[: rng.randrange(len(table))])
    elif choice == 3:
        np.save(other, table["audio"] if rng.random() < 0.5 else table.reshape(1, -1))
    elif choice == 4:
        np.save(other, np.array([{}, []], dtype=object), allow_pickle=True)
    elif choice == 5:
        return content.replace(b"'shape': (%d,)" % len(table), b"'shape': (%d,)" % 10 ** rng.choice((9, 15, 18)))
    else:
        np.savez(other, table)
    return other.getvalue()


def odd_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Another content, well written."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    names = [name for name, value in state.items() if isinstance(value, torch.Tensor)] or list(state)
    name = rng.choice(names)
    tensor = state[name] if isinstance(state[name], torch.Tensor) else torch.zeros(3)
    choice = rng.randrange(12)
    odd: dict[int, Any] = {
        0: tensor.flatten()[:1].expand(10**10),
        1: tensor.to(torch.complex64),
        2: tensor.bool(),
        3: torch.full_like(tensor.float(), float("nan")),
        4: "x",
        5: [tensor],
        6: tensor.unsqueeze(0),
        7: tensor.to_sparse(),
        8: None,
        9: -5,
    }
    if choice in odd:
        state[name] = odd[choice]
    elif choice == 10:
        del state[name]
    else:
        state = rng.choice([[], {}, "x", tensor, {"state_dict": state}, {3: tensor}, {"x": {}}])
    other = io.BytesIO()
    torch.save(state, other)
    return other.getvalue()


# What is tried

HEAVY = {"audio", "model", "run", "weights.pth"}  # copied for those trials alone that need them


@dataclass(frozen=True)
class Input:
    """A file that a command reads, both in a folder of the trial's own, in which the command is called.

    kind: what it counts as in the table.
    read: what was heard, written or counted of it, from what was said and what now lies there; None if nothing tells.
    summed: a checksum tells every change of it, so that something has to be said of each.
    untold: how much of it may be missing without a word.
    holds: what can be read of it, from the changed file; by default what could be before.
    after: what is done before the call, once the file is changed.
    """

    kind: str
    name: str
    file: str
    changes: dict[str, Change]
    command: tuple[str, ...]
    share: int
    read: Callable[[str], float | None] = lambda said: None
    after: Callable[[], None] = lambda: None
    summed: bool = False
    holds: Callable[[bytes], float | None] | None = None
    untold: float = UNTOLD


def seconds_heard(said: str) -> float | None:
    """By `ssamba predict --format jsonl`."""
    heard = re.findall(r'"seconds": ([\d.]+)', said)
    return sum(map(float, heard)) if heard else None


def seconds_written(said: str) -> float | None:
    """In shards, with what the index says was left out."""
    index = Path("out/train/index.json")
    if not index.exists():
        return None
    told = json.loads(index.read_text())
    return float(told["seconds"]) + SECONDS * len(told["skipped"])


def seconds_listed(content: bytes) -> float | None:
    """A list is what its lines say, so that one which is gone is no loss; None where they cannot be counted."""
    try:
        text = content.decode("utf-8-sig").strip()
        if text.startswith("{"):
            listed = json.loads(text)["data"]
            return SECONDS * (1 if isinstance(listed, dict) else len(listed))  # else an entry that is called "data"
        return SECONDS * len([row for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))][1:])
    except (ValueError, TypeError, KeyError, RecursionError, csv.Error):
        return None


def seconds_told(content: bytes) -> float | None:
    """Of a recording, as it was; None where its changed header gives another rate or other channels, which nothing
    contradicts, and for ADTS, which counts nothing."""
    if content[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return None
    try:
        header = soundfile.info(io.BytesIO(content))
    except soundfile.LibsndfileError:
        return SECONDS
    return SECONDS if (header.samplerate, header.channels) in ((RATE, 1), (48000, 1)) else None


def samples_counted(said: str) -> float | None:
    """By `ssamba shards verify`."""
    counted = re.search(r"(\d+) samples", said)
    return float(counted[1]) if counted else None


def expect_the_table() -> None:
    """Let the index expect the table that is there, so that the table's content is what is tried."""
    index = json.loads(Path("shards/train/index.json").read_text())
    index["samples_sha256"] = hashlib.sha256(Path("shards/train/samples.npy").read_bytes()).hexdigest()
    Path("shards/train/index.json").write_text(json.dumps(index))


def expect_the_checkpoint() -> None:
    """The same of a run's newest checkpoint."""
    for path in Path("run/checkpoints").glob("step-*.ckpt"):
        content = path.read_bytes()
        told = json.loads(path.with_suffix(".json").read_text())
        told |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        path.with_suffix(".json").write_text(json.dumps(told))


# Ending -> the encoder of FFmpeg, or of libsndfile the format and subtype.
FORMATS: dict[str, str | tuple[str, str]] = {
    "16.wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "gsm.wav": ("WAV", "GSM610"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "cbr.mp3": ("MP3", "MPEG_LAYER_III"),
    "vbr.mp3": "libmp3lame",
    "aac": "aac",
    "m4a": "aac",
    "alac.m4a": "alac",
    "webm": "libopus",
    "mka": "libmp3lame",
    "wma": "wmav2",
}


LOSSLESS = {how for how in FORMATS.values() if how[1] in ("PCM_16", "PCM_24", "FLOAT", "ULAW")}


def encode(path: Path, sound: np.ndarray[Any, Any], how: str | tuple[str, str]) -> None:
    if not isinstance(how, str):
        form, subtype = how
        soundfile.write(path, sound, RATE, format=form, subtype=subtype)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream(how, rate=48000 if how == "libopus" else RATE, layout="mono")
        stream.bit_rate = 64000
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def recording(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A tone with noise, float64."""
    place = np.arange(round(SECONDS * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * place) + rng.normal(0, 0.02, place.shape)


def make_inputs(folder: Path) -> list[Input]:
    """Everything that is tried, in a folder that each trial copies."""
    rng = np.random.default_rng(0)
    (folder / "wav").mkdir(parents=True)
    rows = [(f"wav/{number}.wav", ("cat", "dog")[number % 2]) for number in range(6)]
    for name, _ in rows:
        soundfile.write(folder / name, recording(rng), RATE)
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    (folder / "list.json").write_text(json.dumps({"data": [{"wav": name, "labels": label} for name, label in rows]}))
    common = {
        "audio": {"max_length": 32, "mean": -6.0, "std": 3.0},
        "model": {"encoder": "ssamba", "size": "nano", "residual": "doubling"},
        "optimizer": {"learning_rate": 1e-3},
        "trainer": {"max_steps": 2, "validate_every_steps": 1, "accelerator": "cpu"},
    }
    train = {"train": "shards/train", "batch_size": 2}
    recipe = {
        "task_type": "finetune",
        "run_dir": "run",
        **common,
        "data": {**train, "test": "shards/train"},
        "task": {"label": "label", "pooling": "mean"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for command in (
        ("folder.py", "list.csv", "shards", "--workers", "1"),
        ("finetune", "recipe.yaml"),
        ("export", "run", "weights.pth", "--format", "ssamba"),
    ):
        status, said, _ = call(folder, command)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    shutil.copytree(folder / "run" / "model", folder / "model")
    for name, how in FORMATS.items():
        (folder / "audio" / name).mkdir(parents=True)
        encode(folder / "audio" / name / f"x.{name}", recording(rng), how)
    return list(inputs(newest(folder).relative_to(folder)))


def newest(folder: Path) -> Path:
    return max((folder / "run" / "checkpoints").glob("step-*.ckpt"))


def inputs(checkpoint: Path) -> Iterator[Input]:
    predict = ("predict", "model", "wav/0.wav", "--format", "jsonl")
    resume = ("finetune", "run", "--resume", "run")
    verify = ("shards", "verify", "shards/train", "--workers", "1")
    write = ("--workers", "1", "--max-bad-fraction", "1")

    index, table, run = "shards/train/index.json", "shards/train/samples.npy", "run/run.json"
    arrays = {**BYTES, **{f"an odd array ({number})": odd_array for number in range(len(BYTES))}}
    odd = {**BYTES, **{f"an odd content ({number})": odd_checkpoint for number in range(4)}}
    yield Input("config.json", "config.json", "model/config.json", JSON, predict, 12)
    yield Input("preprocessor_config.json", "preprocessor", "model/preprocessor_config.json", JSON, predict, 12)
    yield Input("model.safetensors", "weights", "model/model.safetensors", BYTES, predict, 6)
    yield Input("index.json", "index", index, JSON, verify, 12, samples_counted)
    yield Input("samples.npy", "table", table, BYTES, verify, 6, samples_counted, summed=True)
    yield Input("samples.npy", "table that is expected", table, arrays, verify, 8, samples_counted, expect_the_table)
    yield Input("run.json", "run.json to predict", run, JSON, ("predict", "run", "wav/0.wav"), 4)
    yield Input("run.json", "run.json to resume", run, JSON, resume, 1)
    yield Input("run.json", "run.json to evaluate", run, JSON, ("evaluate", "run"), 1)
    new = ("finetune", "recipe.yaml", "run_dir=new", "trainer.max_steps=1")
    yield Input("recipes", "recipe to measure", "recipe.yaml", YAML, ("stats", "recipe.yaml", "--limit", "2"), 12)
    yield Input("recipes", "recipe to fine-tune", "recipe.yaml", YAML, new, 2)
    yield Input("recipes", "recipe to evaluate", "run/recipe.yaml", YAML, ("evaluate", "run"), 2)
    yield Input("checkpoints", "checkpoint", str(checkpoint), BYTES, resume, 2, summed=True)
    yield Input(
        "checkpoints", "checkpoint that is expected", str(checkpoint), odd, resume, 2, after=expect_the_checkpoint
    )
    yield Input("checkpoints", "checkpoint to import", "weights.pth", odd, ("import", "weights.pth", "imported"), 6)
    csv_list, json_list = ("list.csv", "out"), (".", "out", "--train", "list.json")
    yield Input(
        "lists",
        "list.csv",
        "list.csv",
        LISTS,
        ("folder.py", *csv_list, *write),
        12,
        seconds_written,
        holds=seconds_listed,
    )
    yield Input(
        "lists",
        "list.json",
        "list.json",
        JSON,
        ("listed.py", *json_list, *write),
        8,
        seconds_written,
        holds=seconds_listed,
    )
    for name, how in FORMATS.items():
        folder, file = f"audio/{name}", f"audio/{name}/x.{name}"
        hear = ("predict", "model", file, "--format", "jsonl")
        make = ("folder.py", folder, "out", "--unlabelled", *write)
        sounds: dict[str, Any] = {"holds": seconds_told, "untold": UNTOLD if how in LOSSLESS else UNTOLD_OF_COMPRESSED}
        yield Input("recordings to predict", f"{name} to predict", file, BYTES, hear, 2, seconds_heard, **sounds)
        yield Input("recordings to write", f"{name} to write", file, BYTES, make, 2, seconds_written, **sounds)


# A trial


def call(folder: Path, command: tuple[str, ...]) -> tuple[int | None, str, float]:
    """A command's status (None: it hung; negative: the signal that ended it), what it said, and its most memory in
    bytes; in a folder, in a process of its own."""
    said = folder.with_name("said")
    if not (process := os.fork()):
        _become(command, folder, said)
    watched = os.pidfd_open(process)
    ended = select.select([watched], [], [], TRIAL)[0]
    os.close(watched)
    if not ended:
        os.killpg(process, signal.SIGKILL)
    _, status, used = os.wait4(process, 0)
    text = said.read_text(errors="backslashreplace").replace("\r", "\n")
    return os.waitstatus_to_exitcode(status) if ended else None, text, used.ru_maxrss * 1024


def _become(command: tuple[str, ...], folder: Path, said: Path) -> None:
    """Never returns."""
    status = 70  # an error within this function
    try:
        os.setpgid(0, 0)
        file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace") for number in (1, 2))
        logging.root.handlers.clear()  # those of this process's first calls, whose stderr was another
        os.chdir(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = int(pages * os.sysconf("SC_PAGE_SIZE") + MOST_ADDRESSES)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        status = _run(command)
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(command: tuple[str, ...]) -> int:
    if not command[0].endswith(".py"):
        return ssamba(command)
    sys.argv = list(command)
    runpy.run_path(str(SCRIPTS / command[0]), run_name="__main__")
    return 0


@dataclass(frozen=True)
class Trial:
    """One change of one input: the number decides all that chance does."""

    input: int
    change: str
    number: int


def lost(status: int | None, said: str, memory: float) -> str | None:
    """What is wrong with how a command ended."""
    messages = [line for line in said.splitlines() if line.startswith(("ssamba: ", "error: ", "usage: "))]
    wrong = {
        "it hangs": status is None,
        "it crashes": status is not None and status not in (0, 1, 2),
        "a traceback": "Traceback" in said,
        "no message, or several": status == 2 and len(messages) != 1,
        "it takes too much memory": memory > MOST_MEMORY,
    }
    return next((what for what, so in wrong.items() if so), None)


def lines(said: str) -> set[str]:
    """What is said, its numbers and bars aside: a line that was not there before is a word about what is new."""
    return {re.sub(r"[\d.]+", "0", line) for line in said.splitlines() if line.strip() and "%|" not in line}


def try_one(
    trial: Trial, one: Input, source: Path, home: Path, whole: tuple[str, float | None], seed: int
) -> dict[str, Any]:
    """Copy, change, call, judge."""
    rng = random.Random(f"{seed}/{one.name}/{trial.change}/{trial.number}")
    place = home.parent
    shutil.rmtree(place, ignore_errors=True)
    mentioned = {word.partition("/")[0] for word in (one.file, *one.command)}
    shutil.copytree(source, home, ignore=lambda folder, names: HEAVY - mentioned if folder == str(source) else set())
    content = (home / one.file).read_bytes()
    changed = one.changes[trial.change](content, rng)
    (home / one.file).write_bytes(changed)
    os.chdir(home)
    one.after()
    status, said, memory = call(home, one.command)
    why = lost(status, said, memory)
    if why is None and {path.name for path in place.iterdir()} != {home.name, "said"}:
        why = "it writes elsewhere"
    if why is None and list(home.rglob(".ssamba-tmp-*")):
        why = "it leaves what is not finished"
    read = one.read(said) if why is None and status == 0 else None
    held = one.holds(changed) if one.holds else whole[1]
    less = read is not None and held is not None and read < held - one.untold
    if why is None and (less or one.summed and changed != content) and not lines(said) - lines(whole[0]):
        why = "it loses something without a word"
    told = {
        "kind": one.kind,
        "input": one.name,
        "change": trial.change,
        "number": trial.number,
        "status": status,
        "lost": why,
    }
    return told if why is None else {**told, "read": read, "said": said[-2000:]}


def try_inputs(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """At least `count` changed inputs, each kind of change of each input in turn, on all cores.

    Linux alone: each trial is a fork of this process, which has imported what takes long.
    """
    torch.set_num_threads(1)
    for name in COMMANDS:
        importlib.import_module(name)
    with surroundings(folder):
        return _try_all(count, seed, folder)


@contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """A home and a place for temporary files within a folder; the working directory comes back, too."""
    before = os.environ.copy(), Path.cwd(), tempfile.tempdir
    os.environ |= {"HOME": str(folder / "home"), "WANDB_MODE": "disabled"}
    tempfile.tempdir = str(folder / "temporary")
    for needed in (folder / "home", folder / "temporary"):
        needed.mkdir()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
        tempfile.tempdir = before[2]


def _try_all(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    source = folder / "source"
    source.mkdir()
    tried = make_inputs(source)
    warm_up(source)
    share = count / sum(one.share for one in tried)
    trials = [
        Trial(place, list(one.changes)[number % len(one.changes)], number // len(one.changes))
        for place, one in enumerate(tried)
        for number in range(max(len(one.changes), round(one.share * share + 0.5)))
    ]
    random.Random(seed).shuffle(trials)
    wholes: list[tuple[str, float | None]] = []
    for one in tried:
        home = folder / "whole" / "home"
        shutil.copytree(source, home)
        os.chdir(home)
        status, said, memory = call(home, one.command)
        if status or lost(status, said, memory):
            raise SystemExit(f"{one.name}: {' '.join(one.command)} fails before anything is changed:\n{said}")
        wholes.append((said, one.read(said)))
        shutil.rmtree(home.parent)
    workers = len(os.sched_getaffinity(0))
    context = get_context("fork")
    answers: Any = context.Queue()
    run = functools.partial(_work, tried=tried, wholes=wholes, source=source, seed=seed, answers=answers)
    processes = [
        context.Process(target=run, args=(trials[first::workers], folder / f"trials-{first}" / "home"))
        for first in range(workers)
    ]
    for process in processes:
        process.start()
    found = []
    with progress_bar(len(trials), "input", "inputs") as bar:
        for _ in trials:
            found.append(answers.get())
            bar.update()
    for process in processes:
        process.join()
    return found


def warm_up(source: Path) -> None:
    """Let this process load the kernels and whatever else a first call does, for all its forks."""
    os.chdir(source)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for words in (("predict", "model", "wav/0.wav"), ("stats", "recipe.yaml", "--limit", "2")):
            if ssamba(words):
                raise SystemExit(f"ssamba {' '.join(words)} failed")


def _work(
    trials: list[Trial],
    home: Path,
    tried: list[Input],
    wholes: list[tuple[str, float | None]],
    source: Path,
    seed: int,
    answers: Any,
) -> None:
    for trial in trials:
        answers.put(try_one(trial, tried[trial.input], source, home, wholes[trial.input], seed))
