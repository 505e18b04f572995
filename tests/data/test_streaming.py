"""Shards without an index: read by webdataset, each sample once an epoch by whoever has its shard, without end."""

import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset as wds

from ssamba.cli import main
from ssamba.data import pipeline
from ssamba.data.batches import Batch, Sample
from ssamba.data.order import ClipRules
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.shards.finding import list_shards
from ssamba.data.stream import BatchStream, ShardStream
from ssamba.data.streaming import Progress
from ssamba.errors import UserError
from ssamba.recordings import read_audio

RATE = 16000
FORMS = ("wav", "mp3", "flac")
SAMPLES = 43


def encoded(samples: np.ndarray[Any, Any], form: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form.upper())
    return file.getvalue()


def sound(number: int) -> np.ndarray[Any, Any]:
    """0.1 to 0.9 s of a tone in noise, float64 (S,)."""
    rng = np.random.default_rng(number)
    length = 1600 + 300 * number
    return 0.3 * np.sin(np.arange(length) * rng.uniform(0.05, 0.5)) + rng.normal(0, 0.02, length)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43 samples that webdataset's own writer put into 5 unequal shards: three formats, .json, .cls and .txt."""
    folder = tmp_path_factory.mktemp("foreign") / "train"
    folder.mkdir()
    with wds.ShardWriter(f"{folder}/%06d.tar", maxcount=10) as writer:
        for number in range(SAMPLES):
            writer.write(
                {
                    "__key__": f"clip{number:03d}",
                    FORMS[number % 3]: encoded(sound(number), FORMS[number % 3]),
                    "json": {"text": f"words {number}"},
                    "cls": number % 2,
                    "txt": f"words {number}",
                }
            )
    return folder


def streamed(source: str | Path | list[str], **options: Any) -> BatchStream:
    given: dict[str, Any] = {"seconds": 0.2, "batch_size": 4, "shuffle_buffer": 10, "sampling_rate": RATE, **options}
    return pipeline(source if isinstance(source, list) else str(source), order="streaming", **given)


def some(made: BatchStream, count: int, workers: int = 0) -> list[Batch]:
    return list(itertools.islice(wds.WebLoader(made, batch_size=None, num_workers=workers), count))


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


# What is read


