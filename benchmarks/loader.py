"""Speed and memory of the data stream on one core, beside what it must not fall behind.

    taskset -c 0 python benchmarks/loader.py [--recordings FOLDER] [--parts features decode webdataset ...]

- features: shards to normalised log-mel batches, beside soundfile and torchaudio.compliance.kaldi.fbank item by item.
- decode: shards to waveform batches, as where the filterbank runs on the training device, beside decoding alone.
- webdataset: shards to waveform batches in both orders (`data.order`), beside webdataset's own pipeline with the same
  decoder.
- formats: clips of MP3 and of M4A (which PyAV decodes) as training reads those of foreign shards, from their start and
  their middle on, beside the same of FLAC.
- bytes: the bytes of the samples in batches, beside reading the same shards in turn through Python's tarfile; from
  memory, and from the disk (Linux is asked to drop the files' pages before each reading).
- resume: a new process to its first batch in the middle of an epoch of 1,000 shards, beside one at the epoch's start.
- memory: resident memory of a process over 50,000 clips.

Clips are 10 s of 16 kHz: FOLDER's recordings joined, else chirps with noise. Both sides of a comparison are timed in
turn in every round; the figure is the median of the rounds' ratios.
"""

import argparse
import functools
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
import torchaudio
import webdataset as wds

from ssamba.audio import LogMel
from ssamba.data import pipeline
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardSet, write_samples
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.progress import progress_bar
from ssamba.recordings import read_audio, read_crop, read_segment

RESULTS = Path(__file__).parent / "results"
RATE, SECONDS, BATCH = 16000, 10, 16
MEAN, STD = -4.27, 4.57
Seconds = Callable[[], float]


def signal(folder: Path | None) -> Iterator[np.ndarray[Any, Any]]:
    """Clip after clip without end, float32 (S,)."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
        held = np.empty(0, np.float32)
        for path in itertools.cycle(paths):
            held = np.concatenate([held, read_audio(path, RATE, 600.0)])
            while held.size >= RATE * SECONDS:
                yield held[: RATE * SECONDS]
                held = held[RATE * SECONDS :]
    rng, place = np.random.default_rng(0), np.arange(RATE * SECONDS) / RATE
    while True:
        low, high = rng.uniform(80, 400), rng.uniform(500, 3000)
        tone = 0.3 * np.sin(2 * np.pi * (low * place + (high - low) / (2 * SECONDS) * place**2))
        yield (tone + rng.normal(0, 0.01, place.shape)).astype(np.float32)


def write_clips(folder: Path, recordings: Path | None, clips: int, per_shard: int) -> ShardSet:
    """Shards of so many clips."""
    wavs = folder.with_name(f"{folder.name}-wavs")
    wavs.mkdir()
    found = []
    for number, clip in zip(range(clips), signal(recordings), strict=False):
        path = wavs / f"{number:06d}.wav"
        soundfile.write(path, clip, RATE, subtype="PCM_16")
        found.append(Recording(path.stem, path))
    write_shards({"train": found}, folder, "clips", samples_per_shard=per_shard)
    shutil.rmtree(wavs)
    return find_shards(str(folder / "train"))


def repeated(source: ShardSet, folder: Path, shards: int) -> Path:
    """A split of many shards that are all one file."""
    folder.mkdir()
    (index,) = source.indexes.values()
    first = source.shards[0]
    infos = tuple(replace(first.info, name=f"{number:06d}.tar") for number in range(shards))
    for info in infos:
        os.link(first.path, folder / info.name)
    digest = write_samples(folder, np.tile(source.table[: first.info.samples], shards))
    replace(index, shards=infos, samples_sha256=digest).write(folder)
    return folder


def stream(shards: ShardSet, first: int = 0, batches: int | None = None) -> ClipStream:
    order = ClipOrder(shards, ClipRules(RATE * SECONDS, "pad", 5000, 0))
    return ClipStream(
        shards,
        order,
        batch_size=BATCH,
        sampling_rate=RATE,
        training=True,
        max_bad_fraction=0.0,
        cache=ShardCache(1),
        first=first,
        batches=batches,
    )


def timed(work: Callable[[], int]) -> float:
    """How much of it is done in a second."""
    start = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - start)


def features(shards: ShardSet) -> tuple[float, float]:
    """Clips a second: ours, item by item."""
    log_mel = LogMel(RATE, 128, MEAN, STD)
    batches = shards.samples // BATCH

    def ours() -> int:
        for batch in stream(shards, batches=batches):
            log_mel(batch["waveform"], batch["lengths"])
        return batches * BATCH

    def items() -> int:
        reader = SampleReader(shards, ShardCache(1))
        for number in range(batches * BATCH):
            samples, _ = soundfile.read(io.BytesIO(reader.audio(number)), dtype="float32")
            waveform = torch.from_numpy(samples).unsqueeze(0)
            fbank = torchaudio.compliance.kaldi.fbank(
                waveform - waveform.mean(),
                htk_compat=True,
                sample_frequency=RATE,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=128,
                dither=0.0,
                frame_shift=10,
            )
            _ = (fbank - MEAN) / (2 * STD)
        return batches * BATCH

    return timed(ours), timed(items)


def decode(shards: ShardSet) -> tuple[float, float]:
    """Clips a second: ours, decoding alone of bytes that are in memory."""
    batches = shards.samples // BATCH
    reader = SampleReader(shards, ShardCache(1))
    held = [reader.audio(number) for number in range(batches * BATCH)]

    def alone() -> int:
        for content in held:
            soundfile.read(io.BytesIO(content), dtype="float32")
        return len(held)

    return timed(lambda: sum(len(batch["keys"]) for batch in stream(shards, batches=batches))), timed(alone)


def beside_webdataset(shards: ShardSet, order: str) -> tuple[float, float]:
    """Clips a second to waveform batches, by one thread: ours, webdataset's own pipeline with the same decoder."""
    batches = shards.samples // BATCH
    buffer = 100

    def ours() -> int:
        made = pipeline(
            [str(shards.shards[0].path.parent)],
            seconds=SECONDS,
            batch_size=BATCH,
            order=order,
            sampling_rate=RATE if order == "streaming" else None,
            shuffle_buffer=buffer,
            batches=batches,
        )
        return sum(len(batch["keys"]) for batch in made)

    def decoded(sample: dict[str, Any]) -> dict[str, Any]:
        waveform = read_crop(sample["flac"], RATE, RATE * SECONDS, 0.0, 600.0)
        return {"waveform": torch.from_numpy(waveform), "json": json.loads(sample["json"])}

    def theirs() -> int:
        made = wds.DataPipeline(
            wds.SimpleShardList(shards.paths, seed=0),
            wds.tarfile_to_samples(),
            wds.shuffle(buffer, seed=0),
            wds.map(decoded),
            wds.batched(BATCH),
        )
        return sum(len(batch["waveform"]) for batch in made)

    return timed(ours), timed(theirs)


