"""The stream as a pipeline of webdataset: its source, its filters, and what they may do to the order."""

import io
import itertools
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset as wds

from ssamba.data import pipeline
from ssamba.data.batches import Batch, Sample
from ssamba.data.indexed import IndexedShards
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError

RATE = 8000


def sound(samples: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-20000, 20000, samples).astype(np.int16)


def encoded(samples: np.ndarray[Any, Any], form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form)
    return file.getvalue()


def name(number: int) -> str:
    """Of a sample; some are longer than a header has room for, or in other letters."""
    return f"{'a folder/' * (number % 5)}{'long-' * 25 * (number % 7 == 3)}{'ü' * (number % 11 == 4)}r{number:02d}"


def of_others(number: int) -> Sample:
    """A sample of another program: a recording of one of three formats, a text, a vector, and a second recording."""
    form = ("flac", "wav", "ogg")[number % 3]
    return {
        "__key__": name(number),
        form: encoded(sound(500 + 40 * number, number), form.upper()),
        "txt": f"words of {number}",
        "vector.npy": np.arange(3) + number,
        "clean.bin": bytes([number]) * number,
    }


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 samples in 4 shards that webdataset wrote, and `ssamba shards index` indexed."""
    folder = tmp_path_factory.mktemp("foreign") / "train"
    folder.mkdir()
    for shard in range(4):
        with wds.TarWriter(str(folder / f"part-{shard}.tar")) as writer:
            for number in range(shard * 7, min(26, shard * 7 + 7)):
                writer.write(of_others(number))
    index_folder(folder)
    return folder


def heard(folder: Path, count: int, *, workers: int = 0, **options: Any) -> list[Batch]:
    """The first batches that a loader of webdataset has of it."""
    made = pipeline(str(folder), **{"seconds": 0.1, "batch_size": 4, "shuffle_buffer": 12, **options})
    return list(itertools.islice(wds.WebLoader(made, batch_size=None, num_workers=workers), count))


def order_of(batches: list[Batch]) -> list[Any]:
    return [(batch["keys"], batch["positions"], batch["lengths"].tolist()) for batch in batches]


# The source


def test_the_source_gives_what_webdataset_reads_in_our_order(foreign: Path) -> None:
    """From the middle of one epoch to the middle of the next."""
    shards = find_shards(str(foreign))
    read = {
        (one["__url__"], one["__key__"]): one for one in wds.tarfile_samples({"url": path} for path in shards.paths)
    }
    order = ClipOrder(shards, ClipRules(800, "pad", 12, 0))
    extensions = ("txt", "vector.npy", "clean.bin", "none")
    source = IndexedShards(
        shards,
        order,
        batch_size=4,
        training=True,
        max_bad_fraction=0.0,
        cache=ShardCache(1),
        members=extensions,
        first=17,
    )
    samples = list(itertools.islice(wds.DataPipeline(source), 25))
    rows = list(read)
    for place, sample in enumerate(samples, start=17):
        plain = {key: value for key, value in sample.items() if key != "__part__"}
        assert plain == read[sample["__url__"], sample["__key__"]]
        assert plain["__key__"] == name(order.clip(place)[0].row) == rows[order.clip(place)[0].row][1]


def test_its_own_shards_have_their_json(corpus: Path) -> None:
    shards = find_shards(str(corpus / "validation"))
    order = ClipOrder(shards, ClipRules(8000, "pad", 0, 0))
    source = IndexedShards(shards, order, batch_size=4, training=False, max_bad_fraction=0.0, cache=ShardCache(1))
    plain = wds.DataPipeline(wds.SimpleShardList(shards.paths), wds.tarfile_to_samples())
    ours = [{key: value for key, value in sample.items() if key != "__part__"} for sample in wds.DataPipeline(source)]
    assert ours == list(plain)


def test_what_makes_and_reads_samples_needs_no_torch() -> None:
    code = "import sys, ssamba.data.prepare.writer, ssamba.data.shards.reader; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Filters of others


def noisy(clip: Sample) -> Sample:
    chance = np.random.default_rng([7, clip["__place__"]])
    return {**clip, "waveform": clip["waveform"] + torch.from_numpy(chance.normal(0, 0.1, 800)).float()}


def louder(clip: Sample) -> Sample:
    clip["waveform"] *= 2  # in its row
    return clip


def peak(clip: Sample) -> Sample:
    return {**clip, "peak": float(clip["waveform"].abs().max()), "named": clip["__key__"].upper()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_filter_changes_what_is_heard_and_nothing_of_the_order(foreign: Path) -> None:
    plain = heard(foreign, 16)
    stages = [wds.map(noisy), wds.map(louder), wds.map(peak)]
    changed = heard(foreign, 16, stages=stages)
    assert order_of(changed) == order_of(plain)
    assert [batch["consumed"] for batch in changed] == [batch["consumed"] for batch in plain]
    for batch, before in zip(changed, plain, strict=True):
        noise = [np.random.default_rng([7, place]).normal(0, 0.1, 800) for place in batch["positions"]]
        assert torch.equal(batch["waveform"], 2 * (before["waveform"] + torch.from_numpy(np.stack(noise)).float()))
        assert batch["peak"].tolist() == batch["waveform"].abs().amax(1).tolist()  # type: ignore[typeddict-item]
        assert batch["named"] == [key.upper() for key in batch["keys"]]  # type: ignore[typeddict-item]
    # It goes on anywhere, with other ranks and workers.
    again = heard(foreign, 9, stages=stages, first=28, workers=3)
    halves = [heard(foreign, 9, stages=stages, first=28, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert order_of(again) == order_of(changed[7:])
    for step, batch in enumerate(changed[7:]):
        both = [half[step] for half in halves]
        for found in ([again[step]], both):
            assert torch.equal(torch.cat([one["waveform"] for one in found]), batch["waveform"])
            assert np.array_equal(np.concatenate([one["peak"] for one in found]), batch["peak"])  # type: ignore[typeddict-item]


def test_it_can_be_pickled(foreign: Path) -> None:
    """As it is for workers that are spawned."""
    made = pipeline(str(foreign), seconds=0.1, batch_size=4, shuffle_buffer=12, stages=[wds.map(noisy)], batches=4)
    next(iter(made))
    for ours, theirs in zip(made, pickle.loads(pickle.dumps(made)), strict=True):
        assert torch.equal(ours["waveform"], theirs["waveform"]) and ours["keys"] == theirs["keys"]


def test_stages_may_look_ahead(foreign: Path) -> None:
    """As a teacher that takes several clips at a time."""

    def mean(clips: list[Sample]) -> list[Sample]:
        means = torch.stack([clip["waveform"] for clip in clips]).mean(1)
        return [{**clip, "mean": value} for clip, value in zip(clips, means, strict=True)]

    stages = [wds.batched(6, collation_fn=None), wds.map(mean), wds.filters.unlisted()]
    for options in ({}, {"training": False}):
        changed, plain = heard(foreign, 5, stages=stages, **options), heard(foreign, 5, **options)
        assert order_of(changed) == order_of(plain)
        for batch in changed:
            torch.testing.assert_close(batch["mean"], batch["waveform"].mean(1))  # type: ignore[typeddict-item]


def twice(clips: Iterator[Sample]) -> Iterator[Sample]:
    for clip in clips:
        yield clip
        yield clip


def thirds(clip: Sample) -> bool:
    return bool(clip["__place__"] % 3)


def bare(clip: Sample) -> Sample:
    return {"waveform": clip["waveform"]}


def nothing(clip: Sample) -> bool:
    return False


def all_but_the_last(clip: Sample) -> Sample | None:
    return clip if clip["__place__"] != 25 else None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (wds.select(thirds), r".* \(place 1\) where .* \(place 0\) was expected"),
        (wds.select(nothing), r"nothing where .* \(place 0\) was expected"),
        (
            wds.map(lambda clip: clip if clip["__place__"] != 25 else None),
            r"(\(place 26\)|nothing) where .*place 25\) ",
        ),
        (twice, r"\(place 0\) where (none was expected any more|.*\(place 1\) was expected)"),
        (wds.shuffle(20, rng=random.Random(0)), r"place \d+\) where .*\(place 0\) was expected"),
        (wds.map(bare), r"what has no __place__ where .*\(place 0\) was expected"),
        (wds.to_tuple("waveform"), r"what has no __place__ where .*\(place 0\) was expected"),
    ],
)
def test_a_stage_that_changes_the_order_is_told(foreign: Path, stage: Any, said: str, training: bool) -> None:
    with pytest.raises(UserError, match=f"a stage behind the clips gave .*{said}.*drops, adds or reorders clips"):
        heard(foreign, 400, stages=[stage], training=training)


def test_a_waveform_of_another_length_is_told(foreign: Path) -> None:
    with pytest.raises(UserError, match=r"waveform of shape \(400,\); expected \(800,\), as it came"):
        heard(foreign, 1, stages=[wds.map(lambda clip: {**clip, "waveform": clip["waveform"][::2]})])


def test_what_cannot_be_used_passes_by(foreign: Path, tmp_path: Path) -> None:
    """Held-out batches leave it out, in training the next clip is in its place: stages see what can be used alone."""
    folder = tmp_path / "train"
    folder.mkdir()
    with wds.TarWriter(str(folder / "part.tar")) as writer:
        for number in range(12):
            writer.write({"__key__": name(number), "wav": encoded(sound(900, number), "WAV")})
    index_folder(folder)
    path = folder / "part.tar"
    content = bytearray(path.read_bytes())
    rows = find_shards(str(folder)).table["audio"]
    for number in (0, 3, 5, 6, 7, 11):
        content[rows[number] : rows[number] + 100] = b"spoilt by someone".ljust(100)
    path.write_bytes(content)
    lengths: list[int] = []

    def seen(clip: Sample) -> Sample:
        lengths.append(clip["length"])
        return clip

    for options in ({"training": False}, {"batches": 9}):
        plain = heard(folder, 9, max_bad_fraction=1.0, **options)
        ours = heard(folder, 9, max_bad_fraction=1.0, stages=[wds.map(seen)], **options)
        assert order_of(ours) == order_of(plain)
        assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(ours, plain, strict=True))
        assert [len(batch["keys"]) for batch in ours] == ([2, 1, 3] if "training" in options else [4] * 9)
        assert [one for batch in ours for one in batch["skipped"]] == [s for batch in plain for s in batch["skipped"]]
    assert len(lengths) == 6 + 36


# Members


def test_members_that_are_asked_for_come_with_their_clip(foreign: Path) -> None:
    asked = ["txt", "vector.npy", "clean.bin", "none"]

    def vector(clip: Sample) -> Sample:
        return {**clip, "vector": torch.from_numpy(np.load(io.BytesIO(clip["vector.npy"])))}

    numbers: list[int] = []
    for batch in heard(foreign, 7, members=asked, stages=[wds.map(vector)], training=False):
        found: dict[str, Any] = dict(batch)
        for place, position in enumerate(found["positions"]):
            assert found["txt"][place] == f"words of {position}".encode()
            assert found["clean.bin"][place] == bytes([position]) * position
            assert found["vector"][place].tolist() == [position, position + 1, position + 2]
        assert found["none"] == [None] * len(found["keys"])
        numbers += found["positions"]
    assert numbers == list(range(26))
    (batch,) = heard(foreign, 1, members=["txt"], short="pack", seconds=0.3, training=False, batch_size=1)
    assert batch["txt"] == [[b"words of 0", b"words of 1", b"words of 2", b"words of 3", b"words of 4"]]  # type: ignore[typeddict-item]


def test_a_label_is_read(corpus: Path) -> None:
    shards = find_shards(str(corpus / "train"))
    for batch in heard(corpus / "train", 4, label="sound"):
        assert [shards.labels["sound"][label] for label in batch["labels"].tolist()] == [
            key.partition("-")[0] for key in batch["keys"]
        ]
    (batch,) = heard(corpus / "train", 1, label="tags", multi_label=True)
    assert batch["labels"].shape == (4, 6) and batch["labels"].sum(1).tolist() == [2] * 4
    with pytest.raises(UserError, match="label is 'speed', which the shards lack; they have sound, speaker, tags"):
        heard(corpus / "train", 1, label="speed")


def test_what_is_composed_behind_the_batches(foreign: Path) -> None:
    made = pipeline(str(foreign), seconds=0.1, batch_size=4, training=False)
    shapes: Callable[[Any], Any] = lambda batch: {"rows": len(batch["keys"])}  # noqa: E731
    assert [batch["rows"] for batch in made.compose(wds.map(shapes))] == [3, 4, 4, 3, 4, 4, 4]
    assert len(made) == len(list(made)) == 7