def test_each_epoch_has_every_recording_in_another_order(foreign: Path) -> None:
    read = keys(some(streamed(foreign, batch_size=SAMPLES, shuffle_buffer=1), 3))
    epochs = [read[:SAMPLES], read[SAMPLES : 2 * SAMPLES], read[2 * SAMPLES :]]
    assert [sorted(epoch) for epoch in epochs] == [[f"clip{number:03d}" for number in range(SAMPLES)]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # Without a buffer, each shard from front to back.
    shards = [[int(key[4:]) for key in epochs[0][place : place + 1]] for place in range(SAMPLES)]
    assert Counter(b[0] - a[0] for a, b in itertools.pairwise(shards))[1] >= SAMPLES - 5
    mixed = keys(some(streamed(foreign), 20))
    assert mixed == keys(some(streamed(foreign), 20)) != keys(some(streamed(foreign, seed=1), 20))


def test_clips_are_parts_of_the_recordings(foreign: Path) -> None:
    """The same part of the same recording in an epoch, whoever reads it, and another one in the next."""
    made: dict[int, torch.Tensor] = {}
    starts: dict[str, set[int]] = {}
    for batch in some(streamed(foreign), 40):
        assert batch["waveform"].shape == (4, 3200)
        rows = zip(batch["keys"], batch["waveform"], batch["lengths"].tolist(), batch["positions"], strict=True)
        for key, row, length, position in rows:
            number = int(key[4:])
            whole = read_audio(encoded(sound(number), FORMS[number % 3]), RATE, 60)
            assert length == min(3200, len(whole)) and not row[length:].any()
            windows = np.lib.stride_tricks.sliding_window_view(whole, length)
            (start,) = np.flatnonzero((windows == row[:length].numpy()).all(1))
            starts.setdefault(key, set()).add(int(start))
            made[position] = row
    assert len(made) == 160  # positions tell the clips of all epochs apart
    assert sum(len(found) > 1 for found in starts.values()) > 25
    for batch in some(streamed(foreign, rank=1, world_size=3, shuffle_buffer=3), 12):
        for row, position in zip(batch["waveform"], batch["positions"], strict=True):
            assert position not in made or torch.equal(row, made[position])


@pytest.mark.parametrize("short", ["repeat", "pack"])
def test_short_recordings_fill_their_clips(foreign: Path, short: str) -> None:
    (batch,) = some(streamed(foreign, short=short, seconds=1.0, batch_size=3, shuffle_buffer=1), 1)
    assert batch["lengths"].tolist() == [RATE] * 3
    names = {key: int(key[4:]) for some in batch["keys"] for key in some.split("+")}
    waves = {key: read_audio(encoded(sound(n), FORMS[n % 3]), RATE, 60) for key, n in names.items()}
    if short == "repeat":
        for key, row in zip(batch["keys"], batch["waveform"].numpy(), strict=True):
            assert np.array_equal(row, np.resize(waves[key], RATE))
    else:
        joined = np.concatenate([waves[key] for key in names])
        assert np.array_equal(batch["waveform"].flatten().numpy(), joined[: 3 * RATE])
        assert len(set(batch["positions"])) == 3


def test_nothing_is_read_before_it_is_needed(foreign: Path, tmp_path: Path) -> None:
    """Shards are opened one after another, however many there are: by a command, which says so."""
    opened = tmp_path / "opened"
    made = streamed([f"pipe:echo {n} >> {opened}; cat {foreign}/00000{n}.tar" for n in range(5)], shuffle_buffer=2)
    batches = iter(made)
    assert not opened.exists()
    next(batches)
    assert len(opened.read_text().split()) <= 2
    assert len(set(keys(list(itertools.islice(batches, 20))))) == SAMPLES


def test_shards_elsewhere_are_read_by_their_driver(foreign: Path) -> None:
    """By urls, a pattern, and a folder that is listed."""
    here = keys(some(streamed(foreign), 12))
    for source in (f"file://{foreign}", f"file://{foreign}/*.tar", f"file://{foreign}/{{000000..000004}}.tar"):
        assert keys(some(streamed(source), 12)) == here


def test_compressed_shards_and_full_scale(corpus: Path, tmp_path: Path) -> None:
    """Our own shards, too, one of them packed by gzip, with a recording that is to be read louder."""
    (tmp_path / "b").mkdir()
    louder = {"key": "louder", "labels": {}, "full_scale": 2.0}
    with tarfile.open(tmp_path / "b" / "one.tar.gz", "w:gz") as tar:
        for name, content in (("x.flac", encoded(sound(0), "flac")), ("x.json", json.dumps(louder).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (batch,) = some(streamed(tmp_path / "b", batch_size=1), 1)
    plain = soundfile.read(io.BytesIO(encoded(sound(0), "flac")), dtype="float32")[0]
    assert batch["keys"] == ["louder"] and np.array_equal(batch["waveform"][0, :1600].numpy(), 2 * plain)
    indexed = pipeline(str(corpus / "train"), seconds=0.2, batch_size=60)
    names = keys(some(streamed(corpus / "train", batch_size=60, shuffle_buffer=1), 1))
    assert sorted(names) == sorted(keys(some(indexed, 1)))


# For whom, and what is behind


def shares(folder: Path, progress: Progress, ranks: int, workers: int, steps: int, **options: Any) -> Progress:
    """What is behind when so many ranks have made so many steps from there; no sample is read twice."""
    parts = []
    for rank in range(ranks):
        made = ShardStream(
            list_shards(str(folder)),
            ClipRules(3200, options.get("short", "pad"), 10, 0),
            sampling_rate=RATE,
            batch_size=3,
            max_bad_fraction=0.0,
            progress=progress,
            rank=rank,
            world_size=ranks,
            batches=steps,
        )
        own = Progress.of(json.loads(json.dumps(progress.state()), object_pairs_hook=with_turns))
        batches = some(made, steps + 1, workers)
        assert [batch["consumed"] for batch in batches] == [3 * ranks * (step + 1) for step in range(steps)]
        for batch in batches:
            for turn, sample in batch["taken"]:
                assert turn >= own.first and turn not in own.done and sample not in own.taken.get(turn, ())
            own.add(batch["taken"], batch["ended"])
        parts.append(own)
    merged = parts[0]
    merged.merge(parts[1:])
    return merged


def with_turns(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    return {int(key) if key.isdigit() else key: value for key, value in pairs}


@pytest.fixture(scope="module")
def behind(foreign: Path) -> Callable[[Progress], int]:
    """How many samples are behind by a progress, of seed 0: of each turn as many as one that reads alone finds."""
    sizes: dict[int, int] = {}
    for batch in streamed(foreign, shuffle_buffer=1, batch_size=1):
        sizes |= {turn: samples for turn, samples in batch["ended"]}
        if len(sizes) >= 200:
            break
    assert sum(sizes[turn] for turn in range(200)) == 40 * SAMPLES

    def count(progress: Progress) -> int:
        done = [*range(progress.first), *progress.done]
        return sum(sizes[turn] for turn in done) + sum(map(len, progress.taken.values()))

    return count


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_goes_on_with_other_ranks_and_workers_and_repeats_nothing(
    foreign: Path, behind: Callable[[Progress], int]
) -> None:
    progress, total = Progress(), 0
    for ranks, workers, steps in ((1, 0, 5), (2, 0, 7), (3, 2, 4), (1, 2, 9), (4, 0, 3), (2, 0, 11)):
        progress = shares(foreign, progress, ranks, workers, steps)
        total += 3 * ranks * steps
        assert behind(progress) == total
    # All but a few shards are behind as a whole, and the state stays small.
    assert progress.first > 10 and len(json.dumps(progress.state())) < 1000


def test_what_others_have_done_meanwhile_changes_no_turn(foreign: Path) -> None:
    """Ranks tell each other at a checkpoint what is behind; whose turn it is was settled when they began."""
    progress = Progress()
    made = ShardStream(
        list_shards(str(foreign)),
        ClipRules(3200, "pad", 2, 0),
        sampling_rate=RATE,
        batch_size=4,
        max_bad_fraction=0.0,
        progress=progress,
        rank=0,
        world_size=2,
    )
    batches = iter(made)
    first = next(batches)
    for turn in (1, 3, 5):
        progress.add([[turn, sample] for sample in range(10)], [[turn, 10]])
    read = {turn for batch in [first, *itertools.islice(batches, 20)] for turn, _ in batch["taken"]}
    assert read == set(range(0, 2 * len(read), 2)) and len(read) > 5


def test_joined_recordings_are_behind_once_their_last_clip_is(foreign: Path) -> None:
    made = ShardStream(
        list_shards(str(foreign)), ClipRules(3200, "pack", 1, 0), sampling_rate=RATE, batch_size=1, max_bad_fraction=0.0
    )
    names: list[str] = []
    taken = 0
    for batch in itertools.islice(made, 200):
        names += [key for key in batch["keys"][0].split("+") if key not in names[-2:]]
        taken += len(batch["taken"])
        # The last one may have more to come.
        assert taken in (len(names), len(names) - 1)


# What users add


def test_stages_may_drop_and_add_clips(foreign: Path) -> None:
    def again(clips: Iterator[Sample]) -> Iterator[Sample]:
        for clip in clips:
            yield from (dict(clip), dict(clip))

    def even(clip: Sample) -> bool:
        return int(clip["txt"].split()[1]) % 2 == 0

    batches = some(streamed(foreign, members=["txt", "cls"], stages=[wds.select(even), again]), 20)
    assert {int(key[4:]) % 2 for key in keys(batches)} == {0}
    for batch in batches:
        assert batch["keys"][::2] == batch["keys"][1::2]
        assert batch["txt"] == [f"words {int(key[4:])}".encode() for key in batch["keys"]]  # type: ignore[typeddict-item]
        assert batch["cls"] == [b"0"] * 4  # type: ignore[typeddict-item]


def test_a_stage_that_lets_nothing_through_is_told(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssamba.data.streaming.MOST_IN_VAIN", 100)
    with pytest.raises(UserError, match=r"100 samples one after another gave no clip; the last: in .*\.tar"):
        some(streamed(foreign, stages=[wds.select(lambda clip: False)]), 1)


# What is wrong


def test_damaged_recordings_and_shards_are_skipped_counted_and_named(foreign: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes((foreign / f"00000{number}.tar").read_bytes())
    with tarfile.open(tmp_path / "1.tar") as tar:
        last = [member.offset_data for member in tar if member.name.endswith((".wav", ".flac"))][-1]
    os.truncate(tmp_path / "1.tar", last + 600)
    spoilt = {"__key__": "spoilt", "wav": b"no sound", "txt": "x"}
    with wds.TarWriter(str(tmp_path / "2.tar")) as writer:
        for sample in (spoilt, {"__key__": "silent", "txt": "x"}, {"__key__": "good", "wav": encoded(sound(3), "wav")}):
            writer.write(sample)
    batches = some(streamed(tmp_path, max_bad_fraction=0.5), 10)
    told = [one for batch in batches for one in batch["skipped"]]
    assert any(one.startswith("spoilt in ") and "it cannot be decoded" in one for one in told)
    assert any(one.startswith("silent in ") and "it has no recording" in one for one in told)
    assert any("1.tar cannot be read beyond its sample" in one and "unexpected end of data" in one for one in told)
    assert "good" in keys(batches)
    with pytest.raises(UserError, match=r"\d+ of 200 recordings are bad, more than data.max_bad_fraction 0.01"):
        some(streamed(tmp_path), 100)


def gone(folder: Path) -> str:
    return f"pipe:cat {folder}/gone.tar"


def empty(folder: Path) -> str:
    tarfile.open(folder / "empty.tar", "w").close()
    return str(folder)


def no_tar(folder: Path) -> str:
    (folder / "no.tar").write_text("a page of a server, perhaps, that says that something is wrong" * 20)
    return str(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (gone, "the shard pipe:cat .*gone.tar cannot be read: .*expected a tar of samples"),
        (no_tar, r"the shard .*no\.tar cannot be read: .*expected a tar of samples"),
        (empty, "and all other shards hold no samples"),
        (lambda folder: str(folder), r"has no \.tar, .*; expected shards, or their folder"),
        (lambda folder: f"{folder}/{{0..3}}.tar", r"0\.tar has no "),
        (lambda folder: "https://localhost/train/", r"is no shard; without an index all are named, such as"),
        (lambda folder: "other://bucket/a.tar", "is not read as it is; expected a path, "),
    ],
)
def test_shards_that_cannot_be_read(source: Callable[[Path], str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        some(streamed(source(tmp_path)), 1)


def test_another_rate_and_what_has_no_index(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "wav": encoded(sound(3), "wav", 8000)})
    with pytest.raises(UserError, match="it is of 8000 Hz; expected 16000 Hz"):
        some(streamed(tmp_path), 1)
    for options in ({"training": False}, {"label": "kind"}, {"sampling_rate": None}):
        with pytest.raises(UserError, match="streaming, which is for training without labels"):
            streamed(tmp_path, **options)
    with pytest.raises(UserError, match="is given twice"):
        list_shards([str(tmp_path), str(tmp_path / "a.tar")])


# As a run


SMALL = [
    "model.encoder=ssast",
    "model.size=nano",
    "audio.max_length=64",
    "trainer.max_steps=4",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "mask.share=0.375",
    "trainer.log_every_steps=1",
]


def words(recipes: dict[str, Path], train: Path, run: Path, *more: str) -> list[str]:
    own = [f"run_dir={run}", f"data.train={train}", "data.validation=null", "data.shuffle_buffer=10"]
    return ["pretrain", str(recipes["pretrain"]), *own, *SMALL, *more]


def test_a_strangers_shards_train_in_both_orders(
    recipes: dict[str, Path], foreign: Path, tmp_path: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = tmp_path / "streamed"
    assert main(words(recipes, foreign, run, "data.order=streaming")) == 0
    record = json.loads((run / "run.json").read_text())
    assert {name: record["data"]["train"][name] for name in ("samples", "seconds", "shards")} == {
        "samples": None,
        "seconds": None,
        "shards": 5,
    }
    assert "5 shards without an index" in (run / "report.md").read_text()
    assert not (foreign / "index.json").exists()
    folder = copy_of(foreign)
    index_folder(folder)
    assert main(words(recipes, folder, tmp_path / "indexed")) == 0
    record = json.loads((tmp_path / "indexed" / "run.json").read_text())
    assert record["data"]["train"]["samples"] == SAMPLES


def test_a_streamed_run_goes_on_and_says_how(
    recipes: dict[str, Path],
    foreign: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    behind: Callable[[Progress], int],
) -> None:
    run = tmp_path / "run"
    command = words(recipes, foreign, run, "data.order=streaming", "optimizer.schedule=constant", "data.short=pad")
    assert main(command) == 0
    saved = torch.load(run / "checkpoints" / "step-0000004.ckpt", weights_only=True)["ClipDataModule"]
    assert saved["clips"] == behind(Progress.of(saved["shards"])) == 16
    caplog.clear()
    more = ["--resume", str(run), "trainer.max_steps=12", "data.num_workers=2", "trainer.accumulate=2"]
    assert main([*command, *more]) == 0
    told = [record.getMessage() for record in caplog.records if "data.order=streaming" in record.getMessage()]
    assert len(told) == 1 and "read again" in told[0]
    later = torch.load(run / "checkpoints" / "step-0000012.ckpt", weights_only=True)["ClipDataModule"]
    assert later["clips"] == 48
    progress = Progress.of(later["shards"])
    assert behind(progress) == 48
    for turn, samples in saved["shards"]["taken"].items():
        assert turn < progress.first or turn in progress.done or set(samples) <= progress.taken[turn]


def test_what_streaming_cannot_do_is_told(
    recipes: dict[str, Path], foreign: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused("finetune", recipes["finetune"], f"run_dir={tmp_path / 'run'}", "data.order=streaming")
    assert "data.order is streaming; fine-tuning needs the labels that an index lists: `ssamba shards index" in said
    command = words(recipes, foreign, tmp_path / "run", "data.order=streaming")
    assert "data.weights mixes sources" in refused(*command, "data.weights=[1]")
    assert "data.order is 'stream'; expected one of indexed, streaming" in refused(*command, "data.order=stream")
    assert "has no index.json" in refused(*words(recipes, foreign, tmp_path / "run"))


def test_the_state_of_other_shards_is_refused(foreign: Path, tmp_path: Path) -> None:
    shards = list_shards(str(foreign))
    assert list_shards(f"{foreign}/{{000000..000004}}.tar") == list_shards(f"{foreign}/*.tar") == shards
    other = tmp_path / "train"
    other.mkdir()
    for path in foreign.glob("*.tar"):
        (other / path.name).write_bytes(path.read_bytes())
    assert list_shards(str(other)).fingerprint == shards.fingerprint  # they may lie elsewhere
    (other / "000002.tar").unlink()
    assert list_shards(str(other)).fingerprint != shards.fingerprint
