"""What the stream yields: which clips for which rank and worker, cut and joined how, with which labels."""

import io
import itertools
import json
import os
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.utils.data

from ssamba.audio import samples_for
from ssamba.data.batches import Batch
from ssamba.data.datamodule import ClipDataModule, ClipSettings, TrainingShards
from ssamba.data.labels import Labels, read_labels, stratified_subset
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import SAMPLE, ShardIndex, ShardInfo, ShardSet, write_samples
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError

RATE = 8000
SHORTEST = samples_for(1, RATE)


def flac(samples: np.ndarray[Any, Any], rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    return file.getvalue()


def write_set(folder: Path, *parts: Mapping[str, Any], **labels: Any) -> ShardSet:
    """Shards of key -> waveform (int16), the bytes of its .flac, or those of its .flac and its .json. Labels hold a
    value for each key, or one for all."""
    rows, infos = [], []
    folder.mkdir(exist_ok=True)
    for number, samples in enumerate(parts):
        path = folder / f"{number:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for key, sound in samples.items():
                own = {name: value[key] if isinstance(value, dict) else value for name, value in labels.items()}
                described = json.dumps({"key": key, "labels": own}).encode()
                audio, text = sound if isinstance(sound, tuple) else (sound, described)
                for extension, data in (("flac", audio if isinstance(audio, bytes) else flac(audio)), ("json", text)):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        places = [(one.offset_data, one.size) for one in members]
        lengths = [600 if isinstance(sound, bytes | tuple) else len(sound) for sound in samples.values()]
        rows += [(*places[2 * n], *places[2 * n + 1], length) for n, length in enumerate(lengths)]
        infos.append(ShardInfo(path.name, len(samples), sum(lengths) / RATE, path.stat().st_size, f"{number:064x}"))
    digest = write_samples(folder, np.array(rows, SAMPLE))
    ShardIndex("toy", "train", RATE, {}, (), tuple(infos), digest).write(folder)
    return find_shards(str(folder))


def sound(samples: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-20000, 20000, samples).astype(np.int16)


Sounds = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def sounds() -> Sounds:
    """23 recordings of 300 to 900 samples."""
    rng = random.Random(0)
    return {f"r{number:02d}": sound(rng.randint(300, 900), number) for number in range(23)}


@pytest.fixture(scope="module")
def shards(sounds: Sounds, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The recordings in 6 shards of 1 to 6."""
    keys = iter(sounds)
    parts = [{key: sounds[key] for key in itertools.islice(keys, count)} for count in (4, 6, 1, 5, 4, 3)]
    return write_set(tmp_path_factory.mktemp("shards"), *parts)


def stream(
    shards: ShardSet,
    *,
    training: bool = False,
    seed: int = 0,
    short: str = "pad",
    clip_samples: int = 600,
    shuffle_buffer: int = 8,
    rows: Any = None,
    **changes: Any,
) -> ClipStream:
    order = ClipOrder(shards, ClipRules(clip_samples, short, shuffle_buffer if training else 0, seed), rows)
    settings: dict[str, Any] = {
        "batch_size": 4,
        "sampling_rate": RATE,
        "max_bad_fraction": 0.0,
        "cache": ShardCache(10**6),
    }
    return ClipStream(shards, order, training=training, **{**settings, **changes})


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


def some(made: ClipStream, batches: int) -> list[Batch]:
    return list(itertools.islice(made, batches))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        all(a[name] == b[name] for name in ("keys", "positions", "consumed"))  # type: ignore[literal-required]
        and all(torch.equal(a[name], b[name]) for name in ("waveform", "lengths", "labels"))  # type: ignore[literal-required]
        for a, b in zip(one, other, strict=True)
    )


# Which clips for whom


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
@pytest.mark.parametrize("short", ["pad", "pack"])
def test_ranks_share_the_order_that_one_alone_reads(shards: ShardSet, ranks: int, batch_size: int, short: str) -> None:
    """Step by step all ranks together have the same clips, of which each has its own part in turn."""
    whole = some(stream(shards, training=True, batch_size=12, short=short), 5)
    parts = [
        some(stream(shards, training=True, batch_size=batch_size, short=short, rank=rank, world_size=ranks), 5)
        for rank in range(ranks)
    ]
    for step in range(5):
        assert [key for part in parts for key in part[step]["keys"]] == whole[step]["keys"]
        assert [place for part in parts for place in part[step]["positions"]] == whole[step]["positions"]
        assert torch.equal(torch.cat([part[step]["waveform"] for part in parts]), whole[step]["waveform"])
        assert {part[step]["consumed"] for part in parts} == {whole[step]["consumed"]} == {12 * (step + 1)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_change_nothing(shards: ShardSet, workers: int, training: bool) -> None:
    """More of them than shards included."""
    made = stream(shards, training=training, batches=9 if training else None)
    loader = torch.utils.data.DataLoader(made, batch_size=None, num_workers=workers)
    assert len(loader) == len(made)
    assert same(list(loader), list(made))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_spawned_workers_change_nothing(shards: ShardSet) -> None:
    """They get all they need, the rank too, and open the shards anew after this process has read from them."""
    made = stream(shards, training=True, batches=5, rank=1, world_size=2)
    expected = list(made)
    loader = torch.utils.data.DataLoader(made, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert same(list(loader), expected)


@pytest.mark.parametrize("first", [0, 7, 23, 24, 1000])
@pytest.mark.parametrize("short", ["pad", "pack"])
def test_a_stream_goes_on_anywhere_with_any_ranks(shards: ShardSet, first: int, short: str) -> None:
    whole = [
        key
        for batch in some(stream(shards, training=True, batch_size=1, short=short), first + 12)
        for key in batch["keys"]
    ][first:]
    for ranks, batch_size in ((1, 12), (2, 3), (4, 3)):
        parts = [
            some(
                stream(
                    shards, training=True, batch_size=batch_size, short=short, first=first, rank=rank, world_size=ranks
                ),
                12 // (ranks * batch_size),
            )
            for rank in range(ranks)
        ]
        assert [key for step in zip(*parts, strict=True) for batch in step for key in batch["keys"]] == whole
        assert parts[0][-1]["consumed"] == first + 12


def test_a_training_stream_goes_on_without_padding_or_dropping(shards: ShardSet, sounds: Sounds) -> None:
    batches = some(stream(shards, training=True, batch_size=5), 23)
    assert [len(batch["keys"]) for batch in batches] == [5] * 23
    assert [place for batch in batches for place in batch["positions"]] == list(range(115))
    read = keys(batches)
    for start in range(0, 115, 23):
        assert sorted(read[start : start + 23]) == sorted(sounds)


@pytest.mark.parametrize(
    ("ranks", "batch_size", "sizes"),
    [
        (1, 4, [[3, 4, 4, 4, 4, 4]]),
        (2, 4, [[3, 4, 4], [4, 4, 4]]),
        (4, 2, [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        (1, 23, [[23]]),
        (1, 100, [[23]]),
        (5, 1, [[1] * 4, [1] * 4, [1] * 4, [1] * 4, [1] * 4]),
        (23, 4, [[1]] * 23),
    ],
)
def test_held_out_clips_are_read_once_by_equally_many_batches(
    shards: ShardSet, sounds: Sounds, ranks: int, batch_size: int, sizes: list[list[int]]
) -> None:
    parts = [list(stream(shards, batch_size=batch_size, rank=rank, world_size=ranks)) for rank in range(ranks)]
    if ranks != 5:
        assert [[len(batch["keys"]) for batch in part] for part in parts] == sizes
    assert len({len(part) for part in parts}) == 1
    in_order = sorted(
        zip(
            [p for part in parts for batch in part for p in batch["positions"]],
            [key for part in parts for key in keys(part)],
            strict=True,
        )
    )
    assert in_order == list(enumerate(sounds))


def test_more_devices_than_held_out_clips_are_told(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="23 clips cannot be shared by 24 devices"):
        stream(shards, world_size=24)


def test_only_the_wanted_recordings_are_read(shards: ShardSet) -> None:
    wanted = {"r00", "r05", "r22"}
    read = keys(some(stream(shards, training=True, rows=np.array([0, 5, 22]), batch_size=1), 6))
    assert set(read[:3]) == set(read[3:]) == wanted


@pytest.mark.parametrize("short", ["pad", "repeat", "pack"])
def test_a_second_pass_is_bitwise_equal(shards: ShardSet, short: str) -> None:
    made = stream(shards, training=True, short=short, clip_samples=400)
    first = some(made, 14)
    random.seed(5)  # the global generators have no say
    assert same(first, some(made, 14))
    assert not same(first, some(stream(shards, training=True, short=short, clip_samples=400, seed=1), 14))


def test_a_stream_without_end_has_no_length(shards: ShardSet) -> None:
    with pytest.raises(TypeError):
        len(stream(shards, training=True))


def test_files_are_closed_and_few(tmp_path: Path) -> None:
    """As many shards as one likes: the files that are open stay few, and none is left."""
    many = write_set(tmp_path / "many", *({f"s{n}": sound(600, n)} for n in range(90)))
    before = len(os.listdir("/proc/self/fd"))
    made = stream(many)
    list(made)
    assert before < len(os.listdir("/proc/self/fd")) <= before + 64
    del made
    assert len(os.listdir("/proc/self/fd")) == before


# Where a run has stopped


def module(shards: ShardSet, seed: int = 0, rows: Any = None, weights: Any = None, **rules: Any) -> ClipDataModule:
    given: dict[str, Any] = {"clip_samples": 600, "short": "pad", "shuffle_buffer": 8, "seed": seed, **rules}
    settings = ClipSettings(ClipRules(**given), RATE, batch_size=4, max_bad_fraction=0.0, cache_bytes=10**6)
    return ClipDataModule(settings, train=TrainingShards(shards, rows, weights and [3, 3], weights))


def test_the_state_is_the_epoch_and_the_clips(shards: ShardSet) -> None:
    made = module(shards)
    assert made.state_dict()["clips"] == 0
    made.consumed = 47
    state = json.loads(json.dumps(made.state_dict()))  # plain values alone
    assert (state["epoch"], state["clips"]) == (2, 47)
    state["order"]["mixed"] = state["order"].pop("shuffle_buffer")  # as an older version wrote it
    again = module(shards)
    again.load_state_dict(state)
    expected = keys(some(stream(shards, training=True, batch_size=1), 55))[47:]
    assert keys(some(again.training_stream(), 2)) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"shuffle_buffer": 9}, "shuffle_buffer was 8 and is 9"),
        ({"short": "pack"}, "short was 'pad' and is 'pack'"),
        ({"rows": np.arange(5)}, "recordings was 'all' and is '"),
        ({"weights": [1, 2]}, r"weights was None and is \[1, 2\]"),
    ],
)
def test_the_state_of_another_order_is_refused(shards: ShardSet, change: dict[str, Any], said: str) -> None:
    state = module(shards).state_dict()
    with pytest.raises(UserError, match=f"stands in another order of the training clips: {said}"):
        module(shards, **change).load_state_dict(state)


def test_the_state_of_other_data_is_refused(shards: ShardSet, labelled: ShardSet) -> None:
    with pytest.raises(UserError, match="data was '"):
        module(labelled).load_state_dict(module(shards).state_dict())


# Cut and joined how


def as_float(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return samples.astype(np.float32) / 32768


def test_padding(shards: ShardSet, sounds: Sounds) -> None:
    """Held-out recordings: from their start, zeros after their end."""
    for batch in stream(shards):
        assert batch["waveform"].dtype == torch.float32 and batch["waveform"].shape[1] == 600
        for key, row, length in zip(batch["keys"], batch["waveform"].numpy(), batch["lengths"].tolist(), strict=True):
            wanted = as_float(sounds[key])[:600]
            assert length == len(wanted)
            np.testing.assert_array_equal(row[:length], wanted)
            assert not row[length:].any()


def test_repeating(shards: ShardSet, sounds: Sounds) -> None:
    for batch in stream(shards, short="repeat", clip_samples=700):
        assert batch["lengths"].tolist() == [700] * len(batch["keys"])
        for key, row in zip(batch["keys"], batch["waveform"].numpy(), strict=True):
            np.testing.assert_array_equal(row, np.tile(as_float(sounds[key]), 3)[:700])


def offset(row: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> int:
    """Where a clip lies in its recording."""
    starts = np.flatnonzero(whole[: len(whole) - len(row) + 1] == row[0])
    (place,) = [int(n) for n in starts if np.array_equal(whole[n : n + len(row)], row)]
    return place


def test_training_clips_are_cut_at_random(tmp_path: Path) -> None:
    whole = sound(500, 0)
    shard = write_set(tmp_path, {"long": whole})
    batches = some(stream(shard, training=True, batch_size=1, clip_samples=SHORTEST), 300)
    places = [offset(batch["waveform"][0].numpy(), as_float(whole)) for batch in batches]
    last = 500 - SHORTEST
    assert len(set(places)) > 100
    assert 0 <= min(places) < 20 and last - 20 < max(places) <= last
    assert abs(np.mean(places) - last / 2) < 4 * last / np.sqrt(12 * 300)
    fixed = stream(shard, batch_size=1, clip_samples=SHORTEST)
    assert [offset(batch["waveform"][0].numpy(), as_float(whole)) for batch in fixed] == [0]


def test_only_the_needed_part_of_a_long_recording_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sound(RATE * 60, 0)
    shard = write_set(tmp_path, {"hour": whole})
    decoded = []
    read = soundfile.SoundFile.read

    def spy(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> Any:
        samples = read(self, *arguments, **options)
        decoded.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    (batch,) = some(stream(shard, training=True, batch_size=8), 1)
    assert decoded == [600] * 8
    places = [offset(row, as_float(whole)) for row in batch["waveform"].numpy()]
    assert len(set(places)) == 8


@pytest.mark.parametrize("clip_samples", [250, 600, 2000])
def test_packing_loses_nothing_and_fills_every_clip(shards: ShardSet, sounds: Sounds, clip_samples: int) -> None:
    batches = list(stream(shards, short="pack", clip_samples=clip_samples))
    joined = np.concatenate([as_float(samples) for samples in sounds.values()])
    clips = torch.cat([batch["waveform"] for batch in batches])
    assert len(clips) == len(joined) // clip_samples
    np.testing.assert_array_equal(clips.flatten().numpy(), joined[: len(clips) * clip_samples])
    assert {length for batch in batches for length in batch["lengths"].tolist()} == {clip_samples}
    # Each clip is named after the recordings that it holds a part of.
    ends = dict(zip(sounds, np.cumsum([len(samples) for samples in sounds.values()]), strict=True))
    for number, name in enumerate(keys(batches)):
        first, last = number * clip_samples, (number + 1) * clip_samples
        held = [key for key, end in ends.items() if first < end and end - len(sounds[key]) < last]
        assert name == "+".join(held)


def test_packing_goes_on_over_the_end_of_an_epoch(shards: ShardSet, sounds: Sounds) -> None:
    order = keys(some(stream(shards, training=True, batch_size=1, clip_samples=900), 69))
    joined = np.concatenate([as_float(sounds[key]) for key in order])
    clips = len(joined) // 600
    batches = some(stream(shards, training=True, short="pack", batch_size=1), clips)
    np.testing.assert_array_equal(
        torch.cat([batch["waveform"] for batch in batches]).flatten().numpy(), joined[: clips * 600]
    )


def test_several_channels_are_mixed(tmp_path: Path) -> None:
    stereo = np.stack([sound(600, 0), sound(600, 1)], axis=1)
    (batch,) = stream(write_set(tmp_path, {"stereo": flac(stereo)}))
    np.testing.assert_allclose(batch["waveform"][0].numpy(), as_float(stereo).mean(1), atol=1e-7)


# With which labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    made = {f"r{number}": sound(400, number) for number in range(4)}
    return write_set(
        tmp_path_factory.mktemp("labelled"),
        made,
        digit={"r0": "two", "r1": "one", "r2": "two", "r3": "three"},
        tags={"r0": ["a", "c"], "r1": [], "r2": ["b"], "r3": ["c", "a", "b"]},
    )


def test_one_label_a_clip_is_its_place_in_the_list(labelled: ShardSet) -> None:
    (batch,) = stream(labelled, labels=Labels("digit", ["one", "two", "three"]))
    assert batch["labels"].dtype == torch.int64
    assert dict(zip(batch["keys"], batch["labels"].tolist(), strict=True)) == {"r0": 1, "r1": 0, "r2": 1, "r3": 2}


def test_several_labels_a_clip_are_multi_hot(labelled: ShardSet) -> None:
    (batch,) = stream(labelled, labels=Labels("tags", ["a", "b", "c"], multi_label=True))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
    (batch,) = stream(labelled, labels=Labels("digit", ["one", "two", "three"], multi_label=True))
    assert batch["labels"].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_without_labels_there_are_none(labelled: ShardSet) -> None:
    (batch,) = stream(labelled)
    assert batch["labels"].numel() == 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (Labels("digit", ["one", "two"]), r"r3 in .*0\.tar has digit 'three'; expected one of the 2"),
        (Labels("speaker", ["ada"]), r"r0 in .*0\.tar has speaker None"),
        (Labels("tags", ["a", "b", "c"]), r"r0 .* has tags \['a', 'c'\]; expected one of the 3"),
        (Labels("tags", ["a", "b"], multi_label=True), r"r0 .* has tags \['a', 'c'\]; expected some of the 2"),
    ],
)
def test_a_label_that_the_list_lacks_is_told(labelled: ShardSet, labels: Labels, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(stream(labelled, labels=labels))


def test_labels_are_read_without_the_audio(labelled: ShardSet) -> None:
    names = enumerate(("two", "one", "two", "three"))
    assert read_labels(labelled, "digit", ShardCache(1)) == {row: (f"r{row}", f'"{name}"') for row, name in names}
    assert read_labels(labelled, "speaker", ShardCache(1)) == {}


def test_a_twentieth_of_the_labels_is_stratified_to_the_clip() -> None:
    names = {f"{digit}-{take}": str(digit) for digit in range(10) for take in range(270)}
    chosen = stratified_subset(names, 0.05, seed=0)
    counts = Counter(names[name] for name in chosen)
    assert len(chosen) == 135
    assert sorted(counts.values()) == [13] * 5 + [14] * 5  # 13.5 of each
    assert chosen == stratified_subset(dict(reversed(names.items())), 0.05, seed=0)
    other = stratified_subset(names, 0.05, seed=1)
    assert len(other) == 135 and len(chosen & other) < 30


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1 / 3, 0.5, 0.999, 1.0])
def test_uneven_labels_keep_their_proportions(fraction: float) -> None:
    sizes = {"a": 100, "b": 37, "c": 5, "d": 1}
    names = {f"{label}{number}": label for label, size in sizes.items() for number in range(size)}
    counts = Counter(names[name] for name in stratified_subset(names, fraction, seed=3))
    assert counts.total() == round(fraction * 143)
    assert all(abs(counts[label] - fraction * size) < 1 for label, size in sizes.items())


# What is bad


BAD = {
    "noise": b"no audio",
    "click": sound(SHORTEST - 1, 50),
    "fast": flac(sound(600, 51), RATE * 2),
    "cut": flac(sound(500, 52)),
}


@pytest.fixture
def spoilt(sounds: Sounds, tmp_path: Path) -> ShardSet:
    """One of no audio, one too short, one of another rate, one shorter than the table says; then ten good ones."""
    return write_set(tmp_path, BAD, dict(itertools.islice(sounds.items(), 10)))


def skipped(batches: list[Batch]) -> list[str]:
    return [one for batch in batches for one in batch["skipped"]]


def test_bad_recordings_are_skipped_counted_and_named(
    spoilt: ShardSet, sounds: Sounds, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="ssamba"):
        batches = list(stream(spoilt, max_bad_fraction=4 / 14))
    told = skipped(batches)
    assert [one.split()[0] for one in told] == list(BAD)
    assert all(f"in {spoilt.shards[0].path}" in one for one in told)
    assert told[0].endswith("cannot be decoded: it begins like text")  # the same text in every epoch
    assert f"it has {SHORTEST - 1} samples; one frame takes {SHORTEST}" in told[1]
    assert "it is of 16000 Hz; expected 8000 Hz" in told[2]
    assert "it ends after 500 samples; at least 600 are expected" in told[3]
    assert [record.getMessage() for record in caplog.records] == [f"skipped {one}" for one in told]
    assert keys(batches) == list(sounds)[:10]
    assert [place for batch in batches for place in batch["positions"]] == list(range(4, 14))


def test_in_training_the_next_clip_takes_the_place(spoilt: ShardSet, sounds: Sounds) -> None:
    batches = some(stream(spoilt, training=True, max_bad_fraction=0.6, batch_size=2), 14)
    order = [made.clip(place)[0].row for made in [stream(spoilt, training=True).order] for place in range(60)]
    usable = list(sounds)[:10]
    expected = [next(usable[row - 4] for row in order[place:] if row >= 4) for place in range(28)]
    assert keys(batches) == expected
    assert [place for batch in batches for place in batch["positions"]] == list(range(28))
    assert {one.split()[0] for one in skipped(batches)} == set(BAD)


def test_of_a_packed_clip_the_usable_part_fills_it(tmp_path: Path) -> None:
    good = sound(500, 0)
    (batch,) = stream(
        write_set(tmp_path, {"noise": b"no audio", "good": good}), short="pack", clip_samples=1100, max_bad_fraction=0.5
    )
    assert batch["keys"] == ["good"] and batch["lengths"].tolist() == [1100]
    np.testing.assert_array_equal(batch["waveform"][0].numpy(), np.tile(as_float(good), 3)[:1100])
    assert skipped([batch])[0].startswith("noise in ")


def test_too_many_bad_recordings_end_the_epoch(spoilt: ShardSet) -> None:
    with pytest.raises(UserError, match=r"4 of 14 recordings are bad, more than data.max_bad_fraction 0.28"):
        list(stream(spoilt, max_bad_fraction=0.28, batch_size=1))


def test_many_bad_recordings_end_a_long_epoch_early(tmp_path: Path) -> None:
    good, later = {f"g{n}": sound(300, n) for n in range(190)}, {f"h{n}": sound(300, n) for n in range(300)}
    shards = write_set(tmp_path, good, {f"b{n}": b"no audio" for n in range(10)}, later)
    seen: list[str] = []
    with pytest.raises(UserError, match="10 of 200 recordings are bad"):
        for batch in stream(shards, max_bad_fraction=0.049, batch_size=1):
            seen += batch["keys"]
    assert "h0" not in seen
    assert len(keys(list(stream(shards, max_bad_fraction=0.05)))) == 490


@pytest.mark.parametrize(("training", "said"), [(False, "none of 2 recordings"), (True, "100 clips one after another")])
def test_no_usable_recording_at_all_is_told_whatever_the_recipe_allows(
    tmp_path: Path, training: bool, said: str
) -> None:
    shards = write_set(tmp_path, {"a": b"no audio", "b": b"nor this"})
    with pytest.raises(UserError, match=said):
        some(stream(shards, training=training, max_bad_fraction=1.0), 2)


def test_a_rank_without_a_usable_clip_does_not_let_the_others_wait(tmp_path: Path) -> None:
    shards = write_set(tmp_path, {"a": sound(600, 0), "b": sound(600, 1), "noise": b"no audio", "nor": b"this"})
    assert keys(list(stream(shards, batch_size=2, max_bad_fraction=0.5, rank=0, world_size=2))) == ["a", "b"]
    with pytest.raises(UserError, match="no clip of a validation batch can be used, .* the last: nor in "):
        list(stream(shards, batch_size=2, max_bad_fraction=0.5, rank=1, world_size=2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "its .json cannot be used: Input data was truncated"),
        (b"[]", "its .json cannot be used: Expected `object`"),
        (b"\xff", "its .json cannot"),
        (b'{"key": 3, "labels": {}}', "Expected `str`, got `int` at `key`"),
        (b'{"key": "a"}', "missing required field `labels`"),
    ],
)
def test_a_sample_with_a_damaged_description_is_bad(tmp_path: Path, text: bytes, said: str) -> None:
    shards = write_set(tmp_path, {"a": (flac(sound(600, 0)), text), "b": sound(600, 1)})
    (batch,) = stream(shards, max_bad_fraction=0.5)
    assert batch["keys"] == ["b"]
    assert batch["skipped"][0].startswith("sample 0 in ") and said in batch["skipped"][0]
    with pytest.raises(UserError, match=f"sample 0 of .*000000.tar: .*{said}"):
        read_labels(shards, "digit", ShardCache(1))


def test_a_sample_without_a_description_is_named_after_its_place(tmp_path: Path) -> None:
    (batch,) = stream(write_set(tmp_path, {"x": sound(600, 2)}, {"a": (flac(sound(600, 0)), b""), "b": sound(600, 1)}))
    assert batch["keys"] == ["x", "000001/0", "b"]


def test_a_shard_that_is_cut_or_gone_while_a_run_goes_on(tmp_path: Path, sounds: Sounds) -> None:
    parts = [{key: sounds[key]} for key in list(sounds)[:6]]
    shards = write_set(tmp_path, *parts)
    made = stream(shards, max_bad_fraction=0.2)
    path = shards.shards[4].path
    path.write_bytes(path.read_bytes()[:900])
    batches = list(made)
    assert keys(batches) == [key for number, key in enumerate(list(sounds)[:6]) if number != 4]
    assert "its shard ends before it does" in skipped(batches)[0]
    shards.shards[5].path.unlink()
    with pytest.raises(UserError, match=f"the shard {shards.shards[5].path} cannot be read"):
        list(stream(shards, max_bad_fraction=0.2))


@pytest.mark.parametrize("seed", range(5))
def test_flipped_bits_harm_single_recordings_at_most(tmp_path: Path, sounds: Sounds, seed: int) -> None:
    """Whatever is flipped in a shard, every batch comes, nothing crashes, and no place has another's audio."""
    shards = write_set(tmp_path, dict(itertools.islice(sounds.items(), 12)))
    path, rng = shards.shards[0].path, random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(20):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    batches = list(stream(shards, max_bad_fraction=1.0))
    assert len(keys(batches)) + len(skipped(batches)) == 12
    assert all(torch.isfinite(batch["waveform"]).all() for batch in batches)


# With the writer


def test_what_the_writer_wrote(corpus: Path, recordings: dict[str, list[Any]]) -> None:
    """Through write_shards: the recordings themselves, with their labels."""
    held = find_shards([str(corpus / "test")])
    order = ClipOrder(held, ClipRules(16000, "pad", 0, 0))
    made = ClipStream(
        held,
        order,
        batch_size=7,
        sampling_rate=16000,
        training=False,
        labels=Labels("sound", held.labels["sound"]),
        max_bad_fraction=0.0,
        cache=ShardCache(1),
    )
    by_key: dict[str, Callable[[], Any]] = {recording.key: recording for recording in recordings["test"]}
    seen = 0
    for batch in made:
        rows = zip(batch["keys"], batch["waveform"].numpy(), batch["lengths"].tolist(), batch["labels"], strict=True)
        for key, row, length, label in rows:
            wanted = soundfile.read(by_key[key].path, dtype="float32")[0][:16000]
            np.testing.assert_array_equal(row[:length], wanted)
            assert held.labels["sound"][int(label)] == by_key[key].labels["sound"]
            seen += 1
    assert seen == 24
