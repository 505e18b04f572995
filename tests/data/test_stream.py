"""What the stream yields: which recordings, in which order, cut and joined how, with which labels."""

import io
import itertools
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.utils.data

from ssamba.audio import samples_for
from ssamba.data.index import find_shards
from ssamba.data.stream import Batch, ClipStream, Labels, read_labels, stratified_subset
from ssamba.errors import UserError

RATE = 8000
SHORTEST = samples_for(1, RATE)


def flac(samples: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    return file.getvalue()


def write_shard(path: Path, samples: Mapping[str, np.ndarray[Any, Any] | bytes], **labels: Any) -> str:
    """Key -> waveform (int16) or the bytes of its .flac; labels hold a value for each key, or one for all."""
    with tarfile.open(path, "w") as tar:
        for key, sound in samples.items():
            own = {name: value[key] if isinstance(value, dict) else value for name, value in labels.items()}
            content = {"flac": sound if isinstance(sound, bytes) else flac(sound),
                       "json": json.dumps({"key": key, "labels": own}).encode()}  # fmt: skip
            for extension, data in content.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def sound(samples: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-20000, 20000, samples).astype(np.int16)


Sounds = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def sounds() -> Sounds:
    """23 recordings of 300 to 900 samples."""
    rng = random.Random(0)
    return {f"r{number:02d}": sound(rng.randint(300, 900), number) for number in range(23)}


@pytest.fixture(scope="module")
def shards(sounds: Sounds, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The recordings in 6 shards of 1 to 6."""
    folder = tmp_path_factory.mktemp("shards")
    keys = iter(sounds)
    return [
        write_shard(folder / f"{number:06d}.tar", {key: sounds[key] for key in itertools.islice(keys, count)})
        for number, count in enumerate((4, 6, 1, 5, 4, 3))
    ]


def stream(shards: Sequence[str], **changes: Any) -> ClipStream:
    settings: dict[str, Any] = {
        "batch_size": 4, "sampling_rate": RATE, "clip_samples": 600, "seed": 0, "shuffle_buffer": 8, "repeat": False,
        "max_seconds": 10.0, "max_bad_fraction": 0.0,
    }  # fmt: skip
    return ClipStream(shards, **{**settings, **changes})


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


def epoch(made: ClipStream, consumer: int, consumers: int, number: int) -> list[str]:
    """The recordings that one consumer reads in an epoch."""
    return [one["key"] for one in made._recordings(number, consumer, consumers, [])]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a["keys"] == b["keys"] and all(torch.equal(a[name], b[name]) for name in ("waveform", "lengths", "labels"))  # type: ignore[literal-required]
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


# Which recordings


@pytest.mark.parametrize("consumers", [1, 2, 3, 6, 8, 23])
@pytest.mark.parametrize("repeat", [False, True])
def test_every_recording_once_an_epoch(shards: list[str], sounds: Sounds, consumers: int, repeat: bool) -> None:
    for number in range(3):
        read = [epoch(stream(shards, repeat=repeat), consumer, consumers, number) for consumer in range(consumers)]
        assert sorted(itertools.chain(*read)) == sorted(sounds)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("workers", "world_size"), [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (3, 3)]
)
def test_every_recording_once_through_workers_and_ranks(
    shards: list[str], sounds: Sounds, workers: int, world_size: int
) -> None:
    read: list[str] = []
    for rank in range(world_size):
        made = stream(shards, rank=rank, world_size=world_size)
        read += keys(list(torch.utils.data.DataLoader(made, batch_size=None, num_workers=workers)))
    assert sorted(read) == sorted(sounds)


def test_a_training_stream_goes_on_without_padding_or_dropping(shards: list[str], sounds: Sounds) -> None:
    batches = list(itertools.islice(stream(shards, repeat=True, batch_size=5), 23))
    assert [len(batch["keys"]) for batch in batches] == [5] * 23
    read = keys(batches)
    for start in range(0, 115, 23):
        assert sorted(read[start : start + 23]) == sorted(sounds)


def test_only_the_wanted_keys_are_read(shards: list[str]) -> None:
    wanted = frozenset({"r00", "r05", "r22"})
    assert sorted(keys(list(stream(shards, keys=wanted)))) == sorted(wanted)
    repeated = itertools.islice(stream(shards, keys=wanted, repeat=True, batch_size=1), 6)
    assert sorted(keys(list(repeated))) == sorted([*wanted, *wanted])


@pytest.mark.parametrize("consumers", [2, 4, 6])
def test_a_consumer_whose_shards_hold_no_wanted_key_waits_for_the_next_epoch(shards: list[str], consumers: int) -> None:
    wanted = frozenset({"r00"})
    for consumer in range(consumers):
        made = stream(shards, keys=wanted, repeat=True, batch_size=1, rank=consumer, world_size=consumers)
        assert keys(list(itertools.islice(made, 2))) == ["r00", "r00"]
    for number in range(4):
        read = [epoch(stream(shards, keys=wanted, repeat=True), i, consumers, number) for i in range(consumers)]
        assert sum(read, []) == ["r00"]


def test_more_consumers_than_held_out_recordings_leave_some_without(shards: list[str]) -> None:
    wanted = frozenset({"r00", "r03"})
    read = [keys(list(stream(shards, keys=wanted, rank=rank, world_size=3))) for rank in range(3)]
    assert sorted(map(len, read)) == [0, 1, 1]


def test_more_consumers_than_training_recordings_are_told(shards: list[str]) -> None:
    made = stream(shards, keys=frozenset({"r00"}), repeat=True, rank=6, world_size=7)
    with pytest.raises(UserError, match="no recording of 6 shards"):
        next(iter(made))


# In which order


def test_held_out_recordings_keep_the_order_of_the_shards(shards: list[str], sounds: Sounds) -> None:
    assert keys(list(stream(shards))) == list(sounds)


def test_another_order_each_epoch_and_the_same_for_the_same_seed_and_epoch(shards: list[str], sounds: Sounds) -> None:
    made = {
        (seed, number): epoch(stream(shards, repeat=True, seed=seed), 0, 1, number)
        for seed in range(2) for number in range(3)
    }  # fmt: skip
    assert len({tuple(order) for order in [*made.values(), list(sounds)]}) == 7
    assert made == {
        (seed, number): epoch(stream(shards, repeat=True, seed=seed), 0, 1, number) for seed, number in made
    }  # fmt: skip
    # The stream's second epoch is that of the number 1, whatever was read before.
    assert keys(list(itertools.islice(stream(shards, repeat=True, batch_size=1), 46)))[23:] == made[0, 1]


def test_shards_are_permuted_before_they_are_dealt_out(shards: list[str]) -> None:
    def held(number: int) -> frozenset[str]:
        return frozenset(epoch(stream(shards, repeat=True), 0, 3, number))

    assert len({held(number) for number in range(4)}) > 1


def test_recordings_of_several_shards_are_mixed(shards: list[str]) -> None:
    order = epoch(stream(shards, repeat=True, shuffle_buffer=1000), 0, 1, 0)
    number = {key: place for place, key in enumerate(sorted(order))}
    assert sum(abs(number[one] - number[two]) == 1 for one, two in itertools.pairwise(order)) < 8
    in_turn = epoch(stream(shards, repeat=True, shuffle_buffer=1), 0, 1, 0)
    assert sum(abs(number[one] - number[two]) == 1 for one, two in itertools.pairwise(in_turn)) >= 15


@pytest.mark.parametrize("short", ["pad", "repeat", "pack"])
def test_a_second_pass_is_bitwise_equal(shards: list[str], short: str) -> None:
    made = stream(shards, repeat=True, short=short)
    first = list(itertools.islice(made, 14))
    random.seed(5)  # the global generators have no say
    assert same(first, list(itertools.islice(made, 14)))
    assert not same(first, list(itertools.islice(stream(shards, repeat=True, short=short, seed=1), 14)))


# Cut and joined how


def as_float(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return samples.astype(np.float32) / 32768


def test_padding(shards: list[str], sounds: Sounds) -> None:
    """Held-out recordings: from their start, zeros after their end."""
    for batch in stream(shards):
        assert batch["waveform"].dtype == torch.float32 and batch["waveform"].shape[1] == 600
        for key, row, length in zip(batch["keys"], batch["waveform"].numpy(), batch["lengths"].tolist(), strict=True):
            wanted = as_float(sounds[key])[:600]
            assert length == len(wanted)
            np.testing.assert_array_equal(row[:length], wanted)
            assert not row[length:].any()


def test_repeating(shards: list[str], sounds: Sounds) -> None:
    for batch in stream(shards, short="repeat", clip_samples=700):
        assert batch["lengths"].tolist() == [700] * len(batch["keys"])
        for key, row in zip(batch["keys"], batch["waveform"].numpy(), strict=True):
            np.testing.assert_array_equal(row, np.tile(as_float(sounds[key]), 3)[:700])


def offset(row: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> int:
    """Where a clip lies in its recording."""
    (place,) = [n for n in range(len(whole) - len(row) + 1) if np.array_equal(whole[n : n + len(row)], row)]
    return place


def test_training_clips_are_cut_at_random(tmp_path: Path) -> None:
    whole = sound(500, 0)
    shard = write_shard(tmp_path / "0.tar", {"long": whole})
    batches = itertools.islice(stream([shard], repeat=True, batch_size=1, clip_samples=SHORTEST), 300)
    places = [offset(batch["waveform"][0].numpy(), as_float(whole)) for batch in batches]
    last = 500 - SHORTEST
    assert len(set(places)) > 100
    assert 0 <= min(places) < 20 and last - 20 < max(places) <= last
    assert abs(np.mean(places) - last / 2) < 4 * last / np.sqrt(12 * 300)
    fixed = stream([shard], batch_size=1, clip_samples=SHORTEST)
    assert [offset(batch["waveform"][0].numpy(), as_float(whole)) for batch in fixed] == [0]


@pytest.mark.parametrize("clip_samples", [250, 600, 2000])
def test_packing_loses_nothing_and_fills_every_clip(shards: list[str], sounds: Sounds, clip_samples: int) -> None:
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


def test_packing_goes_on_over_the_end_of_an_epoch(shards: list[str], sounds: Sounds) -> None:
    order = [key for number in range(3) for key in epoch(stream(shards, repeat=True, short="pack"), 0, 1, number)]
    joined = np.concatenate([as_float(sounds[key]) for key in order])
    clips = len(joined) // 600
    batches = itertools.islice(stream(shards, repeat=True, short="pack", batch_size=1), clips)
    np.testing.assert_array_equal(
        torch.cat([batch["waveform"] for batch in batches]).flatten().numpy(), joined[: clips * 600]
    )


# With which labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = {f"r{number}": sound(400, number) for number in range(4)}
    return write_shard(
        tmp_path_factory.mktemp("labelled") / "0.tar", made,
        digit={"r0": "two", "r1": "one", "r2": "two", "r3": "three"},
        tags={"r0": ["a", "c"], "r1": [], "r2": ["b"], "r3": ["c", "a", "b"]},
    )  # fmt: skip


def test_one_label_a_clip_is_its_place_in_the_list(labelled: str) -> None:
    (batch,) = stream([labelled], labels=Labels("digit", ["one", "two", "three"]))
    assert batch["labels"].dtype == torch.int64
    assert dict(zip(batch["keys"], batch["labels"].tolist(), strict=True)) == {"r0": 1, "r1": 0, "r2": 1, "r3": 2}


def test_several_labels_a_clip_are_multi_hot(labelled: str) -> None:
    (batch,) = stream([labelled], labels=Labels("tags", ["a", "b", "c"], several=True))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
    (batch,) = stream([labelled], labels=Labels("digit", ["one", "two", "three"], several=True))
    assert batch["labels"].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_without_labels_there_are_none(labelled: str) -> None:
    (batch,) = stream([labelled])
    assert batch["labels"].numel() == 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (Labels("digit", ["one", "two"]), r"r3 in .*0\.tar has digit 'three'; expected one of the 2"),
        (Labels("speaker", ["ada"]), r"r0 in .*0\.tar has speaker None"),
        (Labels("tags", ["a", "b", "c"]), r"r0 .* has tags \['a', 'c'\]; expected one of the 3"),
        (Labels("tags", ["a", "b"], several=True), r"r0 .* has tags \['a', 'c'\]; expected some of the 2"),
    ],
)
def test_a_label_that_the_list_lacks_is_told(labelled: str, labels: Labels, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(stream([labelled], labels=labels))


def test_labels_are_read_without_the_audio(labelled: str) -> None:
    assert read_labels([labelled], "digit") == {"r0": '"two"', "r1": '"one"', "r2": '"two"', "r3": '"three"'}
    assert read_labels([labelled], "speaker") == {}


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


@pytest.fixture
def spoilt(sounds: Sounds, tmp_path: Path) -> list[str]:
    """Ten good recordings, then one of no audio, one too short and one too long."""
    good = dict(itertools.islice(sounds.items(), 10))
    bad = {"noise": b"no audio", "click": sound(SHORTEST - 1, 50), "lecture": sound(RATE * 2 + 1, 51)}
    return [write_shard(tmp_path / "0.tar", good), write_shard(tmp_path / "1.tar", bad)]


@pytest.mark.parametrize("short", ["pad", "repeat", "pack"])
def test_bad_recordings_are_skipped_counted_and_named(
    spoilt: list[str], sounds: Sounds, short: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = spoilt[::-1]
    made = stream(spoilt, max_bad_fraction=3 / 13, max_seconds=2.0, short=short)
    with caplog.at_level("WARNING", logger="ssamba"):
        batches = list(made)
    skipped = [one for batch in batches for one in batch["skipped"]]
    assert [one.split()[0] for one in skipped] == ["noise", "click", "lecture"]
    assert all(f"in {spoilt[0]}" in one for one in skipped)
    assert skipped[0].endswith("cannot be decoded: Format not recognised.")  # the same text in every epoch
    assert f"it has {SHORTEST - 1} samples; one frame takes {SHORTEST}" in skipped[1]
    assert "at most 2 s" in skipped[2]
    assert [record.getMessage() for record in caplog.records] == [f"skipped {one}" for one in skipped]
    assert not batches[-1]["skipped"]
    if short != "pack":
        assert keys(batches) == list(sounds)[:10]


def test_too_many_bad_recordings_end_the_epoch(spoilt: list[str]) -> None:
    made = stream(spoilt, max_bad_fraction=0.2, max_seconds=2.0)
    with pytest.raises(UserError, match=r"3 of 13 recordings are bad, more than data.max_bad_fraction 0.2 .*lecture"):
        list(made)


def test_many_bad_recordings_end_a_long_epoch_early(tmp_path: Path) -> None:
    good, later = {f"g{n}": sound(300, n) for n in range(190)}, {f"h{n}": sound(300, n) for n in range(300)}
    bad = {f"b{n}": b"no audio" for n in range(10)}
    shards = [write_shard(tmp_path / f"{n}.tar", part) for n, part in enumerate((good, bad, later))]
    seen: list[str] = []
    with pytest.raises(UserError, match="10 of 200 recordings are bad"):
        for batch in stream(shards, max_bad_fraction=0.049, batch_size=1):
            seen += batch["keys"]
    assert "h0" not in seen
    assert len(keys(list(stream(shards, max_bad_fraction=0.05)))) == 490


def test_no_usable_recording_at_all_is_told_whatever_the_recipe_allows(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {"a": b"no audio", "b": b"nor this"})
    with pytest.raises(UserError, match="no recording of 1 shards"):
        list(stream([shard], max_bad_fraction=1.0))


def test_a_sample_without_its_audio_is_bad(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a": sound(400, 0), "b": sound(400, 1)})
    with tarfile.open(tmp_path / "0.tar") as whole, tarfile.open(tmp_path / "1.tar", "w") as part:
        for member in whole:
            if member.name != "a.flac":
                part.addfile(member, whole.extractfile(member))
    (batch,) = stream([str(tmp_path / "1.tar")], max_bad_fraction=0.5)
    assert batch["keys"] == ["b"]
    assert "a in" in batch["skipped"][0] and "lacks its .flac or its .json" in batch["skipped"][0]


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("cut", ["in the audio", "in a header"])
def test_a_truncated_shard_is_named(tmp_path: Path, sounds: Sounds, repeat: bool, cut: str) -> None:
    shards = [
        write_shard(tmp_path / f"{number}.tar", {key: sounds[key]}) for number, key in enumerate(list(sounds)[:6])
    ]
    damaged = Path(shards[4])
    damaged.write_bytes(damaged.read_bytes()[: 900 if cut == "in the audio" else 200])
    made = stream(shards, repeat=repeat)
    with pytest.raises(UserError, match=rf"shard {damaged} is damaged"):
        list(itertools.islice(made, 4))


def test_labels_of_a_truncated_shard(tmp_path: Path, labelled: str) -> None:
    damaged = tmp_path / "0.tar"
    damaged.write_bytes(Path(labelled).read_bytes()[:900])
    with pytest.raises(UserError, match=f"shard {damaged} is damaged"):
        read_labels([str(damaged)], "digit")


# With the writer


def test_what_the_writer_wrote(corpus: Path, recordings: dict[str, list[Any]]) -> None:
    """Through write_shards: the recordings themselves, with their labels."""
    held = find_shards([str(corpus / "test")])
    made = ClipStream(
        held.paths, batch_size=7, sampling_rate=16000, clip_samples=16000, seed=0, shuffle_buffer=1, repeat=False,
        labels=Labels("sound", held.labels["sound"]), max_seconds=10.0, max_bad_fraction=0.0,
    )  # fmt: skip
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