def encoded(samples: np.ndarray[Any, Any], rate: int, form: str) -> bytes:
    """A recording of float32 (S, channels) as "flac", "mp3" or "m4a"."""
    content = io.BytesIO()
    if form != "m4a":
        soundfile.write(content, samples, rate, format=form.upper())
        return content.getvalue()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(content, "w", format="ipod") as container:
        track = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", layout)
        frame.sample_rate = rate
        cut = av.AudioResampler("fltp", layout, rate, 1024)
        for part in [*cut.resample(frame), *cut.resample(None), None]:
            container.mux(track.encode(part))
    return content.getvalue()


def segments(ours: list[bytes], theirs: list[bytes]) -> tuple[float, float]:
    """Seconds of audio a second, halves of clips, every other one from the middle on: of one format, of another."""
    out = np.empty(RATE * SECONDS // 2, np.float32)

    def read(held: list[bytes]) -> int:
        for number, content in enumerate(held):
            read_segment(content, RATE, number % 2 * len(out), out)
        return len(held) * SECONDS // 2

    return timed(lambda: read(ours)), timed(lambda: read(theirs))


def read_bytes(shards: ShardSet, cold: bool) -> tuple[float, float]:
    """Bytes a second: ours in the order of training, tarfile from the first shard to the last."""

    def forget() -> None:
        for shard in shards.shards:
            with shard.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def ours() -> int:
        samples = itertools.islice(wds.DataPipeline(stream(shards).source), shards.samples)
        return sum(len(sample["flac"]) for sample in samples)

    def in_turn() -> int:
        size = 0
        for shard in shards.shards:
            with tarfile.open(shard.path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    read = len(content.read())
                    size += read if member.name.endswith(".flac") else 0
        return size

    found = []
    for work in (ours, in_turn):
        if cold:
            forget()
        found.append(timed(work))
    return found[0], found[1]


FIRST_BATCH = """
import sys, time
began = time.perf_counter()
from benchmarks.loader import *
shards = find_shards(sys.argv[1])
made = stream(shards, first=int(float(sys.argv[2]) * shards.samples))
next(iter(made))
print(time.perf_counter() - began)
"""

MEMORY = """
import json, sys
from benchmarks.loader import *
shards = find_shards(sys.argv[1])
clips = int(sys.argv[2])
resident = []
with progress_bar(clips, "clip", "memory") as bar:
    for number, batch in enumerate(stream(shards, batches=clips // BATCH)):
        bar.update(BATCH)
        if number % max(1, clips // BATCH // 50) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
print(json.dumps(resident))
"""


def first_batch(folder: Path) -> tuple[float, float]:
    """Seconds of a process to its first batch: in the middle of the epoch, at its start."""
    return float(child(FIRST_BATCH, folder, 0.5)), float(child(FIRST_BATCH, folder, 0))


def child(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def paired(rounds: int, name: str, both: Callable[[], tuple[float, float]], warm: bool = True) -> dict[str, Any]:
    """Rounds of (ours, theirs), and the median of their ratios."""
    found = []
    if warm:
        both()  # what is read, imported and compiled once
    with progress_bar(rounds, "round", name) as bar:
        for _ in range(rounds):
            found.append(both())
            bar.update()
    ours, theirs = zip(*found, strict=True)
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in found),
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("features", "decode", "webdataset", "formats", "bytes", "resume", "memory")
    parser.add_argument("--recordings", type=Path, help="a folder of real ones; without it they are synthesized")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=320, help="of features, decode, webdataset and formats")
    parser.add_argument("--read", type=int, default=6400, help="clips of bytes, in shards of 256")
    parser.add_argument("--streamed", type=int, default=50000, help="clips of memory")
    parser.add_argument("--out", type=Path, default=RESULTS / "loader.json")
    given = parser.parse_args()
    # Which take long to import; the processes that are measured import this file.
    from ssamba.evaluation.efficiency import Goal, goals_table, versions
    from ssamba.training.runs import hardware

    torch.set_num_threads(1)
    measured: dict[str, Any] = {}
    goals = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as place:
        folder = Path(place)
        shards = write_clips(folder / "clips", given.recordings, given.clips, 64)
        if "features" in given.parts:
            measured["features"] = found = paired(given.rounds, "features", lambda: features(shards))
            goals.append(Goal("clips a second to log-mel, ours / item by item", ">=", 1.5, found["ratio"]))
        if "decode" in given.parts:
            measured["decode"] = found = paired(given.rounds, "decode", lambda: decode(shards))
            goals.append(Goal("clips a second, the stream / decoding alone", ">=", 0.85, found["ratio"]))
        if "webdataset" in given.parts:
            for order, least in (("indexed", 1.0), ("streaming", 0.95)):
                found = paired(given.rounds, order, functools.partial(beside_webdataset, shards, order))
                measured[f"{order} beside webdataset"] = found
                goals.append(Goal(f"clips a second, {order} / webdataset", ">=", least, found["ratio"]))
        if "formats" in given.parts:
            clips = list(itertools.islice(signal(given.recordings), given.clips))
            flac, *others = ([encoded(clip[:, None], RATE, form) for clip in clips] for form in ("flac", "mp3", "m4a"))
            for form, held in zip(("mp3", "m4a"), others, strict=True):
                measured[f"{form} beside flac"] = paired(given.rounds, form, functools.partial(segments, held, flac))
        if "bytes" in given.parts:
            some = min(256, shards.samples)
            source = write_clips(folder / "one", given.recordings, some, some)
            many = find_shards(str(repeated(source, folder / "read", max(2, given.read // some))))
            for shard in many.shards:  # files of their own, as only those can be read from the disk
                content = shard.path.read_bytes()
                shard.path.unlink()
                shard.path.write_bytes(content)
            os.sync()
            for name, cold in (("from memory", False), ("from the disk", True)):
                found = paired(given.rounds, name, functools.partial(read_bytes, many, cold))
                measured[f"bytes {name}"] = found
                goals.append(Goal(f"bytes a second {name}, ours / tarfile", ">=", 0.8, found["ratio"]))
        if {"resume", "memory"} & set(given.parts):
            thousand = repeated(shards, folder / "thousand", 1000)
        if "resume" in given.parts:
            found = paired(given.rounds, "resume", functools.partial(first_batch, thousand), warm=False)
            measured["resume"] = found
            later = statistics.median(middle - start for middle, start in found["rounds"])
            goals.append(Goal("first batch amid 1,000 shards, s later than at their start", "<=", 3, later))
        if "memory" in given.parts:
            resident = json.loads(child(MEMORY, thousand, given.streamed))
            measured["memory"] = {"clips": given.streamed, "resident_megabytes": resident}
            grown = statistics.median(resident[-10:]) - statistics.median(resident[5:15])
            goals.append(Goal(f"MB more at the end of {given.streamed} clips than early on", "<=", 5, grown))
    rows = [
        ("", "ours", "theirs", "ratio"),
        *(
            (name, f"{one['ours']:.4g}", f"{one['theirs']:.4g}", f"{one['ratio']:.3g}")
            for name, one in measured.items()
            if "ratio" in one
        ),
    ]
    print(f"{markdown_table(rows)}\n\n{goals_table(goals)}")
    write_json(
        given.out,
        {
            "goals": [goal._asdict() for goal in goals],
            "measured": measured,
            "hardware": hardware(),
            "recordings": "given" if given.recordings else "synthesized",
            "versions": versions("soundfile", "torchaudio", "av"),
        },
    )


if __name__ == "__main__":
    main()
